"""Which side a training resolution really gives, and other resolutions for a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .settings.dataset import DatasetSettings, Subset, listed_sides


def bucket_step(resolution: int, multiple: int = 8) -> int:
    """The sides of buckets are multiples of this: a sixteenth of the resolution, rounded to 8 pixels.

    At 1024 that is SDXL's 64; at 512, 32; at 128, 8 (the smallest side that the VAE, which
    shrinks eightfold, can take). ``multiple`` is the family's own, which every side must be.
    """
    step = max(8, round(resolution / 128) * 8)
    return -(-step // multiple) * multiple


def square_side(resolution: int, multiple: int = 8) -> int:
    """Side of the square bucket: the resolution, rounded to its step."""
    step = bucket_step(resolution, multiple)
    return max(1, round(resolution / step)) * step


def exact_resolution(resolution: int, multiple: int = 8) -> int:
    """The nearest resolution that is trained as it stands; of two, the larger."""
    near = (resolution + sign * away for away in range(resolution) for sign in (1, -1))
    return next(side for side in near if square_side(side, multiple) == side)


def rounded(resolution: int, multiple: int = 8) -> str:
    """A sentence where the side is another than was asked for, "" where it is the same."""
    side = square_side(resolution, multiple)
    if side == resolution:
        return ""
    step = bucket_step(resolution, multiple)
    return f"{resolution} px is no multiple of {step}, as the buckets need; it trains at {side} px."


def sides_text(sides: Iterable[int]) -> str:
    """As more_resolutions has them: "512, 768"."""
    return ", ".join(map(str, sorted(set(sides))))


def changed_sides(data: DatasetSettings, change: Callable[[int], int | None]) -> dict[str, Any]:
    """{setting: value} of a recipe with every resolution that it names changed; None is none. What stays is
    not in it."""

    def more(text: str | None) -> str | None:
        return text and sides_text(side for one in listed_sides(text) if (side := change(one)))

    def line(one: Subset) -> str:
        own = {
            "resolution": one.resolution and change(one.resolution),
            "more_resolutions": more(one.more_resolutions),
        }
        return one.model_copy(update=own).line

    changed = {
        "dataset.resolution": (data.resolution, data.resolution and change(data.resolution)),
        "dataset.more_resolutions": (data.more_resolutions, more(data.more_resolutions)),
        "dataset.subsets": (tuple(one.line for one in data.subsets), tuple(map(line, data.subsets))),
    }
    return {setting: after for setting, (before, after) in changed.items() if before != after}
