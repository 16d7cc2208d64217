"""What the shell, the Train page and the Results page say of a project and its runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from studio.context import Studio
from studio.jobs import Supervisor
from studio.pages import results, shell, train
from studio.projects import Project, Workspace
from trainer.contract.errors import UserError
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder, Status


def finished_run(project: Project, name: str, status: Status) -> RunFolder:
    run = RunFolder(project.workspace.runs / name)
    config = project.config()
    run.create(parse(merge(to_tables(config), {"dataset": {"path": f"../../projects/{project.id}"}})))
    run.write_status(status)
    return run


def test_steps_of_an_empty_project_point_to_the_photos(workspace: Workspace) -> None:
    states = shell.step_states(Supervisor(workspace), workspace.create_project("Empty"))
    assert states["photos"] == {"state": "", "text": "Add photos first"}
    assert {states[step]["state"] for step in states} == {""}


def test_steps_tell_what_is_done_and_what_wants_attention(project: Project) -> None:
    states = shell.step_states(Supervisor(project.workspace), project)
    assert states["photos"] == {"state": "done", "text": "3 photos"}
    assert states["captions"] == {"state": "done", "text": "1 by trigger word alone"}
    project.set_trigger("")
    assert shell.step_states(Supervisor(project.workspace), project)["captions"]["state"] == "warn"


def test_a_damaged_recipe_wants_attention_and_hides_no_other_step(project: Project) -> None:
    (project.root / "recipe.toml").write_text("steps = = 3")
    states = shell.step_states(Supervisor(project.workspace), project)
    assert states["recipe"] == {"state": "warn", "text": "Cannot be read"}
    assert states["photos"]["state"] == "done"


@pytest.mark.parametrize(
    ("state", "badge"), [("finished", "done"), ("stopped", ""), ("failed", "warn"), ("training", "warn")]
)
def test_the_newest_run_decides_the_badge_of_train(project: Project, state: str, badge: str) -> None:
    """A run that says it trains while nobody holds its lock is lost."""
    finished_run(project, "20260101-000000-a-00", Status(state="finished", total=5, step=5))
    finished_run(project, "20260101-000001-a-00", Status(state=state, step=3, total=5, message="Oh."))
    states = shell.step_states(Supervisor(project.workspace), project)
    assert states["train"]["state"] == badge
    assert states["results"] == {
        "state": "done",
        "text": f"{1 + (state == 'finished')} finished run{'s' if state == 'finished' else ''}",
    }


def test_the_plan_names_what_stands_against_a_start(project: Project, workspace: Workspace) -> None:
    plan = train.describe(project, None)
    assert plan["problem"] == "" and plan["run_prompts"] >= 1
    facts = dict(plan["summary"])
    assert facts["Trigger word"] == "zwx blob" and facts["Photos"].startswith("3, each seen about ")
    empty = train.describe(workspace.create_project("Empty"), None)
    assert empty["problem"].startswith("Add some photos first")


def test_buttons_reach_the_trainer_of_the_run_they_name(
    project: Project, supervise: Callable[..., Supervisor]
) -> None:
    studio = Studio(project.workspace, supervise(steps=10_000))
    run_id = train.act(studio, {"verb": "start", "project": project.id})["run"]
    with pytest.raises(UserError, match="started with this very recipe"):
        train.act(studio, {"verb": "start", "project": project.id})
    assert train.act(studio, {"verb": "stop", "run": run_id}) == {"run": run_id}
    for message in ({"verb": "stop", "run": "../../etc"}, {"verb": "erase", "run": run_id}, {}):
        with pytest.raises(UserError):
            train.act(studio, message)


def test_a_finished_run_says_how_to_use_it(project: Project) -> None:
    run = finished_run(project, "20260101-000000-a-00", Status(state="finished"))
    assert results.describe(run)["bytes"] is None
    run.result(run.config()).write_bytes(b"12345")
    for step, whole in ((100, True), (200, True), (300, False)):
        run.checkpoint(step).mkdir()
        (run.checkpoint(step) / "adapter.safetensors").write_bytes(b"123")
        if whole:
            (run.checkpoint(step) / "MANIFEST.json").write_text("{}")
    found = results.describe(run)
    assert found["file"] == "blob.safetensors" and found["bytes"] == 5
    assert found["trigger"] == "zwx blob"
    assert found["checkpoints"] == [
        {"step": 200, "bytes": 5, "starred": False},
        {"step": 100, "bytes": 5, "starred": False},
    ]
    compile(found["snippet"], "snippet", "exec")
    assert 'load_lora_weights("blob.safetensors")' in found["snippet"]


def test_a_checkpoint_is_starred_and_let_go_again(project: Project, studio: Studio) -> None:
    run = finished_run(project, "20260101-000000-a-00", Status(state="finished"))
    run.checkpoint(100).mkdir()
    (run.checkpoint(100) / "MANIFEST.json").write_text("{}")
    for on in (True, False):
        answer = results.star(studio, {"run": run.id, "step": 100, "on": on})
        assert [one["starred"] for one in answer["checkpoints"]] == [on]
        assert run.starred() == (frozenset({100}) if on else frozenset())
    for message in ({"step": 300, "on": True}, {"step": "100", "on": True}, {}):
        with pytest.raises(UserError):
            results.star(studio, {"run": run.id, **message})
    run.stars.write_text("{")
    assert results.checkpoints(run)[0]["starred"] is False
    with pytest.raises(UserError, match="damaged"):
        results.star(studio, {"run": run.id, "step": 100, "on": True})


def test_the_snippet_quotes_what_was_typed(project: Project) -> None:
    nasty = 'a "quoted"\\ prompt'
    config = parse(merge(to_tables(project.config()), {"samples": {"prompts": [nasty]}}))
    text = results.snippet(config, "blob.safetensors")
    compile(text, "snippet", "exec")
    assert '\\"quoted\\"' in text
