"""The noising processes that models are trained under, as pure functions.

Shared convention: ``t_B`` runs from 0 (clean) to 1 (noise); a process knows how to draw it, how to mix
picture and noise at it, what the model has to predict, and how much each sample counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


class Noise(Protocol):
    """What the training loop asks of a noising process. All tensors lie on the latents' device."""

    def sample_t(self, u_B: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) -> t_B in [0, 1]."""
        ...

    def mix(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noisy latents that the model sees at t."""
        ...

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the model has to predict."""
        ...

    def weight(self, t_B: Tensor, min_snr_gamma: float) -> Tensor:
        """The factor (B,) on each sample's loss; ones when ``min_snr_gamma`` is 0."""
        ...


def _per_sample(values_B: Tensor) -> Tensor:
    return values_B.reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class Ddpm:
    """Discrete-time diffusion (Ho et al. 2020): x_t = sqrt(ā_t) x + sqrt(1 - ā_t) noise.

    ``alphas_cumprod`` is ā, shape (T,), float32. Timestep k of T is written t = (k + ½) / T, which is
    exact to convert back (:meth:`timesteps`).
    """

    alphas_cumprod: Tensor
    prediction: Prediction

    @property
    def count(self) -> int:
        return len(self.alphas_cumprod)

    def timesteps(self, t_B: Tensor) -> Tensor:
        """t_B in [0, 1] -> integer timesteps (B,) in 0 … T-1."""
        return (t_B * self.count).long().clamp(0, self.count - 1)

    def _abar(self, t_B: Tensor) -> Tensor:
        return self.alphas_cumprod.to(t_B.device)[self.timesteps(t_B)]

    def sample_t(self, u_B: Tensor) -> Tensor:
        return ((u_B * self.count).floor() + 0.5) / self.count

    def mix(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        abar = _per_sample(self._abar(t_B))
        return abar.sqrt() * latents_BCHW + (1 - abar).sqrt() * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return noise_BCHW
        if self.prediction == "sample":
            return latents_BCHW
        abar = _per_sample(self._abar(t_B))  # v-prediction: Salimans & Ho 2022, eq. 13
        return abar.sqrt() * noise_BCHW - (1 - abar).sqrt() * latents_BCHW

    def weight(self, t_B: Tensor, min_snr_gamma: float) -> Tensor:
        """Min-SNR-γ (Hang et al. 2023): min(SNR, γ)/SNR for noise, /(SNR + 1) for v."""
        if not min_snr_gamma:
            return torch.ones_like(t_B)
        abar = self._abar(t_B)
        snr = abar / (1 - abar).clamp_min(1e-8)
        clipped = snr.clamp_max(min_snr_gamma)
        if self.prediction == "epsilon":
            # With a zero-terminal-SNR schedule the last step has SNR 0; its weight tends to 1.
            return torch.where(snr > 0, clipped / snr.clamp_min(1e-8), torch.ones_like(snr))
        if self.prediction == "sample":
            return clipped
        return clipped / (snr + 1)


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2022): x_t = (1 - t) x + t noise, velocity = noise - x.

    ``shift`` moves the drawn times towards noise, t' = s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23);
    ``logit_normal`` draws t = sigmoid(N(0, 1)) instead of uniformly.
    """

    shift: float = 1.0
    logit_normal: bool = False

    def sample_t(self, u_B: Tensor) -> Tensor:
        t_B = u_B
        if self.logit_normal:
            # The inverse normal CDF, so that one uniform number still decides.
            t_B = torch.sigmoid(torch.special.ndtri(u_B.clamp(1e-6, 1 - 1e-6)))
        return self.shift * t_B / (1 + (self.shift - 1) * t_B)

    def mix(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        t = _per_sample(t_B)
        return (1 - t) * latents_BCHW + t * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return noise_BCHW - latents_BCHW

    def weight(self, t_B: Tensor, min_snr_gamma: float) -> Tensor:
        if not min_snr_gamma:
            return torch.ones_like(t_B)
        snr = ((1 - t_B) / t_B.clamp_min(1e-6)) ** 2
        return snr.clamp_max(min_snr_gamma) / snr.clamp_min(1e-8)
