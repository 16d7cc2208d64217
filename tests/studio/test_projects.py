"""Workspaces and projects on disk."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path

import pytest
from running import draw_photo

from studio.demo import prepare_demo
from studio.projects import NotFound, Project, Workspace
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError, UserError
from trainer.contract.fields import load_recipe, merge, parse, to_tables
from trainer.contract.runs import RunFolder


def test_projects_are_listed_newest_first_with_their_names(workspace: Workspace) -> None:
    for name in ("Löwe & Bär", "löwe   & bär", "Cat"):
        workspace.create_project(name)
    listed = workspace.list_projects()
    assert [project.name for project in listed] == ["Cat", "löwe & bär", "Löwe & Bär"]
    assert [project.id for project in listed] == ["cat", "l-we-b-r-2", "l-we-b-r"]
    assert workspace.project("cat").name == "Cat"


def test_projects_made_at_once_get_different_ids(workspace: Workspace) -> None:
    threads = [threading.Thread(target=workspace.create_project, args=("Twin",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({project.id for project in workspace.list_projects()}) == 8


@pytest.mark.parametrize("name", ["", "   ", "\n\t", "x" * 81])
def test_names_are_checked(workspace: Workspace, name: str) -> None:
    with pytest.raises(UserError):
        workspace.create_project(name)


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "../projects", "A", "a/b", "a\\b", "a\0", "-a", "a" * 200, "é"]
)
def test_no_path_is_an_id(workspace: Workspace, bad: str) -> None:
    with pytest.raises(NotFound):
        workspace.project(bad)
    with pytest.raises(NotFound):
        workspace.run(bad)


def test_links_are_no_projects(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (workspace.projects / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound):
        workspace.project("link")


@pytest.mark.parametrize("card", [None, "", "{", "[]", '{"name": null, "created": "x"}'])
def test_project_with_a_damaged_card_still_opens(workspace: Workspace, card: str | None) -> None:
    project = workspace.create_project("Cat")
    path = project.root / "project.json"
    path.unlink() if card is None else path.write_text(card)
    assert [each.name for each in workspace.list_projects()] == ["cat"]
    project.set_preset("demo")
    assert workspace.project("cat").preset == "demo"


def test_new_project_has_a_draft_recipe(workspace: Workspace) -> None:
    project = workspace.create_project("My Cat")
    config = project.config()
    assert config.output.name == "my-cat" and config.dataset.path == str(project.root)
    assert project.resolution() == 128  # the demo base's


def test_recipe_is_kept_and_moves_with_the_workspace(project: Project, tmp_path: Path) -> None:
    config = parse(merge(to_tables(project.config()), {"train": {"steps": 77}}))
    project.save_config(config)
    assert project.config() == config
    assert str(tmp_path) not in (project.root / "recipe.toml").read_text()
    moved = tmp_path / "moved"
    shutil.copytree(project.workspace.root, moved)
    again = Workspace(moved).project(project.id)
    assert again.config().train.steps == 77 and again.config().dataset.path == str(again.root)
    assert load_recipe(again.root / "recipe.toml").train.steps == 77


def test_trigger_lives_in_the_dataset(project: Project) -> None:
    project.set_trigger("  two   words ")
    assert project.dataset().trigger == project.config().dataset.trigger == "two words"
    project.save_config(parse(merge(to_tables(project.config()), {"dataset": {"trigger": "other"}})))
    assert project.dataset().trigger == "other"
    with pytest.raises(UserError, match="120 characters"):
        project.set_trigger("x" * 120)
    assert project.dataset().trigger == "other"


def test_broken_draft_is_named_and_the_photos_still_show(project: Project) -> None:
    (project.root / "recipe.toml").write_text("[train]\nlearning_rat = 1\n")
    with pytest.raises(ConfigError, match="did you mean"):
        project.config()
    assert project.resolution() == 128 and len(project.dataset().images) == 3


def test_captions_and_enabling(project: Project) -> None:
    by_name = {record.original_name: record.id for record in project.dataset().images}
    assert project.captions() == {
        by_name["red.png"]: "a red blob",
        by_name["green.png"]: "a green blob",
        by_name["blue.png"]: "",
    }
    project.set_caption(by_name["blue.png"], " <b>blue</b> ")
    assert project.captions()[by_name["blue.png"]] == "<b>blue</b>"
    project.set_enabled(by_name["red.png"], False)
    assert {record.original_name for record in project.dataset().enabled_images()} == {
        "green.png",
        "blue.png",
    }
    for change in (lambda: project.set_caption("no-such", "x"), lambda: project.set_enabled("no-such", True)):
        with pytest.raises(NotFound):
            change()


def test_photos_are_added_cropped_and_removed(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataset_tools.crop._open_detector", lambda *args: None)  # no download in tests
    photo = draw_photo(tmp_path / "wide.png", "purple", (300, 100))
    (tmp_path / "no.png").write_bytes(b"no image")
    report = project.add([photo, tmp_path / "no.png"])
    assert len(report.added) == 1 and [skipped.name for skipped in report.skipped] == ["no.png"]
    record = project.record(report.added[0])
    assert record.crop is not None and record.bucket is not None and record.bucket[0] > record.bucket[1]
    project.save_config(parse(merge(to_tables(project.config()), {"dataset": {"resolution": 64}})))
    project.recrop()
    assert all(each.bucket and max(each.bucket) < 128 for each in project.dataset().images)
    project.remove([record.id])
    assert len(project.dataset().images) == 3


def test_changes_from_two_tabs_do_not_overwrite_each_other(project: Project) -> None:
    ids = [record.id for record in project.dataset().images]
    threads = [threading.Thread(target=project.set_enabled, args=(each, False)) for each in ids]
    threads.append(threading.Thread(target=project.set_trigger, args=("new",)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert project.dataset().trigger == "new" and not project.dataset().enabled_images()


def test_full_disk_is_a_sentence_and_nothing_is_lost(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.captions(), project.config()
    first = project.dataset().images[0].id

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.contract.files.os.fsync", full)
        changes = (
            lambda: project.set_caption(first, "x"),
            lambda: project.set_enabled(first, False),
            lambda: project.set_trigger("x"),
            lambda: project.save_config(project.config()),
            lambda: project.rename("x"),
            lambda: project.workspace.create_project("y"),
        )
        for change in changes:
            with pytest.raises(UserError, match="The disk is full"):
                change()
    assert (project.captions(), project.config()) == before and project.dataset().enabled_images()


def test_runs_belong_to_the_project_they_train_on(workspace: Workspace, project: Project) -> None:
    other = workspace.create_project("Other")
    for name, path in (
        ("a", f"../../projects/{project.id}"),
        ("b", str(other.root)),
        ("c", "/somewhere/else"),
    ):
        recipe = merge(to_tables(TrainConfig()), {"dataset": {"path": path}})
        RunFolder(workspace.runs / f"20260101-000000-{name}-00").create(parse(recipe))
    broken = workspace.runs / "20260101-000000-d-00"
    broken.mkdir()
    (broken / "recipe.toml").write_text("[train\n")
    assert [run.id[16] for run in project.runs()] == ["a"]
    assert [run.id[16] for run in other.runs()] == ["b"]
    assert [run.id[16] for run in workspace.list_runs()] == ["d", "c", "b", "a"]


def test_demo_project_is_made_once_and_made_good(workspace: Workspace) -> None:
    project = prepare_demo(workspace)
    assert (project.id, project.name) == ("zwx-the-creature", "Zwx the creature")
    images = project.dataset().images
    assert len(images) == 16 and all(record.crop for record in images)
    assert all(project.captions().values()) and project.dataset().trigger == "zwx creature"
    config = project.config()
    assert project.preset == "demo" and any("zwx creature" in prompt for prompt in config.samples.prompts)
    first = images[0].id
    project.set_caption(first, "mine")
    project.save_config(parse(merge(to_tables(config), {"train": {"steps": 5}})))
    again = prepare_demo(workspace)
    assert again.captions()[first] == "mine" and again.config().train.steps == 5
    assert len(again.dataset().images) == 16 and len(workspace.list_projects()) == 1
    (project.root / "recipe.toml").unlink()
    assert prepare_demo(workspace).config().train.steps == config.train.steps
