"""A project as one of several concepts: added by a button, counted, and trained from its own folder."""

from __future__ import annotations

import re
import time
from html import unescape
from pathlib import Path

import pytest
from recipe_driver import RecipePage

from studio.context import Studio
from studio.jobs import Supervisor
from studio.pages.train import summary
from studio.projects import Project
from studio.recipes import facts_of, photos_of, verdict
from tests.pictures import draw_picture, draw_project
from trainer.contract.config import TrainConfig
from trainer.contract.fields import flatten, parse
from trainer.contract.plan import Machine, estimate
from trainer.contract.presets import load_presets
from trainer.contract.steps import balance, trained


@pytest.fixture
def mia(studio: Studio, luna: Project) -> Project:
    made = studio.workspace.create_project("Mia <b>")
    draw_project(made.root, count=3, trigger="qrt cat")
    return made


def with_subsets(project: Project, *lines: str) -> TrainConfig:
    return parse({"dataset": {"path": str(project.root), "trigger": "zwx", "subsets": lines}})


def test_a_button_adds_another_project(studio: Studio, luna: Project, mia: Project) -> None:
    page = RecipePage(studio, luna)
    note = page.note("dataset-subsets")
    assert "Add a project as a concept" in note and "&lt;b&gt;" in page.raw_note("dataset-subsets")
    assert unescape(note).count("../") == len(studio.workspace.list_projects()) - 1
    page.call("press", {"set": {"dataset.subsets": [f"../{mia.id}"]}})
    assert page.shows("dataset-subsets") == f"../{mia.id}"
    assert luna.config().dataset.subsets[0].path == f"../{mia.id}"
    assert f'"../{mia.id}"]' not in page.note("dataset-subsets")
    said = re.sub(r"<[^>]+>", "|", unescape(page.said["summary"]))
    assert "qrt cat: 3 photos = 3 looks an epoch (43%)" in said


def test_facts_of_several_folders(luna: Project, mia: Project, tmp_path: Path) -> None:
    for number in range(2):
        file = draw_picture(tmp_path / "dogs" / f"{number}.png", number)
        file.with_suffix(".txt").write_text("a zwx on grass")
    regular = f"{tmp_path / 'dogs'} | trigger = dog | regularisation"
    config = with_subsets(luna, f"../{mia.id} | repeats = 2", regular)
    facts = facts_of(luna, config, None)
    _, other, dogs = facts.folders
    assert [one.looks for one in trained(config, facts.folders)] == [4, 6, 10] and dogs.regularisation
    assert other.name == "qrt cat" and facts.images == 4 + 3
    assert facts.class_captions_with_trigger == 2
    assert not facts.folders_problem
    another = f"../{mia.id} | trigger = abc"
    missing = [
        facts_of(luna, with_subsets(luna, another + prefix), None).captions_missing_trigger
        for prefix in ("", " | prefix = photo of abc,")
    ]
    assert missing[0] == missing[1] + 3, "its own prefix names the word"


def test_a_folder_that_is_not_there_is_told_and_keeps_it_from_starting(luna: Project) -> None:
    said = verdict(luna, with_subsets(luna, "../nobody"), load_presets(), None)
    assert said.words[0].startswith("4 pictures")
    assert any("nobody" in sentence for sentence in said.blockers)


def test_a_plain_folder_is_decoded_once_until_it_changes(tmp_path: Path) -> None:
    file = draw_picture(tmp_path / "0.png", 0)
    assert photos_of(tmp_path) is photos_of(tmp_path)
    before = photos_of(tmp_path)
    time.sleep(0.02)
    file.with_suffix(".txt").write_text("new")
    assert photos_of(tmp_path) is not before and set(photos_of(tmp_path).captions.values()) == {"new"}


def test_a_run_names_the_folders_relative_to_itself(
    supervise: type[Supervisor], project: Project, studio: Studio
) -> None:
    other = project.workspace.create_project("Other")
    draw_project(other.root, count=2)
    config = with_subsets(project, f"../{other.id} | repeats = 3")
    run = supervise(steps=1).start(project, config)
    frozen = run.config().dataset
    assert (run.path / frozen.subsets[0].path).resolve() == other.root
    assert frozen.subsets[0].line == f"../../projects/{other.id} | repeats = 3"
    assert flatten(config)["dataset.subsets"] == (f"../{other.id} | repeats = 3",)


def test_frames_follow_the_recipes_buckets(luna: Project) -> None:
    from studio.files import describe

    def keep(**dataset: object) -> None:
        luna.save_config(parse({"dataset": {"path": str(luna.root), **dataset}}))

    before = describe(luna)
    assert not before["stale"]
    keep(resolution=512, buckets="all", bucket_step=64)
    now = describe(luna)
    assert now["stale"] and now["buckets"] != before["buckets"]
    luna.recrop()
    assert not describe(luna)["stale"]
    assert all(side % 64 == 0 for record in luna.dataset().images for side in record.bucket or ())
    keep(resolution=1024, buckets="no_upscale")
    luna.recrop()
    assert not describe(luna)["stale"], (
        "small photos keep their own size, and are not cropped again and again"
    )
    assert all(r.bucket and r.bucket[0] <= r.width and r.bucket[1] <= r.height for r in luna.dataset().images)


def test_class_pictures_make_epochs_longer(luna: Project, mia: Project) -> None:
    """Those that are to be drawn, and one's own: as many looks again as the photos have."""
    plain = with_subsets(luna)
    for own in ({"pictures": 9}, {"path": f"../{mia.id}"}):
        prior = {"method": "class_pictures", "class_name": "cat", **own}
        config = parse({"dataset": plain.dataset.model_dump(), "prior": prior, "train": {"epochs": 10}})
        folders = facts_of(luna, config, None).folders
        assert [folder.regularisation for folder in folders] == [False, True]
        assert [folder.looks for folder in balance(folders)] == [4, 4]
        steps = parse({**config.model_dump(), "train": {"steps": 80}})
        judged = verdict(luna, steps, [], None)
        assert judged.looks == 10  # four photos, and as many class pictures
        assert ["Photos", "4, each seen about 10 times"] in summary(judged.whole, 4, judged.looks)
        assert estimate(config, Machine("CPU", None), folders=folders).steps == 80
