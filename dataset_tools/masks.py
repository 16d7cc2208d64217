"""Masks: which part of a photo is learnt. White is learnt in full, black hardly, grey in between.

A mask is a grey picture of the same frame as its photo, at any size, and found by its name: ``cat-mask.png``,
``cat.mask.png``, ``cat_mask.png`` or ``cat-masklabel.png`` (OneTrainer's) beside ``cat.jpg``, or
``masks/cat.png`` in a folder beside it. A photo without one may have it in its own transparency.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageChops

from dataset_tools.dataset import ImageRecord, Size
from dataset_tools.images import ImageError, may_be_transparent, open_image
from dataset_tools.sources import Entry

ENDINGS = ("-mask", ".mask", "_mask", "-masklabel")
FOLDERS = ("masks", "mask")
ASPECT_TOLERANCE = 0.02
"""By how much of itself the aspect ratio of a mask may differ from its photo's: rounding to whole pixels."""


@dataclass(frozen=True)
class Paired:
    """Pictures told apart by their names."""

    photos: tuple[Entry, ...]
    masks: dict[Entry, Entry]
    """photo -> its mask."""
    spare: tuple[Entry, ...]
    """masks of photos that have one already."""
    alone: tuple[Entry, ...]
    """masks of no photo here."""


def pair_masks(pictures: Iterable[Entry], there: Collection[str] = ()) -> Paired:
    """Tell masks from photos. Only what has a photo to be the mask of is one, or lies in a folder of masks
    beside photos: ``venetian-mask.png`` alone is a photo.

    ``there`` are names (:func:`names_of`) of photos that came earlier; their masks are among those alone.
    """
    pictures = tuple(pictures)
    by_name: dict[tuple[str, str], Entry] = {}
    for entry in pictures:
        for name in (entry.stem, entry.name):
            by_name.setdefault((entry.group, name.casefold()), entry)
    groups = {entry.group for entry in pictures}
    photos, masks, spare, alone = [], dict[Entry, Entry](), [], []
    for entry in pictures:
        wanted = tuple(mask_of(entry))
        found = [by_name[at] for at in wanted if at in by_name]
        known = _photo_group(entry) in groups or any(name in there for _, name in wanted)
        if found and found[0] not in masks:
            masks[found[0]] = entry
        elif found:
            spare.append(entry)
        elif known or entry.stem.casefold().endswith("-masklabel"):
            alone.append(entry)
        else:
            photos.append(entry)
    return Paired(tuple(photos), masks, tuple(spare), tuple(alone))


def mask_of(entry: Entry) -> Iterator[tuple[str, str]]:
    """(group, name in lower case, with or without suffix) of the photos that a file may be the mask of."""
    stem = entry.stem.casefold()
    names = [stem.removesuffix(ending) for ending in ENDINGS if stem.endswith(ending)]
    yield from ((entry.group, name) for name in names)
    if (group := _photo_group(entry)) is not None:
        yield from ((group, name) for name in (stem, *names))


def _photo_group(entry: Entry) -> str | None:
    """The group of the photos beside a folder of masks; None for what lies in no such folder."""
    if entry.folder.casefold() not in FOLDERS:
        return None
    return entry.group.removesuffix(entry.folder).removesuffix("/").removesuffix("\\")


def names_of(records: Iterable[ImageRecord]) -> dict[str, list[ImageRecord]]:
    """Photos by their names in lower case, with and without suffix."""
    named: dict[str, list[ImageRecord]] = {}
    for record in records:
        for name in {record.original_name, PurePosixPath(record.original_name).stem}:
            named.setdefault(name.casefold(), []).append(record)
    return named


def mask_path(root: Path, image_id: str) -> Path:
    """Where a project keeps the mask of a photo."""
    return root / "masks" / f"{image_id}.png"


def remove_masks(root: Path, image_id: str) -> None:
    """Remove the mask of a photo, and those that were kept when it was replaced."""
    for path in (root / "masks").glob(f"{image_id}.*"):
        path.unlink(missing_ok=True)


def open_mask(source: Path | bytes, size: Size, name: str) -> Image.Image:
    """A mask as a grey picture of ``size``, that of its upright photo. What is transparent is black.

    Raises :class:`~dataset_tools.images.ImageError` where it cannot be read or shows another frame.
    """
    opened = open_image(source, name)
    mask = opened.image.convert("L")
    if opened.alpha:
        mask = ImageChops.multiply(mask, opened.alpha)
    if mask.size == size:
        return mask
    (width, height), (wanted_width, wanted_height) = mask.size, size
    if abs(width * wanted_height / (height * wanted_width) - 1) > ASPECT_TOLERANCE:
        raise ImageError(
            f"{name} is {width} × {height} pixels, but its photo {wanted_width} × {wanted_height}; make the "
            "mask from the whole photo."
        )
    return mask.resize(size, Image.Resampling.BILINEAR)


def load_mask(root: Path, record: ImageRecord, file: str) -> Image.Image:
    """The mask in ``file``, as :func:`open_mask`; the photo's own file stands for its transparency."""
    if file != record.file:
        return open_mask(root / file, (record.width, record.height), Path(file).name)
    alpha = open_image(root / file, record.original_name).alpha
    return alpha or Image.new("L", (record.width, record.height), 255)


def is_transparent(path: Path) -> bool:
    """Whether some part of a picture is."""
    return may_be_transparent(path) and open_image(path).alpha is not None
