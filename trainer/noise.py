"""The noising processes that models are trained under, as pure functions.

Shared convention: ``t_B`` runs from 0 (clean) to 1 (noise); a process knows how to draw it, how to mix
picture and noise at it, what the model has to predict, and the signal-to-noise ratio there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from .timesteps import UNIFORM, Times

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]


class Noise(Protocol):
    """What the training loop asks of a noising process. All tensors lie on the latents' device."""

    @property
    def prediction(self) -> Prediction:
        """What the model predicts."""
        ...

    @property
    def times(self) -> Times:
        """How times are drawn where the recipe does not say otherwise."""
        ...

    def sample_t(self, u_B: Tensor, times: Times | None = None, tokens: int = 0) -> Tensor:
        """Uniform numbers in [0, 1) -> t_B in [0, 1], for pictures of so many tokens."""
        ...

    def progress(self, t_B: Tensor) -> Tensor:
        """t_B as kohya counts it: the timestep over the number of timesteps."""
        ...

    def snr(self, t_B: Tensor) -> Tensor:
        """The signal-to-noise ratio (B,): what is left of the picture's variance over the noise's."""
        ...

    def mix(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noisy latents that the model sees at t."""
        ...

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the model has to predict."""
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
    times: Times = UNIFORM

    @property
    def count(self) -> int:
        return len(self.alphas_cumprod)

    def timesteps(self, t_B: Tensor) -> Tensor:
        """t_B in [0, 1] -> integer timesteps (B,) in 0 … T-1."""
        return (t_B * self.count).long().clamp(0, self.count - 1)

    def _abar(self, t_B: Tensor) -> Tensor:
        return self.alphas_cumprod.to(t_B.device)[self.timesteps(t_B)]

    def sample_t(self, u_B: Tensor, times: Times | None = None, tokens: int = 0) -> Tensor:
        return (self.timesteps((times or self.times).draw(u_B, tokens)) + 0.5) / self.count

    def progress(self, t_B: Tensor) -> Tensor:
        return self.timesteps(t_B) / self.count

    def snr(self, t_B: Tensor) -> Tensor:
        abar = self._abar(t_B)
        return abar / (1 - abar).clamp_min(1e-8)

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


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2022): x_t = (1 - t) x + t noise, velocity = noise - x."""

    times: Times = UNIFORM

    @property
    def prediction(self) -> Prediction:
        return "velocity"

    def sample_t(self, u_B: Tensor, times: Times | None = None, tokens: int = 0) -> Tensor:
        return (times or self.times).draw(u_B, tokens)

    def progress(self, t_B: Tensor) -> Tensor:
        return t_B

    def snr(self, t_B: Tensor) -> Tensor:
        return ((1 - t_B) / t_B.clamp_min(1e-6)) ** 2

    def mix(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        t = _per_sample(t_B)
        return (1 - t) * latents_BCHW + t * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return noise_BCHW - latents_BCHW
