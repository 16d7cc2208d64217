"""Validation loss: the objective on photos that are held out, at fixed noise levels and with fixed noise.

The noise levels are the middles of equally likely parts of the recipe's own distribution, so that their mean
compares with the training loss. Nothing random is touched: a run is the same with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .concepts import TrainImage
from .contract.config import TrainConfig
from .contract.ladder import at_once
from .data import Sample
from .losses import require_finite
from .objective import Objective
from .report import Reporter
from .requests import Asks

QUANTILES = (0.125, 0.375, 0.625, 0.875)
"""Of the distribution of noise levels."""
SEED = 0
"""Not the recipe's: runs with different seeds are measured alike."""


@dataclass(frozen=True)
class Validation:
    """The validation loss of a run. ``worn`` puts on the weights that are measured: averages, if any."""

    objective: Objective
    images: Sequence[TrainImage]
    config: TrainConfig
    report: Reporter
    requests: Asks
    autocast: Callable[[], AbstractContextManager[Any]]
    worn: Callable[[], AbstractContextManager[Any]]

    def due(self, step: int) -> bool:
        """Before the first step, after the last, and every so many."""
        every = self.config.validation.every
        return bool(every and self.images) and (step % every == 0 or step == self.config.train.steps)

    def measure(self, step: int) -> None:
        """Measure and report where it is due, unless the run is asked to stop meanwhile."""
        if not self.due(step):
            return
        rows = []
        with torch.no_grad(), self.worn(), self.objective.model.drawing(), self.autocast():
            for number, image in enumerate(self.images):
                if self.requests.stop():
                    return
                self.report.stage("validate", number, len(self.images), "Measuring on held-out photos")
                rows.append(self.losses(image))
                require_finite("validation loss", rows[-1], step, [Sample(image, 0, 0, SEED)])
        losses = torch.stack(rows).mean(dim=0)
        self.report.validation(step, losses.mean().item(), losses.tolist(), len(rows))

    def losses(self, image: TrainImage) -> Tensor:
        """The loss of one photo at each noise level, on the CPU; no more of them at once than in training."""
        looks = [Sample(image, 0, number, SEED) for number in range(len(QUANTILES))]
        size = at_once(self.config)
        parts = [
            self.objective.fixed_losses(looks[start : start + size], QUANTILES[start : start + size])
            for start in range(0, len(looks), size)
        ]
        return torch.cat(parts).cpu()
