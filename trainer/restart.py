"""A fresh process in place of this one: same number, same log, same lock, another attempt at the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from .contract.errors import RunError
from .contract.ladder import read_ladder
from .contract.runs import INHERITED_LOCK, RunFolder, RunLock

STOPS = (signal.SIGTERM, signal.SIGINT)
FEWER_GAPS = "expandable_segments:True"
"""What the allocator is told once memory has run out: its blocks then grow rather than leave gaps."""


def fit_allocator(run: RunFolder) -> None:
    """Before torch is imported: how memory is to be laid out in a run that ran out of it before."""
    if read_ladder(run.ladder):
        for name in (
            "PYTORCH_ALLOC_CONF",
            "PYTORCH_CUDA_ALLOC_CONF",
        ):  # its name from torch 2.9 on, and before
            if name in os.environ:
                return
        os.environ["PYTORCH_ALLOC_CONF"] = FEWER_GAPS


AGAIN = 76
"""Exit code of several processes that all have to begin again."""


class Restart(RunError):
    """The run is to go on from its newest checkpoint in a fresh process."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "gpu_oom")


def begin_again(run: RunFolder, lock: RunLock) -> int:
    """Resume the run in a fresh process.

    On POSIX systems it takes this one's place and its lock: whoever watches the process or the lock sees one
    run that goes on, and a signal that arrives meanwhile waits for the new one. Elsewhere it is a child,
    whose exit code is returned.
    """
    argv = [sys.executable, "-m", "trainer", "resume", str(run.path)]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "posix":
        lock.release()
        return subprocess.call(argv)
    kept = _descriptor(run)
    _close_the_others_with_this_process(kept)
    if kept is not None:
        os.environ[INHERITED_LOCK] = str(kept)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    os.execv(argv[0], argv)


def hear_again() -> None:
    """Let signals through that :func:`begin_again` has held back."""
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _open_descriptors() -> list[int]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return [int(name) for name in os.listdir(folder)]


def _descriptor(run: RunFolder) -> int | None:
    """The one through which this process holds the run's lock."""
    for number in _open_descriptors():
        with suppress(OSError):
            if number > 2 and os.path.samestat(os.fstat(number), run.lock.stat()):
                return number
    return None


def _close_the_others_with_this_process(kept: int | None) -> None:
    """A driver's open files would hold on to GPU memory."""
    for number in _open_descriptors():
        with suppress(OSError):
            if number > 2:
                os.set_inheritable(number, number == kept)
