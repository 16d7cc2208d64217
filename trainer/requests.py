"""What the outside asks of a running training: control files from the studio, signals from the system."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Protocol

import psutil

from .contract.runs import RunFolder, Verb
from .processes import is_for_the_run, under_torchrun
from .restart import STOPS, hear_again


class Stopped(Exception):
    """The user, or the machine, asked the training to stop, or it cannot go on for now; everything is saved.

    ``cause``: one of :data:`trainer.contract.runs.CAUSES` where nobody has asked.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class Asks(Protocol):
    """What the loop wants to know. ``why`` says who asked for the stop, where it was not the user."""

    why: str

    def stop(self) -> bool:
        """Whether a stop was asked; stays true."""
        ...

    def take(self, verb: Verb) -> bool:
        """Whether ``verb`` was asked since it was last taken."""
        ...


class Requests:
    """Collects requests until the loop takes them. A second Ctrl-C interrupts at once.

    Signals are heard from the beginning, control files once :meth:`attach` has named the run.
    """

    def __init__(self) -> None:
        self._run: RunFolder | None = None
        self._asked: set[Verb] = set()
        self.why = ""
        self.heard: float | None = None
        """When it was said that the machine goes, by time.monotonic."""
        self.goes: float | None = None
        """When it goes, by time.monotonic, where that was said, too."""
        for number in STOPS:
            signal.signal(number, self.on_signal)
        hear_again()

    def attach(self, run: RunFolder) -> None:
        """Read the control files of ``run``, whose lock the caller holds.

        Those from before this process (or torchrun, which started it) began were meant for the one before
        and are dropped; a stop that is pressed while the model still loads is kept.
        """
        self._run = run
        process = psutil.Process(os.getppid() if under_torchrun() else os.getpid())
        run.take_controls(before_ns=int(process.create_time() * 1e9))

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and "stop" in self._asked:
            raise KeyboardInterrupt
        if number == signal.SIGTERM and self.heard is None and is_for_the_run():
            self.heard = time.monotonic()
        self._asked.add("stop")

    def ask_to_stop(self, why: str) -> None:
        """As the user would; any thread may. ``why`` is told with it."""
        self.why = self.why or why
        self._asked.add("stop")

    def machine_goes(self, why: str, in_s: float | None) -> None:
        """As SIGTERM: the machine is taken away, ``in_s`` seconds from now where that is known."""
        if self.heard is None:
            self.heard = time.monotonic()
            self.goes = None if in_s is None else self.heard + in_s
        self.ask_to_stop(why)

    def _read(self) -> None:
        if self._run:
            self._asked.update(self._run.take_controls())

    def stop(self) -> bool:
        self._read()
        return "stop" in self._asked

    def take(self, verb: Verb) -> bool:
        self._read()
        if verb not in self._asked:
            return False
        self._asked.discard(verb)
        return True
