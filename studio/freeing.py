"""What may be deleted to make room on the disk: old checkpoints that nothing needs any more."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.contract.errors import UserError
from trainer.contract.runs import RunFolder
from trainer.contract.whole import list_checkpoints, newest_whole, step_of

from .jobs import Supervisor


@dataclass(frozen=True)
class Removable:
    """Checkpoints of one run that may go, and their size in bytes together."""

    run: RunFolder
    folders: tuple[Path, ...]
    size: int


def removable(jobs: Supervisor) -> list[Removable]:
    """What may go, run by run, the oldest first.

    The newest whole checkpoint of a run stays: it is what resumes, draws and exports. So do starred ones,
    all of a training that runs or waits, and all of a run that has no whole one. Damaged ones may go.
    """
    book = jobs.queue.look()
    busy = {job.run for job in (*book.running(), *book.waiting())}
    found: list[Removable] = []
    for run in reversed(jobs.workspace.list_runs()):
        if run.id in busy or jobs.is_running(run):
            continue
        try:
            starred = run.starred()
        except UserError:
            continue  # what a person wants to keep is not known
        there = list_checkpoints(run.checkpoints)
        spare = len(there) > 1  # to find the newest whole one, all of its bytes are read
        if not (spare and (needed := newest_whole(run.checkpoints, lambda text: None))):
            continue
        if old := [folder for folder in there if folder != needed and step_of(folder) not in starred]:
            size = sum(file.stat().st_size for folder in old for file in folder.iterdir())
            found.append(Removable(run, tuple(old), size))
    return found


def free(chosen: Sequence[Removable]) -> None:
    """Delete them. Raises UserError where a folder cannot be deleted."""
    for one in chosen:
        for folder in one.folders:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                sentence = f"{folder} cannot be deleted ({error.strerror}); delete it by hand."
                raise UserError(sentence) from None
