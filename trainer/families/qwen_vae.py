"""Qwen-Image's VAE, which others have taken over: a video autoencoder, of which pictures are the first frame.

Its latents are normalised per channel, and reach the transformer in 2x2 patches.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from .native_file import NativeFamily
from .packing import pack


class QwenVaeFamily(NativeFamily):
    """A family whose pictures go through this VAE."""

    vae_class = AutoencoderKLQwenImage

    def to_latents(self, vae: Any, pixels_BCHW: Tensor) -> Tensor:
        latents: Tensor = vae.encode(pixels_BCHW.unsqueeze(2)).latent_dist.mode().squeeze(2)
        mean, std = _statistics(vae, latents)
        return (latents - mean) / std

    def decode(self, vae: Any, latents_BCHW: Tensor) -> Tensor:
        mean, std = _statistics(vae, latents_BCHW)
        pixels: Tensor = vae.decode((latents_BCHW * std + mean).unsqueeze(2)).sample
        return pixels.squeeze(2)

    def to_pipeline(self, latents_BCHW: Tensor) -> Tensor:
        return pack(latents_BCHW)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (C, 1, 1)."""
    mean, std = torch.tensor([vae.config.latents_mean, vae.config.latents_std]).to(like)[..., None, None]
    return mean, std
