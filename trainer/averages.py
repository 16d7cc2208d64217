"""The weights that a training hands out where they are not those that it trains: averages over its steps.

The samples, the finished file and the verbs sample and export have them; a resumed training goes on from the
others. A checkpoint holds both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .contract.optimizers import OPTIMIZERS
from .contract.schedule import ema_decay_at
from .contract.settings.train import TrainSettings


class Averages:
    """The exponential moving average of a recipe (train.ema_decay), or its optimizer's own (Schedule-Free,
    Defazio et al. 2024); where there is neither, nothing here does anything.

    ``parameters`` are as they are trained, ``optimizer`` the plain one. The moving average starts from the
    parameters and is float32, on their device or in RAM (train.ema_on_cpu).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        settings: TrainSettings,
    ) -> None:
        self._parameters, self._optimizer, self._decay = parameters, optimizer, settings.ema_decay
        self._own = OPTIMIZERS[settings.optimizer].averages
        self._moving: dict[str, Tensor] = {}
        if self._decay:
            self._moving = {
                name: torch.empty_like(
                    one, dtype=torch.float32, device="cpu" if settings.ema_on_cpu else one.device
                ).copy_(one.detach())
                for name, one in parameters.items()
            }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after update number ``step`` (0 for the first one)."""
        for name, average in self._moving.items():
            now = self._parameters[name].to(average.device, torch.float32)
            average.lerp_(now, 1.0 - ema_decay_at(self._decay, step))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's average. Of an optimizer's own nothing is kept beyond its state."""
        for name, average in self._moving.items():
            average.copy_(tensors[name])

    @property
    def any(self) -> bool:
        """Whether there is an average at all."""
        return bool(self._moving) or self._own

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name; empty where there are none."""
        if self._moving or not self.any:
            return self._moving
        with self.worn():
            return {name: one.detach().clone() for name, one in self._parameters.items()}

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Inside this block the parameters are the averages; after it they are what they were, to the bit."""
        if not self.any:
            yield
            return
        trained = {name: one.detach().clone() for name, one in self._parameters.items()}
        optimizer: Any = self._optimizer
        with torch.no_grad():
            if self._moving:
                for name, average in self._moving.items():
                    self._parameters[name].copy_(average)
            else:
                optimizer.eval()
        try:
            yield
        finally:
            if not self._moving:
                optimizer.train()  # which computes them back, nearly
            with torch.no_grad():
                for name, one in trained.items():
                    self._parameters[name].copy_(one)
