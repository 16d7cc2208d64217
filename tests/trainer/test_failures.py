"""What goes wrong ends in one sentence, a cause, and with everything saved before still there."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainer.objective
import trainer.sampling
import trainer.train
from trainer.__main__ import main
from trainer.checkpoints import is_whole, list_checkpoints
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder
from trainer.failures import explain
from trainer.families.sdxl import Family
from trainer.requests import Requests
from trainer.sampling import draw

from .helpers import Script, recipe, train_here


@pytest.fixture
def run(tiny_base: Path, photos: Path, tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(recipe(tiny_base, photos))
    return run


def test_an_infinite_loss_stops_the_run_and_names_the_pictures(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def broken(prediction: torch.Tensor, target: torch.Tensor, *_: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        losses = (prediction - target).square()
        return losses * (torch.inf if calls == 5 else 1.0)

    monkeypatch.setattr(trainer.objective, "elementwise", broken)
    with pytest.raises(RunError, match=r"infinite at step 5 on photo \d\.png"):
        train_here(run)
    status = run.read_status()
    assert (status.state, status.cause, status.step) == ("failed", "nan", 4)
    assert is_whole(run.checkpoint(3))  # what it rolls back to
    monkeypatch.undo()
    assert train_here(run)
    started = [e["step"] for e in read_events(run.events)[0] if e["kind"] == "started"]
    assert started == [0, 3]


def test_an_infinite_gradient_stops_the_run_too(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def broken(prediction: torch.Tensor, target: torch.Tensor, *_: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        losses = (prediction - target).square()
        return losses + (losses - losses).sqrt() if calls == 5 else losses  # the root's slope at 0

    monkeypatch.setattr(trainer.objective, "elementwise", broken)
    with pytest.raises(RunError, match=r"the gradient became infinite at step 5 on photo \d\.png"):
        train_here(run)
    assert run.read_status().cause == "nan"
    assert is_whole(run.checkpoint(3)) and not run.checkpoint(5).exists()


def test_a_full_disk_stops_it_with_its_cause_and_keeps_the_checkpoint_before(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.checkpoints

    real = trainer.checkpoints.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-000006" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(trainer.checkpoints, "save_file", full)
    assert not train_here(run)
    status = run.read_status()
    assert (status.state, status.cause) == ("stopped", "disk_full")
    assert "up to step 3 is saved (step-000003). Free some space" in status.message
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-000003"]
    assert not list(run.checkpoints.glob(".*"))
    monkeypatch.undo()
    assert train_here(run)


def test_a_disk_that_became_read_only_is_named() -> None:
    said, cause, evidence = explain(OSError(errno.EROFS, "Read-only file system", "/run/events.jsonl"))
    assert said.startswith("/run/events.jsonl cannot be read or written (Read-only file system); check the")
    assert cause == "unknown" and "Errno" in evidence


def test_a_failed_drawing_costs_neither_checkpoint_nor_run(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    freed = 0

    def free(family: Family, keep_text: bool = False) -> None:
        nonlocal freed
        freed += 1

    monkeypatch.setattr(trainer.sampling, "draw", fails)
    monkeypatch.setattr(Family, "free_encoders", free)
    assert train_here(run)
    assert freed == 3  # after caching, and after each drawing that failed, whole and in tiles
    warnings = [e["text"] for e in read_events(run.events)[0] if e["kind"] == "warning"]
    assert len(warnings) == 2 and "drawing samples at step 0 failed" in warnings[0]
    assert run.result(run.config()).exists()
    assert draw is not fails


def test_running_out_of_gpu_memory_is_told_apart(
    tiny_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "runs" / "full")
    run.create(recipe(tiny_base, photos, machine={"on_oom": "stop"}))

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(trainer.objective.Objective, "losses", fails)
    with pytest.raises(RunError, match="lower the batch size"):
        train_here(run)
    status = run.read_status()
    assert status.cause == "gpu_oom" and "lower the batch size" in status.message
    assert "20.00 GiB" in status.evidence


def test_a_second_trainer_is_refused(run: RunFolder) -> None:
    with run.hold():
        assert run.alive()
        with pytest.raises(RunError, match="already being trained"):
            run.hold()
    assert not run.alive()


def test_a_refused_trainer_leaves_what_was_asked_of_the_running_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    (run.control / "00000000000000000001-early.json").write_text('{"verb": "stop"}')
    with run.hold():
        assert main(["resume", str(run.path)]) == 2
    assert run.take_controls() == ["stop"]


def test_a_finished_run_whose_file_is_gone_writes_it_again(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert train_here(run)
    result = run.result(run.config())
    before = load_file(result)
    result.unlink()
    assert main(["resume", str(run.path)]) == 0
    after = load_file(result)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_interrupt_ends_at_once_and_is_no_success(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    requests = Requests()
    requests.on_signal(signal.SIGINT, None)
    assert requests.stop()
    with pytest.raises(KeyboardInterrupt):
        requests.on_signal(signal.SIGINT, None)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.objective.Objective, "losses", interrupted)
    assert main(["resume", str(run.path)]) == 1
    assert run.read_status().cause == "killed"


def test_a_bf16_lora_over_fp16_is_refused_before_anything_loads(
    tiny_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "runs" / "formats")
    run.create(recipe(tiny_base, photos, adapter={"precision": "bf16"}, model={"precision": "fp16"}))
    monkeypatch.setattr(trainer.train, "pick_dtype", lambda precision, device: torch.float16)  # as on a GPU
    monkeypatch.setattr(trainer.train, "find_base", lambda *args: pytest.fail("the base was looked for"))
    with pytest.raises(RunError, match="set it to fp32"):
        train_here(run)
    assert run.raw_status().cause == "config"


def test_a_run_does_not_go_on_with_another_recipe_or_other_pictures(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    assert not train_here(run, Script(run, "stop", 1))
    recipe_text, rows = run.recipe.read_text(), run.dataset.read_text()
    run.recipe.write_text(recipe_text.replace("learning_rate = 0.01", "learning_rate = 0.02"))
    assert main(["resume", str(run.path)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "train.learning_rate is 0.02" in told and "step-000001 was trained with 0.01; put it back" in told
    run.recipe.write_text(recipe_text.replace("every = 3", "every = 4"))
    run.dataset.write_text(rows.replace("number 3", "number 33"))
    assert main(["resume", str(run.path)]) == 2
    assert "dataset.json names other pictures" in capsys.readouterr().err
    run.dataset.write_text(rows)
    assert main(["resume", str(run.path)]) == 0, "how often is saved may change"
