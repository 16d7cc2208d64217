"""Which block of a denoiser is which, and a value for each of them: ranks, alphas, learning-rate weights.

U-Nets have kohya's slots (25 in SD 1.5, 23 in SDXL), transformers the running numbers of their blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Holds = Literal["all", "convolutions", "nothing"]


_CONVOLUTIONS = 0.4
"""Share of a block without a transformer."""


@dataclass(frozen=True)
class Block:
    """One block of a denoiser.

    Attributes:
        label: what people call it, "input_blocks_4" or "double 3".
        names: regular expression for the beginning of the names of its modules.
        part: "down", "mid" or "up", of which kohya has a list of weights each; the list of blocks that it
            is in for a transformer; "" for the first and the last layers of a U-Net.
        holds: what can be adapted in it: whatever is asked for, convolutions alone, or nothing.
        share: roughly how much of the LoRA's parameters it has, relative to the others.
    """

    label: str
    names: str
    part: str
    holds: Holds = "all"
    share: float = 1.0


def _unet_side(direction: str, weights: tuple[float, ...]) -> list[Block]:
    """Kohya's blocks of one side, three a stage: its layers, and a sampler to the next stage.

    ``weights`` are the shares of the stages' transformers, 0 where they have none.
    """
    down = direction == "down"
    blocks = []
    for stage, share in enumerate(weights):
        for layer in range(3):
            names = rf"(resnets|attentions)\.{layer}\."
            if layer == 2:  # on the way up the sampler stands behind the stage's third layer
                names = r"downsamplers\." if down else rf"({names}|upsamplers\.)"
            plain = not share or (down and layer == 2)
            blocks.append(
                Block(
                    f"{'input' if down else 'output'}_blocks_{3 * stage + layer + down}",
                    rf"{direction}_blocks\.{stage}\.{names}",
                    direction,
                    "convolutions" if plain else "all",
                    _CONVOLUTIONS if plain else share,
                )
            )
    return blocks[:-1] if down else blocks  # nothing is below the deepest stage


def sdxl_blocks() -> tuple[Block, ...]:
    """Kohya's 23 slots: time and size embeddings, input_blocks 0 to 8, three of the middle, output_blocks 0
    to 8, the last convolution. A transformer's share is its depth by its width."""
    return (
        Block("time and size embeddings", r"(time|add)_embedding\.", "", "nothing"),
        Block("input_blocks_0", r"conv_in$", "down", "nothing"),
        *_unet_side("down", (0.0, 2.0, 20.0)),
        Block("middle_block_0", r"mid_block\.resnets\.0\.", "mid", "convolutions", _CONVOLUTIONS),
        Block("middle_block_1", r"mid_block\.attentions\.0\.", "mid", "all", 20.0),
        Block("middle_block_2", r"mid_block\.resnets\.1\.", "mid", "convolutions", _CONVOLUTIONS),
        *_unet_side("up", (20.0, 2.0, 0.0)),
        Block("out", r"conv_out$", "", "nothing"),
    )


def sd15_blocks() -> tuple[Block, ...]:
    """Kohya's 25 slots: input_blocks 0 to 11, the middle, output_blocks 0 to 11."""
    return (
        Block("input_blocks_0", r"conv_in$", "down", "nothing"),
        *_unet_side("down", (1.0, 2.0, 4.0, 0.0)),
        Block("middle_block", r"mid_block\.", "mid", "all", 4.0),
        *_unet_side("up", (0.0, 4.0, 2.0, 1.0)),
    )


def listed_blocks(**counts: int) -> tuple[Block, ...]:
    """The blocks of a transformer, numbered through its lists: ``listed_blocks(transformer_blocks=24)``."""
    return tuple(
        Block(f"{name} {number}", rf"{name}\.{number}\.", name)
        for name, count in counts.items()
        for number in range(count)
    )


def recounted(blocks: tuple[Block, ...], counts: Mapping[str, int]) -> tuple[Block, ...]:
    """The blocks of a transformer whose lists are of these lengths; a U-Net's stay as they are."""
    names = list(dict.fromkeys(block.part for block in blocks))
    return listed_blocks(**{name: counts[name] for name in names}) if set(names) <= set(counts) else blocks


def block_of(module: str, blocks: tuple[Block, ...]) -> int | None:
    """The number of the block that a module of the denoiser is in."""
    return next((n for n, block in enumerate(blocks) if re.match(block.names, module)), None)


# A value for each block -------------------------------------------------------------------------------

WORDS = ("cosine", "sine", "linear", "reverse_linear", "zeros")
"""Kohya's words for a whole list, optionally with "+base"."""

RANGE = re.compile(r"(\d+)(?:-(\d+))?|else")


