"""The noise of one look at a picture, with the tricks that a recipe may play on it.

All of it is drawn from the sample's own generators, so it is the same alone and in any batch. The formulas
are kohya's, for one sample; for pyramid noise he scales by the deviation of the whole batch, we by the
sample's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .contract.settings.noise import NoiseSettings
from .data import Sample


def drawn_noise(settings: NoiseSettings, sample: Sample, latents_CHW: Tensor) -> Tensor:
    """The noise (C, h, w) that is mixed in and, by bases that predict noise, predicted."""
    noise_CHW = sample.noise_like(latents_CHW)
    if settings.offset or settings.offset_adaptive:
        noise_CHW = noise_CHW + offset(settings, sample, latents_CHW)
    if settings.multires_iterations:
        noise_CHW = pyramid(
            noise_CHW,
            settings.multires_iterations,
            settings.multires_discount,
            sample.generator("multires noise"),
        )
    return noise_CHW


def offset(settings: NoiseSettings, sample: Sample, latents_CHW: Tensor) -> Tensor:
    """What is added to each channel as a whole, (C, 1, 1): strength · Normal(0, 1).

    The strength is ``offset``, or between 0 and it, plus ``offset_adaptive`` · |the channel's mean|, and
    never negative.
    """
    strength = settings.offset * (sample.uniform("offset strength") if settings.offset_random else 1.0)
    means_C11 = latents_CHW.mean(dim=(1, 2), keepdim=True).abs()
    strength_C11 = (strength + settings.offset_adaptive * means_C11).clamp_min(0)
    return strength_C11 * torch.randn(means_C11.shape, generator=sample.generator("noise offset"))


def pyramid(noise_CHW: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """Noise with coarser noise on top, scaled back to a deviation of 1.

    Layer i has the size divided by rⁱ, r = U(2, 4) anew for each, is stretched bilinearly and counts
    discountⁱ; nothing is coarser than a side of one. (So layer 0 is fine noise once more, as in kohya's.)
    """
    height, width = noise_CHW.shape[-2:]
    total_CHW = noise_CHW
    for number in range(iterations):
        ratio = 2 + 2 * torch.rand((), generator=generator).item()
        size = max(1, int(height / ratio**number)), max(1, int(width / ratio**number))
        coarse = torch.randn((len(noise_CHW), *size), generator=generator)
        stretched = F.interpolate(coarse[None], size=(height, width), mode="bilinear")[0]
        total_CHW = total_CHW + discount**number * stretched
        if 1 in size:
            break
    return total_CHW / total_CHW.std()


def perturbed(settings: NoiseSettings, sample: Sample, noise_CHW: Tensor) -> Tensor:
    """The noise that the denoiser sees: more than it has to predict (``input_perturbation``)."""
    if not settings.input_perturbation:
        return noise_CHW
    more = torch.randn(noise_CHW.shape, generator=sample.generator("input perturbation"))
    return noise_CHW + settings.input_perturbation * more
