"""What a failure card offers: the change is shown before it is made, and made only as it was shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running import make_run, wait_for

from studio.context import Studio
from studio.diagnosis import explain
from studio.fixes import Fix, apply, propose
from studio.freeing import free, removable
from studio.jobs import Supervisor
from studio.pages import train
from studio.projects import Project
from trainer.contract.errors import UserError
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.files import write_json
from trainer.contract.ladder import read_ladder
from trainer.contract.runs import RunFolder, Status
from trainer.contract.whole import MANIFEST, sha256_of


def failed(
    project: Project, cause: str, message: str = "It failed.", step: int = 25, **settings: Any
) -> RunFolder:
    """A run that ended at ``step`` for that cause, with checkpoints of step 10 and 20."""
    run = RunFolder(project.workspace.runs / f"20260101-000000-{cause.replace('_', '-')}-00")
    own = {"dataset": {"path": f"../../projects/{project.id}", "trigger": "zwx blob"}}
    run.create(parse(merge(merge(to_tables(project.config()), own), settings)))
    for saved in (10, 20):
        run.checkpoint(saved).mkdir()
        weights = run.checkpoint(saved) / "adapter.safetensors"
        weights.write_bytes(bytes(1_500_000))
        entry = {"size": 1_500_000, "sha256": sha256_of(weights)}
        (run.checkpoint(saved) / MANIFEST).write_text(json.dumps({weights.name: entry}))
    state = {"state": "failed", "cause": cause, "message": message, "step": step, "attempt": 1}
    run.write_status(Status.model_validate(state))
    return run


def fix_of(jobs: Supervisor, run: RunFolder) -> Fix:
    fix = propose(jobs, run)
    assert fix is not None
    return fix


def waiting(jobs: Supervisor) -> list[str]:
    return [job.run for job in jobs.queue.look().waiting()]


@pytest.fixture
def jobs(supervise) -> Supervisor:
    """A paused queue: what a fix lets go on can be looked at."""
    supervisor = supervise(steps=30)
    supervisor.pause(True)
    return supervisor


def test_infinite_loss_halves_every_learning_rate_and_goes_on(jobs, project) -> None:
    rates = {"learning_rate": 1e-3, "text_encoder_lr": 1e-4}
    run = failed(project, "nan", train=rates)
    fix = fix_of(jobs, run)
    assert fix.rows == [
        ["Learning rate", "1e-3", "5e-4"],
        ["Text encoder learning rate", "1e-4", "5e-5"],
    ]
    assert "from step 20" in fix.text and fix.button == "Resume with these changes"
    assert read_ladder(run.ladder) == [], "nothing is changed before the button is pressed"
    apply(jobs, run, fix.key)
    assert waiting(jobs) == [run.id]
    assert run.config().train.learning_rate == 1e-3, "the recipe stays as it was frozen"
    assert run.amended().train.learning_rate == 5e-4 and run.amended().train.text_encoder_lr == 5e-5
    assert "learning rate 1e-3 → 5e-4" in read_ladder(run.ladder)[0].sentence
    jobs.pause(False)
    wait_for(lambda: jobs.status(run).state == "finished")


def test_a_second_time_goes_on_from_the_first(jobs, project) -> None:
    run = failed(project, "nan", train={"learning_rate": 1e-3})
    for before, after in (("1e-3", "5e-4"), ("5e-4", "2.5e-4")):
        fix = fix_of(jobs, run)
        assert fix.rows == [["Learning rate", before, after]]
        apply(jobs, run, fix.key)
        jobs.stop(run)


def test_gpu_memory_takes_the_next_rung_of_the_trainers_ladder(jobs, project) -> None:
    settings = {"train": {"batch_size": 4, "gradient_checkpointing": "on"}, "machine": {"on_oom": "stop"}}
    run = failed(project, "gpu_oom", **settings)
    first = fix_of(jobs, run)
    assert first.rows == [] and "Nothing is changed" in first.text, "a fresh process is the first rung"
    write_json(run.ladder, {"version": 1, "amendments": [{"rung": "free", "changes": {}, "sentence": "x"}]})
    fix = fix_of(jobs, run)
    assert fix.rows == [["Pictures at once", "0", "2"]]
    with pytest.raises(UserError, match="changed meanwhile"):
        apply(jobs, run, first.key)
    apply(jobs, run, fix.key)
    assert run.amended().machine.pictures_at_once == 2 and waiting(jobs) == [run.id]


def test_memory_that_cannot_be_saved_any_more_means_smaller_pictures_in_a_new_run(jobs, project) -> None:
    sizes = {"resolution": 1024, "more_resolutions": "512, 896"}
    run = failed(project, "host_oom", train={"batch_size": 1}, dataset=sizes)
    fix = fix_of(jobs, run)
    assert fix.rows == [["Resolution", "1024", "768"]] and "new run" in fix.text
    begun = apply(jobs, run, fix.key)
    assert begun.id != run.id and begun.config().dataset.resolution == 768
    assert begun.config().dataset.more_resolutions == "512, 768"
    assert begun.config().dataset.path == run.config().dataset.path
    assert waiting(jobs) == [begun.id]


def test_a_batch_is_taken_in_parts_where_memory_ran_out(jobs, project) -> None:
    fix = fix_of(jobs, failed(project, "host_oom", train={"batch_size": 4}))
    assert fix.rows == [["Pictures at once", "0", "2"]]


def test_what_a_run_goes_on_from_stays_when_newer_ones_are_damaged(jobs, project) -> None:
    run = failed(project, "disk_full")
    good, damaged = (run.checkpoint(step) for step in (10, 20))
    (damaged / "adapter.safetensors").write_bytes(b"torn")
    assert [one.folders for one in removable(jobs)] == [(damaged,)], "the older one is what resumes"
    run.star(20)
    assert removable(jobs) == []
    run.star(20, on=False)
    (good / "adapter.safetensors").unlink()
    assert removable(jobs) == [], "of a run without a whole one nothing goes by itself"
    (good / "adapter.safetensors").write_bytes(bytes(1_500_000))
    free(removable(jobs))
    assert good.is_dir() and not damaged.is_dir()


def test_full_disk_lists_what_may_go_and_deletes_no_more(jobs, project) -> None:
    other, starred = failed(project, "killed"), failed(project, "unknown")
    starred.star(10)
    run = failed(project, "disk_full")
    told = run.raw_status()
    run.write_status(told.model_copy(update={"state": "stopped", "cause": ""}))
    assert propose(jobs, run) is None and explain(jobs.status(run)) is None, "a person has stopped it"
    run.write_status(told.model_copy(update={"state": "stopped"}))  # as it does where something was saved
    assert explain(jobs.status(run)).cause == "disk_full"
    fix = fix_of(jobs, run)
    assert [row[1] for row in fix.rows] == ["2 MB", "2 MB"]
    assert all(row[0].startswith("Blob, ") and row[0].endswith(": 1 old checkpoint") for row in fix.rows)
    assert fix.button == "Delete 3 MB and resume"
    apply(jobs, run, fix.key)
    left = {
        one.id: sorted(folder.name for folder in one.checkpoints.iterdir()) for one in (run, other, starred)
    }
    newest = ["step-000020"]
    assert left == {run.id: newest, other.id: newest, starred.id: ["step-000010", *newest]}
    assert waiting(jobs) == [run.id]
    other.stars.write_text("{damaged")
    assert removable(jobs) == [], "of the run that waits nothing goes either"
    jobs.stop(run)
    assert "no old checkpoints" in fix_of(jobs, run).text and fix_of(jobs, run).rows == []


def test_a_picture_that_cannot_be_read_is_left_out(jobs, project) -> None:
    message = "1 of 3 pictures cannot be used: red.png cannot be read (truncated)."
    run = failed(project, "bad_image", message, step=0)
    fix = fix_of(jobs, run)
    assert fix.rows == [["red.png", "takes part", "left out"]] and "goes on without" in fix.text
    apply(jobs, run, fix.key)
    enabled = [image.original_name for image in project.dataset().enabled_images()]
    assert sorted(enabled) == ["blue.png", "green.png"] and waiting(jobs) == [run.id]
    assert propose(jobs, failed(project, "unknown")) is not None


def test_once_the_pictures_are_frozen_it_is_a_new_run(jobs, project) -> None:
    url = "file:///mnt/loras/{run}"
    run = failed(project, "bad_image", "red.png cannot be read (truncated).", storage={"url": url})
    run.dataset.write_text("{}")
    begun = apply(jobs, run, fix_of(jobs, run).key)
    assert begun.id != run.id and len(project.dataset().enabled_images()) == 2
    assert run.config().storage.url == url.replace("{run}", run.id)
    assert begun.config().storage.url == url.replace("{run}", begun.id), "else it goes on with the old one"


def test_a_gated_model_says_where_and_whether_there_is_a_token(jobs, project, monkeypatch) -> None:
    run = failed(project, "gated_model", model={"base": "stabilityai/stable-diffusion-xl-base-1.0"})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    fix = fix_of(jobs, run)
    assert "set HF_TOKEN" in fix.text
    assert fix.link == "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0"
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert "licence that is missing" in fix_of(jobs, run).text


def test_what_was_killed_resumes_and_what_is_no_failure_needs_nothing(jobs, project, workspace) -> None:
    fix = fix_of(jobs, failed(project, "killed"))
    assert (fix.rows, fix.button) == ([], "Resume from step 20")
    assert propose(jobs, failed(project, "config")) is None, "only a person knows"
    assert propose(jobs, make_run(workspace, project)) is None


def test_the_page_shows_it_and_the_button_does_it(jobs, project) -> None:
    studio = Studio(project.workspace, jobs)
    run = failed(project, "nan")
    shown = train.fix(studio, {"run": run.id})["fix"]
    assert set(shown) == {"key", "text", "button", "rows", "link"}
    with pytest.raises(UserError, match="changed meanwhile"):
        train.act(studio, {"verb": "fix", "run": run.id, "key": "0"})
    assert train.act(studio, {"verb": "fix", "run": run.id, "key": shown["key"]}) == {"run": run.id}
    assert train.fix(studio, {"run": run.id}) == {"fix": None}, "it waits to go on"
    run.recipe.write_text("damaged")
    assert train.fix(studio, {"run": run.id}) == {"fix": None}
