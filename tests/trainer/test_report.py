"""What the status says before the training goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from trainer.checkpoints import TrainState, save_checkpoint
from trainer.contract.runs import RunFolder, Status
from trainer.report import Reporter


def test_a_resumed_run_shows_at_once_where_it_goes_on_from(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    Reporter(run, 1, 100, torch.device("cpu"))
    assert (run.raw_status().step, run.raw_status().loss) == (0, None)
    weight = torch.nn.Parameter(torch.zeros(2))
    for step in (20, 40):
        save_checkpoint(run.checkpoint(step), TrainState(step, 0.5), {"a": weight}, torch.optim.SGD([weight]))
    run.write_status(Status(state="training", step=47, total=100, loss=0.25, attempt=1))
    Reporter(run, 2, 100, torch.device("cpu")).state("preparing")
    status = run.raw_status()
    assert (status.state, status.attempt, status.step, status.loss) == ("preparing", 2, 40, 0.25)


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_status(Status(state="training", step=7, total=100, loss=0.25, attempt=1))
    Reporter(run, 2, 100, torch.device("cpu"))
    assert (run.raw_status().step, run.raw_status().loss) == (0, None)


def test_a_clock_that_is_set_back_holds_up_no_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    report = Reporter(run, 1, 9, torch.device("cpu"))
    report.started(0, 9, None)
    now, ticks = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    monkeypatch.setattr(time, "monotonic", lambda: ticks + 2)
    report.step(1, 0.5, 0.5, 1e-3, 1.0, 0.1)
    assert run.raw_status().step == 1 and run.raw_status().heartbeat == now - 3600
