"""How training times are drawn, as functions of one uniform number: each is an inverse CDF.

So a sample's time is decided by its own number alone, and every distribution can be held against its CDF.
Times run from 0 (clean) to 1 (noise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .contract.settings.noise import NoiseSettings

Shape = Literal["uniform", "logit_normal", "mode"]

MODE_SCALE = 1.29
"""s of "mode" in Stable Diffusion 3 (Esser et al. 2024, section 3.1), where it did best."""
KOHYA_SHIFT = 3.0
"""kohya's default of discrete_flow_shift."""


@dataclass(frozen=True)
class Times:
    """A distribution of t.

    Attributes:
        shape: uniform; sigmoid(Normal(mean, std)); or SD3's "mode", heavy in the middle.
        shift: moves times towards noise, t' = s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23); s > 1.
        by_size: the shift is FLUX's for the number of tokens (:func:`size_shift`) instead.
        low, high: the range that all this is stretched over, last, as kohya does it.
    """

    shape: Shape = "uniform"
    shift: float = 1.0
    by_size: bool = False
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def draw(self, u_B: Tensor, tokens: int = 0) -> Tensor:
        """Uniform numbers in [0, 1) -> t_B in [low, high]. ``tokens`` is the picture's length in tokens."""
        t_B = u_B
        if self.shape == "logit_normal":
            t_B = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u_B.clamp(1e-6, 1 - 1e-6)))
        elif self.shape == "mode":
            # The paper's 1 - u - s (cos²(πu/2) - 1 + u), with 1 - u for u: rising, the same distribution.
            t_B = u_B + MODE_SCALE * (u_B - torch.sin(math.pi / 2 * u_B) ** 2)
        shift = size_shift(tokens) if self.by_size else self.shift
        return self.low + (self.high - self.low) * shifted(t_B, shift)


UNIFORM = Times()


def shifted(t_B: Tensor, shift: float) -> Tensor:
    """Times moved towards noise; for a logit-normal distribution the same as log(shift) on its mean."""
    return shift * t_B / (1 + (shift - 1) * t_B)


def size_shift(tokens: int) -> float:
    """FLUX's shift for a picture of so many tokens: e^mu, mu on the line from 0.5 at 256 to 1.15 at 4096."""
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def times_of(settings: NoiseSettings, own: Times) -> Times:
    """What a recipe says; ``own`` is the family's, for "auto". Names and combinations are kohya's: "sigmoid",
    "shift" and "flux_shift" are logit-normal with a width, the latter two shifted as well."""
    shift = settings.shift
    sigmoid = Times("logit_normal", std=settings.sigmoid_scale, shift=shift or 1.0)
    chosen = {
        "auto": replace(own, shift=shift or own.shift),
        "uniform": Times("uniform", shift=shift or 1.0),
        "logit_normal": Times(
            "logit_normal", mean=settings.logit_mean, std=settings.logit_std, shift=shift or 1.0
        ),
        "mode": Times("mode", shift=shift or 1.0),
        "sigmoid": sigmoid,
        "shift": replace(sigmoid, shift=shift or KOHYA_SHIFT),
        "flux_shift": replace(sigmoid, by_size=True),
    }[settings.timesteps]
    return replace(chosen, low=settings.t_min, high=settings.t_max)
