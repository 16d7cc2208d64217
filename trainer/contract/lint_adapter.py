"""Lint rules on the kind of adapter, where it sits, and how it is held back."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .config import TrainConfig
from .families import CATALOGUE, block_maps
from .fields import RECORDS
from .findings import Facts, Finding, adapter_scale, rule
from .optimizers import OPTIMIZERS
from .placing import of_a_guide, placing
from .rates import differs_by_block

# Where it sits -------------------------------------------------------------------------------------------


@rule
def blocks_of_another_unet(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    for blocks in block_maps(config.model.family, config.model.base)[:1]:
        for name, (better, why) in of_a_guide(config.adapter, blocks).items():
            yield Finding("error", f"adapter.{name}", why, {f"adapter.{name}": better}, "Use its blocks")


@rule
def block_learns_too_fast(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    for blocks in block_maps(config.model.family, config.model.base)[:1]:
        if of_a_guide(config.adapter, blocks):
            return
        try:
            weights = placing(config.adapter, blocks).weights
        except ValueError:  # it is for another base of the family
            return
        if (highest := max((weight or 0 for weight in weights), default=0)) > 4:
            yield Finding(
                "warning",
                "adapter.block_weights",
                f"A block learns {highest:g} times as fast as the learning rate says; weights are usually 0 "
                "to 1.",
                {"adapter.block_weights": ""},
                "Alike everywhere",
            )


@rule
def one_rate_beside_blocks(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if OPTIMIZERS[config.train.optimizer].one_rate and differs_by_block(config):
        yield Finding(
            "error",
            "adapter.block_weights",
            f"{config.train.optimizer.capitalize()} has one learning rate for all that is trained; a block "
            "can be left out (0), but not learn slower or faster than others.",
            {"adapter.block_weights": ""},
            "Alike everywhere",
        )


@rule
def no_convolutions_to_adapt(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    sizes = CATALOGUE[config.model.family].lora_params_per_rank
    if (
        config.adapter.targets == "transformer+conv"
        and not config.adapter.target_regex
        and sizes["transformer+conv"] == sizes["transformer"]
    ):
        yield Finding(
            "hint",
            "adapter.targets",
            f"{CATALOGUE[config.model.family].label} has no residual convolutions: it is the same as "
            "transformer.",
            {"adapter.targets": "transformer"},
            "Use transformer",
        )


@rule
def conv_rank_without_convolutions(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    adapter = config.adapter
    name = next((name for name in ("conv_rank", "conv_alpha") if getattr(adapter, name)), None)
    if name and adapter.targets != "transformer+conv" and not adapter.target_regex:
        yield Finding(
            "warning",
            f"adapter.{name}",
            "Convolutions are not adapted, so their rank and alpha do nothing.",
            {"adapter.targets": "transformer+conv"},
            "Adapt them",
        )


@rule
def conv_rank_above_rank(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    adapter = config.adapter
    if adapter.conv_rank and adapter.conv_rank > adapter.rank:
        less = max(1, adapter.rank // 2)
        yield Finding(
            "hint",
            "adapter.conv_rank",
            f"Rank {adapter.conv_rank} makes the convolutions most of the file: they are nine times as large "
            "a rank as linear layers; half of the rank is usual.",
            {"adapter.conv_rank": less},
            f"Use {less}",
        )


# Its kind --------------------------------------------------------------------------------------------------


@rule
def not_read_by_diffusers(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if not config.adapter.plain or config.adapter.dora:
        setting, plain = ("dora", False) if config.adapter.plain else ("type", "lora")
        yield Finding(
            "hint",
            f"adapter.{setting}",
            "ComfyUI, Forge and A1111 read its file; diffusers, and what is made with it, does not.",
            {f"adapter.{setting}": plain},
            "Use a plain LoRA",
        )


@rule
def setting_of_another_kind(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    for name, kind in (("lokr_factor", "lokr"), ("dylora_unit", "dylora")):
        usual = RECORDS[f"adapter.{name}"].default
        if config.adapter.type != kind and getattr(config.adapter, name) != usual:
            yield Finding(
                "hint",
                f"adapter.{name}",
                f"It does nothing for {config.adapter.type}: only {kind} reads it.",
                {f"adapter.{name}": usual},
                f"Set it to {usual}",
            )


@rule
def loha_rank_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    adapter = config.adapter
    if adapter.type == "loha" and adapter.rank > 32:
        yield Finding(
            "warning",
            "adapter.rank",
            f"A LoHa of rank {adapter.rank} reaches the rank {adapter.rank**2}, which is more than layers "
            "have, at twice a LoRA's size; 4 to 16 is enough.",
            {"adapter.rank": 8, "adapter.alpha": 8 * adapter.alpha / adapter.rank},
            "Use rank 8",
        )


@rule
def oft_alpha_does_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    usual = RECORDS["adapter.alpha"].default
    if config.adapter.type == "oft" and config.adapter.alpha != usual:
        yield Finding(
            "hint",
            "adapter.alpha",
            "An oft only turns outputs: alpha has nothing to scale.",
            {"adapter.alpha": usual},
            f"Set it to {usual:g}",
        )


@rule
def oft_blocks_large(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.adapter.type == "oft" and config.adapter.rank > 64:
        yield Finding(
            "warning",
            "adapter.rank",
            f"Blocks of {config.adapter.rank} are inverted at every step, in every layer, which takes longer "
            "than the layers themselves; 8 to 32 is usual.",
            {"adapter.rank": 32},
            "Use 32",
        )


@rule
def dora_over_a_quantised_base(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.adapter.dora and config.model.quantize != "none":
        yield Finding(
            "warning",
            "adapter.dora",
            f"A DoRA measures the base's weights at every step, and unpacks those in {config.model.quantize} "
            "for it each time: far slower, with the rounding learnt too.",
            {"adapter.dora": False},
            "Without DoRA",
        )


@rule
def start_over_a_quantised_base(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.adapter.init in ("pissa", "olora") and config.model.quantize == "nf4":
        yield Finding(
            "hint",
            "adapter.init",
            f"With nf4, {config.adapter.init} takes the directions of the weights as they were rounded.",
            {"adapter.init": "default"},
            "Use the default",
        )


@rule
def rslora_with_large_alpha(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    adapter = config.adapter
    if adapter.rslora and (scale := adapter_scale(config)) > 4:
        alpha = float(round(math.sqrt(adapter.rank)))
        yield Finding(
            "warning",
            "adapter.alpha",
            f"Alpha {adapter.alpha:g} of an rsLoRA at rank {adapter.rank} multiplies it by {scale:.3g}: "
            f"alpha = √rank = {alpha:g} is what alpha = rank is without it.",
            {"adapter.alpha": alpha},
            f"Alpha = {alpha:g}",
        )


@rule
def start_is_replaced(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.adapter.init == "gaussian" and config.adapter.start_from:
        yield Finding(
            "hint",
            "adapter.init",
            "It goes on from a finished LoRA, so another start of the fresh one does nothing.",
            {"adapter.init": "default"},
            "Use the default",
        )


@rule
def nested_ranks_learn_little(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    adapter = config.adapter
    ranks = adapter.rank // adapter.dylora_unit
    known = not config.train.epochs  # how many steps these are
    if adapter.type == "dylora" and known and config.train.steps / ranks < 100:
        unit = max(adapter.rank // 4, 1)
        yield Finding(
            "warning",
            "adapter.dylora_unit",
            f"Each of the {ranks} ranks is trained in {config.train.steps / ranks:.0f} steps; the highest "
            "would hardly differ from those below it.",
            {"adapter.dylora_unit": unit} if adapter.rank % unit == 0 and ranks > 4 else None,
            f"Use {unit}" if adapter.rank % unit == 0 and ranks > 4 else "",
        )


# What holds it back --------------------------------------------------------------------------------------


@rule
def dropouts_add_up(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    adapter = config.adapter
    given = {
        name: value
        for name in ("dropout", "rank_dropout", "module_dropout")
        if (value := getattr(adapter, name))
    }
    kept = math.prod(1 - value for value in given.values())
    if len(given) > 1 and kept < 0.5:
        first, *others = given
        yield Finding(
            "warning",
            f"adapter.{others[-1]}",
            f"Together the dropouts leave {kept:.0%} of the LoRA in a step; one of them, at 0.1, is enough.",
            {f"adapter.{first}": 0.1} | {f"adapter.{name}": 0.0 for name in others},
            "Keep one",
        )


@rule
def rank_dropout_of_few_ranks(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    adapter = config.adapter
    if adapter.plain and adapter.rank_dropout and adapter.rank < 8:
        yield Finding(
            "warning",
            "adapter.rank_dropout",
            f"Of {adapter.rank} ranks each is much: dropout of the inputs is gentler.",
            {"adapter.rank_dropout": 0.0, "adapter.dropout": max(adapter.dropout, 0.1)},
            "Use dropout 0.1",
        )


@rule
def module_dropout_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    for name, what in (("rank_dropout", "ranks"), ("module_dropout", "layers")):
        if (value := getattr(config.adapter, name)) > 0.5:
            yield Finding(
                "warning",
                f"adapter.{name}",
                f"{value:.0%} of the {what} are left out of each step, and learn nothing in it; 0.1 to 0.3 "
                "is usual.",
                {f"adapter.{name}": 0.2},
                "Use 0.2",
            )


@rule
def max_norm_small(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if 0 < config.adapter.max_norm < 0.1:
        yield Finding(
            "warning",
            "adapter.max_norm",
            f"A norm of {config.adapter.max_norm:g} lets a layer change by next to nothing; 1 is usual.",
            {"adapter.max_norm": 1.0},
            "Use 1",
        )
