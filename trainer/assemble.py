"""The model of a run, put together: the frozen base, an assistant if there is one, and the LoRA on top."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .adapters import (
    ADAPTER,
    LoraWeights,
    adaptable,
    add_assistant,
    add_lora,
    begin_from_base,
    kept_tensors,
    limit_norms,
    lora_parameters,
    nested_rank,
    parameter_names,
    start_from,
    use_rank,
)
from .contract.blocks import Block, recounted
from .contract.config import TEXT_RATES, TrainConfig
from .contract.errors import RunError
from .contract.families import Family, assistant_of, block_maps
from .contract.hub import Tell, local_path, looks_like_hub_id
from .contract.lora_header import encoders_in, read_lora_header
from .contract.placing import Placing, of_a_guide, placing
from .contract.randomness import derived_seed
from .contract.rates import rate_of
from .contract.runs import RunFolder
from .contract.settings.adapter import AdapterSettings
from .contract.settings.noise import NoiseSettings
from .families.base import ModelFamily, load_family
from .hub import fetch_lora
from .lora_file import read_lora
from .losses import require_prediction
from .offload import offload
from .source import BaseModel, resolve

Split = Callable[[nn.Module, Collection[nn.Parameter], torch.device], None]


@dataclass(frozen=True)
class Model:
    """``denoiser`` predicts; ``parts`` are the modules with a LoRA, by name: it, and text encoders.

    ``placed`` are the ranks, alphas and weights of the denoiser's modules.
    """

    denoiser: nn.Module
    parts: dict[str, nn.Module]
    placed: Placing | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return lora_parameters(self.parts)

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the LoRA: :meth:`parameters` and what they mean nothing without."""
        return kept_tensors(self.parts)

    def groups(self, config: TrainConfig) -> list[tuple[float, list[nn.Parameter]]]:
        """(learning rate, parameters): those of a part that have the same rate, in the order of
        :meth:`parameters`."""
        groups: dict[tuple[str, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters().items():
            part, module, factor = parameter_names(name)
            rate = rate_of(config, part, factor) * self._weight(part, module)
            groups.setdefault((part, rate), []).append(parameter)
        return [(rate, parameters) for (_, rate), parameters in groups.items()]

    def _weight(self, part: str, module: str) -> float:
        """The recipe's factor on the learning rate in a module's block."""
        in_denoiser = self.parts[part] is self.denoiser
        return self.placed.of_module(module).weight if self.placed and in_denoiser else 1.0

    def begin_step(self, config: TrainConfig, step: int, rank: int = 0) -> None:
        """Before a step: what it leaves out at random is drawn from generators that are seeded here, of its
        own in each process."""
        seed = config.train.seed
        torch.manual_seed(derived_seed(seed, step, "process", rank) if rank else seed + step)
        adapter = config.adapter
        if adapter.type == "dylora":
            rank = nested_rank(config.train.seed, step, adapter.rank, adapter.dylora_unit)
            use_rank(self.parts, ADAPTER, rank)

    def end_step(self, config: TrainConfig) -> None:
        """After a step of the optimizer."""
        if config.adapter.max_norm:
            limit_norms(self.parts, config.adapter.max_norm)

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
                each.enable_gradient_checkpointing(_recomputed)
            else:
                each.gradient_checkpointing_enable({"use_reentrant": False})


def _recomputed(block: nn.Module, *inputs: Any, **more: Any) -> Any:
    """diffusers' own takes no named arguments, which HunyuanImage's transformer gives it (0.42)."""
    return checkpoint(block, *inputs, use_reentrant=False, **more)


def open_family(
    config: TrainConfig, base: BaseModel, device: torch.device, dtype: torch.dtype
) -> ModelFamily:
    """The recipe's family over its base model. Raises RunError where the loss is not for what it predicts."""
    model = config.model
    family = load_family(model.family, base, device, dtype, model.quantize, model.quantize_text)
    require_prediction(config.loss, family.noise.prediction)
    return family


def find_base(
    run: RunFolder, config: TrainConfig, tell: Callable[[str], None] = lambda text: None
) -> BaseModel:
    """The recipe's base model on this machine, fetched if need be; ``tell`` gets the progress."""
    model = config.model
    base = resolve(model.family, model.base, model.revision, model.vae, beside=run.path, on_download=tell)
    return replace(base, schedule=told_schedule(config.noise))


def told_schedule(noise: NoiseSettings) -> dict[str, Any]:
    """What the recipe says of a base's schedule, as its scheduler's configuration: training and sampling
    follow it alike."""
    told: dict[str, Any] = {}
    if noise.prediction != "auto":
        told["prediction_type"] = noise.prediction
    if noise.zero_terminal_snr != "auto":
        told["rescale_betas_zero_snr"] = noise.zero_terminal_snr == "on"
    if noise.zero_terminal_snr == "on":
        told["timestep_spacing"] = "trailing"  # begins at the last step, which is what was changed
    return told


def assemble(
    family: ModelFamily,
    config: TrainConfig,
    beside: Path,
    tell: Tell = lambda text: None,
    split: Split | None = None,
) -> Model:
    """Load the denoiser, put on what the recipe says. Relative paths are looked up in ``beside``; ``split``
    is for a base that is to be split over several processes (machine.shard)."""
    split = split if config.machine.shard else None
    denoiser = family.load_denoiser(in_ram=config.machine.offload or bool(split))
    base = list(denoiser.parameters())
    known = _adaptable(family.denoiser_part, denoiser)
    placed = place(config.adapter, family.row, denoiser)
    add_lora(denoiser, config.adapter, targets_in(denoiser, family, config), config.train.seed, placed)
    if config.adapter.init in ("pissa", "olora"):
        begin_from_base(denoiser, config.adapter, config.train.seed)
    if assistant := assistant_of(config.model.family, config.model.base, config.model.assistant):
        weights = read_lora(_lora_path(assistant, beside, tell), family, known)
        add_assistant(denoiser, {name.partition(".")[2]: lora for name, lora in weights.items()})
    if config.machine.offload:
        offload(denoiser, placed.blocks, family.device)
    if split:
        split(denoiser, base, family.device)
    parts = {family.denoiser_part: denoiser}
    if rates := config.text_encoder_rates():
        encoders = family.text_encoders()
        for number, part in enumerate(rates, 1):
            add_lora(encoders[part], config.adapter, family.text_targets, config.train.seed + number)
            if config.adapter.init in ("pissa", "olora"):
                begin_from_base(encoders[part], config.adapter, config.train.seed + number)
            parts[part] = encoders[part]
    return Model(denoiser, parts, placed)


def require_blocks(config: TrainConfig) -> None:
    """Raise RunError(config) for lists by block that are of another U-Net's length: the linter can convert
    those of guides, but nobody is to train other blocks than they believe."""
    for blocks in block_maps(config.model.family, config.model.base)[:1]:
        for name, (better, why) in of_a_guide(config.adapter, blocks).items():
            raise RunError(f"adapter.{name}: {why} Write {better!r} if that is meant", "config")


def place(adapter: AdapterSettings, row: Family, denoiser: nn.Module) -> Placing:
    """The recipe's settings by block, for the blocks that this denoiser has.

    Raises RunError(config) where a list has another length.
    """
    try:
        return placing(adapter, _blocks(row, denoiser))
    except ValueError as error:
        setting, sentence = error.args
        raise RunError(f"adapter.{setting}: {sentence}", "config") from None


def _blocks(row: Family, denoiser: nn.Module) -> tuple[Block, ...]:
    counts = {
        name: len(child) for name, child in denoiser.named_children() if isinstance(child, nn.ModuleList)
    }
    return recounted(row.blocks, counts)


def base_of(family: ModelFamily, config: TrainConfig) -> Model:
    """The base without any LoRA."""
    denoiser = family.load_denoiser(in_ram=config.machine.offload)
    if config.machine.offload:
        offload(denoiser, _blocks(family.row, denoiser), family.device)
    return Model(denoiser, {})


def targets_in(denoiser: nn.Module, family: ModelFamily, config: TrainConfig) -> str | list[str]:
    """The denoiser's modules that the recipe adapts: a preset's regular expression, or names."""
    if not (wanted := config.adapter.target_regex):
        return family.targets[config.adapter.targets]
    return [name for name in adaptable(denoiser) if re.search(wanted, name) and family.is_read(name)]


def warm_start(
    model: Model, family: ModelFamily, config: TrainConfig, beside: Path, tell: Tell = lambda text: None
) -> str:
    """Put the LoRA that the recipe goes on from into a fresh one; returns what to say of it, if anything."""
    if not config.adapter.start_from:
        return ""
    path = _lora_path(config.adapter.start_from, beside, tell)
    weights = _finished_lora(family, model, config, path)
    taken = start_from(model.parts, weights)
    said = f"goes on from {path.name}: {taken.modules} of {taken.of} modules"
    ranks = {lora.rank for lora in weights.values()}
    if ranks != {config.adapter.rank}:
        said += f", rank {_span(ranks)} -> {config.adapter.rank}, {taken.lost:.1%} of its weight lost"
    return said


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _finished_lora(
    family: ModelFamily, model: Model, config: TrainConfig, path: Path
) -> dict[str, LoraWeights]:
    """The LoRA to go on from. Raises RunError(config) where it would lose modules that it has."""
    found = encoders_in(read_lora_header(path), family.trainable_text)
    encoders = [part for part in found if part not in model.parts]
    if encoders:
        settings = dict(zip(family.trainable_text, TEXT_RATES, strict=False))
        names = " and ".join(f"train.{settings[part]}" for part in encoders)
        raise RunError(
            f"{path.name} adapts text encoders too; set {names} above 0 to go on from it", "config"
        )
    adapted = {f"{part}.{module}" for part, module, _ in map(parameter_names, model.parameters())}
    others = [
        name
        for part, module in model.parts.items()
        for name in _adaptable(part, module)
        if name not in adapted
    ]
    weights = read_lora(path, family, [*adapted, *others])
    beside = sorted(set(weights) - adapted)
    if lost := [name for name in beside if family.is_read(name.removeprefix(f"{family.denoiser_part}."))]:
        widest = config.adapter.targets == "transformer+conv"
        raise RunError(
            f"{path.name} adapts {len(lost)} modules that this recipe does not (such as {lost[0]}); "
            + ("they cannot be trained here, choose another LoRA" if widest else "set adapter.targets wider"),
            "config",
        )
    return weights


def _adaptable(part: str, module: nn.Module) -> list[str]:
    """The modules that a LoRA may be for, by name with their part."""
    return [f"{part}.{name}" for name in adaptable(module)]


def _lora_path(text: str, beside: Path, tell: Tell) -> Path:
    """The file that a path, or "owner/name" or "owner/name:file" on the Hub, stands for."""
    if path := local_path(text, beside):
        return path
    repo, _, file = text.partition(":")
    if not looks_like_hub_id(repo) or repo.endswith(".safetensors"):
        raise RunError(
            f"the LoRA {text} is not on this machine and is no Hub id (owner/name); check the spelling",
            "model_missing",
        )
    return fetch_lora(repo, file, tell=tell)
