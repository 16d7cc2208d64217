"""Fused backward: each parameter takes its step as soon as its gradient is there, which is then freed.

So there is never more than one gradient in memory. Of a LoRA that is little (the plan says how much): the
24 GB that guides save this way are those of a fine-tune of all weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_


class FusedBackward:
    """Hooks on the parameters of an optimizer whose state is each parameter's own.

    A gradient longer than ``limit`` is shortened by itself: the length of all together is known only when
    most have taken their step. Where nothing is clipped, the weights are those of a plain step, to the bit.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, limit: float) -> None:
        self._optimizer, self._limit = optimizer, limit
        self._squares: list[Tensor] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._step, group))

    def _step(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        self._squares.append(clip_grad_norm_([parameter], self._limit).square())
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [{**group, "params": [parameter]}]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        parameter.grad = None

    def grad_norm(self) -> Tensor:
        """The length of all gradients since this was last asked, before they were clipped."""
        total = torch.stack(self._squares).sum().sqrt()
        self._squares.clear()
        return total
