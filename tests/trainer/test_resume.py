"""A run that was stopped, killed or damaged ends with the same bytes as one that was left alone."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset_tools.dataset import load_dataset, save_dataset
from tests.conftest import ROOT
from tests.forks import Program
from tests.pictures import draw_project
from trainer.after import weights_in
from trainer.checkpoints import is_whole, list_checkpoints, step_of
from trainer.contract.config import TrainConfig
from trainer.contract.events import current_events, read_events
from trainer.contract.runs import RunFolder
from trainer.data import BatchPlan, load_frozen

from .helpers import Script, recipe, sha256, train_here, weights_hash

CAPTIONS = {
    "dropout": 0.2,
    "suffix": ", {red|blue}, one, two, three",
    "protect": False,
    "wildcards": True,
    "shuffle": True,
    "keep_tokens": 1,
    "tag_dropout": 0.2,
    "warmup_steps": 0.5,
}
DROPOUT = {
    "adapter": {"dropout": 0.1},
    "dataset": {"flip": True, "rotate": 9, "random_crop": 0.2, "colour": 0.2, "variants": 3},
    "captions": CAPTIONS,
}


def make(path: Path, config: TrainConfig) -> RunFolder:
    run = RunFolder(path)
    run.create(config)
    return run


@pytest.fixture(scope="module")
def config(tiny_base: Path, photos: Path) -> TrainConfig:
    return recipe(tiny_base, photos, **DROPOUT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, which share what is encoded once."""
    return tmp_path_factory.mktemp("resume") / "runs"


@pytest.fixture(scope="module")
def straight(config: TrainConfig, home: Path) -> RunFolder:
    run = make(home / "straight", config)
    assert train_here(run)
    return run


@pytest.fixture
def run(config: TrainConfig, home: Path) -> RunFolder:
    """A fresh run of the straight one's recipe."""
    return make(home / f"run-{time.time_ns()}", config)


def assert_same(run: RunFolder, straight: RunFolder) -> None:
    assert weights_hash(run, 8) == weights_hash(straight, 8)
    losses = [
        [(e["step"], e["loss"]) for e in current_events(read_events(r.events)[0]) if e["kind"] == "step"]
        for r in (run, straight)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, 9))
    assert sha256(run.sample(8, 0)) == sha256(straight.sample(8, 0))


def test_stop_and_resume_is_bit_exact(run: RunFolder, straight: RunFolder) -> None:
    """From a checkpoint that no recipe asked for; those of the recipe are in the tests below."""
    assert not train_here(run, Script(run, "stop", 1))
    status = run.read_status()
    assert status.state == "stopped" and status.step == 1
    assert "step 1 of 8" in status.message
    assert train_here(run)
    assert run.read_status().attempt == 2
    assert_same(run, straight)


def test_a_damaged_checkpoint_is_passed_over(run: RunFolder, straight: RunFolder) -> None:
    assert not train_here(run, Script(run, "stop", 4))
    file = run.checkpoint(4) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    assert train_here(run)
    events = read_events(run.events)[0]
    assert any(e["kind"] == "warning" and "step-000004 is damaged" in e["text"] for e in events)
    assert [e["step"] for e in events if e["kind"] == "started"] == [0, 3]
    assert_same(run, straight)


def test_a_damaged_checkpoint_does_not_push_out_whole_ones(tiny_base: Path, photos: Path, home: Path) -> None:
    one = {"every": 1, "keep": 1}
    run = make(home / "keep-one", recipe(tiny_base, photos, checkpoints=one))
    assert not train_here(run, Script(run, "stop", 2))
    damaged = run.checkpoint(6)
    damaged.mkdir()
    (damaged / "MANIFEST.json").write_text("{")
    assert not train_here(run, Script(run, "stop", 3))
    assert list_checkpoints(run.checkpoints) == [run.checkpoint(3)]
    assert is_whole(run.checkpoint(3))


def test_checkpoints_from_before_parts_had_names(run: RunFolder, straight: RunFolder) -> None:
    """Their parameters were "down_blocks…", now "unet.down_blocks…", and no module said its alpha."""
    assert not train_here(run, Script(run, "stop", 4))
    folder = run.checkpoint(4)
    file = folder / "adapter.safetensors"
    new = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(".alpha")}
    save_file({name.removeprefix("unet."): tensor for name, tensor in new.items()}, file)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    assert set(weights_in(folder, run.config())) == {name.partition(".lora_")[0] for name in new}
    assert train_here(run)
    assert_same(run, straight)


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-999750", "step-000003", "step-by-step"):
        (tmp_path / name).mkdir()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-000003", "step-999750", "step-1000000"]


