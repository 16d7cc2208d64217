"""Traps between settings: each rule one sentence and, where there is one, a one-click fix.

A rule looks at a valid recipe and at what is known of photos and machine, and yields findings. Rules
are pure and need no torch; all of them together take milliseconds, so forms run them while one types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from .config import TrainConfig
from .families import CATALOGUE, DEMO_BASE, known_base

Level = Literal["error", "warning", "hint"]
LEVELS: tuple[Level, ...] = ("error", "warning", "hint")


@dataclass(frozen=True)
class Facts:
    """What is known beyond the recipe. None means unknown, and rules that need it stay silent.

    Attributes:
        images: pictures that will be trained on.
        captions_missing_trigger, distinct_captions: counts over those pictures.
        native_resolution: side in pixels that the base was trained at.
        gpu: name of the GPU; "" where there is none.
        vram_gib: its memory.
    """

    images: int | None = None
    captions_missing_trigger: int = 0
    distinct_captions: int | None = None
    native_resolution: int | None = None
    gpu: str | None = None
    vram_gib: float | None = None


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
    RULES[function.__name__] = function
    return function


def lint(config: TrainConfig, facts: Facts | None = None) -> list[Finding]:
    """All findings, the gravest first."""
    facts = facts or Facts()
    found = [replace(one, rule=name) for name, check in RULES.items() for one in check(config, facts)]
    return sorted(found, key=lambda one: LEVELS.index(one.level))


# What several rules look at --------------------------------------------------------------------------


def looks_per_picture(config: TrainConfig, images: int) -> float:
    """How often each picture is shown over the whole run."""
    return config.train.steps * config.train.batch_size * config.train.gradient_accumulation / images


def native_resolution(config: TrainConfig, facts: Facts) -> int | None:
    """Side in pixels the base was made for, None for a base that nothing is known of."""
    row = known_base(config.model.family, config.model.base)
    return facts.native_resolution or (row.resolution if row else None)


def usual_rate(config: TrainConfig) -> tuple[float, float, float]:
    """(lowest, usual, highest) sensible learning rate × alpha / rank for the base.

    Full-size bases: what kohya, ai-toolkit, OneTrainer, SimpleTuner and diffusers ship lies between
    6e-6 (1e-4 at rank 16, alpha 1) and 4e-4. The embedded model is far narrower and wants more.
    """
    return (2e-4, 2e-3, 1e-2) if config.model.base == DEMO_BASE else (1e-5, 1e-4, 6e-4)


def effective_rate(config: TrainConfig) -> float:
    return config.train.learning_rate * config.adapter.alpha / config.adapter.rank


def _rate_in_words(config: TrainConfig) -> str:
    if config.adapter.alpha == config.adapter.rank:
        return f"{config.train.learning_rate:g}"
    return f"{config.train.learning_rate:g} × alpha / rank = {effective_rate(config):.1e}"


def neat(value: float) -> float:
    """Rounded to one significant figure, as people write learning rates."""
    return float(f"{value:.0e}")


def has_trigger(text: str, trigger: str) -> bool:
    return trigger.casefold() in text.casefold()


# Dataset ---------------------------------------------------------------------------------------------


@rule
def no_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images == 0:
        yield Finding("error", "dataset.path", "There are no pictures to train on; add photos first.")


@rule
def few_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images is not None and 0 < facts.images < 6:
        yield Finding(
            "hint",
            "dataset.path",
            f"{facts.images} picture{'s' if facts.images > 1 else ''} will be copied rather than understood; "
            "10 to 30 varied ones work far better.",
        )


@rule
def trigger_empty(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if not config.dataset.trigger:
        yield Finding(
            "warning",
            "dataset.trigger",
            "There is no trigger word, so the LoRA will colour every prompt; choose one on the Captions "
            "page.",
        )


@rule
def trigger_missing_in_captions(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    missing = facts.captions_missing_trigger
    if config.dataset.trigger and missing:
        yield Finding(
            "warning",
            "dataset.trigger",
            f"{missing} caption{'s lack' if missing > 1 else ' lacks'} the trigger word "
            f"“{config.dataset.trigger}”; the Captions page can insert it everywhere.",
        )


@rule
def captions_all_the_same(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.distinct_captions == 1 and facts.images is not None and facts.images >= 4:
        yield Finding(
            "hint",
            "dataset.trigger",
            "All captions are the same, so background and pose are learnt along with the subject; "
            "captions that name what varies give a cleaner LoRA.",
        )


@rule
def resolution_above_native(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    native, chosen = native_resolution(config, facts), config.dataset.resolution
    if native and chosen and chosen > native * 1.25:
        yield Finding(
            "warning",
            "dataset.resolution",
            f"{chosen} px is beyond the {native} px that the base was made for; it would learn slowly and "
            "draw doubled subjects.",
            {"dataset.resolution": None},
            f"Use {native} px",
        )


@rule
def resolution_far_below_native(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    native, chosen = native_resolution(config, facts), config.dataset.resolution
    if native and chosen and chosen < native * 0.5:
        yield Finding(
            "hint",
            "dataset.resolution",
            f"{chosen} px is less than half of the {native} px that the base was made for; pictures come out "
            "soft.",
            {"dataset.resolution": None},
            f"Use {native} px",
        )


@rule
def caption_dropout_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    share = config.dataset.caption_dropout
    if share > 0.3:
        yield Finding(
            "warning",
            "dataset.caption_dropout",
            f"{share:.0%} of the pictures are shown without their caption, so the trigger word hardly binds; "
            "5-10 % is usual.",
            {"dataset.caption_dropout": 0.1},
            "Use 10 %",
        )


# Model and machine -----------------------------------------------------------------------------------


@rule
def full_size_base_without_a_gpu(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.gpu == "" and config.model.base != DEMO_BASE:
        yield Finding(
            "warning",
            "model.base",
            "This machine has no GPU that can be used; a full-size model trains for days on a processor.",
            {"model.base": DEMO_BASE},
            "Use the demo model",
        )


@rule
def half_precision_without_a_gpu(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.gpu == "" and config.model.precision in ("fp16", "bf16"):
        yield Finding(
            "warning",
            "model.precision",
            f"On a processor {config.model.precision} is slower than fp32 and saves only memory.",
            {"model.precision": "auto"},
            "Choose automatically",
        )


@rule
def vae_overflows_in_fp16(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """Some families' VAE overflows in fp16: black pictures, NaN latents."""
    safe = CATALOGUE[config.model.family].fp16_vae
    if safe and config.model.precision == "fp16" and not config.model.vae and config.model.base != DEMO_BASE:
        yield Finding(
            "warning",
            "model.precision",
            "This family's own VAE overflows in fp16; use the repaired one, or bf16.",
            {"model.vae": safe},
            "Use the repaired VAE",
        )


