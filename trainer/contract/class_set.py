"""The class pictures of prior preservation as one more folder of the recipe."""

from __future__ import annotations

from collections.abc import Sequence

from .settings.dataset import DatasetSettings, Subset
from .settings.prior import PriorSettings
from .steps import Bucket, Folder


def with_class_set(dataset: DatasetSettings, prior: PriorSettings, folder: str = "") -> DatasetSettings:
    """The folders with the class pictures as a regularisation set: those in prior.path, or in ``folder``,
    where they were drawn. Unchanged where there are none, or none yet.

    Pictures without a caption get the class, which they are pictures of.
    """
    path = prior.path or folder
    if prior.method != "class_pictures" or not path:
        return dataset
    own = Subset.model_construct(
        path=path, trigger=prior.class_name, regularisation=True, weight=prior.weight
    )
    return dataset.model_copy(update={"subsets": (*dataset.subsets, own)})


def class_pictures_to_draw(prior: PriorSettings, squares: Sequence[Bucket]) -> tuple[Folder, ...]:
    """The folder that a training is going to draw, counted; ``squares`` are the buckets of its pictures, one
    for each resolution."""
    if prior.method != "class_pictures" or prior.path:
        return ()
    pictures = tuple((square, 1) for _ in range(prior.pictures) for square in squares)
    return (Folder("class pictures", pictures, regularisation=True, photos=prior.pictures),)
