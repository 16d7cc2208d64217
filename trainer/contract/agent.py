"""A torchrun that is not ours, which starts a run's processes again when one has died.

It knows nothing of the run's lock, which is free meanwhile: so it is noted in the run's folder, and the run
counts as being trained while it lives. On Linux alone; elsewhere none is ever noted.
"""

from __future__ import annotations

import os
from pathlib import Path

from .files import read_json, write_json


def note(file: Path, pid: int) -> None:
    if (began := _began(pid)) is not None:
        write_json(file, {"pid": pid, "began": began})


def lives(file: Path) -> bool:
    """Whether the one that is noted still runs (a recycled pid does not count) and has not started this very
    process."""
    try:
        noted = read_json(file)
        pid, began = int(noted["pid"]), int(noted["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return pid != os.getppid() and began == _began(pid)


def _began(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
