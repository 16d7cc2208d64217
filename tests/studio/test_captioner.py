"""Captions by a model: what the Captions page asks for, and its job of the queue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import wait_for

from studio import bulk, captioner
from studio.board import board, going
from studio.context import Studio
from studio.jobs import Supervisor
from studio.pages import captions, served
from studio.processes import REPOSITORY
from studio.projects import Project, Workspace
from studio.queue import Job
from tests.forks import ForkedAside

CAPTIONER = (sys.executable, "-m", "tests.studio.stand_in_captioner")
WATCHES = (
    "import sys, time; from pathlib import Path; from studio.jobs import Supervisor;"
    "from studio.projects import Workspace;"
    "Supervisor(Workspace(Path(sys.argv[1])), tools=tuple(sys.argv[2:]), gpus=tuple).watch(); time.sleep(600)"
)


@pytest.fixture
def jobs(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr("studio.processes.subprocess.Popen", ForkedAside)
    made = Supervisor(workspace, tools=CAPTIONER, gpus=tuple)
    made.watch()
    yield made
    made.pause(True)
    for job in made.queue.look().jobs:
        made.cancel(job.id)
        made.hurry(job.id)
    made.close()


def ask(jobs: Supervisor, project: Project, **message: Any) -> dict[str, Any]:
    functions = {f.__name__: f for f in served(Studio(jobs.workspace, jobs), captions.caption_them)}
    form = {"project": project.id, "model": "wd-vit-v3", "style": "tags", "existing": "replace"}
    return functions["caption_them"](form | message)


def only(jobs: Supervisor) -> Job:
    (job,) = jobs.queue.look().jobs
    return job


def ended(jobs: Supervisor) -> Job:
    return wait_for(lambda: (job := only(jobs)).over and job)


def texts(project: Project) -> list[str]:
    return [*project.captions().values()]


def open_gate(project: Project) -> None:
    (project.root / "gate").touch()


def test_captions_are_written_by_a_job_and_taken_back_by_undo(jobs: Supervisor, project: Project) -> None:
    before = texts(project)
    assert ask(jobs, project, prefix="my  photo,") == {"job": only(jobs).id}
    assert only(jobs).on_gpu and only(jobs).detail == "WD ViT v3"
    wait_for(lambda: going(jobs).get(only(jobs).id, {}).get("step") == 1)
    now = going(jobs)[only(jobs).id]
    assert now["total"] == 3 and now["said"] == "[1/3] red.png: zwx blob, my photo, a photo"
    assert ask(jobs, project, prefix="my photo,") == {"job": only(jobs).id}, "asked for twice it is done once"
    open_gate(project)
    assert (ended(jobs).state, ended(jobs).message) == ("finished", "3 captioned")
    assert texts(project) == ["zwx blob, my photo, a photo"] * 3
    assert (
        captions.about(Studio(jobs.workspace, jobs), {"project": project.id})["undo"]
        == "Captions by WD ViT v3"
    )
    assert bulk.undo(project) == {"label": "Captions by WD ViT v3", "count": 3, "kept": 0}
    assert texts(project) == before


def test_only_those_without_a_caption(jobs: Supervisor, project: Project) -> None:
    ask(jobs, project, existing="keep", trigger=False)
    assert ended(jobs).message == "1 captioned"
    assert texts(project) == ["a red blob", "a green blob", "a photo"]
    assert "Every photo has a caption" in ask(jobs, project, existing="keep")["error"]


def test_it_waits_for_the_gpu_and_may_be_taken_out(jobs: Supervisor, project: Project) -> None:
    ask(jobs, project)
    wait_for(lambda: texts(project)[0].endswith("a photo"))
    ask(jobs, project, threshold="0.2")
    first, second = jobs.queue.look().jobs
    assert (first.state, second.state) == ("running", "waiting")
    jobs.cancel(second.id)
    assert jobs.queue.look().job(second.id).state == "cancelled"
    captions.stop_captions(Studio(jobs.workspace, jobs), {"job": first.id})
    wait_for(lambda: jobs.queue.look().job(first.id).state == "stopped")
    assert texts(project)[1:] == ["a green blob", ""], "what was written stays, nothing is half written"
    open_gate(project)
    jobs.retry(first.id)
    wait_for(lambda: texts(project) == ["zwx blob, a photo"] * 3)
    done = wait_for(lambda: [job for job in jobs.queue.look().jobs if job.state == "finished"])
    assert done[0].message == "2 captioned", "it went on where it was stopped"
    assert bulk.undo(project)["count"] == 3


def test_a_killed_studio_costs_nothing(workspace: Workspace, project: Project, jobs: Supervisor) -> None:
    jobs.pause(True)
    ask(jobs, project)
    jobs.close()
    with jobs.queue.change() as book:
        book.paused = False
    argv = [sys.executable, "-c", WATCHES, str(workspace.root), *CAPTIONER]
    started: list[subprocess.Popen[bytes]] = []

    def studio() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(argv))
        return started[-1]

    try:
        first = studio()
        wait_for(lambda: texts(project)[0].endswith("a photo"), seconds=60)
        first.kill()
        first.wait()
        assert only(jobs).state == "running"
        open_gate(project)
        wait_for(lambda: texts(project) == ["zwx blob, a photo"] * 3)
        studio()
        last = wait_for(lambda: (job := only(jobs)).over and job, seconds=60)
        assert (last.state, last.message) == ("finished", "3 captioned")
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_what_fails_says_why(jobs: Supervisor, project: Project) -> None:
    ask(jobs, project, model="nobody/none")
    assert (ended(jobs).state, ended(jobs).message) == ("failed", "nobody/none does not exist on the Hub")
    assert board(jobs)[1]["jobs"][0]["detail"] == "none"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"model": " "}, "Which model?"),
        ({"existing": "burn"}, "'burn' is nothing that can be done"),
        ({"threshold": "much"}, "The threshold 'much' is no number; write one like 0.35."),
        ({"threshold": "2"}, "The threshold 2 is not between 0.01 and 0.99."),
        ({"style": "sentence", "max_tokens": "0"}, "The max tokens 0 is not between 1 and 2000."),
        ({"prefix": "a" * 1001}, "The prefix has 1001 characters"),
    ],
)
def test_what_cannot_be_is_said_before_it_is_queued(
    jobs: Supervisor, project: Project, message: dict[str, Any], sentence: str
) -> None:
    assert sentence in ask(jobs, project, **message)["error"]
    assert jobs.queue.look().jobs == []


def test_tags_without_onnxruntime(
    jobs: Supervisor, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioner, "installed", lambda: False)
    assert "pip install -r requirements-tagger.txt" in ask(jobs, project)["error"]
    assert "requirements-tagger.txt" in captioner.offered()["lacks"]


def test_what_is_typed_is_never_an_option(
    workspace: Workspace, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: Callable[..., Any] = Supervisor(workspace, gpus=tuple).caption
    seen: list[str] = []
    monkeypatch.setattr(
        Supervisor, "caption", lambda self, project, verb, arguments: seen.extend([verb, *arguments])
    )
    form = {"model": "--help", "prompt": "-x what is it?", "prefix": "--find=a", "existing": "replace"}
    captioner.write_captions(Supervisor(workspace, gpus=tuple), project, form)
    assert seen[0] == "caption" and queued
    assert seen[1:] == [
        "--model=--help",
        "--existing=replace",
        "--prefix=--find=a",
        "--max-tokens=120",
        "--prompt=-x what is it?",
    ]
