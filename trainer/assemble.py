"""The model of a run, put together: the frozen base, an assistant if there is one, and the LoRA on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapters import LoraWeights, add_assistant, add_lora, lora_parameters, start_from
from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.families import assistant_of
from .contract.runs import RunFolder
from .families.base import ModelFamily, load_family
from .hub import Tell, fetch_lora
from .lora_file import read_lora
from .source import BaseModel, local_path, resolve


@dataclass(frozen=True)
class Model:
    """``denoiser`` predicts; ``parts`` are the modules with a LoRA, by name: it, and text encoders."""

    denoiser: nn.Module
    parts: dict[str, nn.Module]

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return lora_parameters(self.parts)

    def groups(self, config: TrainConfig) -> list[tuple[float, list[nn.Parameter]]]:
        """(learning rate, parameters) of the denoiser's LoRA and of each text encoder's, in the order of
        :meth:`parameters`."""
        rates = config.text_encoder_rates()
        return [
            (rates.get(part, config.train.learning_rate), list(lora_parameters({part: module}).values()))
            for part, module in self.parts.items()
        ]

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside this block nothing is dropped at random."""
        modes = {part: module.training for part, module in self.parts.items()}
        for module in self.parts.values():
            module.eval()
        try:
            yield
        finally:
            for part, module in self.parts.items():
                module.train(modes[part])

    def use_checkpointing(self) -> None:
        """Recompute activations instead of storing them."""
        for module in self.parts.values():
            each: Any = module
            if hasattr(each, "enable_gradient_checkpointing"):
                each.enable_gradient_checkpointing()
            else:
                each.gradient_checkpointing_enable({"use_reentrant": False})


def open_family(
    config: TrainConfig, base: BaseModel, device: torch.device, dtype: torch.dtype
) -> ModelFamily:
    """The recipe's family over its base model."""
    model = config.model
    return load_family(model.family, base, device, dtype, model.quantize, model.quantize_text)


def find_base(
    run: RunFolder, config: TrainConfig, tell: Callable[[str], None] = lambda text: None
) -> BaseModel:
    """The recipe's base model on this machine, fetched if need be; ``tell`` gets the progress."""
    model = config.model
    return resolve(model.family, model.base, model.revision, model.vae, beside=run.path, on_download=tell)


def assemble(family: ModelFamily, config: TrainConfig, beside: Path, tell: Tell = lambda text: None) -> Model:
    """Load the denoiser, put on what the recipe says. Relative paths are looked up in ``beside``."""
    denoiser = family.load_denoiser()
    known = _adaptable(family.denoiser_part, denoiser)
    add_lora(denoiser, config.adapter, family.targets[config.adapter.targets], config.train.seed)
    if assistant := assistant_of(config.model.family, config.model.base, config.model.assistant):
        weights = read_lora(_lora_path(assistant, beside, tell), family, known)
        add_assistant(denoiser, {name.partition(".")[2]: lora for name, lora in weights.items()})
    parts = {family.denoiser_part: denoiser}
    if rates := config.text_encoder_rates():
        encoders = family.text_encoders()
        for number, part in enumerate(rates, 1):
            add_lora(encoders[part], config.adapter, family.text_targets, config.train.seed + number)
            parts[part] = encoders[part]
    model = Model(denoiser, parts)
    if config.adapter.start_from:
        file = _lora_path(config.adapter.start_from, beside, tell)
        start_from(parts, _finished_lora(family, config, model, file))
    return model


def _finished_lora(
    family: ModelFamily, config: TrainConfig, model: Model, path: Path
) -> dict[str, LoraWeights]:
    """The LoRA to go on from. Raises RunError(config) where it would lose modules that it has."""
    adapted = {name.partition(".lora_")[0] for name in model.parameters()}
    weights = read_lora(path, family, [*adapted, *_others(family, model, adapted)])
    if lost := sorted(set(weights) - adapted):
        remedy = "set adapter.targets wider, or a text encoder's learning rate above 0"
        raise RunError(
            f"{path.name} adapts {len(lost)} modules that this recipe does not (such as {lost[0]}); {remedy}",
            "config",
        )
    return weights


def _others(family: ModelFamily, model: Model, adapted: set[str]) -> list[str]:
    """Modules that the recipe leaves alone, in the denoiser and in encoders that could be trained."""
    parts: dict[str, nn.Module] = {family.denoiser_part: model.denoiser}
    parts |= family.text_encoders() if family.trainable_text else {}
    names = [name for part, module in parts.items() for name in _adaptable(part, module)]
    return [name for name in names if name not in adapted]


def _adaptable(part: str, module: nn.Module) -> list[str]:
    """The modules that a LoRA may be for, by name with their part."""
    return [
        f"{part}.{name.removesuffix('.base_layer')}"
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and ".lora_" not in name
    ]


def _lora_path(text: str, beside: Path, tell: Tell) -> Path:
    """The file that a path, or "owner/name" or "owner/name:file" on the Hub, stands for."""
    if path := local_path(text, beside):
        return path
    repo, _, file = text.partition(":")
    return fetch_lora(repo, file, tell=tell)
