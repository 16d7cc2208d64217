"""Losses, as pure functions of prediction and target."""

from __future__ import annotations

from torch import Tensor


def mse(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample, (B,), in float32."""
    return (prediction_BCHW.float() - target_BCHW.float()).square().mean(dim=(1, 2, 3))
