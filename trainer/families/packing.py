"""Latents in 2x2 patches, as transformers with "packed" latents take them.

A patch is one token, or one position with four times the channels; the channels are ordered (C, 2, 2).
Sides in latents must be even: ``size_multiple`` of such families is twice the VAE's factor.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def patchify(latents_BCHW: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 4C, h/2, w/2)."""
    return F.pixel_unshuffle(latents_BCHW, 2)


def unpatchify(patches_BCHW: Tensor) -> Tensor:
    """(B, 4C, h/2, w/2) -> (B, C, h, w)."""
    return F.pixel_shuffle(patches_BCHW, 2)


def to_tokens(maps_BCHW: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h·w, C), row by row."""
    return maps_BCHW.flatten(2).transpose(1, 2)


def from_tokens(tokens_BLC: Tensor, height: int, width: int) -> Tensor:
    """(B, h·w, C) -> (B, C, h, w)."""
    return tokens_BLC.transpose(1, 2).unflatten(2, (height, width))


def pack(latents_BCHW: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2·w/2, 4C): one token per patch."""
    return to_tokens(patchify(latents_BCHW))


def unpack(tokens_BLC: Tensor, height: int, width: int) -> Tensor:
    """The way back; ``height`` and ``width`` are those of the latents."""
    return unpatchify(from_tokens(tokens_BLC, height // 2, width // 2))
