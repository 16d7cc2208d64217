"""How large the LoRA is in each module, and how fast it learns there: block-wise settings, resolved."""

from __future__ import annotations

from dataclasses import dataclass

from .blocks import Block, block_of, block_values, guide_list
from .settings.adapter import AdapterSettings

MAX_RANK = 1024
LISTS = ("block_ranks", "block_alphas", "block_weights")
"""Settings that have a value for each block."""


@dataclass(frozen=True)
class Placement:
    """The LoRA of one module; its learning rate is multiplied by ``weight``. Rank 0 is none."""

    rank: int
    alpha: float
    weight: float = 1.0


@dataclass(frozen=True)
class Placing:
    """The recipe's ranks, alphas and learning-rate weights, None in blocks that it does not name."""

    adapter: AdapterSettings
    blocks: tuple[Block, ...]
    ranks: tuple[float | None, ...]
    alphas: tuple[float | None, ...]
    weights: tuple[float | None, ...]

    @property
    def uniform(self) -> bool:
        """Whether no module differs from the others."""
        adapter = self.adapter
        convolutions = (adapter.conv_rank or adapter.rank, adapter.conv_alpha or adapter.alpha)
        return convolutions == (adapter.rank, adapter.alpha) and not by_block(adapter)

    def of_block(self, number: int | None, wide: bool = False) -> Placement:
        """In a block, or outside of all; ``wide``: in a convolution that looks at more than one pixel, which
        has a rank of its own. As in kohya's scripts a weight of 0 leaves the block out."""
        adapter = self.adapter
        rank: float = adapter.rank
        alpha, weight = adapter.alpha, 1.0
        if number is not None:
            given = (self.ranks[number], self.alphas[number], self.weights[number])
            rank, alpha, weight = (
                usual if value is None else value
                for value, usual in zip(given, (rank, alpha, weight), strict=True)
            )
        if not rank or not weight:
            return Placement(0, alpha, 0.0)
        if wide:
            rank, alpha = adapter.conv_rank or rank, adapter.conv_alpha or alpha
        return Placement(int(rank), alpha, weight)

    def of_module(self, module: str, wide: bool = False) -> Placement:
        """In a module of the denoiser, by its dotted name."""
        return self.of_block(block_of(module, self.blocks), wide)


def by_block(adapter: AdapterSettings) -> bool:
    """Whether the recipe names any blocks."""
    return any(getattr(adapter, name) for name in LISTS)


def placing(adapter: AdapterSettings, blocks: tuple[Block, ...]) -> Placing:
    """The recipe's settings for a denoiser of these blocks.

    Raises ValueError("setting", sentence) for a list that does not fit them.
    """
    lists: dict[str, tuple[float | None, ...]] = {}
    for name in LISTS:
        text = getattr(adapter, name)
        try:
            values = block_values(text, blocks)
        except ValueError as error:
            raise ValueError(name, str(error)) from None
        if name == "block_ranks" and any(value and value != int(value) for value in values):
            raise ValueError(name, "a rank is a whole number; the words are for learning rates")
        if name == "block_ranks" and max((value or 0 for value in values), default=0) > MAX_RANK:
            raise ValueError(name, f"ranks go up to {MAX_RANK}")
        if name == "block_alphas" and 0 in values:
            raise ValueError(name, "an alpha of 0 has no effect; leave a block out with rank 0")
        lists[name] = values
    return Placing(adapter, blocks, *lists.values())


def alike(adapter: AdapterSettings) -> Placing:
    """The recipe's settings where nothing differs by block: in text encoders."""
    return placing(adapter.model_copy(update=dict.fromkeys(LISTS, "")), ())


def of_a_guide(adapter: AdapterSettings, blocks: tuple[Block, ...]) -> dict[str, tuple[str, str]]:
    """{setting: (the list that it stands for, why)} of those that have another U-Net's length."""
    found = {name: guide_list(getattr(adapter, name), blocks) for name in LISTS if getattr(adapter, name)}
    return {name: each for name, each in found.items() if each}


# A picture of it ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockRow:
    """One block of the picture: ``can`` says whether the recipe's targets are in it, ``rank`` is 0 and
    ``weight`` 0 where it is left out."""

    number: int
    label: str
    part: str
    can: bool
    rank: int
    alpha: float
    weight: float


def block_map(adapter: AdapterSettings, blocks: tuple[Block, ...]) -> list[BlockRow]:
    """Which block is which, and what the recipe does there. Raises ValueError as :func:`placing`."""
    placed = placing(adapter, blocks)
    convolutions = adapter.targets == "transformer+conv" or bool(adapter.target_regex)
    rows = []
    for number, block in enumerate(blocks):
        only_wide = block.holds == "convolutions"
        can = block.holds == "all" or (only_wide and convolutions)
        here = placed.of_block(number, wide=only_wide)
        rows.append(BlockRow(number, block.label, block.part, can, here.rank, here.alpha, here.weight))
    return rows


def mean_rank(adapter: AdapterSettings, blocks: tuple[Block, ...]) -> float:
    """The rank that has as many parameters in every block as the recipe's have together, about."""
    if not by_block(adapter):
        return float(adapter.rank)
    placed = placing(adapter, blocks)
    shares = [block.share if block.holds == "all" else 0.0 for block in blocks]
    ranks = [placed.of_block(number).rank for number in range(len(blocks))]
    return sum(share * rank for share, rank in zip(shares, ranks, strict=True)) / sum(shares)
