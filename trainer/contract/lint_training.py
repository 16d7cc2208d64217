"""Lint rules on adapter, optimisation, samples and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TEXT_RATES, TrainConfig
from .families import CATALOGUE, known_base
from .findings import (
    Facts,
    Finding,
    looks_per_picture,
    native_resolution,
    neat,
    rule,
)
from .prompt import prompts_of, without_unknown
from .settings.dataset import all_resolutions
from .trigger import has_trigger

# Adapter and optimisation ----------------------------------------------------------------------------


@rule
def alpha_above_rank(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    rank, alpha = config.adapter.rank, config.adapter.alpha
    if alpha > 2 * rank and config.adapter.type != "oft":
        yield Finding(
            "warning",
            "adapter.alpha",
            f"Alpha {alpha:g} at rank {rank} multiplies the LoRA by {alpha / rank:.3g}, which is easily "
            "unstable; alpha = rank is the usual choice.",
            {"adapter.alpha": float(rank)},
            f"Alpha = {rank}",
        )


@rule
def rank_large_for_the_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    rank = config.adapter.rank
    if config.adapter.plain and facts.images and rank >= 64 and rank > 3 * facts.images:
        scale = config.adapter.alpha / rank
        yield Finding(
            "hint",
            "adapter.rank",
            f"Rank {rank} has room to learn {facts.images} pictures by heart; 16 or 32 generalises better.",
            {"adapter.rank": 32, "adapter.alpha": 32 * scale},
            "Use rank 32",
        )


@rule
def start_from_cannot_be_used(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    families = facts.start_from_families
    problem = facts.start_from_problem and f"It cannot start from this LoRA: {facts.start_from_problem}."
    if families and config.model.family not in families:
        theirs, ours = (CATALOGUE[key].label for key in (families[0], config.model.family))
        problem = f"The LoRA to start from is for {theirs}, and this recipe is for {ours}."
    if config.adapter.start_from and problem:
        yield Finding(
            "error", "adapter.start_from", problem, {"adapter.start_from": ""}, "Start with a fresh LoRA"
        )


@rule
def bf16_at_low_rank(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.adapter.precision == "bf16" and config.adapter.rank < 64:
        yield Finding(
            "warning",
            "adapter.precision",
            f"At rank {config.adapter.rank} a bf16 LoRA saves little memory, and bf16 rounds small updates "
            "away.",
            {"adapter.precision": "fp32"},
            "Use fp32",
        )


@rule
def bf16_over_fp16(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.adapter.precision == "bf16" and config.model.precision == "fp16":
        yield Finding(
            "error",
            "adapter.precision",
            "A bf16 LoRA cannot be trained over a base in fp16: the loss scaling that fp16 needs takes no "
            "bf16 gradients.",
            {"adapter.precision": "fp32"},
            "Use fp32",
        )


@rule
def text_encoder_faster_than_the_denoiser(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    for name in TEXT_RATES:
        rate = getattr(config.train, name)
        if rate > config.train.learning_rate:
            better = neat(config.train.learning_rate / 2)
            yield Finding(
                "warning",
                f"train.{name}",
                f"A text encoder's rate of {rate:g} is above the learning rate of "
                f"{config.train.learning_rate:g}; it forgets words before the pictures "
                "are learnt. A half to a tenth is usual.",
                {f"train.{name}": better},
                f"Use {better:g}",
            )


@rule
def second_text_encoder_left_alone(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    first, second = (getattr(config.train, name) for name in TEXT_RATES)
    if first and not second and len(CATALOGUE[config.model.family].trainable_text) > 1:
        yield Finding(
            "hint",
            "train.text_encoder_2_lr",
            f"Only the first of the two text encoders learns; kohya's scripts train both at {first:g}.",
            {"train.text_encoder_2_lr": first},
            "Train both",
        )


@rule
def captions_encoded_at_every_step(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if rates := config.text_encoder_rates():
        many = "a text encoder learns" if len(rates) == 1 else "text encoders learn"
        yield Finding(
            "hint",
            "train.text_encoder_lr",
            f"As {many}, captions cannot be encoded beforehand: every step takes longer, and all encoders "
            "stay in memory.",
            {f"train.{name}": 0.0 for name in TEXT_RATES},
            "Leave them alone",
        )


@rule
def batch_above_pictures(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images and not facts.folders and config.train.batch_size > facts.images:
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
    if facts.images and (looks := looks_per_picture(config, facts.images, facts.folders)) < 20:
        steps = _steps_for(config, facts.images, 60)
        often = f"about {looks:.0f} times" if looks >= 1.5 else "once at most" if looks <= 1 else "about once"
        yield Finding(
            "warning",
            "train.steps",
            f"Each picture is shown {often}, which is rarely enough; 50 to 150 times are usual.",
            {"train.steps": steps},
            f"Use {steps} steps",
        )


@rule
def many_looks(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.images and (looks := looks_per_picture(config, facts.images, facts.folders)) > 500:
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
def prompt_has_other_options(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    lines = [without_unknown(line) for line in config.samples.prompts]
    if others := [option for _, unknown in lines for option in unknown]:
        fix = {"samples.prompts": tuple(line for line, _ in lines)}
        yield Finding(
            "warning",
            "samples.prompts",
            f"A prompt has “{others[0][:40]}”, which is no option here and is read as text; those are --n "
            "(negative), --w, --h, --s (steps), --l (guidance), --d (seed) and --ss (sampler).",
            fix if all(line for line, _ in lines) else None,
            "Leave it out" if all(line for line, _ in lines) else "",
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
    base = known_base(config.model.family, config.model.base)
    usual = base.guidance if base else 5.0
    scale = config.samples.guidance
    if config.samples.prompts and usual == 1 < scale:
        yield Finding(
            "warning",
            "samples.guidance",
            f"This base was distilled to be sampled without guidance; {scale:g} spoils the samples.",
            {"samples.guidance": 1.0},
            "Use 1",
        )
    elif config.samples.prompts and scale == 1 < usual:
        negative = " and the negative prompt is ignored" if config.samples.negative else ""
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
    for prompt in prompts_of(config.samples):
        for side in (prompt.width, prompt.height):
            if side and side % multiple and side not in (config.samples.width, config.samples.height):
                yield Finding(
                    "error",
                    "samples.prompts",
                    f"The prompt “{prompt.text[:40]}” asks for {side} px; this family needs multiples of "
                    f"{multiple}.",
                )


@rule
def drawn_at_another_size(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    samples, native = config.samples, native_resolution(config, facts)
    sides = all_resolutions(config.dataset, native or 0)
    if not samples.prompts or not sides[0]:
        return
    trained = sides[0]
    width, height = samples.width or trained, samples.height or trained
    if all(not 0.5 <= width * height / side**2 <= 2 for side in (*sides, native) if side):
        yield Finding(
            "warning",
            "samples.width" if samples.width else "samples.height",
            f"Drawings of {width} × {height} are far from the {trained} px that are trained, and no measure "
            "of what is learnt: bases fall apart at sizes they do not know.",
            {"samples.width": None, "samples.height": None},
            "Draw at the trained size",
        )


@rule
def checkpoints_rare(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    every = config.checkpoints.every
    if 1000 < every <= config.train.steps:
        yield Finding(
            "hint",
            "checkpoints.every",
            f"A crash or an interrupted GPU costs up to {every} steps; a checkpoint takes seconds.",
            {"checkpoints.every": 250},
            "Every 250 steps",
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