@rule
def checkpointing_off_on_a_small_gpu(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    stored, recomputed = CATALOGUE[config.model.family].activation_gib
    if (
        config.train.gradient_checkpointing == "off"
        and config.model.base != DEMO_BASE
        and facts.vram_gib is not None
        and facts.vram_gib < 24
    ):
        saved = (stored - recomputed) * config.train.batch_size
        yield Finding(
            "warning",
            "train.gradient_checkpointing",
            f"Without gradient checkpointing about {saved:.0f} GiB more are needed, and this GPU has "
            f"{facts.vram_gib:.0f} GiB.",
            {"train.gradient_checkpointing": "on"},
            "Switch it on",
        )


# Adapter and optimisation ----------------------------------------------------------------------------


@rule
def alpha_above_rank(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    rank, alpha = config.adapter.rank, config.adapter.alpha
    if alpha > 2 * rank:
        yield Finding(
            "warning",
            "adapter.alpha",
            f"Alpha {alpha:g} at rank {rank} multiplies the LoRA by {alpha / rank:.3g}, which is easily "
            "unstable; alpha = rank is the usual choice.",
            {"adapter.alpha": float(rank)},
            f"Alpha = {rank}",
        )


@rule
def learning_rate_too_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    _, usual, high = usual_rate(config)
    scale = config.adapter.alpha / config.adapter.rank
    if effective_rate(config) > high:
        better = neat(usual / scale)
        yield Finding(
            "warning",
            "train.learning_rate",
            f"{_rate_in_words(config)} is far above the usual {usual:g} for this base; pictures burn or turn "
            "to noise.",
            {"train.learning_rate": better},
            f"Use {better:g}",
        )


@rule
def learning_rate_too_low(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    low, usual, _ = usual_rate(config)
    scale = config.adapter.alpha / config.adapter.rank
    if effective_rate(config) < low:
        better = neat(usual / scale)
        fix: dict[str, Any] = {"train.learning_rate": better}
        label = f"Use {better:g}"
        if scale < 1:
            fix, label = {"adapter.alpha": float(config.adapter.rank)}, f"Alpha = {config.adapter.rank}"
            if config.train.learning_rate < low:
                fix["train.learning_rate"] = usual
                label += f", rate {usual:g}"
        yield Finding(
            "warning",
            "train.learning_rate",
            f"{_rate_in_words(config)} is far below the usual {usual:g} for this base; it would hardly "
            "learn.",
            fix,
            label,
        )


@rule
def rank_large_for_the_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    rank = config.adapter.rank
    if facts.images and rank >= 64 and rank > 3 * facts.images:
        scale = config.adapter.alpha / rank
        yield Finding(
            "hint",
            "adapter.rank",
            f"Rank {rank} has room to learn {facts.images} pictures by heart; 16 or 32 generalises better.",
            {"adapter.rank": 32, "adapter.alpha": 32 * scale},
            "Use rank 32",
        )


@rule
def dropout_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.adapter.dropout > 0.3:
        yield Finding(
            "warning",
            "adapter.dropout",
            f"Dropout {config.adapter.dropout:g} leaves little to learn from; 0 to 0.1 is usual.",
            {"adapter.dropout": 0.1},
            "Use 0.1",
        )


@rule
def batch_above_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images and config.train.batch_size > facts.images:
        yield Finding(
            "warning",
            "train.batch_size",
            f"A batch of {config.train.batch_size} is more than the {facts.images} pictures there are, so it "
            "is never filled.",
            {"train.batch_size": facts.images},
            f"Use {facts.images}",
        )


@rule
def few_looks(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images and (looks := looks_per_picture(config, facts.images)) < 20:
        steps = _steps_for(config, facts.images, 60)
        yield Finding(
            "warning",
            "train.steps",
            f"Each picture is shown about {looks:.0f} times, which is rarely enough; 50 to 150 is usual.",
            {"train.steps": steps},
            f"Use {steps} steps",
        )


@rule
def many_looks(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images and (looks := looks_per_picture(config, facts.images)) > 500:
        steps = _steps_for(config, facts.images, 120)
        yield Finding(
            "warning",
            "train.steps",
            f"Each picture is shown about {looks:.0f} times; the LoRA would copy them. 50 to 150 is usual.",
            {"train.steps": steps},
            f"Use {steps} steps",
        )


def _steps_for(config: TrainConfig, images: int, looks: int) -> int:
    steps = looks * images / (config.train.batch_size * config.train.gradient_accumulation)
    return max(10, round(steps / 10) * 10)


@rule
def warmup_long(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.warmup > 0.3:
        yield Finding(
            "warning",
            "train.warmup",
            f"The learning rate climbs for {config.train.warmup:.0%} of the run; 5-10 % is enough.",
            {"train.warmup": 0.1},
            "Use 10 %",
        )


@rule
def restarts_do_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.scheduler == "cosine_with_restarts" and config.train.restarts == 1:
        yield Finding(
            "hint",
            "train.restarts",
            "One cosine cycle is plain cosine: nothing restarts.",
            {"train.scheduler": "cosine"},
            "Use cosine",
        )


@rule
def restarts_too_short(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if train.scheduler == "cosine_with_restarts" and train.restarts > 1 and train.steps / train.restarts < 50:
        fewer = max(1, train.steps // 100)
        yield Finding(
            "hint",
            "train.restarts",
            f"{train.restarts} cycles leave {train.steps // train.restarts} steps each, too few to settle.",
            {"train.restarts": fewer} if fewer > 1 else {"train.scheduler": "cosine"},
            f"Use {fewer}" if fewer > 1 else "Use cosine",
        )


@rule
def polynomial_is_linear(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.scheduler == "polynomial":
        yield Finding(
            "hint",
            "train.scheduler",
            "Polynomial decay at its usual power 1 is the same straight line as linear.",
            {"train.scheduler": "linear"},
            "Use linear",
        )


# Samples and checkpoints -----------------------------------------------------------------------------


@rule
def no_prompts(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if not config.samples.prompts:
        prompt = f"a photo of {config.dataset.trigger}" if config.dataset.trigger else None
        yield Finding(
            "warning",
            "samples.prompts",
            "Without sample prompts there is nothing to see while it trains.",
            {"samples.prompts": (prompt,)} if prompt else None,
            f"Add “{prompt}”" if prompt else "",
        )


@rule
def trigger_in_no_prompt(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    trigger, prompts = config.dataset.trigger, config.samples.prompts
    if trigger and prompts and not any(has_trigger(prompt, trigger) for prompt in prompts):
        better = (f"{trigger}, {prompts[0]}", *prompts[1:])
        yield Finding(
            "warning",
            "samples.prompts",
            f"No sample prompt contains the trigger word “{trigger}”, so no sample can show what was learnt; "
            "it is not added by itself.",
            {"samples.prompts": better},
            "Add it to the first prompt",
        )


@rule
def no_control_prompt(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    trigger, prompts = config.dataset.trigger, config.samples.prompts
    if trigger and 0 < len(prompts) < 16 and all(has_trigger(prompt, trigger) for prompt in prompts):
        control = "a house by a lake"
        yield Finding(
            "hint",
            "samples.prompts",
            "Every sample prompt has the trigger word; one without it shows what the LoRA does to all else.",
            {"samples.prompts": (*prompts, control)},
            f"Add “{control}”",
        )


@rule
def samples_never(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.samples.prompts and config.samples.every > config.train.steps:
        every = max(1, config.train.steps // 4)
        yield Finding(
            "hint",
            "samples.every",
            f"The run ends at step {config.train.steps}, before the first drawing at {config.samples.every}.",
            {"samples.every": every},
            f"Every {every} steps",
        )


@rule
def samples_cost_more_than_training(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """Forward passes of all drawings against those of training (a backward pass counts as two)."""
    samples, train = config.samples, config.train
    if not samples.prompts or not samples.every:
        return
    drawings = train.steps // samples.every + 2
    passes = drawings * len(samples.prompts) * samples.steps * (2 if samples.guidance > 1 else 1)
    if passes > 3 * train.steps * train.batch_size * train.gradient_accumulation and drawings > 3:
        every = max(samples.every * 2, train.steps // 4)
        yield Finding(
            "hint",
            "samples.every",
            f"Drawing {len(samples.prompts)} prompts {drawings} times takes longer than the training itself.",
            {"samples.every": every},
            f"Every {every} steps",
        )


@rule
def guidance_off(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.samples.prompts and config.samples.guidance == 1:
        negative = " and the negative prompt is ignored" if config.samples.negative else ""
        usual = 4.0 if config.model.base == DEMO_BASE else 5.0
        yield Finding(
            "warning" if negative else "hint",
            "samples.guidance",
            f"Guidance 1 switches guidance off, so samples look pale{negative}.",
            {"samples.guidance": usual},
            f"Use {usual:g}",
        )


@rule
def sample_size_does_not_fit(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    multiple = CATALOGUE[config.model.family].size_multiple
    for name in ("width", "height"):
        side = getattr(config.samples, name)
        if side and side % multiple:
            better = max(64, round(side / multiple) * multiple)
            yield Finding(
                "error",
                f"samples.{name}",
                f"{side} px cannot be drawn; this family needs multiples of {multiple}.",
                {f"samples.{name}": better},
                f"Use {better} px",
            )


@rule
def checkpoints_never(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.checkpoints.every > config.train.steps:
        every = max(1, config.train.steps // 4)
        yield Finding(
            "warning",
            "checkpoints.every",
            f"The run ends at step {config.train.steps}, before the first checkpoint at "
            f"{config.checkpoints.every}; a crash would lose everything.",
            {"checkpoints.every": every},
            f"Every {every} steps",
        )
