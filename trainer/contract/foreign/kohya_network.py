"""kohya's network_module, network_dim, network_alpha and network_args."""

from __future__ import annotations

from typing import Any

from . import kohya_tables
from .kohya_blocks import take_blocks
from .report import Imported, is_off
from .rules import follow
from .shared import key_values, take_alpha

_ALGORITHMS = {
    "lora": "lora",
    "locon": "lora",
    "loha": "loha",
    "lokr": "lokr",
    "dylora": "dylora",
    "oft": "oft",
}
_PRESETS = {
    "full": "transformer+conv",
    "full-lin": "transformer",
    "attn-mlp": "transformer",
    "attn-only": "attention",
    "unet-transformer-only": "transformer",
}
"""LyCORIS' presets of layers."""


def take_network(found: Imported, options: dict[str, Any]) -> None:
    arguments = _arguments(options)
    _take_type(found, options.pop("network_module", None), arguments)
    rank = options.pop("network_dim", None)
    if is_off(rank):
        found.take("adapter.rank", 4, "kohya's default", "default")
    else:
        found.keep("network_dim", rank, "adapter.rank", rank)
    take_alpha(found, "network_alpha", options.pop("network_alpha", None), 1)
    _take_conv(found, arguments)
    take_blocks(found, arguments)
    follow(found, arguments, kohya_tables.NETWORK_ARGS, "network_args ")
    found.unknown({f"network_args {name}": value for name, value in arguments.items()})


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    value = options.pop("network_args", None)
    return dict(value) if isinstance(value, dict) else dict(key_values(value))


def _take_type(found: Imported, module: Any, arguments: dict[str, Any]) -> None:
    name = str(module or "")
    algorithm = str(arguments.pop("algo", "") or "")
    lycoris = name.startswith("lycoris") or bool(algorithm)
    kind = algorithm or name.rpartition(".")[2]
    kind = "lora" if kind == "kohya" or (kind.startswith("lora") and kind != "lora_fa") else kind
    told = f"network_module{' algo' if algorithm else ''}"
    given = f"{name} {algorithm}".strip()
    if kind in ("dora",):
        found.take("adapter.dora", True, "DoRA", "converted")
        kind = "lora"
    if not given:
        return
    if kind not in _ALGORITHMS:
        found.miss(told, given, "this kind of adapter is not offered; a LoRA is trained")
        return
    found.keep(told, given, "adapter.type", _ALGORITHMS[kind])
    preset = arguments.pop("preset", None)
    if lycoris:
        choice = _PRESETS.get(str(preset or "full"), "")
        if not choice:
            found.miss("network_args preset", preset, "the linear layers of the transformer blocks are taken")
        elif preset is None:
            found.take("adapter.targets", choice, 'LyCORIS\' default preset, "full"', "default")
        else:
            found.keep("network_args preset", preset, "adapter.targets", choice)
    elif preset is not None:
        found.leave("network_args preset", preset, "only LyCORIS has presets")


def _take_conv(found: Imported, arguments: dict[str, Any]) -> None:
    rank, alpha = arguments.pop("conv_dim", None), arguments.pop("conv_alpha", None)
    if is_off(rank):
        for option, value in (("conv_dim", rank), ("conv_alpha", alpha)):
            if value is not None:
                found.leave(f"network_args {option}", value, "no convolutions are adapted")
        return
    found.keep("network_args conv_dim", rank, "adapter.conv_rank", rank)
    found.take(
        "adapter.targets", "transformer+conv", "conv_dim adapts the convolutions too (LoCon)", "converted"
    )
    if alpha in (None, ""):
        found.take("adapter.conv_alpha", 1, "kohya's default", "default")
    else:
        found.keep("network_args conv_alpha", alpha, "adapter.conv_alpha", alpha)
