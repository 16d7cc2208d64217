"""Pictures that are asked for after a training: in the queue as all jobs are, and on the Results page."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from running import make_run, wait_for

from studio.board import board, going
from studio.context import Studio
from studio.jobs import Supervisor
from studio.pages import results, served
from studio.projects import Project
from studio.queue import Job
from trainer.contract.drawings import INDEX, list_drawings
from trainer.contract.runs import RunFolder, Status
from trainer.contract.whole import MANIFEST


@pytest.fixture
def run(project: Project) -> RunFolder:
    """A run that was stopped, with two checkpoints."""
    made = make_run(project.workspace, project)
    for step in (10, 20):
        made.checkpoint(step).mkdir()
        (made.checkpoint(step) / MANIFEST).write_text("{}")
    made.write_status(Status(state="stopped", step=20, total=40, attempt=1))
    return made


def ask(jobs: Supervisor, run: RunFolder, prompts: str = "zwx blob", **message: Any) -> dict[str, Any]:
    functions = served(Studio(jobs.workspace, jobs), results.draw, results.drawings)
    return {function.__name__: function for function in functions}["draw"](
        {"run": run.id, "prompts": prompts, **message}
    )


def drawing_jobs(jobs: Supervisor) -> list[Job]:
    return [job for job in jobs.queue.look().jobs if job.kind == "sample"]


def states(jobs: Supervisor) -> list[str]:
    return [job.state for job in jobs.queue.look().jobs]


def test_what_is_typed_is_drawn_and_shown(supervise, run: RunFolder, serve) -> None:
    jobs = supervise()
    assert ask(jobs, run, "zwx blob\n\n  a tree --d 5 \n", step=10) == {}
    wait_for(lambda: states(jobs) == ["finished"])
    studio = Studio(jobs.workspace, jobs)
    shown = results.drawings(studio, {"run": run.id})
    assert [(one["text"], one["step"]) for one in shown["drawings"]] == [("a tree", 10), ("zwx blob", 10)]
    assert shown["drawings"][0]["seed"] == 5 and shown["more"] == 0
    with serve(jobs=jobs).client() as client:
        answer = client.get(f"/studio/drawing/{run.id}/{shown['drawings'][0]['file']}")
        assert answer.headers["content-type"] == "image/webp" and answer.content[:4] == b"RIFF"
        for other in ("..%2Fstatus.json", INDEX, "nothing.webp"):
            assert client.get(f"/studio/drawing/{run.id}/{other}").status_code == 404
    (run.drawings / shown["drawings"][0]["file"]).unlink()
    assert [one.text for one in list_drawings(run)] == ["zwx blob"], "what is gone is not shown"


def test_new_pictures_have_new_seeds_and_a_second_try_draws_the_same(supervise, run: RunFolder) -> None:
    jobs = supervise("exit1")
    ask(jobs, run, "one\ntwo")
    wait_for(lambda: states(jobs) == ["failed"])
    (job,) = drawing_jobs(jobs)
    assert job.message == "The GPU ran out of memory", "the trainer's own sentence"
    first = job.arguments
    seeds = {argument.rpartition(" ")[2] for argument in first if argument.startswith("--prompt=")}
    assert len(seeds) == 2
    jobs.retry(job.id)
    assert [job.arguments for job in drawing_jobs(jobs)] == [first]
    ask(jobs, run, "one\ntwo")
    assert drawing_jobs(jobs)[1].arguments != first
    wait_for(lambda: states(jobs) == ["failed", "failed"])


@pytest.mark.parametrize(
    ("prompts", "message", "sentence"),
    [
        (" \n ", {}, "There is nothing to draw; write a prompt."),
        ("a --w many", {}, "--w many is no number"),
        ("--n bad", {}, "one of the prompts is empty"),
        ("\n".join("abcdefghijklmnopq"), {}, "samples.prompts"),
        ("a", {"seed": "-1"}, "The seed '-1' is no whole number; write one like 42, or leave it empty."),
        ("a", {"step": "30"}, "has no checkpoint of step 30 any more; reload the page"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_it_is_queued(
    supervise, run: RunFolder, prompts: str, message: dict[str, Any], sentence: str
) -> None:
    jobs = supervise()
    assert sentence in ask(jobs, run, prompts, **message)["error"]
    assert states(jobs) == []


def test_a_run_without_a_checkpoint_has_nothing_to_draw_with(supervise, project: Project) -> None:
    jobs = supervise()
    assert "has no checkpoint yet" in ask(jobs, make_run(project.workspace, project))["error"]


def test_it_is_one_job_on_the_gpu_like_a_training(supervise, run: RunFolder, project: Project) -> None:
    jobs = supervise("slow-draw", steps=5)
    ask(jobs, run, "one\ntwo")
    training = jobs.start(project, project.config())
    ask(jobs, run, "three"), ask(jobs, run, "four")
    assert states(jobs) == ["running", "waiting", "waiting", "waiting"]
    first, _, three, four = jobs.queue.look().jobs
    wait_for(lambda: going(jobs)[first.id]["step"] == 1)
    assert going(jobs)[first.id]["total"] == 2
    for _ in range(2):
        jobs.move(four.id, -1)
    assert next(job.id for job in jobs.queue.look().waiting()) == four.id
    jobs.cancel(three.id)
    (run.path / "gate").touch()
    wait_for(lambda: jobs.status(training).state == "finished")
    wait_for(lambda: not (jobs.queue.look().running() or jobs.queue.look().waiting()))
    ends = {job.detail: job for job in jobs.queue.look().jobs}
    assert ends["three"].state == "cancelled" and ends["four"].state == "finished"
    started = sorted((job for job in ends.values() if job.started), key=lambda job: job.started)
    assert all(one.ended <= after.started for one, after in itertools.pairwise(started))
    assert sorted(one.text for one in list_drawings(run)) == ["four", "one", "two"]
    log = jobs.log_of(first)
    assert log.exists()
    jobs.remove(first.id)
    assert not log.exists() and list_drawings(run), "the pictures stay"


def test_stop_ends_it_and_keeps_what_is_drawn(supervise, run: RunFolder) -> None:
    jobs = supervise("slow-draw")
    ask(jobs, run, "one\ntwo")
    (job,) = drawing_jobs(jobs)
    wait_for(lambda: list_drawings(run))
    results.stop_drawing(Studio(jobs.workspace, jobs), {"job": job.id})
    wait_for(lambda: states(jobs) == ["stopped"])
    assert [one.text for one in list_drawings(run)] == ["one"]


def test_it_goes_on_when_the_studio_is_killed_and_the_next_one_knows_how_it_ended(
    supervise, run: RunFolder, studio_process
) -> None:
    jobs = supervise("slow-draw")
    jobs.pause(True)
    ask(jobs, run, "one\ntwo"), ask(jobs, run, "three")
    with jobs.queue.change() as book:
        book.paused = False
    studio = studio_process(jobs._trainer)
    wait_for(lambda: list_drawings(run), seconds=60)
    studio.kill()
    studio.wait()
    assert states(jobs) == ["running", "waiting"]
    (run.path / "gate").touch()
    wait_for(lambda: len(list_drawings(run)) == 2)
    studio_process(jobs._trainer)
    wait_for(lambda: states(jobs) == ["finished", "finished"], seconds=60)
    assert board(jobs)[1]["jobs"][0]["message"] == ""
    assert [one.text for one in list_drawings(run)] == ["three", "two", "one"]


def test_a_torn_line_costs_no_other(run: RunFolder) -> None:
    from trainer.contract.drawings import Drawing, note_drawing

    run.drawings.mkdir()
    for name in ("a.webp", "b.webp"):
        (run.drawings / name).touch()
        note_drawing(run, Drawing(file=name, text=name, seed=1, step=10, time=1.0))
        with (run.drawings / INDEX).open("a") as index:
            index.write(json.dumps({"file": "../status.json", "text": "", "seed": 1})[:-4])
    assert [one.file for one in list_drawings(run)] == ["b.webp", "a.webp"]
