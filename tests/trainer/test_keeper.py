"""Rotation, what checkpoints belong to, and a disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.checkpoints
from trainer.checkpoints import TrainState, is_whole, list_checkpoints, step_of
from trainer.contract.errors import RunError
from trainer.contract.events import EventLog, read_events
from trainer.contract.files import is_disk_full, sweep, write_text
from trainer.contract.runs import RunFolder
from trainer.contract.settings.files import CheckpointSettings
from trainer.keeper import Keeper
from trainer.report import RESERVE, Reporter
from trainer.requests import Stopped

IDENTITY: dict[str, Any] = {"settings": {"train.unlearn": False}, "pictures": "p", "base": "b"}
FULL = OSError(errno.ENOSPC, "No space left on device")


class Training:
    """A training of one weight, whose checkpoints are kept by ``settings``."""

    def __init__(self, path: Path, identity: dict[str, Any] | None = None, **settings: int) -> None:
        self.run = RunFolder(path)
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        self.report = Reporter(self.run, 1, 100, torch.device("cpu"))
        self.keeper = Keeper(
            self.run, CheckpointSettings(**settings), IDENTITY | (identity or {}), self.report
        )
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.optimizer = torch.optim.AdamW([self.weight])

    def save(self, *steps: int) -> list[int]:
        """The steps whose checkpoints are there afterwards."""
        for step in steps:
            with torch.no_grad():
                self.weight.fill_(step)
            self.keeper.save(TrainState(step, 0.5), {"a": self.weight}, self.optimizer)
        return [step_of(path) for path in list_checkpoints(self.run.checkpoints)]

    def warnings(self) -> list[str]:
        return [event["text"] for event in read_events(self.run.events)[0] if event["kind"] == "warning"]


def test_rotation(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=1, keep_every=30, keep_best=1)
    assert training.save(10, 20) == [20]
    training.run.star(20)
    training.report.validation(20, 0.5, [], 1)
    assert training.save(30, 40) == [20, 30, 40]
    training.report.validation(40, 0.2, [], 1)
    assert training.save(50, 60) == [20, 30, 40, 60]
    training.report.validation(60, 0.1, [], 1)
    training.run.star(20, on=False)
    assert training.save(70) == [30, 60, 70]


def test_without_knowing_the_stars_nothing_goes(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=1)
    training.run.stars.write_text("[")
    assert training.save(1, 2) == [1, 2]
    assert "starred.json is damaged" in training.warnings()[0]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"settings": {"train.learning_rate": 2.0}}, "train.learning_rate is 2.0 .* step-000005 .* 1.0; put"),
        ({"pictures": "others"}, "dataset.json names other pictures, .* step-000005"),
        ({"base": "other"}, "other weights than at step-000005"),
    ],
)
def test_another_training_is_refused(other: dict[str, Any], says: str, tmp_path: Path) -> None:
    mine = {"settings": {"train.unlearn": False, "train.learning_rate": 1.0}}
    Training(tmp_path, mine).save(5)
    with pytest.raises(RunError, match=says) as caught:
        Training(tmp_path, {**mine, **other}).keeper.newest()
    assert caught.value.cause == "config"
    newer = {"settings": mine["settings"] | {"train.invented_since": 3}}
    assert Training(tmp_path, newer).keeper.newest() == RunFolder(tmp_path).checkpoint(5)


def test_checkpoints_of_earlier_versions_do_not_say_what_they_belong_to(tmp_path: Path) -> None:
    training = Training(tmp_path)
    folder = training.run.checkpoint(3)
    trainer.checkpoints.save_checkpoint(
        folder, TrainState(3, None), {"a": training.weight}, training.optimizer
    )
    assert training.keeper.newest() == folder


def fill_up(monkeypatch: pytest.MonkeyPatch, checkpoints: Path, room: int) -> None:
    """From now on there is room for so many checkpoints, staging folders included."""
    real = trainer.checkpoints.save_file

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if sum(1 for folder in checkpoints.iterdir()) > room:
            Path(path).write_bytes(b"half")
            raise FULL
        real(tensors, path)

    monkeypatch.setattr(trainer.checkpoints, "save_file", save_file)


def test_a_full_disk_takes_the_least_needed_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, keep=9, keep_every=20)
    training.save(10, 20, 30, 40)
    training.run.star(10)
    fill_up(monkeypatch, training.run.checkpoints, 4)
    assert training.save(50) == [10, 20, 40, 50], "30 is neither starred nor a milestone"
    assert training.save(60) == [10, 40, 50, 60], "50 was the newest; the next of them is a milestone"
    assert training.save(70) == [10, 40, 60, 70]
    assert "step-000030 was removed to make room" in training.warnings()[0]
    fill_up(monkeypatch, training.run.checkpoints, 3)
    assert training.save(80) == [10, 70, 80], "neither what is starred goes nor the newest"
    fill_up(monkeypatch, training.run.checkpoints, 2)
    with pytest.raises(Stopped, match=r"up to step 80 is saved \(step-000080\)") as caught:
        training.save(90)
    assert caught.value.cause == "disk_full"
    assert sorted(path.name for path in training.run.checkpoints.iterdir()) == ["step-000010", "step-000080"]
    assert is_whole(training.run.checkpoint(80))


def test_damaged_ones_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path, keep=9)
    training.save(10, 20)
    (training.run.checkpoint(20) / "state.json").write_text("{")
    fill_up(monkeypatch, training.run.checkpoints, 2)
    assert training.save(30) == [10, 30]


def test_nothing_saved_yet_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    fill_up(monkeypatch, training.run.checkpoints, 0)
    with pytest.raises(RunError, match="nothing could be saved yet"):
        training.save(10)
    assert not list(training.run.checkpoints.iterdir())


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    training.save(10)

    def denied(*args: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(trainer.checkpoints, "save_file", denied)
    with pytest.raises(OSError, match="Permission denied"):
        training.save(20)


def test_events_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 1)
    log.append("step", step=1)
    full = Full(log, room=30)
    log.append("step", step=2)  # of which half a line is written
    log.append("warning", text="x")
    assert [event["seq"] for event in read_events(path)[0]] == [1]
    full.room = 10_000
    log.append("step", step=3)
    assert [event["seq"] for event in read_events(path)[0]] == [1, 2, 3, 4]
    full.room = 0
    for step in range(4, 9):
        log.append("step", step=step)
    full.room = 150
    log.append("end", state="failed")
    kinds = [event["kind"] for event in read_events(path)[0]]
    assert kinds[-1] == "end", "the last word counts more than what led to it"


class Full:
    """Stands in for the file of an event log, on a disk with so many bytes of room."""

    def __init__(self, log: EventLog, room: int) -> None:
        self._file, self.room = log._file, room
        log._file = self  # type: ignore[assignment]

    def write(self, data: bytes) -> int:
        if not self.room:
            raise FULL
        written = self._file.write(data[: self.room])
        assert written is not None
        self.room -= written
        return written

    def fileno(self) -> int:
        return self._file.fileno()


def test_a_status_that_finds_no_room_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)

    def full(*args: object) -> None:
        raise FULL

    monkeypatch.setattr(RunFolder, "write_status", full)
    training.report.state("saving")
    assert (tmp_path / RESERVE).stat().st_size > 10_000
    training.report.end("failed", "The disk is full.", "disk_full")
    assert not (tmp_path / RESERVE).exists(), "it makes room for the last words"


def test_what_the_disk_being_full_looks_like() -> None:
    assert is_disk_full(FULL) and is_disk_full(OSError(errno.EDQUOT, ""))
    assert is_disk_full(ValueError("Error while serializing: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_what_was_begun_is_swept(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "whole.json", "{}")
    left = [tmp_path / "a" / ".whole.1a2b.tmp.json", tmp_path / ".lock.tmp", tmp_path / ".reserve"]
    for file in left:
        file.write_text("")
    sweep(tmp_path)
    assert all(file.exists() for file in left), "somebody may be writing them just now"
    sweep(tmp_path, older_s=-1)
    assert [file.exists() for file in left] == [False, False, True]
    assert (tmp_path / "a" / "whole.json").exists()
