"""The adapter on a model's layers: PEFT's for LoRA, LoHa and LoKr, our own for OFT; and reading it out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..contract.errors import RunError
from ..contract.placing import Placement, Placing, alike
from ..contract.settings.adapter import AdapterSettings
from .dora import add_dora
from .dropout import drop_randomly, nest
from .oft import add_oft
from .weights import AdapterWeights, weights_of

ADAPTER, ASSISTANT, START = "default", "assistant", "start"
"""What is trained; what undoes a distillation; what the trained one began as, subtracted."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

FACTORS = (
    *("lora_A", "lora_B", "lora_magnitude_vector"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "oft_blocks",
)
"""What the parameters of an adapter are called."""

_NAME = re.compile(rf"(.+)\.({'|'.join(FACTORS)})\.({ADAPTER}|{START})(\.weight)?")


def add_lora(
    module: nn.Module,
    settings: AdapterSettings,
    targets: str | Collection[str],
    seed: int,
    placed: Placing | None = None,
) -> None:
    """Put a fresh adapter on every submodule whose name full-matches ``targets``, or is one of them.

    It is drawn by ``seed``, so that nothing changes at step 0: in a LoRA A is from U(-1/√fan_in, 1/√fan_in)
    and B zero (Hu et al. 2021). ``placed``: ranks by block, the same everywhere where it is None.
    Raises RunError(config) when nothing matches.
    """
    placed = placed or alike(settings)
    placements = {
        name: placed.of_module(name, wide=_is_wide(layer))
        for name, layer in adaptable(module).items()
        if (re.fullmatch(targets, name) if isinstance(targets, str) else name in targets)
    }
    placements = {name: place for name, place in placements.items() if place.rank}
    if not placements:
        asked = "target_regex" if settings.target_regex else "targets"
        raise RunError(
            f"the base model has no layer for adapter.{asked}, or the blocks that have one are left out; "
            "there is nothing to train",
            "config",
        )
    torch.manual_seed(seed)
    if settings.type == "oft":
        add_oft(module, {name: place.rank for name, place in placements.items()}, settings, ADAPTER)
    else:
        inject_adapter_in_model(_config(settings, placements), module, ADAPTER)
    for layer in adapter_layers(module).values():
        if _is_whole_lokr(layer):
            layer.scaling[ADAPTER] = 1.0  # as in LyCORIS: nothing is divided by a rank that is not there
    for layer in lora_layers(module).values():
        if settings.dora:
            add_dora(layer, ADAPTER)
        drop_randomly(layer, ADAPTER, settings.rank_dropout, settings.module_dropout)
        if settings.type == "dylora":
            nest(layer, ADAPTER)
    for parameter in lora_parameters({"": module}).values():
        parameter.data = parameter.data.to(_DTYPES[settings.precision])


def adaptable(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be adapted, by dotted name."""
    return {
        name.removesuffix(".base_layer"): layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in name
    }


def _is_wide(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)


def _config(settings: AdapterSettings, placements: Mapping[str, Placement]) -> PeftConfig:
    """PEFT's configuration; modules of another rank or alpha than the recipe's are named in patterns."""
    ranks = pattern({name: place.rank for name, place in placements.items()}, settings.rank)
    alphas = pattern({name: place.alpha for name, place in placements.items()}, settings.alpha)
    alpha: Any = settings.alpha  # peft's annotation says int; its arithmetic takes any number
    common: dict[str, Any] = {
        "r": settings.rank,
        "target_modules": either(placements),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    drops: dict[str, Any] = {"rank_dropout": settings.rank_dropout, "module_dropout": settings.module_dropout}
    if settings.type == "loha":
        return LoHaConfig(alpha=alpha, **common, **drops)
    if settings.type == "lokr":
        return LoKrConfig(
            alpha=alpha,
            decompose_factor=settings.lokr_factor,
            init_weights="lycoris",
            rank_dropout_scale=True,
            **common,
            **drops,
        )
    return LoraConfig(
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        init_lora_weights="gaussian" if settings.init == "gaussian" else True,
        **common,
    )


def _is_whole_lokr(layer: Any) -> bool:
    return ADAPTER in getattr(layer, "lokr_w1", ()) and ADAPTER in layer.lokr_w2


def either(names: Collection[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def pattern(values: Mapping[str, float], usual: float) -> dict[str, Any]:
    """{regular expression: value}, one for each value that is not the usual one."""
    return {
        f"^({either([name for name, each in values.items() if each == value])})": value
        for value in dict.fromkeys(values.values())
        if value != usual
    }


def adapter_layers(module: nn.Module) -> dict[str, Any]:
    """The layers with an adapter of any kind."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}


def trained_layers(module: nn.Module) -> dict[str, Any]:
    """The layers with an adapter that is trained; an assistant may be on more of them."""
    return {
        name: layer
        for name, layer in adapter_layers(module).items()
        if any(ADAPTER in getattr(layer, factor, ()) for factor in FACTORS)
    }


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """The layers with a LoRA."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


# Reading it out -----------------------------------------------------------------------------------------


def lora_parameters(parts: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in the module order (which is the optimizer's order)."""
    return {name: parameter for name, parameter, adapter in _named(parts) if adapter == ADAPTER}


def _named(parts: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter, str]]:
    """(name with its part, parameter, adapter) of what is trained and of what it began as."""
    found = []
    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            if match := _NAME.fullmatch(name):
                found.append((f"{part}.{name}", parameter, match[3]))
    return found


def parameter_names(name: str) -> tuple[str, str, str]:
    """ "unet.mid_block.….to_q.lora_A.default.weight" -> ("unet", "mid_block.….to_q", "lora_A")."""
    part, _, inside = name.partition(".")
    match = _NAME.fullmatch(inside)
    assert match
    return part, match[1], match[2]


def kept_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All that a checkpoint has to hold of the adapter: what is trained, what it began as where that is
    subtracted, and each module's alpha (such that alpha / rank is its scale)."""
    tensors: dict[str, Tensor] = {name: parameter for name, parameter, _ in _named(parts)}
    for part, module in parts.items():
        for name, layer in adapter_layers(module).items():
            if (alpha := _alpha(layer)) is not None:
                tensors[f"{part}.{name}.alpha"] = alpha
    return tensors


def _alpha(layer: Any) -> Tensor | None:
    if ADAPTER not in getattr(layer, "scaling", {}):
        return None
    rank = 1 if _is_whole_lokr(layer) else layer.r[ADAPTER]
    return torch.tensor(float(layer.scaling[ADAPTER] * rank))


def layer_weights(layer: Any) -> AdapterWeights:
    """The adapter of one layer, float32, where it is."""
    tensors: dict[str, Tensor] = {}
    for factor in FACTORS:
        for adapter in (ADAPTER, START):
            if adapter in getattr(layer, factor, ()):
                held = getattr(layer, factor)[adapter]
                tensors[f"{factor}.{adapter}"] = getattr(held, "weight", held).detach().float()
    alpha = _alpha(layer)
    return weights_of({"alpha": torch.tensor(1.0) if alpha is None else alpha, **tensors})


def lora_weights(parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The adapter as {part.module: AdapterWeights}, detached, on the CPU, float32."""
    return read_weights(kept_tensors(parts))


def read_weights(tensors: Mapping[str, Tensor], alpha: float = 1.0) -> dict[str, Any]:
    """The adapter in a checkpoint's tensors; ``alpha`` is that of modules that do not say theirs."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, ending = name.rpartition(".")
        key = ending
        if match := _NAME.fullmatch(name):
            module, key = match[1], f"{match[2]}.{match[3]}"
        modules.setdefault(module, {})[key] = tensor.detach().float().cpu().clone()
    usual = torch.tensor(alpha)
    weights: dict[str, AdapterWeights] = {
        module: weights_of({"alpha": usual, **own}) for module, own in modules.items()
    }
    return weights
