"""A trainer as a process that can be killed: a fork of this one, or a new one. See :mod:`bench.kill_test`."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 300.0
"""No attempt takes so long."""


class Attempt:
    """A trainer in a process group of its own."""

    def __init__(self, arguments: list[str], log: Path, own_process: bool) -> None:
        self.began = time.monotonic()
        self._code: int | None = None
        if own_process:
            with log.open("ab") as output:
                argv = [sys.executable, "-m", "trainer", *arguments]
                self.pid = subprocess.Popen(
                    argv, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
                ).pid
            return
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_trainer(arguments, log)

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self) -> int:
        while (code := self.code()) is None:
            if time.monotonic() - self.began > PATIENCE_S:
                self.kill(signal.SIGKILL)
            time.sleep(0.005)
        return code

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _be_trainer(arguments: list[str], log: Path) -> None:
    """In the fork: become what ``python -m trainer`` is once it has imported everything."""
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        from trainer.__main__ import main

        code = main(arguments)
        if wanted := os.environ.get("KILL_TEST_MODULES"):
            Path(wanted).write_text("\n".join(sys.modules))
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def import_like(first: Callable[[], None], folder: Path) -> None:
    """Let ``first`` train once, and import here what it has imported there: later forks need not."""
    os.environ["KILL_TEST_MODULES"] = str(folder / "modules")
    first()
    for name in (folder / "modules").read_text().split("\n"):
        with suppress(Exception):
            importlib.import_module(name)
    del os.environ["KILL_TEST_MODULES"]
