"""FLUX.2's VAE, which others have taken over: latents in 2x2 patches, normalised by the statistics of a batch
norm. It is part of the VAE, and diffusers' pipelines apply it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import AutoencoderKLFlux2
from torch import Tensor

from .packing import patchify, unpatchify


class BatchNormVae:
    """What a family whose pictures go through this VAE inherits before its other parent.

    ``epsilon`` is added to the variances: the VAE's own, unless the family's pipeline takes another.
    """

    vae_class: ClassVar[Any] = AutoencoderKLFlux2
    epsilon: ClassVar[float | None] = None

    def to_latents(self, vae: Any, pixels_BCHW: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae)
        return (patchify(vae.encode(pixels_BCHW).latent_dist.mode()) - mean) / deviation

    def decode(self, vae: Any, latents_BCHW: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae)
        pixels: Tensor = vae.decode(unpatchify(latents_BCHW * deviation + mean)).sample
        return pixels

    def _statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each number of a patch, (4C, 1, 1)."""
        mean, variance = vae.bn.running_mean[:, None, None], vae.bn.running_var[:, None, None]
        epsilon = vae.config.batch_norm_eps if self.epsilon is None else self.epsilon
        return mean, (variance + epsilon).sqrt()
