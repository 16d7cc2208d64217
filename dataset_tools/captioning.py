"""Captions written by a model, one photo after the other; what the model is does not matter here.

Each caption is on disk before the next photo is looked at, and what it replaced is in undo.json before that:
a kill loses the photo in hand, Undo on the Captions page takes all of it back, and the same work begun again
goes on where it was. A photo that fails is named and the others go on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, get_args

from PIL import Image

from dataset_tools import undo
from dataset_tools.captions import add_prefix, add_suffix, insert_trigger
from dataset_tools.dataset import (
    ImageRecord,
    load_dataset,
    project_lock,
    read_caption,
    write_caption,
)
from dataset_tools.images import DECODE_ERRORS, open_image
from trainer.contract.errors import RunError, UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Existing = Literal["keep", "replace", "append"]
EXISTING: tuple[Existing, ...] = get_args(Existing)
GIVES_UP = 3
"""So many failures before the first success are no accident."""


class Model(Protocol):
    """What looks at a picture (RGB) and says what it shows. ``seed`` is for those that draw lots.

    Raises RunError where no other photo would fare better, anything else for this photo alone.
    """

    def __call__(self, image: Image.Image, seed: int) -> str: ...


@dataclass(frozen=True)
class Wishes:
    """What is done with a model's words.

    Attributes:
        existing: what a photo that has a caption gets: nothing, the new one in its place, or both.
        trigger: whether the project's trigger word is put in front where it is missing.
    """

    existing: Existing = "keep"
    prefix: str = ""
    suffix: str = ""
    trigger: bool = True

    def text(self, said: str, there: str, trigger: str) -> str:
        """The caption, of what the model said and what was there."""
        text = add_suffix({"": said}, self.suffix).get("", said) if self.suffix.strip() else said
        text = add_prefix({"": text}, self.prefix).get("", text) if self.prefix.strip() else text
        if self.existing == "append" and there:
            text = f"{there}{' ' if there[-1] in '.!?' else ', '}{text}"
        return insert_trigger({"": text}, trigger).get("", text) if self.trigger else text


@dataclass
class Outcome:
    """What came of it: how many captions were written, and {photo: why} for those that failed."""

    written: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    done: ClassVar[str] = "captioned"
    thing: ClassVar[str] = "caption"

    def summary(self) -> str:
        """The last line of the log, by which :func:`went_well` knows how it ended."""
        if not self.failed:
            return f"{self.written} {self.done}" + (
                "" if self.written else f": every photo has its {self.thing}"
            )
        name, why = next(iter(self.failed.items()))
        more = f" and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
        return f"{self.written} {self.done}, {len(self.failed)} not: {name} ({why}){more}"


def went_well(last_line: str) -> bool:
    """Whether a log that ends so is of a work that was done in full."""
    return re.fullmatch(r"\d+ captioned(: every photo .*)?", last_line) is not None


def work_of(wishes: DataclassInstance, **settings: object) -> str:
    """A name for a work with these wishes and settings, the same when it is begun again."""
    told = json.dumps(asdict(wishes) | settings, sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def caption_project(
    root: Path,
    load: Callable[[], Model],
    wishes: Wishes,
    *,
    label: str,
    work: str,
    tell: Callable[[str], None],
) -> Outcome:
    """Caption the photos of a project that ``wishes`` mean, less what the same ``work`` has got done.

    The model is loaded only if there is a photo for it. ``tell`` gets a line for each photo. What it looks at
    is the crop, since that is what a training sees. Raises UserError, OSError.
    """
    wanted = pending(root, wishes, work)
    outcome = Outcome()
    model = load() if wanted else None
    for number, record in enumerate(wanted, 1):
        assert model
        try:
            said = " ".join(model(_picture(root, record), int(record.sha256[:12], 16)).split())
            why = "" if said else "the model said nothing"
        except RunError:
            raise
        except (UserError, RuntimeError, *DECODE_ERRORS) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
        if why:
            outcome.failed[record.original_name] = why
            tell(f"{record.original_name} could not be captioned: {why}")
            if len(outcome.failed) == GIVES_UP and not outcome.written:
                first = f"The first {GIVES_UP} photos all failed, the last one with: {why}"
                raise RunError(f"{first}; look at the model and its settings")
            continue
        text = _write(root, record, said, wishes, label, work)
        outcome.written += text is not None
        kept = "has a caption of yours by now" if text is None else text
        tell(f"[{number}/{len(wanted)}] {record.original_name}: {kept}")
    if not outcome.failed:
        with project_lock(root):
            undo.finish(root, work)
    return outcome


def pending(root: Path, wishes: Wishes, work: str = "") -> list[ImageRecord]:
    """The photos that are to be captioned: with ``keep`` those without a caption, else all but those that the
    same work has written, and that still read so."""
    dataset = load_dataset(root)
    there = {record.id: read_caption(root, record) for record in dataset.images}
    done = undo.got_done(root, work)
    if wishes.existing == "keep":
        return [record for record in dataset.images if not there[record.id]]
    return [record for record in dataset.images if done.get(record.id) != there[record.id]]


def _picture(root: Path, record: ImageRecord) -> Image.Image:
    image = open_image(root / record.file, record.original_name).image
    return image.crop(record.crop) if record.crop else image


def _write(root: Path, record: ImageRecord, said: str, wishes: Wishes, label: str, work: str) -> str | None:
    """Write a caption and return it; None where the photo is gone, or somebody has captioned it meanwhile."""
    with project_lock(root):
        dataset = load_dataset(root)
        there = read_caption(root, record)
        if record.id not in {image.id for image in dataset.images} or (there and wishes.existing == "keep"):
            return None
        text = wishes.text(said, there, dataset.trigger)
        undo.remember(root, label, {record.id: (there, text)}, work)
        write_caption(root, record, text)
        return text
