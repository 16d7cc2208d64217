"""The machine goes: what is slow is left, everything is saved, the process ends in time with exit code 3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import budget
from trainer.contract.amend import amend
from trainer.contract.cost import Cost
from trainer.contract.events import current_events, read_events
from trainer.contract.files import read_json
from trainer.contract.runs import RunFolder
from trainer.grace import gone_at
from trainer.requests import Requests

from ..conftest import ROOT
from ..forks import Program
from .helpers import Script, recipe, train_here, weights_hash
from .stand_in import Answer, stand_in


class Later(Script):
    """Asks for a stop after so many more looks, counted from when ``ready`` says so."""

    def __init__(self, run: RunFolder, ready: Callable[[RunFolder], bool], looks: int) -> None:
        super().__init__(run)
        self._ready, self._looks = ready, looks

    def stop(self) -> bool:
        if self._looks and self._ready(self._run):
            self._looks -= 1
        return not self._looks


def happened(kind: str, **wanted: Any) -> Callable[[RunFolder], bool]:
    def look(run: RunFolder) -> bool:
        return any(
            event["kind"] == kind and all(event.get(key) == value for key, value in wanted.items())
            for event in read_events(run.events)[0]
        )

    return look


def long_pictures(tiny_base: Path, photos: Path, **more: Any) -> Any:
    sections = {
        "train": {"steps": 4},
        "samples": {"prompts": ["zwx"], "every": 2, "steps": 8},
        "checkpoints": {"every": 3},
        "validation": {"every": 2, "share": 0.4},
    }
    return recipe(tiny_base, photos, **{**sections, **more})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, photos: Path) -> tuple[str, str]:
    run = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    run.create(long_pictures(tiny_base, photos))
    assert train_here(run)
    return weights_hash(run, 4)


@pytest.mark.parametrize(
    ("where", "ready", "looks", "step"),
    [
        ("in the first picture of the base", happened("started"), 6, 0),
        ("in a picture", happened("validation", step=2), 5, 2),
        ("while measuring on held-out photos", happened("step", step=2), 3, 2),
    ],
)
def test_what_is_slow_is_left_and_nothing_is_lost(
    tmp_path: Path,
    tiny_base: Path,
    photos: Path,
    whole: tuple[str, str],
    where: str,
    ready: Callable[[RunFolder], bool],
    looks: int,
    step: int,
) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(long_pictures(tiny_base, photos))
    assert not train_here(run, Later(run, ready, looks))
    assert run.raw_status().state == "stopped" and run.raw_status().step == step, where
    assert run.checkpoint(step).exists() is bool(step)
    assert not run.sample(step, 0).exists()
    assert train_here(run)
    assert weights_hash(run, 4) == whole
    assert all(run.sample(at, 0).exists() for at in (0, 2, 4))
    kinds = [event["kind"] for event in read_events(run.events)[0]]
    assert kinds[0] == "attempt" and kinds.count("attempt") == 2


def test_a_stop_at_the_last_step_keeps_neither_the_lora_back_nor_what_belongs_to_it(
    tmp_path: Path, tiny_base: Path, photos: Path, whole: tuple[str, str]
) -> None:
    """The LoRA is written, what is slow is left; the run that goes on measures and draws it."""
    run = RunFolder(tmp_path / "run")
    run.create(long_pictures(tiny_base, photos))
    assert not train_here(run, Script(run, "stop", 4))
    result, status = run.result(run.config()), run.raw_status()
    assert (status.state, status.step, status.cause) == (
        "stopped",
        4,
        "",
    ) and "LoRA written" in status.message
    assert not run.sample(4, 0).exists()
    lora = result.read_bytes()
    assert train_here(run) and run.raw_status().state == "finished"
    assert result.read_bytes() == lora and weights_hash(run, 4) == whole
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(read_json(run.dataset)["time"]))
    assert f'"modelspec.date":"{began}"'.encode() in lora, "its date is the run's, not that of an attempt"
    assert run.sample(4, 0).exists()
    told = {event["kind"] for event in current_events(read_events(run.events)[0]) if event.get("step") == 4}
    assert {"step", "validation", "sample", "measured", "weights", "saved", "end"} <= told


def trainer_in(run: RunFolder, program: str = "trainer") -> Program:
    return Program(program, "resume", run.path, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_until(process: Program, true: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGTERM elsewhere")
def test_sigterm_saves_and_tells_and_exits_3(tmp_path: Path, tiny_base: Path, photos: Path) -> None:
    with stand_in(lambda asked: Answer()) as hook:
        config = recipe(
            tiny_base,
            photos,
            train={"steps": 100_000},
            samples={"prompts": []},
            checkpoints={"every": 90_000},
            machine={"price_per_hour": 3600.0},
            notify={"webhook": hook.url, "events": ["stopped", "started"]},
        )
        run = RunFolder(tmp_path / "run")
        run.create(config)
        process = trainer_in(run)
        wait_until(process, lambda: run.raw_status().step > 3)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 3, errors
    step = run.raw_status().step
    assert run.checkpoint(step).exists() and f"Stopped and saved at step {step}" in errors
    bodies = [json.loads(asked.body) for asked in hook.asked]
    assert [body["event"] for body in bodies] == ["started", "stopped"] and bodies[1]["step"] == step
    # A second costs a unit of money, so that the cost is the time.
    status = run.raw_status()
    took = read_events(run.events)[0][-1]["time"] - read_events(run.events)[0][0]["began"]
    assert status.cost == pytest.approx(took, abs=0.5) and status.currency == "$"
    assert "cost: $" in errors


def test_a_notice_of_the_cloud_stops_as_a_signal_does(
    tmp_path: Path, tiny_base: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    google = Answer(200, b"TRUE", {"Metadata-Flavor": "Google"})
    with stand_in(lambda asked: google) as cloud:
        monkeypatch.setenv("STUDIO_METADATA", cloud.url)
        config = recipe(tiny_base, photos, train={"steps": 100_000}, machine={"notices": "gcp"})
        run = RunFolder(tmp_path / "run")
        run.create(config)
        requests = Requests()
        assert not train_here(run, requests)
    assert run.raw_status().message.startswith("Google Cloud takes this machine away (preempted). Stopped")
    gone = gone_at(requests, 600.0)
    assert gone is not None and gone < time.monotonic() + 30  # as the cloud says, whatever the grace


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGTERM elsewhere")
def test_what_does_not_end_is_ended_within_the_grace(tmp_path: Path, tiny_base: Path, photos: Path) -> None:
    """A base that loads for ever: the run still has its last word, and the message is sent."""
    with stand_in(lambda asked: Answer()) as hook:
        config = recipe(
            tiny_base,
            photos,
            machine={"grace_s": 5.0},
            notify={"webhook": hook.url, "events": ["stopped"]},
        )
        run = RunFolder(tmp_path / "run")
        run.create(config)
        process = trainer_in(run, "tests.trainer.stuck")
        wait_until(process, (run.path / "stuck").exists)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 3, errors
    status = run.raw_status()
    assert status.state == "stopped" and "nothing was saved yet" in status.message
    assert [event["kind"] for event in read_events(run.events)[0]].count("end") == 1
    assert [json.loads(asked.body)["event"] for asked in hook.asked] == ["stopped"]


def test_a_run_stops_saved_at_its_budget(
    tmp_path: Path, tiny_base: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a step costs one, the first of an attempt aside; and it is resumed once more money is given."""
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(budget, "cost_of", lambda meter, price, left: Cost(meter.steps, left, 1000.0))
    run = RunFolder(tmp_path / "run")
    machine = {"price_per_hour": 1.0, "budget": 3.0}
    run.create(recipe(tiny_base, photos, samples={"prompts": []}, machine=machine))
    assert not train_here(run, Requests())
    status = run.raw_status()
    assert status.state == "stopped" and status.step == 4 and run.checkpoint(4).exists()
    assert status.message.startswith("The budget of $3.00 is used up ($3.00); raise machine.budget")
    assert (status.cost, status.cost_to_go, status.cost_per_1000) == (3, 4, 1000)
    assert (status.budget, status.currency) == (3, "$")
    assert not train_here(run, Requests()) and run.raw_status().step == 4  # nothing more is spent
    amend(run, ["machine.budget=30"])
    assert train_here(run, Requests())


def test_without_a_price_there_is_no_cost(tmp_path: Path, tiny_base: Path, photos: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(recipe(tiny_base, photos, samples={"prompts": []}, train={"steps": 2}))
    assert train_here(run)
    assert run.raw_status().cost is None
