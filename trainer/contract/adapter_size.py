"""How many numbers an adapter has: counted by the catalogue's sizes, for the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .blocks import Block
from .placing import mean_rank
from .settings.adapter import AdapterSettings


@dataclass(frozen=True)
class AdapterSize:
    """Numbers that are trained; that stay as they were beside them; and that are rebuilt at every step, of
    the whole weights that are changed, and kept until the step's way back."""

    trained: float
    frozen: float = 0.0
    rebuilt: float = 0.0


def adapter_size(
    adapter: AdapterSettings,
    per_rank: Mapping[str, float],
    blocks: tuple[Block, ...],
    weights: float,
    text_per_rank: float = 0.0,
) -> AdapterSize:
    """The size of a recipe's adapter.

    ``per_rank`` are the thousands of inputs and outputs of the layers that ``targets`` names, ``weights`` the
    millions of weights that these layers have, ``text_per_rank`` the thousands of text encoders.
    """
    try:
        rank = mean_rank(adapter, blocks)
    except ValueError:  # a list for another base, which is refused before it is trained
        rank = float(adapter.rank)
    sides = 1e3 * per_rank[adapter.targets]
    wide = 1e3 * (per_rank[adapter.targets] - per_rank["transformer"]) if adapter.conv_rank else 0.0
    wide = max(wide, 0.0)
    text = 1e3 * text_per_rank
    lora = (sides - wide) * rank + wide * (adapter.conv_rank or 0) + text * adapter.rank
    if adapter.type == "loha":
        return AdapterSize(2 * lora, rebuilt=weights * 1e6)
    if adapter.type == "lokr":
        # As if all layers were square and of one width: their number and width follow from the sums.
        width = 2 * weights * 1e6 / sides
        count = (sides + text) / (2 * width)
        factor = min(adapter.lokr_factor if adapter.lokr_factor > 0 else width**0.5, width**0.5)
        large = width / factor
        whole = rank >= large / 2
        return AdapterSize(
            count * (factor**2 + (large**2 if whole else 2 * rank * large)), rebuilt=weights * 1e6
        )
    if adapter.type == "oft":
        return AdapterSize((sides + text) / 2 * rank)
    magnitudes = (sides + text) / 2 if adapter.dora else 0.0
    start = lora if adapter.init in ("pissa", "olora") else 0.0
    return AdapterSize(lora + magnitudes, frozen=start)
