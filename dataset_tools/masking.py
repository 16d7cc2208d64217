"""Masks made for the photos of a project, one after the other; what cuts out the subject does not matter.

Each mask is on disk before the next photo is looked at. ``masks.json`` beside the dataset notes which masks
were made here, so that one drawn by hand is known as such: it is never replaced unasked, and then kept beside
the new one. A photo that fails is named and the others go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from PIL import Image, ImageChops, ImageFilter, ImageStat

from dataset_tools import captioning
from dataset_tools.dataset import Dataset, DatasetError, ImageRecord, Size, load_dataset, project_lock
from dataset_tools.images import DECODE_ERRORS, encode_mask, open_image
from dataset_tools.masks import mask_path, names_of
from trainer.contract.errors import RunError, UserError
from trainer.contract.files import read_json, write_bytes, write_json

Existing = Literal["keep", "replace"]
EXISTING: tuple[Existing, ...] = get_args(Existing)
MODELS = {"clipseg": "CIDAS/clipseg-rd64-refined", "clipseg-rd64": "CIDAS/clipseg-rd64"}
"""What may be typed instead of a Hub id; both are by CLIPSeg's authors, 0.6 GB."""
THRESHOLD = 0.3
"""How certain CLIPSeg must be of a place; it is seldom sure."""
MADE_FILE = "masks.json"
LEAST, MOST = 0.02, 0.95
"""A subject has a share of the photo between these; anything else was not found."""
GROWS_AT_ONCE = 100
"""Pixels; a blur of one byte a pixel loses an edge that is much further away."""


class Model(Protocol):
    """What looks at a picture (RGB) and gives the mask of its subject, grey and of the same size.

    Raises RunError where no other photo would fare better, anything else for this photo alone.
    """

    def __call__(self, image: Image.Image) -> Image.Image: ...


@dataclass(frozen=True)
class Length:
    """Pixels, or percent of the photo's shorter side."""

    value: float = 0.0
    percent: bool = False

    def of(self, size: Size) -> int:
        return round(self.value * min(size) / 100 if self.percent else self.value)


NONE = Length()


@dataclass(frozen=True)
class Wishes:
    """What is done with a mask.

    Attributes:
        existing: what a photo that has a mask gets: nothing, or the new one.
        grow: by how much the white part grows on all sides.
        blur: over how much the edge is softened.
    """

    existing: Existing = "keep"
    grow: Length = NONE
    blur: Length = NONE

    def shape(self, mask: Image.Image) -> Image.Image:
        """A mask grown, then blurred."""
        if left := self.grow.of(mask.size):
            mask = mask.point([255 * (level > 127) for level in range(256)])
            while left > 0:
                near = mask.filter(ImageFilter.BoxBlur(min(left, GROWS_AT_ONCE)))
                mask = ImageChops.lighter(mask, near.point([255 * (level > 0) for level in range(256)]))
                left -= GROWS_AT_ONCE
        if blur := self.blur.of(mask.size):
            mask = mask.filter(ImageFilter.GaussianBlur(blur / 2))
        return mask


@dataclass
class Outcome(captioning.Outcome):
    """What came of it: how many masks were written, and {photo: why} for those that got none."""

    done = "masked"
    thing = "mask"


def mask_project(
    root: Path,
    load: Callable[[], Model],
    wishes: Wishes,
    *,
    work: str,
    tell: Callable[[str], None],
    photos: Sequence[str] = (),
) -> Outcome:
    """Make the masks that ``wishes`` mean, of all photos or of those named, less what the same ``work`` has
    got done. The model is loaded only if there is a photo for it. ``tell`` gets a line for each photo.

    It looks at the whole photo: a mask has its frame, and follows whatever crop is chosen later.
    Raises UserError, OSError.
    """
    dataset = load_dataset(root)
    wanted = pending(root, wishes, work, _named(dataset, photos))
    outcome = Outcome()
    model = load() if wanted else None
    for number, record in enumerate(wanted, 1):
        assert model
        try:
            image = open_image(root / record.file, record.original_name).image
            mask = model(image)
            why = implausible(mask)
        except RunError:
            raise
        except (UserError, RuntimeError, *DECODE_ERRORS) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
        if why:
            outcome.failed[record.original_name] = why
            tell(f"[{number}/{len(wanted)}] {record.original_name} got no mask: {why}")
            continue
        said = _write(root, record, wishes.shape(mask), wishes, work)
        outcome.written += said is not None
        share = f"{_share(mask):.0%} of the photo{said}" if said is not None else "has a mask of yours by now"
        tell(f"[{number}/{len(wanted)}] {record.original_name}: {share}")
    if not outcome.failed:
        _finish(root, work)
    return outcome


