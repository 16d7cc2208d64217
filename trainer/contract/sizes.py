"""Which side a training resolution really gives."""

from __future__ import annotations


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
