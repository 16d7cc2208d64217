"""The time between the word that the machine goes and its end.

The loop stops by itself within a step. Where it does not come to it (a base that is being loaded, a step that
takes longer than the grace), a guard ends the run in order while there is time: what is saved counts, the
run's last word is written, uploaded and told, and the process ends as stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .checkpoints import list_checkpoints, step_of
from .contract.runs import RunFolder
from .processes import leave_now, under_torchrun
from .report import Reporter
from .requests import Asks, Requests

STOPPED = 3
"""The exit code of a run that can be resumed."""
MARGIN_S = 0.5
"""Before the end, for the process to leave."""
SHARE, MOST_S = 1 / 3, 10.0
"""Of the grace, for uploads and messages after the training; and at most so much."""
LOOK_S = 0.1


def gone_at(requests: Asks, grace_s: float) -> float | None:
    """When the machine is gone, by time.monotonic; None while nobody said that it goes."""
    if not isinstance(requests, Requests) or requests.heard is None:
        return None
    return requests.goes if requests.goes is not None else requests.heard + grace_s


def last_moment(requests: Asks, grace_s: float, otherwise_s: float) -> float:
    """Until when uploads and messages may take, by time.monotonic: what is left of the grace, or
    ``otherwise_s`` seconds where the machine stays."""
    gone = gone_at(requests, grace_s)
    return time.monotonic() + otherwise_s if gone is None else gone - MARGIN_S


@contextmanager
def guarded(
    run: RunFolder, grace_s: float, report: Reporter, requests: Asks, finish: Callable[[], None] | None
) -> Iterator[None]:
    """While the block goes on, end the process with exit code 3 where the grace would run out.

    ``finish`` uploads and tells; it is called after the run's last word. None for a process that does not
    write: it waits for the one that does.
    """
    over = threading.Event()
    turn = threading.Lock()
    before_s = min(SHARE * grace_s, MOST_S) if finish else MARGIN_S

    def watch() -> None:
        while not over.wait(LOOK_S):
            gone = gone_at(requests, grace_s)
            if gone is None or time.monotonic() < gone - before_s:
                continue
            with turn:
                if over.is_set():
                    return
                if finish:
                    saved = list_checkpoints(run.checkpoints)
                    kept = f"saved up to step {step_of(saved[-1]):,}" if saved else "nothing was saved yet"
                    report.end("stopped", f"Stopped in the middle, as the machine goes; {kept}.")
                    finish()
                    if under_torchrun():  # which may start all again: they are to end at once
                        with suppress(OSError):
                            run.send("stop")
                leave_now(STOPPED)

    threading.Thread(target=watch, name="grace", daemon=True).start()
    try:
        yield
    finally:
        with turn:  # a guard that has begun to end the run ends it
            over.set()
