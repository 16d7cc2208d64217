"""The sizes that crops are resized to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataset_tools.dataset import DatasetError, Size
from trainer.contract.config import TrainConfig
from trainer.contract.families import CATALOGUE, known_base
from trainer.contract.settings.dataset import BucketList, DatasetSettings, resolutions_of
from trainer.contract.sizes import bucket_step

SDXL_BUCKETS: tuple[Size, ...] = (
    (1024, 1024),
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1472, 704),
    (704, 1472),
)
"""(width, height) of about one megapixel each: the SDXL guides' list, and its last transposed."""

SDXL_RESOLUTION = 1024


def scaled_buckets(resolution: int, step: int | None = None) -> tuple[Size, ...]:
    """The bucket list for another resolution, as (width, height) tuples.

    side = round(sdxl_side * resolution / 1024 / step) * step, at least one step; equal sizes are
    merged. For resolutions that are multiples of 128 the default step makes this the SDXL list
    scaled exactly.
    """
    if not 64 <= resolution <= 4096:
        raise DatasetError(f"The resolution is {resolution}; choose one from 64 to 4096 pixels.")
    if step is None:
        step = bucket_step(resolution)
    if step < 1:
        raise DatasetError(f"The bucket step is {step}; it must be at least 1 pixel.")

    def scale(side: int) -> int:
        return max(1, round(side * resolution / SDXL_RESOLUTION / step)) * step

    return tuple(dict.fromkeys((scale(width), scale(height)) for width, height in SDXL_BUCKETS))


def area_buckets(resolution: int, minimum: int, maximum: int, step: int) -> tuple[Size, ...]:
    """Every bucket with about the area of ``resolution``² whose sides are whole steps: kohya's list.

    The square, floored to the step; and for every width from ``minimum`` in steps the largest height of at
    most that area, no longer than ``maximum``; each of these upright and lying. Sorted.
    """
    square = resolution // step * step
    found = {(square, square)} if square else set()
    for width in range(minimum, maximum + 1, step):
        height = min(maximum, resolution**2 // width // step * step)
        if height >= minimum:
            found |= {(width, height), (height, width)}
    if not found:
        raise DatasetError(f"No bucket has sides from {minimum} to {maximum} in steps of {step} pixels.")
    return tuple(sorted(found))


def own_bucket(width: int, height: int, resolution: int, step: int) -> Size:
    """The bucket of a picture that is shrunk to the area of ``resolution``² but never enlarged (kohya's
    bucket_no_upscale): its own size, floored to whole steps; at least one step.

    A larger one is shrunk keeping its aspect; of flooring first the width or first the height, what comes
    nearer to the aspect is taken.
    """
    if width * height > resolution**2:
        aspect = width / height
        wide = math.sqrt(resolution**2 * aspect) // step * step
        high = math.sqrt(resolution**2 / aspect) // step * step
        found = [
            (int(a), int(b))
            for a, b in ((wide, wide / aspect // step * step), (high * aspect // step * step, high))
            if a and b
        ]
        width, height = min(found or [(step, step)], key=lambda size: abs(size[0] / size[1] - aspect))
    return max(1, width // step) * step, max(1, height // step) * step


@dataclass(frozen=True)
class Buckets:
    """The sizes that a picture may be trained at; empty fields are worked out from the resolution. ``native``
    is the base's, whose sizes are multiples of ``multiple``."""

    resolution: int = SDXL_RESOLUTION
    list: BucketList = "standard"
    step: int | None = None
    minimum: int | None = None
    maximum: int | None = None
    multiple: int = 8
    native: int | None = None

    @classmethod
    def of(cls, settings: DatasetSettings, native: int, multiple: int = 8) -> Buckets:
        """Those of a recipe's first folder, at the largest of its resolutions."""
        resolution = settings.resolution or native
        made = cls(resolution, multiple=multiple, native=native)
        if settings.buckets != "standard":
            made = replace(
                made,
                list=settings.buckets,
                step=settings.bucket_step,
                minimum=settings.bucket_min,
                maximum=settings.bucket_max,
            )
        return made.at(resolutions_of(settings))[0]

    @classmethod
    def of_recipe(cls, config: TrainConfig) -> Buckets:
        """Those that a recipe trains at; of its base's resolution where it names none."""
        family = CATALOGUE[config.model.family]
        base = known_base(config.model.family, config.model.base)
        return cls.of(config.dataset, (base or family).resolution, family.size_multiple)

    def at(self, resolutions: Sequence[int | None]) -> tuple[Buckets, ...]:
        """These at other resolutions, the largest first; None is the base's own. Sides that the recipe gives
        grow and shrink along."""
        sides = {side or self.native or self.resolution for side in resolutions} or {self.resolution}
        return tuple(self._at(side) for side in sorted(sides, reverse=True))

    def _at(self, resolution: int) -> Buckets:
        sides = {
            name: round(side * resolution / self.resolution)
            for name in ("minimum", "maximum")
            if (side := getattr(self, name))
        }
        return replace(self, resolution=resolution, **sides)

    def sizes(self, width: int, height: int) -> tuple[Size, ...]:
        """The buckets that a picture of this size may go to."""
        step = self.step or bucket_step(self.resolution, self.multiple)
        if self.list == "standard":
            return scaled_buckets(self.resolution, step)
        if self.list == "no_upscale":
            return (own_bucket(width, height, self.resolution, step),)
        # kohya's defaults, 256 to 1024, would cut the long sides of every bucket at 1024 px.
        minimum = -(-(self.minimum or self.resolution // 2) // step) * step
        return area_buckets(self.resolution, minimum, self.maximum or 2 * self.resolution, step)

    def nearest(self, width: int, height: int) -> Size:
        """The bucket whose aspect comes nearest to the picture's."""
        sizes = self.sizes(width, height)
        return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))
