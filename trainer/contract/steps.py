"""The steps calculator: how many batches one or several folders of pictures make in an epoch.

A batch holds pictures of one bucket, and the last one of a bucket may be smaller; none is dropped. So an
epoch has Σ ceil(looks / batch size) batches over the buckets, where a look is one picture shown once. The
guides' formula, images × repeats × epochs / batch size, knows no buckets and no remainders; both are shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .config import TrainConfig

Bucket = tuple[int, int]


@dataclass(frozen=True)
class Folder:
    """One folder of a recipe, counted: the bucket of each of its pictures, and how often an epoch it is
    shown. As a folder is found, that is what the name of a subfolder says (10_zwx dog), else 1; the recipe's
    own repeats are multiplied by it in :func:`trained`. ``photos``, where it is not 0, is of how many photos
    these are, when some are shown at several resolutions."""

    name: str
    pictures: tuple[tuple[Bucket, int], ...]
    regularisation: bool = False
    photos: int = 0

    @property
    def looks(self) -> int:
        """How often its pictures are shown in an epoch, together."""
        return sum(repeats for _, repeats in self.pictures)


@dataclass(frozen=True)
class GuideSteps:
    """What the guides' formula gives."""

    per_epoch: float
    """not a whole number of batches."""
    total: int


def batches_per_epoch(looks: Mapping[Bucket, int], batch_size: int) -> int:
    """Σ ceil(looks / batch size) over {bucket: looks an epoch}."""
    return sum(-(-count // batch_size) for count in looks.values())


def looks_by_bucket(folders: Sequence[Folder]) -> dict[Bucket, int]:
    """{bucket: looks an epoch} of all folders together: batches mix concepts, but no buckets."""
    counts: Counter[Bucket] = Counter()
    for folder in folders:
        for bucket, repeats in folder.pictures:
            counts[bucket] += repeats
    return dict(counts)


def guide_steps(pictures: int, repeats: float, batch_size: int, epochs: int) -> GuideSteps:
    """images × repeats × epochs / batch size, rounded at the very end."""
    per_epoch = pictures * repeats / batch_size
    return GuideSteps(per_epoch, round(per_epoch * epochs))


def balanced_repeats(wanted: int, repeats: Sequence[int]) -> list[int]:
    """Repeats of the pictures of regularisation sets such that together they make ``wanted`` looks.

    kohya's way: they are taken in turn, first with their own repeats, then once more each, until there are
    enough; those that are then not reached get 0. Where the last one's repeats would go beyond that, which
    they do there, they are cut.
    """
    given = [0] * len(repeats)
    left, first = wanted, True
    while repeats and left > 0:
        for number, own in enumerate(repeats):
            more = min(own if first else 1, left)
            given[number] += more
            left -= more
        first = False
    return given


def balance(folders: Sequence[Folder]) -> tuple[Folder, ...]:
    """The folders as they are trained: regularisation sets with their balanced repeats."""
    wanted = sum(folder.looks for folder in folders if not folder.regularisation)
    regular = [repeats for folder in folders if folder.regularisation for _, repeats in folder.pictures]
    given = iter(balanced_repeats(wanted, regular))
    made = []
    for folder in folders:
        if folder.regularisation:
            shown = tuple((bucket, next(given)) for bucket, _ in folder.pictures)
            folder = replace(folder, pictures=tuple(one for one in shown if one[1]))
        made.append(folder)
    return tuple(made)


def trained(config: TrainConfig, folders: Sequence[Folder]) -> tuple[Folder, ...]:
    """The folders, which were found in the recipe's order, as they are shown: repeated and balanced."""
    own = [config.dataset.repeats, *(one.repeats for one in config.dataset.subsets)]
    return balance(
        [
            replace(folder, pictures=tuple((bucket, count * repeats) for bucket, count in folder.pictures))
            for folder, repeats in zip(folders, own + [1] * len(folders), strict=False)
        ]
    )


def epochs_of(config: TrainConfig, folders: Sequence[Folder]) -> float:
    """How many epochs the recipe's steps are; ``folders`` are those of :func:`trained`, and not empty."""
    batches = batches_per_epoch(looks_by_bucket(folders), config.train.batch_size)
    return config.train.steps * config.train.gradient_accumulation / batches


def calculation(config: TrainConfig, folders: Sequence[Folder]) -> list[str]:
    """The calculator in words: every folder where there are several, then all of them together."""
    shown = trained(config, folders)
    if not sum(folder.looks for folder in shown):
        return []
    train = config.train
    lines = []
    if len(shown) > 1:
        whole = sum(folder.looks for folder in shown)
        for found, folder in zip(folders, shown, strict=True):
            left = len(found.pictures) - len(folder.pictures)
            lines.append(
                f"{folder.name}: {_pictures(folder)} = {folder.looks} looks an epoch "
                f"({folder.looks / whole:.0%}){', regularisation' if folder.regularisation else ''}"
                + (f"; {left} more are not needed" if left else "")
            )
    looks = looks_by_bucket(shown)
    batches = batches_per_epoch(looks, train.batch_size)
    what = _pictures(shown[0]) if len(shown) == 1 else f"{sum(looks.values())} looks"
    buckets = "1 bucket" if len(looks) == 1 else f"{len(looks)} buckets"
    per_epoch = batches / train.gradient_accumulation
    batch = f"batch {train.batch_size}"
    if train.gradient_accumulation > 1:
        batch += f" × {train.gradient_accumulation}"
    epochs = epochs_of(config, shown)
    lines.append(
        f"{what} in {buckets}, {batch} → {_steps(per_epoch)} an epoch; "
        f"{train.steps} steps = {_number(epochs)} epochs"
    )
    guide = guide_steps(
        1, sum(looks.values()), train.batch_size * train.gradient_accumulation, max(1, round(epochs))
    )
    if not math.isclose(guide.per_epoch, per_epoch):
        ours = math.ceil(per_epoch * max(1, round(epochs)))
        lines.append(
            f"By the guides' formula, which knows no buckets: {guide.per_epoch:.2f} steps an epoch, "
            f"{guide.total} in {max(1, round(epochs))} epochs; here {ours}"
        )
    return lines


def _pictures(folder: Folder) -> str:
    """ "12 photos × 10 repeats", "12 photos", "12 photos, in all sizes 36" """
    shown, count = len(folder.pictures), folder.photos or len(folder.pictures)
    several = count < shown
    count = min(count, shown)  # of a regularisation set some are left out
    photos = f"{count} photo{'' if count == 1 else 's'}"
    photos += f", in all sizes {shown}," if several else ""
    repeats = {repeats for _, repeats in folder.pictures}
    if repeats == {1} or not repeats:
        return photos
    if len(repeats) == 1:
        return f"{photos} × {repeats.pop()} repeats"
    return f"{photos} × {min(repeats)} to {max(repeats)} repeats"


def _steps(count: float) -> str:
    return f"{_number(count)} step{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    """At most one decimal: 31, 32.3."""
    return f"{value:.1f}".removesuffix(".0")
