"""kohya's lists of ranks, alphas and learning-rate weights by block, and its choices of blocks, as ours.

Lists of the wrong length are read as kohya reads them (too long: the first ones; too short: 1 for the rest),
and those of guides, which have SD 1.5's length for SDXL, as what they stand for, with the reason.
"""

from __future__ import annotations

import re
from typing import Any

from ..blocks import RANGE, WORDS, Block, guide_list
from ..families import block_maps
from .report import Imported, is_off, number
from .rules import words

_LISTS = {"block_dims": "adapter.block_ranks", "block_alphas": "adapter.block_alphas"}
_WEIGHTS = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_CHOICES = {"train_double_block_indices": 0, "train_single_block_indices": 1, "train_block_indices": 0}
"""Which of a transformer's lists of blocks an option chooses from."""
_NUMBER = re.compile(r"(?<![\w.+])-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")
"""A weight; not what lifts a word, as in sine+0.25."""
_APART = words(
    "img_attn_dim txt_attn_dim img_mlp_dim txt_mlp_dim img_mod_dim txt_mod_dim single_dim "
    "single_mod_dim in_dims emb_dims context_attn_dim context_mlp_dim context_mod_dim x_attn_dim "
    "x_mlp_dim x_mod_dim network_reg_dims network_reg_lrs conv_block_dims conv_block_alphas"
)
"""Ranks and rates of kinds of layers."""


def take_blocks(found: Imported, arguments: dict[str, Any]) -> None:
    """Take what is by block out of network_args."""
    blocks = block_maps(found.get("model.family"), found.get("model.base"))[0]
    for option, setting in _LISTS.items():
        value = arguments.pop(option, None)
        if not is_off(value):
            text, why = _explained(_text(value), blocks)
            found.keep(f"network_args {option}", value, setting, text, why)
    _take_weights(found, arguments, blocks)
    _take_choices(found, arguments, blocks)
    for option in _APART:
        value = arguments.pop(option, None)
        if not is_off(value):
            found.miss(f"network_args {option}", value, "ranks go by block here, not by kind of layer")
        elif value is not None:
            found.leave(f"network_args {option}", value, "off, as it is here")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def _explained(text: str, blocks: tuple[Block, ...]) -> tuple[str, str]:
    return guide_list(text, blocks) or (text, "")


def _take_weights(found: Imported, arguments: dict[str, Any], blocks: tuple[Block, ...]) -> None:
    given = {option: arguments.pop(option, None) for option in _WEIGHTS}
    told = {option: value for option, value in given.items() if not is_off(value)}
    if not told:
        return
    parts = list(dict.fromkeys(block.part for block in blocks if block.part))
    option = ", ".join(f"network_args {name}" for name in told)
    if parts != ["down", "mid", "up"]:
        found.miss(option, list(told.values()), "only U-Nets have blocks down, in the middle and up")
        return
    sizes = [sum(block.part == part for block in blocks) for part in parts]
    texts = [_text(given[name]) if name in told else "" for name in _WEIGHTS]
    lists = [_list(text, size) for text, size in zip(texts, sizes, strict=True)]
    text, why = _explained(" / ".join(lists), blocks)
    if not why:
        lists = [_cut(text, size) for text, size in zip(lists, sizes, strict=True)]
        text = " / ".join(lists)
    threshold = arguments.pop("block_lr_zero_threshold", None)
    least = 0.0 if is_off(threshold) else number(threshold)
    raised = _NUMBER.sub(lambda match: match[0] if float(match[0]) > least else "0", text)
    if [item for item in _NUMBER.findall(text) if float(item) < 0]:
        why = f"{why} Negative weights are 0 to kohya.".strip()
    found.keep(option, list(told.values()), "adapter.block_weights", raised, why)
    if threshold is not None:
        found.leave("network_args block_lr_zero_threshold", threshold, "numbers up to it are written as 0")


def _list(text: str, size: int) -> str:
    """A part's list as kohya completes it; "" stands for 1 everywhere."""
    items = [item.strip() or "0" for item in text.split(",")] if text else []
    if items and items[0].partition("+")[0] in WORDS:
        return text
    return ",".join(items + ["1"] * (size - len(items)))


def _cut(text: str, size: int) -> str:
    return text if text.partition("+")[0] in WORDS else ",".join(text.split(",")[:size])


def _take_choices(found: Imported, arguments: dict[str, Any], blocks: tuple[Block, ...]) -> None:
    """Blocks that are trained; all others of a transformer get rank 0."""
    parts = list(dict.fromkeys(block.part for block in blocks))
    members = [[n for n, block in enumerate(blocks) if block.part == part] for part in parts]
    left_out: set[int] = set()
    told: dict[str, Any] = {}
    which = arguments.pop("train_blocks", None)
    if which not in (None, "", "all"):
        told["train_blocks"] = which
        left_out |= set(members[{"single": 0, "double": 1}.get(str(which), 0)])
    elif which is not None:
        found.leave("network_args train_blocks", which, "all, as it is here")
    for option, place in _CHOICES.items():
        value = arguments.pop(option, None)
        if value in (None, "all") or place >= len(members):
            if value is not None:
                found.leave(f"network_args {option}", value, "all, as it is here")
            continue
        told[option] = value
        chosen = _chosen(str(value))
        left_out |= {n for place_in, n in enumerate(members[place]) if place_in not in chosen}
    if told:
        option = ", ".join(f"network_args {name}" for name in told)
        ranges = ", ".join(f"{first}-{last}: 0" for first, last in _runs(sorted(left_out)))
        found.keep(option, list(told.values()), "adapter.block_ranks", ranges, "the others are left out")


def _chosen(text: str) -> set[int]:
    """ "0-3,7" -> {0, 1, 2, 3, 7}; "none" -> nothing."""
    numbers: set[int] = set()
    for item in text.split(","):
        if match := RANGE.fullmatch(item.strip().replace(" ", "")):
            first = int(match[1] or -1)
            numbers |= set(range(first, min(int(match[2] or first), 10_000) + 1))
    return numbers


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """[0, 1, 2, 5] -> [(0, 2), (5, 5)]."""
    runs: list[tuple[int, int]] = []
    for place in numbers:
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return runs
