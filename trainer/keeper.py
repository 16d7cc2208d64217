"""Checkpoints of a run that trains: saved, found again, let go; and what is done when the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import (
    TrainState,
    is_whole,
    list_checkpoints,
    newest_whole,
    read_identity,
    remove_checkpoint,
    remove_rubbish,
    save_checkpoint,
    step_of,
)
from .contract.config import TrainConfig
from .contract.disk import require_space
from .contract.errors import RunError
from .contract.events import current_events, read_events
from .contract.files import is_disk_full, sweep
from .contract.retention import best_first, dispensable, staying
from .contract.runs import RunFolder
from .contract.settings.files import CheckpointSettings
from .identity import require_same
from .report import Reporter
from .requests import Stopped


def make_ready(run: RunFolder, config: TrainConfig, cache: Path) -> None:
    """Before anything is loaded: room for what is to come, and nothing left of what a kill has cut short.
    Raises RunError(disk_full)."""
    require_space(run.path, config, run=run)
    for folder in (run.path, cache):
        sweep(folder)


class Keeper:
    """Saves checkpoints that say what they belong to (``identity``, :mod:`trainer.identity`), and rotates
    them by ``settings``, whose rhythm is in steps."""

    def __init__(
        self, run: RunFolder, settings: CheckpointSettings, identity: dict[str, Any], report: Reporter
    ) -> None:
        self._run, self._settings, self._identity, self._report = run, settings, identity, report
        self._saved = False

    def newest(self) -> Path | None:
        """The newest whole checkpoint. Raises RunError(config) where it is of another recipe."""
        found = newest_whole(self._run.checkpoints, self._report.warning)
        if found:
            require_same(read_identity(found), self._identity, found.name)
        return found

    def save(
        self,
        state: TrainState,
        adapter: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        averages: dict[str, Tensor] | None = None,
    ) -> None:
        """Save all state, then let go of what need not stay. Raises as :meth:`with_room` where there is no
        room for it; the newest whole checkpoint is still there then."""
        folder = self._run.checkpoint(state.step)
        self.with_room(lambda: save_checkpoint(folder, state, adapter, optimizer, averages, self._identity))
        self._saved = True
        self._report.checkpoint(state.step, folder.name)
        self._rotate(folder)

    def with_room(self, write: Callable[[], None]) -> None:
        """``write``; where the disk is full one checkpoint after the other goes, the least needed first,
        until it succeeds.

        When no more can go, the run stops: it raises Stopped(disk_full). Where this process has not saved
        anything yet it is RunError(disk_full), a failure: whatever starts a stopped run again would do so to
        no end.
        """
        while True:
            try:
                return write()
            except Exception as error:
                if not is_disk_full(error):
                    raise
                if not self._spare_one():
                    raise (Stopped if self._saved else RunError)(self._full(), "disk_full") from error

    def _spare_one(self) -> bool:
        """Let go of what the disk needs least; whether there was anything."""
        if remove_rubbish(self._run.checkpoints):
            return True
        checkpoints = {step_of(path): path for path in list_checkpoints(self._run.checkpoints)}
        whole = {step for step, path in checkpoints.items() if is_whole(path)}
        # Damaged ones first. They are told apart here alone: to read all of them takes time.
        order = sorted(checkpoints.keys() - whole) + dispensable(whole, self._settings, **self._reasons())
        if not order:
            return False
        remove_checkpoint(checkpoints[order[0]])
        self._report.warning(f"the disk is full; {checkpoints[order[0]].name} was removed to make room")
        return True

    def _full(self) -> str:
        newest = newest_whole(self._run.checkpoints, lambda text: None)
        saved = f"everything up to step {step_of(newest)} is saved ({newest.name})" if newest else ""
        return (
            f"The disk is full and no checkpoint can be spared; {saved or 'nothing could be saved yet'}. "
            "Free some space, then resume."
        )

    def _reasons(self) -> dict[str, Any]:
        """Why checkpoints stay beyond their age, as :func:`trainer.contract.retention.staying` wants it."""
        best: list[int] = []
        if self._settings.keep_best:
            events = current_events(read_events(self._run.events)[0])
            best = best_first(events, unlearn=self._identity["settings"]["train.unlearn"])
        return {"starred": self._run.starred(), "best": best}

    def _rotate(self, newest: Path) -> None:
        """Let go of what need not stay beside ``newest``, just saved.

        What crashes left goes too, and so do later checkpoints: training went on from before them because
        they were damaged, and they must not push out whole ones.
        """
        remove_rubbish(newest.parent)
        checkpoints = {step_of(path): path for path in list_checkpoints(newest.parent)}
        before = [step for step in checkpoints if step <= step_of(newest)]
        try:
            stay = staying(before, self._settings, **self._reasons())
        except RunError as error:  # not known which are starred
            self._report.warning(f"{error}; until then every checkpoint stays")
            return
        for step, path in checkpoints.items():
            if step not in stay:
                remove_checkpoint(path)
