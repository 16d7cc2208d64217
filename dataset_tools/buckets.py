"""The sizes that crops are resized to."""

from __future__ import annotations

from dataset_tools.dataset import DatasetError, Size
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
