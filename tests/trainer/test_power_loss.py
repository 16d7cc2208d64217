"""At whatever instant the power goes, the newest whole checkpoint is the one before or the new one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.apart import apart
from trainer.checkpoints import TrainState, list_checkpoints, newest_whole, save_checkpoint, step_of
from trainer.contract.config import TrainConfig
from trainer.contract.events import EventLog, read_events
from trainer.contract.files import read_json, write_json
from trainer.contract.runs import RunFolder, Status
from trainer.contract.settings.files import CheckpointSettings
from trainer.keeper import Keeper
from trainer.report import Reporter

from .power import cut_at

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for open files")

IDENTITY = {"settings": {"train.unlearn": False}, "pictures": "p", "base": "b"}
KEPT = (None, 0, 1)
"""Changes to folders that survive a power cut though they were not fsynced; None for all of them."""


class Saver:
    """Saves checkpoints whose content tells their step."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        report = Reporter(run, 1, 100, torch.device("cpu"))
        self.keeper = Keeper(run, CheckpointSettings(keep=1), IDENTITY, report)
        self.weight = torch.nn.Parameter(torch.zeros(9))
        self.optimizer = torch.optim.AdamW([self.weight])

    def save(self, step: int) -> None:
        with torch.no_grad():
            self.weight.fill_(step)
        self.keeper.save(TrainState(step, float(step)), {"a": self.weight}, self.optimizer)


def newest(run: RunFolder) -> int:
    """The step of the newest whole checkpoint, whose content is that step's."""
    found = newest_whole(run.checkpoints, lambda text: None)
    if found is None:
        return 0
    assert read_json(found / "state.json")["step"] == step_of(found)
    return step_of(found)


def damage(run: RunFolder) -> None:
    (run.checkpoint(20) / "optimizer.safetensors").write_bytes(b"x")


def leave_rubbish(run: RunFolder) -> None:
    (run.checkpoints / ".step-000020.tmp").mkdir()
    (run.checkpoints / ".step-000020.tmp" / "adapter.safetensors").write_bytes(b"half")


@pytest.mark.parametrize(
    ("begun", "kept"),
    [*((None, kept) for kept in KEPT), (damage, None), (damage, 0), (leave_rubbish, 0)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_power_cut_while_saving(
    begun: Callable[[RunFolder], None] | None, kept: int | None, tmp_path: Path
) -> None:
    apart(cut_while_saving, begun, kept, tmp_path)


def cut_while_saving(begun: Callable[[RunFolder], None] | None, kept: int | None, tmp_path: Path) -> None:
    """Saving step 20 after step 10, and rotation, are cut at every operation in turn."""
    run = RunFolder(tmp_path / "run")
    saver = Saver(run)
    saver.save(10)
    if begun is damage:
        save_checkpoint(run.checkpoint(20), TrainState(20, 20.0), {"a": saver.weight}, saver.optimizer)
    if begun:
        begun(run)
    before = tmp_path / "before"
    shutil.copytree(run.checkpoints, before)
    seen = []
    for at in range(200):
        shutil.rmtree(run.checkpoints)
        shutil.copytree(before, run.checkpoints)
        if not cut_at(at, run.path, lambda: saver.save(20), kept):
            break
        seen.append(newest(run))
        saver.save(20)  # the next attempt gets there, whatever it finds
        assert newest(run) == 20
        assert [path.name for path in run.checkpoints.iterdir()] == ["step-000020"]
    assert set(seen) == {10, 20} and len(seen) > 20
    assert seen == sorted(seen), "once the new one is there it stays"
    assert newest(run) == 20 and [step_of(path) for path in list_checkpoints(run.checkpoints)] == [20]


@pytest.mark.parametrize("kept", KEPT)
def test_a_power_cut_while_writing_any_other_file(kept: int | None, tmp_path: Path) -> None:
    """Frozen datasets, cached latents, samples and the LoRA are written like this one."""
    file = tmp_path / "folder" / "dataset.json"
    write_json(file, {"content": "old" * 50})
    seen = []
    for at in range(20):
        if not cut_at(at, file.parent, lambda: write_json(file, {"content": "new" * 99}), kept):
            break
        seen.append(read_json(file)["content"][:3])
        write_json(file, {"content": "old" * 50})
    assert set(seen) >= {"old"} and len(seen) == 4 and read_json(file)["content"] == "new" * 99


@pytest.mark.parametrize("kept", KEPT)
def test_a_power_cut_while_events_are_told(kept: int | None, tmp_path: Path) -> None:
    """What is told by itself is there, of steps what there was time for; half a line spoils no later one. The
    status may be gone, and the next attempt still has its number."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()

    def tell() -> None:
        log = EventLog(run.events, 1)
        for step in range(1, 4):
            log.append("step", step=step)
            log.append("checkpoint", step=step)
            run.write_status(Status(state="training", step=step, attempt=1))

    told = []
    for at in range(40):
        run.events.unlink(missing_ok=True)
        run.status.unlink(missing_ok=True)
        if not cut_at(at, run.path, tell, kept):
            break
        seen = [(event["kind"], event["step"]) for event in read_events(run.events)[0]]
        told.append(len(seen))
        assert seen == [(kind, step) for step in (1, 2, 3) for kind in ("step", "checkpoint")][: len(seen)]
        assert run.next_attempt() == 1 + bool(seen)
        EventLog(run.events, 2).append("end", state="stopped", step=3)
        assert [event["seq"] for event in read_events(run.events)[0]] == list(range(1, len(seen) + 2))
    assert told == sorted(told) and told[-1] == 6 and len(told) > 6


def test_a_run_that_was_made_is_there_after_a_power_cut(tmp_path: Path) -> None:
    """Neither its folder nor those that it lies in are lost with everything in them."""
    root = tmp_path / "workspace"
    root.mkdir()
    run = RunFolder(root / "runs" / "one")

    def make_and_save() -> None:
        run.create(TrainConfig())
        (root / "the next thing").mkdir()

    operations = 0
    while cut_at(operations, root, make_and_save, 0):
        if run.recipe.exists():
            assert run.config() == TrainConfig() and run.checkpoints.is_dir()
            return
        shutil.rmtree(root)
        root.mkdir()
        operations += 1
    pytest.fail("it was never durable")


def test_the_cut_finds_what_is_not_made_durable(tmp_path: Path) -> None:
    """The test's own test: a file that is renamed without being fsynced is lost."""
    root = tmp_path / "folder"
    root.mkdir()
    (root / "file").write_text("old")

    def careless() -> None:
        (root / "new").write_text("brand new")
        (root / "new").rename(root / "file")
        (root / "other").mkdir()

    assert cut_at(1, root, careless, None)
    assert (root / "file").read_text() == "bran"