def curve(word: str, count: int) -> list[float]:
    """Kohya's list of ``count`` values for "cosine", "sine+0.25", … Raises ValueError for other words."""
    name, plus, base = word.partition("+")
    if name.strip() not in WORDS:
        raise ValueError(f"{word.strip()!r} is no number and none of {', '.join(WORDS)}")
    offset = _number(base) if plus else 0.0
    steps = [number / max(count - 1, 1) for number in range(count)]
    rising = {
        "sine": [math.sin(math.pi / 2 * x) for x in steps],
        "linear": steps,
        "zeros": [0.0] * count,
    }
    values = {**rising, "cosine": rising["sine"][::-1], "reverse_linear": steps[::-1]}[name.strip()]
    return [value + offset for value in values]


def block_values(text: str, blocks: tuple[Block, ...]) -> tuple[float | None, ...]:
    """A value for each block, None where the text has none: then the recipe's usual one holds.

    Read are a comma list of exactly as many values as there are blocks, one of kohya's words, the lists of a
    U-Net's parts as "down / mid / up", and ranges: "0-9: 8, 10-18: 16, else: 0".
    Raises ValueError with a sentence that names the right length.
    """
    if not text:
        return (None,) * len(blocks)
    if ":" in text:
        return _ranges(text, len(blocks))
    parts = list(dict.fromkeys(block.part for block in blocks if block.part))
    texts = text.split("/")
    if len(texts) == 1:
        return tuple(_list(text, len(blocks), "blocks"))
    sizes = [sum(block.part == part for block in blocks) for part in parts]
    if len(texts) != len(parts):
        raise ValueError(f"it has {len(texts)} lists; give {' / '.join(parts)}, of {_join(sizes)} values")
    values = [
        value
        for part, size, text in zip(parts, sizes, texts, strict=True)
        for value in _list(text, size, f"{part} blocks")
    ]
    given = iter(values)
    return tuple(next(given) if block.part else None for block in blocks)


def _join(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes[:-1])) + f" and {sizes[-1]}"


def _list(text: str, size: int, what: str) -> list[float]:
    items = text.split(",")
    if len(items) == 1 and re.match(r"\s*[a-z]", text):
        return curve(text, size)
    if len(items) != size:
        raise ValueError(f"it has {len(items)} values for {size} {what}; give exactly {size}")
    return [_number(item) if item.strip() else 0.0 for item in items]


def _ranges(text: str, count: int) -> tuple[float | None, ...]:
    values: list[float | None] = [None] * count
    rest: float | None = None
    for item in text.split(","):
        blocks, _, value = (part.strip() for part in item.partition(":"))
        found = RANGE.fullmatch(blocks)
        if not found:
            raise ValueError(f'{item.strip()!r} is no range; write "0-9: 8, 10-18: 16, else: 0"')
        if not found[1]:
            rest = _number(value)
            continue
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last or last >= count:
            raise ValueError(f"there is no block {blocks}; this base has the blocks 0 to {count - 1}")
        values[first : last + 1] = [_number(value)] * (last + 1 - first)
    return tuple(rest if value is None else value for value in values)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is no number") from None
    if not 0 <= value < 1e6:
        raise ValueError(f"{text.strip()} is not allowed; give numbers from 0")
    return value


# Lists that guides give for another U-Net ---------------------------------------------------------------


def guide_list(text: str, blocks: tuple[Block, ...]) -> tuple[str, str] | None:
    """A list of SD 1.5's length for SDXL, as guides print it: (the list that it stands for, why).

    Kohya refuses 25 values; they are moved by the resolution that a block works at: SDXL has no counterpart
    of SD 1.5's deepest stage. Of twelve weights kohya uses the first nine, and so does this.
    None for anything else.
    """
    if len(blocks) != len(sdxl_blocks()) or blocks[0].part or ":" in text:
        return None
    lists = [[item.strip() or "0" for item in part.split(",")] for part in text.split("/")]
    sizes = [len(items) for items in lists]
    if sizes == [25]:
        given = lists[0]
        moved = [given[0], *given[0:9], *[given[12]] * 3, *given[16:25], given[24]]
        return ",".join(moved), (
            "The list has SD 1.5's 25 values, and SDXL has 23 blocks, with none of SD 1.5's deepest stage: "
            "the values of the blocks of the same resolution are taken."
        )
    if len(sizes) == 3 and 12 in (sizes[0], sizes[2]) and {sizes[0], sizes[2]} <= {1, 9, 12}:
        fitted = [_as_kohya(items, size) for items, size in zip(lists, (9, 3, 9), strict=True)]
        return " / ".join(",".join(items) for items in fitted), (
            "The lists have SD 1.5's 12 values a side, and SDXL has 9: kohya uses the first nine, so these "
            "train other blocks than in SD 1.5."
        )
    return None


def _as_kohya(items: list[str], size: int) -> list[str]:
    """A list of ``size`` as kohya makes it of a longer or shorter one: cut, or filled up with 1."""
    if len(items) == 1 and items[0][:1].isalpha():
        return items  # a word
    return items[:size] + ["1"] * (size - len(items))
