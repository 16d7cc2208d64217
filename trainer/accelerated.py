"""What ``accelerate launch`` says in its environment, by a configuration file or options, and what is heeded.

Processes, machines and GPUs are accelerate's own affair: it starts them, as torchrun does. Of the rest, what
is split becomes ``machine.shard`` (:mod:`trainer.shards`), and number formats and recomputed activations
become the recipe's. It is only read, and then taken out of the environment: accelerate's ``Accelerator``
would split what is trained, which of a LoRA is next to nothing, and divide gradients once more by accumulated
steps; transformers would load text encoders as empty shells for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .contract.config import TrainConfig
from .contract.errors import ConfigError, RunError
from .contract.fields import merge, nest, parse, to_tables
from .processes import under_torchrun

ENGINES = {"MEGATRON_LM": "Megatron-LM", "PARALLELISM_CONFIG": "parallelism_config"}
"""What accelerate can start, and nothing here can be: {ACCELERATE_USE_…: its name in the configuration}"""


def as_launched(config: TrainConfig, say: Callable[[str], None] = lambda text: None) -> TrainConfig:
    """The recipe as accelerate's configuration has it trained; ``say`` hears what that is, and what not.

    Raises RunError(config) or ConfigError for a configuration, or a recipe with it, that cannot be trained.
    """
    told = _told()
    if not told:
        return config
    for engine, name in ENGINES.items():
        if _is_on(told, f"ACCELERATE_USE_{engine}"):
            sentence = f"accelerate's {name} cannot train a LoRA here; choose multi-GPU or FSDP"
            raise RunError(sentence, "config")
    if "MASTER_ADDR" in os.environ and not under_torchrun():
        raise RunError(
            "accelerate has started one process of several, as it does on processors without mpirun; start "
            "without accelerate and set machine.gpus to how many you want",
            "config",
        )
    changes = _precision(told, config, say)
    if under_torchrun():
        changes |= _split(told, config, say)
    if _is_on(told, "FSDP_ACTIVATION_CHECKPOINTING"):
        changes["train.gradient_checkpointing"] = "on"
    theirs, ours = told.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", ""), config.train.gradient_accumulation
    if theirs.isdigit() and int(theirs) != ours:
        say(f"accelerate's gradient_accumulation_steps is {theirs}; the recipe's counts ({ours})")
    try:
        return parse(merge(to_tables(config), nest(changes)))
    except ConfigError as error:
        why = "with accelerate's configuration: "
        raise ConfigError({setting: why + text for setting, text in error.problems.items()}) from None


@cache
def _told() -> Mapping[str, str]:
    """accelerate's variables, taken out of the environment; none where it has not started this process."""
    prefixes = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
    names = [name for name in os.environ if name.startswith(prefixes)]
    told = {name: os.environ.pop(name) for name in names}
    return told if "ACCELERATE_MIXED_PRECISION" in told else {}


def _is_on(told: Mapping[str, str], name: str) -> bool:
    return told.get(name, "").lower() in ("true", "1", "yes")


def _precision(told: Mapping[str, str], config: TrainConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """mixed_precision where the recipe leaves it open; "no" is what accelerate says when nobody was asked."""
    theirs, ours = told["ACCELERATE_MIXED_PRECISION"], config.model.precision
    if theirs in ("bf16", "fp16") and ours == "auto":
        return {"model.precision": theirs}
    if theirs not in ("no", ours):
        say(f"accelerate's mixed_precision is {theirs}; the recipe's model.precision counts ({ours})")
    return {}


def _split(told: Mapping[str, str], config: TrainConfig, say: Callable[[str], None]) -> dict[str, Any]:
    how = _deepspeed(told, say) or _fsdp(told)
    if not how or config.machine.shard:
        return {}
    say(f"{how}: the base is split over all processes, as by machine.shard; what is trained stays whole")
    return {"machine.shard": True}


def _fsdp(told: Mapping[str, str]) -> str:
    """What is to be split, in words; "" for nothing. Raises RunError(config)."""
    if not _is_on(told, "ACCELERATE_USE_FSDP"):
        return ""
    if _is_on(told, "FSDP_OFFLOAD_PARAMS"):
        raise _offloads("fsdp_offload_params")
    strategy = told.get("FSDP_SHARDING_STRATEGY", "") if told.get("FSDP_VERSION") == "1" else ""
    return "" if strategy in ("NO_SHARD", "3") else "accelerate's FSDP"


def _deepspeed(told: Mapping[str, str], say: Callable[[str], None]) -> str:
    """The same of DeepSpeed, whose stages below 3 split what a LoRA has next to nothing of."""
    if not _is_on(told, "ACCELERATE_USE_DEEPSPEED"):
        return ""
    stage = told.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    device = told.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    if file := told.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        try:
            zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {})
            stage, device = zero.get("stage", 0), zero.get("offload_param", {}).get("device", "none")
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"deepspeed_config_file {file} cannot be read ({error})", "config") from None
    if str(stage) != "3":
        say(f"accelerate's ZeRO-{stage or 0}: optimizer and gradients of a LoRA are small, and not split")
        return ""
    if device != "none":
        raise _offloads("offload_param_device")
    return "accelerate's ZeRO-3 (without DeepSpeed itself)"


def _offloads(setting: str) -> RunError:
    return RunError(
        f"accelerate's {setting} keeps a split base in RAM, which cannot be had; switch it off, or leave the "
        "base whole (multi-GPU) and set machine.offload",
        "config",
    )