@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": "adafactor", "loraplus_ratio": 4},
        {"optimizer": "prodigy", "learning_rate": 1.0, "text_encoder_lr": 1.0},
        {"optimizer": "schedulefree_adamw", "scheduler": "constant", "warmup": 0},
        {"optimizer": "lion8bit", "ema_decay": 0.9},
    ],
    ids=lambda train: train["optimizer"],
)
def test_optimizers_and_averages_resume_bit_exactly(
    train: dict[str, Any], tiny_base: Path, photos: Path, home: Path
) -> None:
    """Drawings between, which wear the averages, change nothing."""
    runs = []
    for name, every in (("straight", 1), ("stopped", 0)):
        samples = {"every": every, "steps": 1}
        config = recipe(tiny_base, photos, train={**train, "steps": 3}, samples=samples)
        runs.append(make(home / f"{train['optimizer']} {name}", config))
    straight, stopped = runs
    assert train_here(straight)
    assert not train_here(stopped, Script(stopped, "stop", 2))
    assert train_here(stopped)
    assert contents(straight.checkpoint(3)) == contents(stopped.checkpoint(3))
    ours, theirs = (load_file(run.result(config)) for run in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sha256(straight.sample(3, 0)) == sha256(stopped.sample(3, 0))


@pytest.mark.parametrize("train", [{"ema_decay": 0.9}, {"optimizer": "schedulefree_adamw"}])
def test_averages_are_what_is_handed_out(
    train: dict[str, Any], tiny_base: Path, photos: Path, home: Path
) -> None:
    config = recipe(tiny_base, photos, train={**train, "scheduler": "constant", "steps": 4})
    run = make(home / f"averaged by {next(iter(train))}", config)
    assert train_here(run)
    trained = load_file(run.checkpoint(4) / "adapter.safetensors")
    average = load_file(run.checkpoint(4) / "average.safetensors")
    assert set(trained) == set(average)
    moved = {name: (trained[name] - average[name]).abs().max().item() for name in trained}
    assert max(moved.values()) > 1e-3
    given, raw = (weights_in(run.checkpoint(4), config, which) for which in (None, "raw"))
    name = max((name for name in moved if "lora_B" in name), key=lambda name: moved[name])
    assert moved[name] > 1e-3
    assert torch.equal(given[name.partition(".lora_B.")[0]].up, average[name])
    assert torch.equal(raw[name.partition(".lora_B.")[0]].up, trained[name])
    ups = [tensor for key, tensor in load_file(run.result(config)).items() if "lora_up" in key]
    assert any(up.shape == average[name].shape and torch.equal(up, average[name].half()) for up in ups)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in folder.iterdir()}


def test_loraplus_reaches_the_weights(tiny_base: Path, photos: Path, home: Path) -> None:
    """AdamW's first step is as long as the learning rate: that of the outer factors is four times as long."""
    train = {"loraplus_ratio": 4, "steps": 1, "scheduler": "constant", "warmup": 0, "learning_rate": 1e-3}
    run = make(home / "plus", recipe(tiny_base, photos, train=train))
    assert train_here(run)
    tensors = load_file(run.checkpoint(1) / "adapter.safetensors")
    ups = [tensor.abs().max().item() for name, tensor in tensors.items() if ".lora_B." in name]
    assert max(ups) == pytest.approx(4e-3, rel=1e-3)


