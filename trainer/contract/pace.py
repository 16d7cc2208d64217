"""How fast a recipe trains on a machine, by earlier runs on it that trained the same way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .cost import Meter
from .errors import ConfigError, UserError
from .events import read_events
from .fields import flatten, load_recipe
from .runs import RunFolder

LIKE = (
    *("model.family", "model.base", "model.precision", "model.quantize", "model.quantize_text"),
    *(
        "dataset.resolution",
        "dataset.more_resolutions",
        "adapter.type",
        "adapter.rank",
        "adapter.targets",
        "adapter.target_regex",
    ),
    *("train.batch_size", "train.gradient_accumulation", "train.gradient_checkpointing", "train.optimizer"),
    *("train.text_encoder_lr", "train.text_encoder_2_lr", "prior.method", "machine.gpus"),
)
"""Settings that a step's time depends on."""
LOOKED_AT = 20
"""Runs, the newest first."""


def seconds_per_step(config: TrainConfig, device: str, runs: Sequence[RunFolder]) -> float | None:
    """Of the newest of ``runs`` (newest first) that is like ``config`` and was on ``device`` ("" is a
    processor), samples and all in between included; None where there is none."""
    wanted = _told(config)
    for run in runs[:LOOKED_AT]:
        try:
            size = run.events.stat().st_size
            like = _told(_recipe(run.recipe, run.recipe.stat().st_mtime_ns)) == wanted
        except (OSError, ConfigError, UserError):
            continue
        if like:
            pace, where = _measured(run.events, size)
            if pace and _same(where, device):
                return pace
    return None


def _told(config: TrainConfig) -> dict[str, Any]:
    values = flatten(config)
    return {path: values[path] for path in LIKE}


@lru_cache(maxsize=64)
def _recipe(path: Path, stamp: int) -> TrainConfig:
    return load_recipe(path)


@lru_cache(maxsize=64)
def _measured(path: Path, size: int) -> tuple[float | None, str]:
    """(seconds per step, device) of a run whose events are of this many bytes."""
    events = read_events(path)[0]
    devices = [event["device"] for event in events if event["kind"] == "attempt"]
    return Meter.of(events).seconds_per_step, devices[-1] if devices else "?"


def _same(one: str, device: str) -> bool:
    return one == device or (one.startswith("CPU") and device in ("", "CPU"))
