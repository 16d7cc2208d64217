"""Runs in this process, and what they leave."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from trainer.contract.config import TrainConfig
from trainer.contract.events import read_events
from trainer.contract.fields import merge, parse
from trainer.contract.runs import RunFolder, Verb
from trainer.families.base import ModelFamily, load_family
from trainer.requests import Asks
from trainer.source import resolve
from trainer.train import Stopped, train


def recipe(base: Path, photos: Path, **sections: dict[str, Any]) -> TrainConfig:
    """Eight steps over the drawn photos; ``sections`` go over it. Adapters on few layers, as what most of a
    short run's time goes by is their number."""
    tables: dict[str, Any] = {
        "model": {"family": "sdxl", "base": str(base)},
        "dataset": {"path": str(photos)},
        "adapter": {"rank": 2, "alpha": 4.0, "targets": "attention"},
        "train": {"steps": 8, "batch_size": 2, "learning_rate": 1e-2, "seed": 7},
        "samples": {"prompts": ["zwx"], "every": 0, "steps": 2},
        "checkpoints": {"every": 3, "keep": 3},
    }
    return parse(merge(tables, sections))


def opened(key: str, base: Path, **options: Any) -> ModelFamily:
    """The family ``key`` over a base on this machine, on the processor, in 32 bits."""
    return load_family(key, resolve(key, str(base)), torch.device("cpu"), torch.float32, **options)


class Script:
    """Stands in for Requests: asks for ``verb`` once the run has reached ``step``."""

    why = ""

    def __init__(self, run: RunFolder, verb: Verb | None = None, step: int = 0) -> None:
        self._run, self._verb, self._step = run, verb, step

    def _due(self) -> bool:
        events = read_events(self._run.events)[0]
        return any(event["kind"] == "step" and event["step"] >= self._step for event in events)

    def stop(self) -> bool:
        return self._verb == "stop" and self._due()

    def take(self, verb: Verb) -> bool:
        if verb == self._verb and self._due():
            self._verb = None
            return True
        return False


def train_here(run: RunFolder, script: Asks | None = None) -> bool:
    """Train in this process; whether it finished (and was not stopped)."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one, and one number format
    with run.hold():
        try:
            train(run, script or Script(run))
        except Stopped:
            return False
    return True


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights_hash(run: RunFolder, step: int) -> tuple[str, str]:
    """What a checkpoint holds, down to the last bit: adapter and optimizer."""
    folder = run.checkpoint(step)
    return sha256(folder / "adapter.safetensors"), sha256(folder / "optimizer.safetensors")
