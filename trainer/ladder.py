"""When GPU memory runs out: what is saved, what is changed, and that the run begins again.

:mod:`trainer.contract.ladder` knows the changes; :mod:`trainer.restart` begins again, in a fresh process,
for the memory of the old one is in pieces.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec

import torch

from .contract.config import TrainConfig
from .contract.events import read_events
from .contract.ladder import (
    Amendment,
    Phase,
    next_amendment,
    read_ladder,
    tried_in_words,
    write_ladder,
)
from .contract.runs import RunFolder, Status
from .report import Reporter
from .requests import Asks, Stopped
from .restart import Restart

_MAKERS, _SIGNS = ("CUDA", "CUBLAS", "CUDNN", "MPS"), ("out of memory", "ALLOC_FAILED")
"""In the message of an error that one of the GPU's libraries made."""

_PHASES: dict[str, Phase] = {"encode": "photos", "captions": "captions", "load": "load", "class": "class"}
"""{stage: phase}; whatever else a run does is training."""
_DOING: dict[Phase, str] = {
    "photos": "while encoding photos",
    "captions": "while encoding captions",
    "load": "while loading the base",
    "class": "while drawing class pictures",
    "draw": "while drawing samples",
}


def gpu_is_full(error: BaseException) -> bool:
    """Whether an error says that GPU memory ran out, here or in another process, whoever raised it."""
    if isinstance(error, torch.cuda.OutOfMemoryError) or getattr(error, "cause", "") == "gpu_oom":
        return True
    text = str(error)
    ours = isinstance(error, RuntimeError) and any(maker in text for maker in _MAKERS)
    return ours and any(sign in text for sign in _SIGNS)


def release(error: BaseException) -> None:
    """Let go of what the frames that an error came through hold, and of what the allocator keeps."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def losing_no_step(save: Callable[[], None], unchanged: bool) -> Iterator[None]:
    """Where memory runs out inside this block, ``save`` before the error goes on.

    The block computes gradients, or measures and draws: weights, averages and optimizer are then still as the
    last step left them, unless they are changed while gradients come in (``unchanged`` says whether they are
    not). Where saving fails too, the newest checkpoint is what there is.
    """
    try:
        yield
    except Exception as error:
        if unchanged and gpu_is_full(error):
            release(error)
            with suppress(Exception):
                save()
        raise


def climb(
    run: RunFolder, config: TrainConfig, status: Status, phase: Phase | None = None
) -> Amendment | None:
    """Note the next change in ladder.json and return it; None where there is none left, or none is wanted.

    ``config`` is the recipe as this process began with it.
    """
    if config.machine.on_oom == "stop":
        return None
    phase = phase or _PHASES.get(status.stage, "train")
    tried = read_ladder(run.ladder)
    change = next_amendment(config, tried, phase, lambda package: find_spec(package) is not None)
    if change is None:
        return None
    when = _DOING.get(phase) or f"at step {status.step + 1}"
    change = replace(change, sentence=f"Out of GPU memory {when}: {change.sentence}.")
    write_ladder(run.ladder, [*tried, change])
    return change


def begin_again_with_less(
    run: RunFolder, config: TrainConfig, report: Reporter, requests: Asks, error: BaseException
) -> str:
    """Raise Restart where there is a change to begin again with, Stopped where a stop was asked meanwhile;
    else return why the run ends."""
    if not climb(run, config, report.status):
        return why_it_ends(run, config)
    if requests.stop():
        message = f"{requests.why} The GPU is full; resume to go on with less.".strip()
        report.end("stopped", message)
        raise Stopped(message) from error
    message = "The GPU is full; the run begins again with less."
    report.pause(message)
    raise Restart(message) from error


def tell(run: RunFolder, report: Reporter) -> None:
    """Say of each change that was made what it is, once in the life of a run."""
    told = sum(event["kind"] == "adapted" for event in read_events(run.events)[0])
    for change in read_ladder(run.ladder)[told:]:
        report.adapted(change)


def why_it_ends(run: RunFolder, config: TrainConfig) -> str:
    """What a run fails with when memory ran out for good."""
    if config.machine.on_oom == "stop":
        remedy = "lower the batch size or the resolution, or set machine.on_oom to adapt"
        return f"The GPU ran out of memory; {remedy}."
    tried = tried_in_words(read_ladder(run.ladder))
    so_far = (
        f"though all was done that saves some ({tried})" if tried else "and nothing is left that saves some"
    )
    return f"The GPU ran out of memory, {so_far}; lower the resolution or the rank, or take a smaller base."
