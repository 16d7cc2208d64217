"""Lint rules on learning rates, optimizers and averages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .config import TEXT_RATES, TrainConfig
from .findings import Facts, Finding, adapter_scale, effective_rate, neat, rate_in_words, rule, usual_rate
from .optimizers import OPTIMIZERS, parse_options, written_options
from .rates import loraplus_ratio
from .schedule import ema_decay_at, warmup_steps

LORAPLUS = ("loraplus_ratio", "loraplus_denoiser_ratio", "loraplus_text_ratio")

# Learning rates --------------------------------------------------------------------------------------


@rule
def learning_rate_too_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if OPTIMIZERS[config.train.optimizer].one_rate:
        return
    _, usual, high = usual_rate(config)
    scale = adapter_scale(config)
    if effective_rate(config) > high:
        better = neat(usual / scale)
        yield Finding(
            "warning",
            "train.learning_rate",
            f"{rate_in_words(config)} is far above the usual {usual:g} for this base; pictures burn or turn "
            "to noise.",
            {"train.learning_rate": better},
            f"Use {better:g}",
        )


@rule
def learning_rate_too_low(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if OPTIMIZERS[config.train.optimizer].one_rate:
        return
    low, usual, _ = usual_rate(config)
    scale = adapter_scale(config)
    if effective_rate(config) < low:
        better = neat(usual / scale)
        fix: dict[str, Any] = {"train.learning_rate": better}
        label = f"Use {better:g}"
        if scale < 1 and not config.adapter.rslora:
            fix, label = {"adapter.alpha": float(config.adapter.rank)}, f"Alpha = {config.adapter.rank}"
            if config.train.learning_rate < low:
                fix["train.learning_rate"] = usual
                label += f", rate {usual:g}"
        yield Finding(
            "warning",
            "train.learning_rate",
            f"{rate_in_words(config)} is far below the usual {usual:g} for this base; it would hardly learn.",
            fix,
            label,
        )


@rule
def rate_beside_an_estimate(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if OPTIMIZERS[train.optimizer].one_rate and not 0.3 <= train.learning_rate <= 1:
        yield Finding(
            "warning",
            "train.learning_rate",
            f"{train.optimizer.capitalize()} finds the learning rate by itself and multiplies it by "
            f"{train.learning_rate:g}; it would hardly learn. It wants 1.",
            {"train.learning_rate": 1.0},
            "Use 1",
        )


@rule
def one_rate_beside_text_rates(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if not OPTIMIZERS[train.optimizer].one_rate:
        return
    other = [name for name in TEXT_RATES if getattr(train, name) not in (0, train.learning_rate)]
    if other:
        yield Finding(
            "error",
            f"train.{other[0]}",
            f"{train.optimizer.capitalize()} has one learning rate for all that is trained; a text encoder "
            f"cannot have {getattr(train, other[0]):g} beside {train.learning_rate:g}.",
            {f"train.{name}": 0.0 for name in other},
            "Leave the text encoder alone",
        )


@rule
def one_rate_beside_loraplus(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    chosen = [name for name in LORAPLUS if getattr(train, name) not in (0, 1)]
    if chosen and OPTIMIZERS[train.optimizer].one_rate:
        yield Finding(
            "error",
            f"train.{chosen[0]}",
            f"{train.optimizer.capitalize()} has one learning rate for all that is trained, LoRA+ needs two.",
            {f"train.{name}": 0.0 for name in chosen},
            "Without LoRA+",
        )


@rule
def loraplus_burns(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    ratio, (_, _, high) = loraplus_ratio(config.train, text=False), usual_rate(config)
    outer = effective_rate(config) * ratio
    if ratio > 1 and outer > 5 * high and not OPTIMIZERS[config.train.optimizer].one_rate:
        better = neat(config.train.learning_rate * 2.5 * high / outer)
        yield Finding(
            "warning",
            "train.loraplus_ratio",
            f"LoRA+ multiplies the learning rate of the outer factors by {ratio:g}, to {outer:.2g}; pictures "
            "burn. It wants a lower learning rate to start from.",
            {"train.learning_rate": better},
            f"Learning rate {better:g}",
        )


@rule
def loraplus_upside_down(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    below = [name for name in LORAPLUS if 0 < getattr(config.train, name) < 1]
    if below:
        yield Finding(
            "warning",
            f"train.{below[0]}",
            f"A LoRA+ ratio of {getattr(config.train, below[0]):g} makes the outer factors learn slower, the "
            "opposite of what it is for; 16 is the paper's.",
            {f"train.{name}": 0.0 for name in below},
            "Without LoRA+",
        )


@rule
def loraplus_without_outer_factors(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    chosen = [name for name in LORAPLUS if getattr(config.train, name) not in (0, 1)]
    if chosen and config.adapter.type not in ("lora", "dylora"):
        yield Finding(
            "warning",
            f"train.{chosen[0]}",
            f"A {config.adapter.type} has no factor that begins at zero by itself, so LoRA+ does nothing.",
            {f"train.{name}": 0.0 for name in chosen},
            "Without LoRA+",
        )


@rule
def loraplus_for_no_text_encoder(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.loraplus_text_ratio and not config.text_encoder_rates():
        yield Finding(
            "hint",
            "train.loraplus_text_ratio",
            "No text encoder is trained, so its LoRA+ ratio does nothing.",
            {"train.loraplus_text_ratio": 0.0},
            "Clear it",
        )


# Optimizers ------------------------------------------------------------------------------------------


@rule
def schedule_beside_an_average(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if OPTIMIZERS[train.optimizer].averages and train.scheduler != "constant":
        yield Finding(
            "warning",
            "train.scheduler",
            f"Schedule-Free averages its weights instead of lowering the learning rate; {train.scheduler} "
            "takes the later steps out of that average.",
            {"train.scheduler": "constant"},
            "Use constant",
        )


@rule
def ema_beside_an_average(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if OPTIMIZERS[config.train.optimizer].averages and config.train.ema_decay:
        yield Finding(
            "warning",
            "train.ema_decay",
            "Schedule-Free hands out an average of its own; the moving average would take its place and mix "
            "weights that are not meant to be used.",
            {"train.ema_decay": 0.0},
            "Without EMA",
        )


@rule
def schedule_beside_an_estimate(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if train.optimizer == "prodigy" and train.scheduler not in ("constant", "cosine"):
        yield Finding(
            "warning",
            "train.scheduler",
            f"Prodigy is made for constant or cosine; {train.scheduler} confuses its estimate of the "
            "learning rate.",
            {"train.scheduler": "cosine"},
            "Use cosine",
        )


@rule
def warmup_beside_an_estimate(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    if train.optimizer == "prodigy" and train.warmup and not _options(config).get("safeguard_warmup"):
        yield Finding(
            "hint",
            "train.warmup",
            "Prodigy starts from a tiny learning rate by itself, and a warm-up misleads its estimate unless "
            "safeguard_warmup=True is among the optimizer options.",
            {"train.warmup": 0.0},
            "No warm-up",
        )


@rule
def adafactor_without_warmup(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.optimizer == "adafactor" and not warmup_steps(config.train):
        yield Finding(
            "warning",
            "train.warmup",
            "Adafactor's first steps rest on a single gradient and are as large as the learning rate allows; "
            "at a fixed rate it needs a warm-up.",
            {"train.warmup": 0.1},
            "Use 10 %",
        )


@rule
def adafactor_scales_by_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.optimizer == "adafactor" and _options(config).get("scale_parameter"):
        yield Finding(
            "warning",
            "train.optimizer_args",
            "With scale_parameter the learning rate is a share of each matrix's own size, and half of a "
            "LoRA's matrices begin at zero: they would learn a thousand times slower.",
            {"train.optimizer_args": _options_without(config, "scale_parameter")},
            "Take it away",
        )


@rule
def adafactor_clips_twice(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.optimizer == "adafactor" and config.train.max_grad_norm:
        yield Finding(
            "hint",
            "train.max_grad_norm",
            "Adafactor bounds each update by itself; clipping the gradient before that only blurs its "
            "statistics.",
            {"train.max_grad_norm": 0.0},
            "No clipping",
        )


@rule
def eight_bits_without_a_gpu(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    chosen = config.train.optimizer
    if facts.gpu == "" and "8bit" in chosen:
        plain = "lion" if "lion" in chosen else "adamw"
        paged = " and nothing is paged" if OPTIMIZERS[chosen].paged else ""
        yield Finding(
            "hint",
            "train.optimizer",
            f"There is no GPU whose memory {chosen} could save: it works on the processor, where it only "
            f"rounds{paged}.",
            {"train.optimizer": plain, "train.optimizer_args": ""},
            f"Use {plain}",
        )


@rule
def eight_bits_of_small_matrices(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if "8bit" in config.train.optimizer and config.adapter.rank < 8:
        plain = "lion" if "lion" in config.train.optimizer else "adamw"
        yield Finding(
            "hint",
            "train.optimizer",
            f"At rank {config.adapter.rank} most matrices have fewer than 4096 weights, whose state stays in "
            "32 bits: there is nothing to save.",
            {"train.optimizer": plain, "train.optimizer_args": ""},
            f"Use {plain}",
        )


@rule
def weight_decay_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    usual = 0.2 if config.train.optimizer.startswith("lion") else 0.1
    if config.train.weight_decay > usual:
        yield Finding(
            "warning",
            "train.weight_decay",
            f"A weight decay of {config.train.weight_decay:g} pulls the LoRA back to nothing; 0.01 is usual.",
            {"train.weight_decay": 0.01},
            "Use 0.01",
        )


@rule
def fused_clips_each_by_itself(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.fused_backward and config.train.max_grad_norm:
        yield Finding(
            "hint",
            "train.max_grad_norm",
            f"With fused backward each matrix is clipped at {config.train.max_grad_norm:g} by itself, not "
            "all together: much less is clipped than the number suggests.",
            {"train.fused_backward": False},
            "No fused backward",
        )


def _options(config: TrainConfig) -> dict[str, Any]:
    return parse_options(config.train.optimizer, config.train.optimizer_args)


def _options_without(config: TrainConfig, name: str) -> str:
    return written_options({key: value for key, value in _options(config).items() if key != name})


# Averages --------------------------------------------------------------------------------------------


@rule
def ema_never_reached(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    train = config.train
    last = ema_decay_at(train.ema_decay, train.steps)
    if last < train.ema_decay:
        better = 0.99 if train.steps >= 1000 else 0.95 if train.steps >= 200 else 0.9
        yield Finding(
            "warning",
            "train.ema_decay",
            f"An EMA of {train.ema_decay:g} remembers {1 / (1 - train.ema_decay):.0f} steps, and the run has "
            f"{train.steps}: it never gets there.",
            {"train.ema_decay": better if better < last else 0.0},
            f"Use {better:g}" if better < last else "Without EMA",
        )


@rule
def ema_too_short(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if 0 < config.train.ema_decay < 0.9:
        yield Finding(
            "hint",
            "train.ema_decay",
            f"An EMA of {config.train.ema_decay:g} averages over {1 / (1 - config.train.ema_decay):.0f} "
            "steps or so, which changes nothing; 0.95 to 0.999 is usual.",
            {"train.ema_decay": 0.95},
            "Use 0.95",
        )


@rule
def ema_in_ram_for_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.ema_on_cpu and (not config.train.ema_decay or facts.gpu == ""):
        why = "there is no GPU to spare" if config.train.ema_decay else "train.ema_decay is 0"
        yield Finding(
            "hint",
            "train.ema_on_cpu",
            f"Keeping the average in RAM does nothing: {why}.",
            {"train.ema_on_cpu": False},
            "Switch it off",
        )


# Unlearning ------------------------------------------------------------------------------------------


@rule
def unlearning_is_on(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.train.unlearn:
        kept = "" if config.prior.method != "none" else "; [prior] keeps the rest as it is meanwhile"
        yield Finding(
            "hint",
            "train.unlearn",
            f"The LoRA is trained away from these pictures, so that a base draws less like them{kept}.",
            {"train.unlearn": False},
            "Learn them instead",
        )
