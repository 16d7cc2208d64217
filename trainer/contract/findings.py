"""What a lint rule is: facts in, findings out; and what several rules look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .config import TrainConfig
from .families import DEMO_BASE, known_base
from .steps import Folder, epochs_of, trained

Level = Literal["error", "warning", "hint"]
LEVELS: tuple[Level, ...] = ("error", "warning", "hint")


@dataclass(frozen=True)
class Facts:
    """What is known beyond the recipe. None means unknown, and rules that need it stay silent.

    Attributes:
        images: pictures that will be trained on, regularisation sets aside.
        masks: those of them that have a mask.
        held_out: pictures that are measured on instead.
        folders: all folders of the recipe, counted; empty where they are not known.
        folders_problem: why they cannot be trained on.
        faces: pictures of those that show a face.
        class_captions_with_trigger: captions of regularisation sets that have the trigger word in them.
        captions_missing_trigger, distinct_captions: counts over those pictures.
        captions: their captions, with the trigger where there is none.
        caption_folders: the folder of each: 0 is dataset.path, 1 the first subset.
        native_resolution: side in pixels that the base was trained at.
        gpu: name of the GPU; "" where there is none.
        vram_gib: its memory.
        seconds_per_step: of an earlier run like this one, on this machine.
        gpus: how many of them there are; 0 where there is none.
        start_from_families, start_from_problem: the families that the LoRA to go on from can be for, and
            why it cannot be used.
        storage_problem: why nothing can be stored where the recipe says.
    """

    images: int | None = None
    masks: int | None = None
    held_out: int | None = None
    folders: tuple[Folder, ...] = ()
    folders_problem: str = ""
    faces: int = 0
    class_captions_with_trigger: int = 0
    captions_missing_trigger: int = 0
    distinct_captions: int | None = None
    captions: tuple[str, ...] = ()
    caption_folders: tuple[int, ...] = ()
    native_resolution: int | None = None
    gpu: str | None = None
    vram_gib: float | None = None
    seconds_per_step: float | None = None
    gpus: int | None = None
    start_from_families: tuple[str, ...] = ()
    start_from_problem: str = ""
    storage_problem: str = ""


@dataclass(frozen=True)
class Finding:
    """``error`` stops the start, ``warning`` is probably a mistake, ``hint`` is worth knowing.

    ``fix`` maps dotted settings to better values; ``fix_label`` says on a button what it does.
    """

    level: Level
    field: str
    message: str
    fix: dict[str, Any] | None = None
    fix_label: str = ""
    rule: str = ""


Rule = Callable[[TrainConfig, Facts], Iterator[Finding]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    assert function.__name__ not in RULES, function
    RULES[function.__name__] = function
    return function


# What several rules look at --------------------------------------------------------------------------


def looks_per_picture(config: TrainConfig, images: int, folders: Sequence[Folder] = ()) -> float:
    """How often each picture is shown over the whole run, regularisation sets aside."""
    shown = trained(config, folders)
    looks = sum(folder.looks for folder in shown if not folder.regularisation)
    if looks:
        return epochs_of(config, shown) * looks / images
    return config.train.steps * config.train.batch_size * config.train.gradient_accumulation / images


def native_resolution(config: TrainConfig, facts: Facts) -> int | None:
    """Side in pixels the base was made for, None for a base that nothing is known of."""
    row = known_base(config.model.family, config.model.base)
    return facts.native_resolution or (row.resolution if row else None)


def usual_rate(config: TrainConfig) -> tuple[float, float, float]:
    """(lowest, usual, highest) sensible learning rate × alpha / rank for the base.

    Full-size bases: what kohya, ai-toolkit, OneTrainer, SimpleTuner and diffusers ship lies between
    6e-6 (1e-4 at rank 16, alpha 1) and 4e-4. The embedded model is far narrower and wants more. Lion's steps
    are larger, and want 3 to 10 times less (Chen et al. 2023); CAME's too (docs/techniques.md).
    """
    rates = (2e-4, 2e-3, 1e-2) if config.model.base == DEMO_BASE else (1e-5, 1e-4, 6e-4)
    share = 0.2 if config.train.optimizer.startswith(("lion", "came")) else 1.0
    low, usual, high = (rate * share for rate in rates)
    return low, usual, high


def adapter_scale(config: TrainConfig) -> float:
    """What the adapter's change is multiplied by: alpha / rank, alpha / √rank for rsLoRA, 1 for an OFT."""
    adapter = config.adapter
    if adapter.type == "oft":
        return 1.0
    return adapter.alpha / (adapter.rank**0.5 if adapter.rslora else adapter.rank)


def effective_rate(config: TrainConfig) -> float:
    return config.train.learning_rate * adapter_scale(config)


def rate_in_words(config: TrainConfig) -> str:
    if adapter_scale(config) == 1:
        return f"{config.train.learning_rate:g}"
    rule = "alpha / √rank" if config.adapter.rslora else "alpha / rank"
    return f"{config.train.learning_rate:g} × {rule} = {effective_rate(config):.1e}"


def neat(value: float) -> float:
    """Rounded to one significant figure, as people write learning rates."""
    return float(f"{value:.0e}")
