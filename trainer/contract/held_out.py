"""Which photos are held out of a training, to be measured on."""

from __future__ import annotations

from collections.abc import Sequence

from .randomness import derived_seed


def held_out(contents: Sequence[str], share: float) -> set[str]:
    """Those of a folder's pictures, named by the hash of their content: a share of them rounded, at least one
    and never all. The same for every seed, so that runs can be compared; copies of one picture go together.

    A folder with a single picture keeps it. A share of 1 is all.
    """
    if share >= 1:
        return set(contents)
    different = sorted(set(contents), key=lambda content: derived_seed("held out", content))
    if not share or len(different) < 2:
        return set()
    return set(different[: min(max(1, round(share * len(different))), len(different) - 1)])
