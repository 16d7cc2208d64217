"""The folders of a recipe as one set of pictures: concepts beside each other, and regularisation sets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_tools.dataset import ImageRecord

from .contract.settings.dataset import DatasetSettings
from .families.base import Geometry


class TrainImage(ImageRecord):
    """A picture as a run froze it: with its caption, bucket and crop.

    ``folder`` is where ``file`` lies, seen from dataset.path: "" for the pictures of that folder itself.
    ``trigger`` is the word of its concept; ``weight`` multiplies its loss.
    """

    caption: str
    folder: str = ""
    trigger: str = ""
    regularisation: bool = False
    weight: float = 1.0

    def path(self, root: Path) -> Path:
        """The file; ``root`` is the folder that dataset.path names."""
        return root / self.folder / self.file

    def geometry(self, flip: bool = False) -> Geometry:
        """Sizes and crop as the model is told them; see :class:`Geometry`. Mirroring swaps the margins."""
        assert self.bucket and self.crop
        width, height = self.bucket
        left, top, right, _ = self.crop
        scale = min(1.0, width / (right - left))
        if flip:
            left = self.width - right
        return Geometry(
            original=(round(self.height * scale), round(self.width * scale)),
            crop=(round(top * scale), round(left * scale)),
            target=(height, width),
        )


@dataclass(frozen=True)
class Concept:
    """One folder of a recipe; ``trigger`` is "" where the folder's own word is meant."""

    folder: Path
    trigger: str
    repeats: int
    regularisation: bool
    weight: float


def concepts_of(settings: DatasetSettings, root: Path, beside: Path) -> tuple[Concept, ...]:
    """The folder ``root`` that dataset.path names, then those of dataset.subsets, looked up in ``beside``."""
    first = Concept(root, settings.trigger, settings.repeats, False, 1.0)
    others = (
        Concept((beside / one.path).resolve(), one.trigger, one.repeats, one.regularisation, one.weight)
        for one in settings.subsets
    )
    return (first, *others)


def id_in(number: int, image_id: str) -> str:
    """The id of a picture of concept ``number``: no two folders share one. Those of the first keep theirs."""
    return hashlib.sha256(f"{number} {image_id}".encode()).hexdigest()[:12] if number else image_id


def balanced(images: Sequence[TrainImage]) -> tuple[TrainImage, ...]:
    """The pictures with repeats such that regularisation sets together are shown as often as the others.

    kohya's way: class pictures are taken in turn, first with their own repeats, then once more each,
    until there are as many looks at them as at the others; those that are then not reached are left out.
    Where the last one's repeats would go beyond that, they are cut.
    """
    wanted = sum(image.repeats for image in images if not image.regularisation)
    regular = [image for image in images if image.regularisation]
    repeats = dict.fromkeys((image.id for image in regular), 0)
    left, first = wanted, True
    while regular and left > 0:
        for image in regular:
            more = min(image.repeats if first else 1, left)
            repeats[image.id] += more
            left -= more
        first = False
    return tuple(
        image.model_copy(update={"repeats": repeats.get(image.id, image.repeats)})
        for image in images
        if repeats.get(image.id, 1)
    )
