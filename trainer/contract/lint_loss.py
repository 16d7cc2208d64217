"""Lint rules on losses, noise and timesteps."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .config import TrainConfig
from .families import CATALOGUE, known_base
from .findings import Facts, Finding, rule

# What is known of the base ----------------------------------------------------------------------------


def is_flow(config: TrainConfig) -> bool:
    return CATALOGUE[config.model.family].process == "flow"


def prediction_of(config: TrainConfig) -> str:
    """What the base predicts, "" where only the base itself can tell."""
    if is_flow(config):
        return "velocity"
    if config.noise.prediction != "auto":
        return config.noise.prediction
    known = known_base(config.model.family, config.model.base)
    return known.prediction if known else ""


def ends_in_noise(config: TrainConfig) -> bool:
    """Whether the base is known to have zero terminal SNR."""
    if config.noise.zero_terminal_snr != "auto":
        return config.noise.zero_terminal_snr == "on"
    known = known_base(config.model.family, config.model.base)
    return bool(known and known.zero_terminal_snr)


# Losses and weights -----------------------------------------------------------------------------------


@rule
def huber_snr_of_a_flow(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    loss = config.loss
    if loss.type in ("huber", "smooth_l1") and loss.huber_schedule == "snr" and is_flow(config):
        yield Finding(
            "hint",
            "loss.huber_schedule",
            "With flow models kohya's scripts stop at “snr”; here it takes the flow's own ratio; "
            "“exponential” is the same in both.",
            {"loss.huber_schedule": "exponential"},
            "Use exponential",
        )


@rule
def huber_settings_without_huber(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    loss = config.loss
    if loss.type in ("l2", "l1") and (loss.huber_c, loss.huber_scale) != (0.1, 1.0):
        yield Finding(
            "hint",
            "loss.huber_c",
            f"The loss is {loss.type}, so that huber_c and huber_scale do nothing.",
            {"loss.type": "huber"},
            "Use huber",
        )


@rule
def huber_scale_ignored(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    loss = config.loss
    if loss.type in ("huber", "smooth_l1") and loss.huber_schedule == "snr" and loss.huber_scale != 1:
        yield Finding(
            "hint",
            "loss.huber_scale",
            "The schedule “snr” ignores the scale, as kohya's does.",
            {"loss.huber_scale": 1.0},
            "Scale 1",
        )


@rule
def huber_c_makes_it_l2(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    loss = config.loss
    if loss.type in ("huber", "smooth_l1") and loss.huber_c >= 1:
        yield Finding(
            "warning",
            "loss.huber_c",
            f"At {loss.huber_c:g} hardly any error counts as large, and huber is nearly l2; 0.1 is usual.",
            {"loss.huber_c": 0.1},
            "Use 0.1",
        )


@rule
def min_snr_of_a_flow(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.loss.min_snr_gamma and is_flow(config):
        yield Finding(
            "warning",
            "loss.min_snr_gamma",
            "Min-SNR was made for models that predict noise or v; kohya's scripts pass over it with flow "
            "models, whose noise levels are chosen by noise.timesteps instead.",
            {"loss.min_snr_gamma": 0.0},
            "Switch it off",
        )


@rule
def min_snr_gamma_unusual(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    gamma = config.loss.min_snr_gamma
    if gamma and not 1 <= gamma <= 20 and not is_flow(config):
        does = "takes most of the loss away" if gamma < 1 else "hardly changes anything"
        yield Finding(
            "warning",
            "loss.min_snr_gamma",
            f"Min-SNR gamma {gamma:g} {does}; 5 is usual.",
            {"loss.min_snr_gamma": 5.0},
            "Use 5",
        )


@rule
def min_snr_and_debiased(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.loss.min_snr_gamma and config.loss.debiased:
        yield Finding(
            "warning",
            "loss.debiased",
            "Min-SNR and debiased both weigh down the nearly clean timesteps; together detail is hardly "
            "learnt.",
            {"loss.debiased": False},
            "Keep min-SNR",
        )


@rule
def v_pred_like_of_another_base(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.loss.v_pred_like and prediction_of(config) == "v_prediction":
        yield Finding(
            "error",
            "loss.v_pred_like",
            "This base predicts v already; a loss like that of v-prediction is for bases that predict noise.",
            {"loss.v_pred_like": 0.0},
            "Switch it off",
        )


@rule
def v_pred_like_strong(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    weight = config.loss.v_pred_like
    if weight > 0.05 and prediction_of(config) != "v_prediction":
        yield Finding(
            "warning",
            "loss.v_pred_like",
            f"At {weight:g} the last, noisiest timesteps count {1 + 213 * weight:.0f} times and drown all "
            "others; 0.001 to 0.01 is usual.",
            {"loss.v_pred_like": 0.005},
            "Use 0.005",
        )


@rule
def scale_v_of_another_base(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.loss.scale_v_like_noise and prediction_of(config) == "epsilon":
        yield Finding(
            "error",
            "loss.scale_v_like_noise",
            "This base predicts noise, so there is no loss of v to scale.",
            {"loss.scale_v_like_noise": False},
            "Switch it off",
        )


# Noise ------------------------------------------------------------------------------------------------


@rule
def noise_offset_and_multires(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.noise.offset and config.noise.multires_iterations:
        yield Finding(
            "warning",
            "noise.multires_iterations",
            "Noise offset and multires noise are two ways to the same end; together brightness runs away.",
            {"noise.multires_iterations": 0},
            "Keep the offset",
        )


@rule
def noise_offset_not_needed(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if not (noise.offset or noise.multires_iterations):
        return
    setting = "noise.offset" if noise.offset else "noise.multires_iterations"
    trick = "a noise offset" if noise.offset else "multires noise"
    if is_flow(config):
        why = "Flow models end in pure noise and draw dark and bright pictures by themselves"
    elif ends_in_noise(config):
        why = "A base with zero terminal SNR draws dark and bright pictures by itself"
    elif prediction_of(config) == "v_prediction":
        why = "A base that predicts v draws dark and bright pictures by itself"
    else:
        return
    off = {"noise.offset": 0.0, "noise.multires_iterations": 0}
    yield Finding("warning", setting, f"{why}; {trick} only takes it off its course.", off, "Switch it off")


@rule
def offset_settings_without_offset(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if noise.offset_random and not noise.offset:
        yield Finding(
            "hint",
            "noise.offset_random",
            "There is no noise offset whose strength could be random.",
            {"noise.offset": 0.05},
            "Use an offset of 0.05",
        )


@rule
def multires_discount_high(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if noise.multires_iterations and noise.multires_discount > 0.5:
        yield Finding(
            "warning",
            "noise.multires_discount",
            f"At {noise.multires_discount:g} the coarse layers outweigh the noise that the base knows; 0.1 "
            "to 0.3 is usual.",
            {"noise.multires_discount": 0.3},
            "Use 0.3",
        )


@rule
def zero_snr_needs_v(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.noise.zero_terminal_snr == "on" and prediction_of(config) == "epsilon":
        yield Finding(
            "warning",
            "noise.zero_terminal_snr",
            "A base that predicts noise learns nothing from a picture of pure noise, and cannot be sampled "
            "from it; zero terminal SNR goes with v-prediction.",
            {"noise.zero_terminal_snr": "auto"},
            "Leave it to the base",
        )


@rule
def prediction_against_the_base(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    known = known_base(config.model.family, config.model.base)
    told = config.noise.prediction
    if known and told not in ("auto", known.prediction):
        names = {"epsilon": "noise", "v_prediction": "v"}
        yield Finding(
            "warning",
            "noise.prediction",
            f"{known.label} predicts {names[known.prediction]}; taught {names[told]}, the LoRA spends the "
            "training on unlearning that.",
            {"noise.prediction": "auto"},
            "Leave it to the base",
        )


@rule
def named_like_v_prediction(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    model = config.model
    if is_flow(config) or known_base(model.family, model.base) or config.noise.prediction != "auto":
        return
    name = re.split(r"[/\\]", model.base)[-1]
    if re.search(r"(?i)v[-_ ]?pred|(?<![a-z])vp(?![a-z])", name):
        yield Finding(
            "hint",
            "noise.prediction",
            f"The base {name[:60]} is named like a v-prediction model. Where its file does not say so, "
            "samples are grey or burnt, and it has to be told.",
            {"noise.prediction": "v_prediction", "noise.zero_terminal_snr": "on"},
            "v-prediction, zero terminal SNR",
        )


# Timesteps --------------------------------------------------------------------------------------------


@rule
def shift_ignored(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if noise.shift is not None and noise.timesteps == "flux_shift":
        yield Finding(
            "warning",
            "noise.shift",
            f"The distribution “flux_shift” shifts by the picture's size and ignores {noise.shift:g}; "
            "“shift” takes it.",
            {"noise.timesteps": "shift"},
            "Use shift",
        )


@rule
def width_ignored(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if noise.sigmoid_scale != 1 and noise.timesteps not in ("sigmoid", "shift", "flux_shift"):
        yield Finding(
            "hint",
            "noise.sigmoid_scale",
            f"The distribution “{noise.timesteps}” ignores the sigmoid scale.",
            {"noise.timesteps": "sigmoid"},
            "Use sigmoid",
        )
    if (noise.logit_mean, noise.logit_std) != (0, 1) and noise.timesteps != "logit_normal":
        setting = "logit_mean" if noise.logit_mean else "logit_std"
        yield Finding(
            "hint",
            f"noise.{setting}",
            f"The distribution “{noise.timesteps}” ignores the logit's mean and width.",
            {"noise.timesteps": "logit_normal"},
            "Use logit_normal",
        )


@rule
def noise_levels_narrow(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if 0 < noise.t_max - noise.t_min < 0.3:
        yield Finding(
            "warning",
            "noise.t_max",
            f"Only the noise levels from {noise.t_min:g} to {noise.t_max:g} are trained; what the others "
            "draw stays the base's.",
            {"noise.t_min": 0.0, "noise.t_max": 1.0},
            "Train all",
        )


@rule
def flow_weighting_alone(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if noise.weighting == "sigma_sqrt" and not noise.kohya_flow:
        yield Finding(
            "warning",
            "noise.weighting",
            "1/s² on the plain error of the velocity counts a nearly clean picture thousands of times; it "
            "was made for kohya_flow, where it gives the plain error again.",
            {"noise.weighting": "none"},
            "Plain error",
        )


@rule
def detail_counts_less(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    noise = config.noise
    if noise.kohya_flow and noise.weighting == "none":
        yield Finding(
            "hint",
            "noise.kohya_flow",
            "This weighs the velocity's squared error by s², so that detail is learnt less; the plain error "
            "is what the base was trained with.",
            {"noise.kohya_flow": False},
            "Plain error",
        )
