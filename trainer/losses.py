"""Losses, as pure functions of prediction and target."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .contract.errors import RunError
from .data import Sample


def elementwise(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """The loss of every number of the prediction, (B, C, h, w), in float32."""
    return (prediction_BCHW.float() - target_BCHW.float()).square()


def per_sample(losses_BCHW: Tensor) -> Tensor:
    """The mean over each sample, (B,)."""
    return losses_BCHW.mean(dim=(1, 2, 3))


def mse(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error of each sample, (B,), in float32."""
    return per_sample(elementwise(prediction_BCHW, target_BCHW))


def require_finite(what: str, values: Tensor, step: int, looks: Iterable[Sample]) -> None:
    """Raise RunError(nan), naming the pictures of the step, when one of ``values`` is not finite."""
    if not bool(values.isfinite().all()):
        names = ", ".join(sorted({look.image.original_name for look in looks}))
        raise RunError(
            f"the {what} became infinite at step {step} on {names}; train again with a lower learning rate, "
            "or precision bf16 or fp32",
            "nan",
        )
