"""Several processes train what one does, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.forks import Program
from tests.forks import run as run_forked
from trainer import torchrun
from trainer.contract.events import current_events, read_events
from trainer.contract.runs import RunFolder
from trainer.processes import ALONE, CODE_FILE, Crew, Machines

from .helpers import Script, recipe, sha256, train_here, weights_hash

pytestmark = pytest.mark.timeout(1500)  # the fixtures are for the whole file

QUIET = {"samples": {"prompts": [], "every": 0}, "checkpoints": {"every": 1, "keep": 99}}
BUSY: dict[str, Any] = {
    "train": {
        "steps": 3,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "learning_rate": 1e-3,
        "text_encoder_lr": 1e-3,
        "text_encoder_2_lr": 5e-4,
        "ema_decay": 0.9,
        "max_grad_norm": 0.02,
    },
    "dataset": {"flip": True},
    "captions": {"dropout": 0.2},
    "prior": {"method": "output", "class_name": "cat", "share": 0.7},
}
"""All that a share of a batch could spoil: text encoders, averages, clipping, batches that are not full (5
pictures in two buckets), second looks at some of the pictures."""
LONELY: dict[str, Any] = {
    "train": {"steps": 3, "batch_size": 1, "learning_rate": 1e-3},
    "adapter": {"type": "dylora", "rank": 4, "alpha": 4.0, "targets": "attention"},
    "samples": {"prompts": ["zwx"], "steps": 1},
    "validation": {"every": 2, "share": 0.2},
}
"""One picture a step, so that a process has nothing to do; and parameters that a step leaves out."""

EXACT: dict[str, Any] = {
    "train": {"steps": 6, "batch_size": 2, "learning_rate": 1e-3, "text_encoder_lr": 1e-3, "ema_decay": 0.9},
    "machine": {"pictures_at_once": 1},
}
"""Two pictures a step, one at a time: a sum of two is the same in either order."""
CLASSES: dict[str, Any] = {
    "train": {"steps": 3, "batch_size": 2, "learning_rate": 1e-3},
    "machine": {"pictures_at_once": 1},
    "prior": {"method": "class_pictures", "class_name": "cat", "pictures": 2},
    "samples": {"prompts": [], "every": 0, "steps": 2},
}
LONG: dict[str, Any] = {
    "train": {"steps": 9, "batch_size": 3},
    "checkpoints": {"every": 3, "keep": 9},
    "machine": {"gpus": 2},
}


class Number(Crew):
    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [3, 2], [1], [5, 1, 7]])
def test_every_sample_of_a_step_is_in_one_share(world: int, sizes: list[int]) -> None:
    step = [[(batch, number) for number in range(size)] for batch, size in enumerate(sizes)]
    shares = [[part for part, _ in Number(rank, world).share(step)] for rank in range(world)]
    dealt = [sample for share in shares for part in share for sample in part]
    assert sorted(dealt) == [sample for batch in step for sample in batch]
    assert all(len({batch for batch, _ in part}) == 1 for share in shares for part in share)
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert ALONE.share(step) == [(batch, 1.0) for batch in step]
    pairs = [part for rank in range(world) for part, _ in Number(rank, world).share(step, 2)]
    assert max(map(len, pairs)) <= 2 and sorted(one for pair in pairs for one in pair) == sorted(dealt)


@dataclass
class Trained:
    """Runs that were trained by two processes, and what these said."""

    folder: Path
    said: str

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / name)


@pytest.fixture(scope="module")
def make(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    shared = tmp_path_factory.mktemp("several") / "runs"

    def run(name: str, sections: dict[str, Any], folder: Path = shared) -> RunFolder:
        made = RunFolder(folder / name)
        made.create(recipe(tiny_base, photos, **{**QUIET, **sections}))
        return made

    return run


@pytest.fixture(scope="module")
def alone(make: Callable[..., RunFolder]) -> dict[str, RunFolder]:
    """What one process makes of the recipes, and "to-two" and "there", stopped on the way."""
    recipes = {"busy": BUSY, "lonely": LONELY, "exact": EXACT}
    runs = {name: make(f"{name}-alone", sections) for name, sections in recipes.items()}
    assert all(train_here(run) for run in runs.values())
    for name, sections in (("to-two", BUSY), ("there", EXACT)):
        runs[name] = make(name, sections)
        assert not train_here(runs[name], Script(runs[name], "stop", 2))
    return runs


def until(condition: Callable[[], bool], process: Program, log: Path) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def killed(make: Callable[..., RunFolder], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the command line with two processes, one of which was killed; all were started again, and
    asked to stop when they had gone on for a while."""
    run = make("killed", LONG)
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("wb") as output:
        process = Program("trainer", "resume", run.path, cwd=ROOT, stdout=output, stderr=output)
    try:
        until(run.checkpoint(3).exists, process, log)
        _, second = psutil.Process(process.pid).children()  # in the order in which they were started
        second.kill()
        until(lambda: run.raw_status().attempt == 2 and run.raw_status().step > 4, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 3, log.read_text()
    finally:
        process.kill()
    return run


@pytest.fixture(scope="module")
def classes(make: Callable[..., RunFolder], tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """Two runs that draw class pictures, each with a cache of its own; :func:`trained` trains the second."""
    return [make("class", CLASSES, tmp_path_factory.mktemp("class") / "runs") for _ in range(2)]


@pytest.fixture(scope="module")
def trained(
    make: Callable[..., RunFolder], alone: dict[str, RunFolder], killed: RunFolder, classes: list[RunFolder]
) -> Trained:
    """What two make of them, started by torchrun."""
    stopped, failed = make("stopped", LONELY), make("failed", LONELY)
    split = make("split", {**LONELY, "machine": {"shard": True}})
    runs = [make("busy", BUSY), make("lonely", LONELY), alone["to-two"], split, make("long", LONG), killed]
    arguments = [str(run.path) for run in (*runs, classes[1])]
    arguments += [f"{alone['there'].path}:stop", f"{stopped.path}:stop", f"{failed.path}:fail"]
    arguments.append(str(stopped.path))  # what was agreed to stop goes on
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    done = run_forked(
        *(*torchrun, "tests.trainer.several", *arguments), cwd=ROOT, stderr=subprocess.STDOUT, timeout=700
    )
    assert done.returncode == 0, done.stdout
    return Trained(runs[0].path.parent, done.stdout)


def steps_of(run: RunFolder) -> list[tuple[float, float]]:
    """(loss, length of the gradient) of each step."""
    events = current_events(read_events(run.events)[0])
    return [(event["loss"], event["grad_norm"]) for event in events if event["kind"] == "step"]


def assert_alike(one: RunFolder, two: RunFolder) -> None:
    assert len(steps_of(one)) == 3
    for ours, theirs in zip(steps_of(one), steps_of(two), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    files = [path.name for path in one.checkpoint(3).glob("*.safetensors") if path.stem != "optimizer"]
    for file in files:
        before, after = (load_file(run.checkpoint(3) / file) for run in (one, two))
        assert set(before) == set(after)
        assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-5


@pytest.mark.parametrize("name", ["busy", "lonely"])
def test_two_processes_train_what_one_does(name: str, alone: dict[str, RunFolder], trained: Trained) -> None:
    assert_alike(alone[name], trained.run(name))


def test_the_first_process_alone_writes(alone: dict[str, RunFolder], trained: Trained) -> None:
    for name in ("busy", "lonely"):
        ours, theirs = (
            [e["kind"] for e in read_events(run.events)[0]] for run in (alone[name], trained.run(name))
        )
        assert [kind for kind in ours if kind != "stage"] == [kind for kind in theirs if kind != "stage"]
    assert "2 × CPU" in trained.said


def test_a_base_that_is_split_trains_the_same(alone: dict[str, RunFolder], trained: Trained) -> None:
    """Each process holds its half of it. It takes all of them to draw and to measure, too."""
    run = trained.run("split")
    assert_alike(alone["lonely"], run)
    assert trained.said.count("split: 0.5") == 2
    measured = [
        [e["loss"] for e in read_events(one.events)[0] if e["kind"] == "validation"]
        for one in (run, alone["lonely"])
    ]
    assert len(measured[0]) == 3 and measured[0] == pytest.approx(measured[1], rel=1e-5)
    ours, theirs = (np.asarray(Image.open(one.sample(3, 0)), dtype=float) for one in (run, alone["lonely"]))
    assert abs(ours - theirs).max() <= 2


def test_a_run_goes_on_with_another_number_of_processes(
    alone: dict[str, RunFolder], trained: Trained
) -> None:
    assert_alike(alone["busy"], trained.run("to-two"))


def test_one_two_and_one_again_end_with_the_bytes_of_one(
    alone: dict[str, RunFolder], trained: Trained
) -> None:
    run = trained.run("there")
    assert run.raw_status().state == "stopped" and run.raw_status().step == 4
    assert weights_hash(run, 4) == weights_hash(alone["exact"], 4)
    assert train_here(run)
    assert weights_hash(run, 6) == weights_hash(alone["exact"], 6)
    assert len(steps_of(run)) == 6 and steps_of(run) == steps_of(alone["exact"])


def test_class_pictures_are_drawn_once_for_all(classes: list[RunFolder], trained: Trained) -> None:
    ours, theirs = classes
    assert train_here(ours)
    drawn = [
        {file.name: sha256(file) for file in (run.path.parent.parent / "cache").glob("class-pictures/*/*")}
        for run in classes
    ]
    assert len(drawn[0]) == 4 and drawn[0] == drawn[1]
    assert weights_hash(ours, 3) == weights_hash(theirs, 3)


def test_a_stop_of_one_stops_all(trained: Trained) -> None:
    """And what goes on from there, with as many, ends with the same bytes."""
    stopped = "Stopped: Stopped and saved at step 2 of 3."
    assert f"rank 0: {stopped}" in trained.said and f"rank 1: {stopped}" in trained.said
    run = trained.run("stopped")
    assert [event["state"] for event in read_events(run.events)[0] if event["kind"] == "end"] == [
        "stopped",
        "finished",
    ]
    assert weights_hash(run, 3) == weights_hash(trained.run("lonely"), 3)


def test_a_process_that_is_killed_costs_the_steps_since_the_checkpoint(
    killed: RunFolder, trained: Trained
) -> None:
    """All are started again, and the end is the same to the bit; a signal to the one that was started is
    passed on, and so is the exit code of a stop (see the fixture)."""
    events = read_events(killed.events)[0]
    first, second, third = (event["step"] for event in events if event["kind"] == "started")
    assert 0 == first < second < third < 9
    assert [event["state"] for event in events if event["kind"] == "end"] == ["stopped", "finished"]
    assert weights_hash(killed, 9) == weights_hash(trained.run("long"), 9)


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such signal")
def test_processes_die_with_torchrun(tmp_path: Path) -> None:
    """They have sessions of their own, so that a signal to the group does not reach them."""
    child = (
        "from trainer.processes import _die_with_parent as die; import time; die(); "
        "print(1, flush=True); time.sleep(99)"
    )
    parent = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdout=subprocess.PIPE); child.stdout.read(1); print(child.pid, flush=True); child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout
    orphan = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    with suppress(psutil.NoSuchProcess):
        orphan.wait(20)


def test_a_failure_of_one_ends_all_with_its_sentence(trained: Trained) -> None:
    status = trained.run("failed").read_status()
    assert (status.state, status.cause, status.step) == ("failed", "host_oom", 2)
    assert status.message.startswith("The computer ran out of memory")
    assert status.evidence == "process 1: MemoryError: no room for it"
    for rank in (0, 1):
        assert f"rank {rank}: RunError: The computer ran out of memory" in trained.said


def test_a_stop_before_the_processes_are_there_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: str) -> None:
        Path(os.environ[CODE_FILE]).write_text("3", encoding="utf-8")

    monkeypatch.setattr(torchrun, "elastic_launch", lambda config, entry: start)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setenv(CODE_FILE, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    run = RunFolder(tmp_path / "run")
    run.control.mkdir(parents=True)
    assert torchrun.launch(run, 2, Machines(), lambda: True) == 3
    assert run.take_controls() == ["stop"]
