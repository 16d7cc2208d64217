"""The learning-rate schedule: one pure function that the trainer follows and the form draws.

The definitions are those of ``transformers.get_scheduler`` (steps count from 0, the warm-up starts at
zero, ``polynomial`` ends at 1e-7, ``warmup_stable_decay`` falls along half a cosine), so
that curves agree with the other trainers.
"""

from __future__ import annotations

import math

from .settings.train import TrainSettings

POLYNOMIAL_END = 1e-7
"""Learning rate that "polynomial" ends at (transformers' ``lr_end``)."""


def steps_of(length: float, steps: int) -> int:
    """A length as train.warmup and train.decay give it, in steps: below 1 a share of ``steps``."""
    return round(length * steps) if length < 1 else round(length)


def warmup_steps(train: TrainSettings) -> int:
    """Steps of the warm-up. At least one step of every run comes after it."""
    return min(steps_of(train.warmup, train.steps), train.steps - 1)


def decay_steps(train: TrainSettings) -> int:
    """Steps over which "warmup_stable_decay" falls, at the end; none are taken from the warm-up."""
    return min(steps_of(train.decay, train.steps), train.steps - warmup_steps(train))


def lr_scale(train: TrainSettings, step: int) -> float:
    """Factor on ``train.learning_rate`` for update number ``step`` (0 for the first one)."""
    warmup = warmup_steps(train)
    if step < warmup:
        return step / warmup
    if train.scheduler == "constant":
        return 1.0
    if train.scheduler == "warmup_stable_decay":
        left, decay = train.steps - step, decay_steps(train)
        return 1.0 if left > decay else 0.5 * (1.0 + math.cos(math.pi * (decay - left) / max(1, decay)))
    progress = (step - warmup) / max(1, train.steps - warmup)
    if progress >= 1:
        return POLYNOMIAL_END / train.learning_rate if train.scheduler == "polynomial" else 0.0
    match train.scheduler:
        case "linear":
            return 1.0 - progress
        case "polynomial":
            end = POLYNOMIAL_END / train.learning_rate
            return (1.0 - end) * math.pow(1.0 - progress, train.power) + end
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return 0.5 * (1.0 + math.cos(math.pi * (train.restarts * progress % 1.0)))


def lr_curve(train: TrainSettings, points: int = 240) -> list[tuple[int, float]]:
    """At most ``points`` (step, learning rate) pairs that cover the run, for drawing."""
    count = max(2, min(points, train.steps))
    steps = sorted({round(index * (train.steps - 1) / (count - 1)) for index in range(count)})
    return [(step, train.learning_rate * lr_scale(train, step)) for step in steps]


def ema_decay_at(decay: float, step: int) -> float:
    """Weight of the past in the moving average at update number ``step`` (0 for the first one).

    It grows as (1 + step) / (10 + step) up to ``decay``, as TensorFlow's and diffusers' does: the start, when
    the LoRA is still nothing, would weigh on a short run to its end.
    """
    return min(decay, (1 + step) / (10 + step))
