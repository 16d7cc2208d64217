"""Losses and their weights, as pure functions. Formulas and names are kohya's unless they say otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .contract.errors import RunError
from .contract.settings.loss import LossSettings
from .data import Sample
from .noise import Noise, Prediction

Kind = Literal["l2", "l1", "smooth_l1", "huber"]

LEAST_SNR = 1e-3
"""Below the end of every schedule that does not end in pure noise (Stable Diffusion's: 0.0047). Where one
does (zero terminal SNR), weights divide by this instead of by 0."""
MOST_SNR = 1000.0
"""Where kohya cuts the ratio off for debiased weights."""


# How far a prediction is off --------------------------------------------------------------------------


def elementwise(
    prediction_BCHW: Tensor, target_BCHW: Tensor, kind: Kind = "l2", c_B: Tensor | None = None
) -> Tensor:
    """The loss of every number of the prediction, (B, C, h, w), in float32.

    The pseudo-Huber forms (not torch's): "huber" 2c(√(d² + c²) - c) is about d² for errors d below ``c_B``
    and 2c|d| above; "smooth_l1" is that over c.
    """
    error = prediction_BCHW.float() - target_BCHW.float()
    if kind == "l2":
        return error.square()
    if kind == "l1":
        return error.abs()
    assert c_B is not None
    c = c_B.float().reshape(-1, 1, 1, 1)
    # √(d² + c²) - c, without the difference of nearly equal numbers.
    bent = error.square() / ((error.square() + c.square()).sqrt() + c)
    return 2 * c * bent if kind == "huber" else 2 * bent


def per_sample(losses_BCHW: Tensor) -> Tensor:
    """The mean over each sample, (B,)."""
    return losses_BCHW.mean(dim=(1, 2, 3))


def mse(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample, (B,), in float32."""
    return per_sample(elementwise(prediction_BCHW, target_BCHW))


def huber_c(settings: LossSettings, noise: Noise, t_B: Tensor) -> Tensor:
    """The border c of each sample, (B,), where small errors become large ones.

    "snr" is (1 - huber_c)/(1 + s)² + huber_c with s = 1/√SNR, noise over picture. For a flow at σ that ratio
    is σ/(1 - σ), so that c = (1 - huber_c)(1 - σ)² + huber_c; this is ours, kohya has no "snr" for flows.
    """
    if settings.huber_schedule == "constant":
        return torch.full_like(t_B, settings.huber_c * settings.huber_scale)
    if settings.huber_schedule == "exponential":
        return settings.huber_scale * torch.exp(math.log(settings.huber_c) * noise.progress(t_B))
    ratio = noise.snr(t_B).sqrt()  # 1 / s
    return (1 - settings.huber_c) * (ratio / (1 + ratio)).square() + settings.huber_c


# What it counts at each time --------------------------------------------------------------------------


def snr_weights(settings: LossSettings, prediction: Prediction, snr_B: Tensor) -> Tensor:
    """The factor (B,) on each sample's loss, in kohya's order. He takes the ratio of the schedule before it
    is changed to zero terminal SNR, we that of the schedule which is trained."""
    snr = snr_B.clamp_min(LEAST_SNR)
    weight_B = torch.ones_like(snr)
    if settings.min_snr_gamma:
        weight_B = weight_B * min_snr(snr, settings.min_snr_gamma, prediction)
    if settings.scale_v_like_noise:
        weight_B = weight_B * snr / (snr + 1)
    if settings.v_pred_like:
        weight_B = weight_B * (1 + settings.v_pred_like * (snr + 1) / snr)
    if settings.debiased:
        weight_B = weight_B * debiased(snr, prediction)
    return weight_B


def min_snr(snr_B: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Min-SNR-γ (Hang et al. 2023): min(SNR, γ)/SNR for noise, /(SNR + 1) for v, alone for the picture.

    For a flow's velocity it is taken as for noise: 1 until the picture outweighs the noise by √γ, then less.
    """
    clipped = snr_B.clamp_max(gamma)
    if prediction == "v_prediction":
        return clipped / (snr_B + 1)
    return clipped if prediction == "sample" else clipped / snr_B


def debiased(snr_B: Tensor, prediction: Prediction) -> Tensor:
    """Debiased estimation (Yu et al. 2024): 1/√SNR for noise; for v kohya's 1/(SNR + 1)."""
    snr_B = snr_B.clamp_max(MOST_SNR)
    return 1 / (snr_B + 1) if prediction == "v_prediction" else snr_B.rsqrt()


def flow_weights(weighting: Literal["none", "sigma_sqrt", "cosmap"], t_B: Tensor) -> Tensor:
    """The factor (B,) on each sample's loss of a flow (Esser et al. 2024, section 3.1)."""
    if weighting == "sigma_sqrt":
        return t_B.clamp_min(1e-3) ** -2
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * t_B + 2 * t_B.square()))
    return torch.ones_like(t_B)


# What cannot be ---------------------------------------------------------------------------------------


def require_prediction(settings: LossSettings, prediction: Prediction) -> None:
    """Raise RunError(config) for weights that are not for what this base predicts."""
    if settings.v_pred_like and prediction != "epsilon":
        raise RunError(
            f"loss.v_pred_like = {settings.v_pred_like:g} is for bases that predict noise, and this one does "
            "not; set it to 0",
            "config",
        )
    if settings.scale_v_like_noise and prediction != "v_prediction":
        raise RunError(
            "loss.scale_v_like_noise is for bases that predict v, and this one does not; switch it off",
            "config",
        )


def left_to_unlearn(losses_B: Tensor, base_B: Tensor, limit: float) -> Tensor:
    """What is minimised to unlearn, (B,): how far each loss is below ``limit`` times the base's own, and 0
    from there on. Its gradient is that of the negated loss, or none: it is bounded, which -loss is not."""
    return (limit * base_B - losses_B).clamp(min=0.0)


def require_finite(what: str, values: Tensor, step: int, looks: Iterable[Sample]) -> None:
    """Raise RunError(nan), naming the pictures of the step, when one of ``values`` is not finite."""
    if not bool(values.isfinite().all()):
        names = ", ".join(sorted({look.image.original_name for look in looks}))
        raise RunError(
            f"the {what} became infinite at step {step} on {names}; train again with a lower learning rate, "
            "or precision bf16 or fp32",
            "nan",
        )