def test_fused_backward_trains_the_same_lora(tiny_base: Path, photos: Path, home: Path) -> None:
    runs = []
    for fused in (False, True):
        train = {"fused_backward": fused, "max_grad_norm": 0, "steps": 3}
        run = make(home / f"fused {fused}", recipe(tiny_base, photos, train=train))
        assert train_here(run)
        runs.append(run)
    assert weights_hash(runs[0], 3) == weights_hash(runs[1], 3)
    norms = [[e["grad_norm"] for e in read_events(run.events)[0] if e["kind"] == "step"] for run in runs]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_epochs_become_steps(tiny_base: Path, photos: Path, home: Path) -> None:
    """Known once the pictures are counted; the frozen recipe keeps what was written."""
    epochs = {"epochs": 2, "batch_size": 2}
    config = recipe(
        tiny_base,
        photos,
        train=epochs,
        samples={"every_epochs": 1, "steps": 1},
        checkpoints={"every_epochs": 1, "keep": 9},
    )
    run = make(home / "epochs", config)
    assert train_here(run)
    batches = BatchPlan(load_frozen(run.dataset), 2, 7).batches_per_epoch
    assert run.read_status().total == run.read_status().step == 2 * batches != config.train.steps
    drawn = sorted(int(path.name[1:7]) for path in run.samples.iterdir())
    assert drawn == [0, batches, 2 * batches]
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [batches, 2 * batches]
    assert run.config() == config


def test_accumulation_equals_the_large_batch(tiny_base: Path, tmp_path: Path) -> None:
    """Four pictures of one bucket at once, or two and two: the same step but for rounding."""
    root = draw_project(tmp_path / "photos", 8)
    dataset = load_dataset(root)
    save_dataset(root, dataset.without(f"picture{number}" for number in (1, 3, 5, 7)))
    losses = []
    for batch, parts in ((4, 1), (2, 2)):
        train = {"batch_size": batch, "gradient_accumulation": parts, "steps": 3}
        run = make(tmp_path / "runs" / f"{batch}", recipe(tiny_base, root, train=train))
        assert train_here(run)
        events = read_events(run.events)[0]
        losses.append([(e["loss"], e["grad_norm"]) for e in events if e["kind"] == "step"])
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4)


def test_accumulation_over_batches_that_are_not_full(tiny_base: Path, tmp_path: Path) -> None:
    """Three pictures at once, or two and one: each counts the same."""
    root = draw_project(tmp_path / "photos", 6)
    dataset = load_dataset(root)
    save_dataset(root, dataset.without(f"picture{number}" for number in (1, 3, 5)))
    steps = []
    for batch, parts in ((3, 1), (2, 2)):
        train = {"batch_size": batch, "gradient_accumulation": parts, "steps": 3}
        run = make(tmp_path / "runs" / f"{batch}", recipe(tiny_base, root, train=train))
        assert train_here(run)
        events = read_events(run.events)[0]
        steps.append([(e["loss"], e["grad_norm"]) for e in events if e["kind"] == "step"])
    assert torch.allclose(torch.tensor(steps[0]), torch.tensor(steps[1]), rtol=1e-4)


def test_the_same_recipe_gives_the_same_lora_saved_on_request_or_not(
    run: RunFolder, straight: RunFolder
) -> None:
    assert train_here(run, Script(run, "save", 4))
    assert_same(run, straight)
    saved = [e["step"] for e in read_events(run.events)[0] if e["kind"] == "checkpoint"]
    assert saved == [3, 4, 6, 8]  # 3, 6 by the recipe, 8 as the last, 4 because it was asked for
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        f"step-{step:06d}" for step in (4, 6, 8)
    ]


def test_sample_on_request(run: RunFolder) -> None:
    assert train_here(run, Script(run, "sample", 4))
    drawn = [e["step"] for e in read_events(run.events)[0] if e["kind"] == "sample"]
    assert drawn == [0, 4, 8]
    assert all(run.sample(step, 0).stat().st_size > 100 for step in drawn)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals(run: RunFolder, straight: RunFolder, number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM saves and exits with 3; SIGKILL costs the steps since the last checkpoint, nothing else."""
    with (tmp_path / "log").open("wb") as log:
        process = Program("trainer", "resume", run.path, cwd=ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not run.checkpoint(3).is_dir() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(number)
        code = process.wait(60)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert run.read_status().state == "lost"
        assert "died at step" in run.read_status().message
    else:
        assert code == 3
        assert run.read_status().state == "stopped"
    assert not run.alive()
    assert train_here(run)
    assert_same(run, straight)


def test_a_drawing_that_was_missed_is_made_up_for(tiny_base: Path, photos: Path, home: Path) -> None:
    run = make(home / "drawings", recipe(tiny_base, photos, samples={"every": 4}))
    assert not train_here(run, Script(run, "stop", 4))  # stops before the drawing of step 4
    assert not run.sample(4, 0).exists()
    assert train_here(run)
    assert [path.name[1:7] for path in sorted(run.samples.iterdir())] == ["000000", "000004", "000008"]