def pending(root: Path, wishes: Wishes, work: str, ids: Collection[str]) -> list[ImageRecord]:
    """The photos among ``ids`` that are to get a mask: with ``keep`` those without, else all but those that
    the same unfinished work has masked."""
    made = _made(root)

    def due(record: ImageRecord) -> bool:
        there = _digest(mask_path(root, record.id))
        if there is None:
            return True
        return wishes.existing == "replace" and made.get(record.id) != {"sha256": there, "work": work}

    return [record for record in load_dataset(root).images if record.id in ids and due(record)]


def implausible(mask: Image.Image) -> str:
    """Why a mask cannot be that of a subject; "" where it can."""
    share = _share(mask)
    if LEAST <= share <= MOST:
        return ""
    found = "nothing was found" if share < LEAST else "no background was found"
    return f"{found} ({share:.1%} of the photo); draw its mask, or try a model and a prompt"


def _named(dataset: Dataset, photos: Sequence[str]) -> set[str]:
    """The ids of the photos of these names; of all, where none is named."""
    if not photos:
        return {record.id for record in dataset.images}
    named = names_of(dataset.images)
    for name in photos:
        if name.casefold() not in named:
            raise DatasetError(f"There is no photo {name} in this project; check the spelling.")
    return {record.id for name in photos for record in named[name.casefold()]}


def _share(mask: Image.Image) -> float:
    return ImageStat.Stat(mask).mean[0] / 255


def _write(root: Path, record: ImageRecord, mask: Image.Image, wishes: Wishes, work: str) -> str | None:
    """Write a mask and return what else there is to say; None where the photo is gone, or has got a mask
    meanwhile."""
    data, path = encode_mask(mask), mask_path(root, record.id)
    with project_lock(root):
        there = _digest(path)
        gone = record.id not in {image.id for image in load_dataset(root).images}
        if gone or (there and wishes.existing == "keep"):
            return None
        made, said = _made(root), ""
        if there and made.get(record.id, {}).get("sha256") != there:
            kept = _free(path)
            write_bytes(kept, path.read_bytes())
            said = f"; what was there is kept as {kept.relative_to(root).as_posix()}"
        # Noted first: after a kill in between, the mask that is there is still known as somebody's own.
        made[record.id] = {"sha256": hashlib.sha256(data).hexdigest(), "work": work}
        write_json(root / MADE_FILE, made)
        write_bytes(path, data)
        return said


def _finish(root: Path, work: str) -> None:
    """The work is done: the same asked for again begins anew."""
    with project_lock(root):
        made = _made(root)
        if any(one["work"] == work for one in made.values()):
            done = {
                key: one | {"work": "" if one["work"] == work else one["work"]} for key, one in made.items()
            }
            write_json(root / MADE_FILE, done)


def _made(root: Path) -> dict[str, dict[str, Any]]:
    """{image id: {"sha256", "work"}} of the masks that were made here; nothing where the file is damaged, so
    that every mask counts as somebody's own."""
    try:
        found = read_json(root / MADE_FILE)
        return {str(key): {"sha256": one["sha256"], "work": one["work"]} for key, one in found.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError, KeyError):
        return {}


def _free(path: Path) -> Path:
    """A name for what was there, ``cat.before.png``, that nothing has yet."""
    number = 1
    while True:
        kept = path.with_name(f"{path.stem}.before{f'-{number}' if number > 1 else ''}.png")
        if not kept.exists():
            return kept
        number += 1


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
