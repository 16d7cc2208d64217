"""The folders of a recipe as one set of pictures: concepts beside each other, and regularisation sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from dataset_tools.augment import View
from dataset_tools.dataset import DatasetError, ImageRecord, listed

from .contract.settings.dataset import NOTHING_OWN, OwnSettings
from .contract.settings.validation import ValidationSettings
from .contract.steps import balanced_repeats
from .families.base import Geometry

PLAIN = View()
"""A picture as it is."""


class TrainImage(ImageRecord):
    """A picture as a run froze it: with its caption, bucket and crop.

    ``folder`` is where ``file`` lies, seen from dataset.path: "" for the pictures of that folder itself.
    ``trigger`` is the word of its concept; ``weight`` multiplies its loss; ``own`` is what its folder says
    instead of the recipe. ``held_out`` pictures are not trained on but measured on.
    ``mask`` is the file of its mask, beside ``file``; "" where there is none or none is used.
    """

    caption: str
    folder: str = ""
    trigger: str = ""
    regularisation: bool = False
    weight: float = 1.0
    own: OwnSettings = NOTHING_OWN
    held_out: bool = False
    mask: str = ""
    mask_sha256: str = ""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was(cls, values: Any) -> Any:
        """Runs that began before folders had more settings of their own kept two of them beside ``own``."""
        if not isinstance(values, dict) or not {"prefix", "suffix"} & set(values):
            return values
        own = {name: values[name] for name in ("prefix", "suffix") if name in values}
        return {name: value for name, value in values.items() if name not in own} | {"own": own}

    def path(self, root: Path) -> Path:
        """The file; ``root`` is the folder that dataset.path names."""
        return root / self.folder / self.file

    def geometry(self, view: View = PLAIN) -> Geometry:
        """Sizes and crop as the model is told them; see :class:`Geometry`. Mirroring swaps the margins; of a
        turned frame they are those of the upright one around the same middle."""
        assert self.bucket and self.crop
        width, height = self.bucket
        left, top, right, _ = view.variant.frame if view.variant else self.crop
        scale = min(1.0, width / (right - left))
        if view.flip:
            left = self.width - right
        return Geometry(
            original=(round(self.height * scale), round(self.width * scale)),
            crop=(max(0, round(top * scale)), max(0, round(left * scale))),
            target=(height, width),
        )


def id_in(number: int, image_id: str) -> str:
    """The id of a picture of concept ``number``: no two folders share one. Those of the first keep theirs."""
    return hashlib.sha256(f"{number} {image_id}".encode()).hexdigest()[:12] if number else image_id


def id_at(bucket: tuple[int, int], image_id: str) -> str:
    """The id of a picture as it is shown at a further resolution; all that is random hangs on it."""
    return hashlib.sha256(f"{bucket[0]}x{bucket[1]} {image_id}".encode()).hexdigest()[:12]


def apart(images: Sequence[TrainImage]) -> tuple[tuple[TrainImage, ...], tuple[TrainImage, ...]]:
    """(those that are trained on, those that are held out)"""
    trained = tuple(image for image in images if not image.held_out)
    return trained, tuple(image for image in images if image.held_out)


def held_out_in_words(
    validation: ValidationSettings, trained: Sequence[TrainImage], measured: Sequence[TrainImage]
) -> str:
    """What is wrong with the pictures that are measured on; "" where nothing is. Raises DatasetError where
    there are none."""
    if validation.measures and not measured:
        raise DatasetError(
            "validation.share holds out photos, but no folder has more than one; add photos, or set "
            "validation.every and validation.every_epochs to 0"
        )
    known = {image.sha256 for image in trained}
    both = [image.original_name for image in measured if image.sha256 in known]
    many = f"{len(both)} photos of validation.path are" if len(both) > 1 else "1 photo of validation.path is"
    return f"{many} trained on as well: {listed(both)}" if both else ""


def balanced(images: Sequence[TrainImage]) -> tuple[TrainImage, ...]:
    """The pictures, those of regularisation sets with repeats such that they are shown together as often as
    the others (:func:`~trainer.contract.steps.balanced_repeats`); those with none are left out."""
    wanted = sum(image.repeats for image in images if not image.regularisation)
    regular = [image for image in images if image.regularisation]
    given = balanced_repeats(wanted, [image.repeats for image in regular])
    repeats = {image.id: count for image, count in zip(regular, given, strict=True)}
    return tuple(
        image.model_copy(update={"repeats": repeats.get(image.id, image.repeats)})
        for image in images
        if repeats.get(image.id, 1)
    )
