"""Background processes: starting one detached, knowing whether it lives, and signalling all of its group."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from trainer.contract.errors import RunError

REPOSITORY = Path(__file__).resolve().parent.parent
SAME_S = 1.0
"""How far two readings of one process's start may lie apart."""


def child_environment(devices: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a background process: ours, without the studio's password.

    ``devices``: the GPUs that it may see, as NVML numbers them; () leaves that as it is.
    """
    environment = {key: value for key, value in os.environ.items() if key != "STUDIO_PASSWORD"}
    environment["PYTHONUNBUFFERED"] = "1"
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # CUDA's own order is by speed, NVML's is this one
    return environment


def spawn(argv: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a detached process whose output goes to a file (never a pipe, which would fill up)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise RunError(f"{argv[0]} cannot be started ({error.strerror}).", "unknown") from error


def started_at(pid: int) -> float:
    """When a process that was just started began, Unix seconds."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return time.time()


def lives(pid: Any, started: Any) -> bool:
    """Whether the very process still runs: a recycled pid does not count, nor does a zombie."""
    if not isinstance(pid, int) or not isinstance(started, (int, float)):
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < SAME_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end_group(pid: Any, started: Any, hard: bool) -> bool:
    """Ask a process and all that it started to end (SIGTERM), or kill them; whether anybody was there.

    The processes that :func:`spawn` starts lead a session of their own. A leader that is gone may have left
    some of its group behind; they are found by their session and by having begun after it.
    """
    if not isinstance(pid, int) or not isinstance(started, (int, float)):
        return False
    if os.name != "posix":
        return _end_tree(pid, started, hard)
    number = signal.SIGKILL if hard else signal.SIGTERM
    if lives(pid, started):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        return True
    left = _left_of(pid, started)
    for process in left:
        with suppress(psutil.Error):
            process.send_signal(number)
    return bool(left)


def group_lives(pid: Any, started: Any) -> bool:
    """Whether :func:`end_group` would find anybody."""
    if not isinstance(pid, int) or not isinstance(started, (int, float)):
        return False
    return lives(pid, started) or (os.name == "posix" and bool(_left_of(pid, started)))


def _left_of(leader: int, started: float) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["create_time"]) if _left_by(process, leader, started)]


def _left_by(process: psutil.Process, leader: int, started: float) -> bool:
    try:
        return os.getsid(process.pid) == leader and process.info["create_time"] > started - SAME_S
    except (OSError, psutil.Error):
        return False


def _end_tree(pid: int, started: float, hard: bool) -> bool:
    """Where there are no process groups: the process and its children."""
    if not lives(pid, started):
        return False
    with suppress(psutil.Error):
        leader = psutil.Process(pid)
        for process in (*leader.children(recursive=True), leader):
            with suppress(psutil.Error):
                process.kill() if hard else process.terminate()
    return True
