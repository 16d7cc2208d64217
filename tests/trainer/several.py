"""Trains runs one after the other, in all processes that torchrun starts: ``several.py RUN[:EVENT] …``.

EVENT is what happens at rank 1 after two steps: "stop" (as by a signal) or "fail".
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from trainer import torchrun
from trainer.contract.errors import RunError
from trainer.contract.runs import RunFolder, Verb
from trainer.processes import Crew, joined
from trainer.shards import split_weights
from trainer.train import Stopped, train


class Told:
    """Stands in for Requests. The loop asks for "save" once a step, when it is done."""

    why = ""

    def __init__(self, event: str) -> None:
        self._event, self._steps = event, 0

    def stop(self) -> bool:
        if self._event == "fail" and self._steps == 2:
            raise MemoryError("no room for it")
        return self._event == "stop" and self._steps == 2

    def take(self, verb: Verb) -> bool:
        self._steps += verb == "save"
        return False


def one(argument: str, crew: Crew) -> None:
    path, _, event = argument.partition(":")
    run = RunFolder(Path(path))
    with run.hold() if crew.main else nullcontext():
        try:
            train(run, Told(event if crew.rank == 1 else ""), crew)
        except (Stopped, RunError) as error:
            crew.tell(error)
            crew.over = False
            print(f"rank {crew.rank}: {type(error).__name__}: {error}", flush=True)


def counted(denoiser: nn.Module, *arguments: Any) -> None:
    """Stands before :func:`split_weights` and tells how much of a denoiser is left in this process."""
    before = sum(one.numel() for one in denoiser.parameters())
    split_weights(denoiser, *arguments)
    locals_ = (getattr(one, "to_local", lambda one=one: one)() for one in denoiser.parameters())
    print(f"split: {sum(one.numel() for one in locals_) / before:.2f}", flush=True)


if __name__ == "__main__":
    torchrun.split_weights = counted
    with joined() as crew:
        assert crew.world == 2, crew.world
        for argument in sys.argv[1:]:
            one(argument, crew)
