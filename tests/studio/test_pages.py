"""The preparing pages without a browser: what their handlers do to the project and say to the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import functions_of, wait_for

from dataset_tools.dataset import load_dataset
from dataset_tools.ingest import IngestReport
from dataset_tools.sources import Skipped
from dataset_tools.tokens import counters_for
from studio import bulk
from studio.context import Studio
from studio.pages import captions, photos, served
from studio.projects import Project
from studio.trigger import trigger_hint
from tests.forks import ForkedAside
from trainer.contract.errors import UserError
from trainer.contract.fields import parse


@pytest.fixture
def project(luna: Project) -> Project:
    return luna


def by_name(project: Project) -> dict[str, str]:
    captions_by_id = project.captions()
    return {record.original_name: captions_by_id[record.id] for record in project.dataset().images}


# Photos -----------------------------------------------------------------------------------------------


def test_every_skipped_file_gets_its_sentence() -> None:
    skipped = tuple(Skipped(str(number), f"{number} is empty; copy it again.") for number in range(102))
    report = photos.report_of(IngestReport(("a", "b"), skipped, 1, ("GPS position removed (1 photo)",)))
    parts = ["2 added", "1 with a caption", "102 skipped", "GPS position removed (1 photo)"]
    assert (report["kind"], report["parts"]) == ("warn", parts)
    assert report["reasons"][0] == "0 is empty; copy it again." and len(report["reasons"]) == 101
    assert report["reasons"][-1] == "… and 2 more."
    assert photos.report_of(IngestReport((), (), 0, ()))["parts"] == ["Nothing was added"]
    assert photos.report_of(IngestReport(("a",), (), 0, ()))["kind"] == "good"


def upload(studio: Studio, files: list[Path], project: str) -> tuple[dict[str, Any], list[str]]:
    """What the panel is told, and what the progress bar said."""
    handlers = functions_of(photos.build, studio)
    said: list[str] = []
    cleared, outcome = handlers["add"].fn(
        [str(file) for file in files], project, progress=lambda *_, desc: said.append(desc)
    )
    assert cleared is None
    return json.loads(outcome), said


def test_dropping_without_a_project_makes_one(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataset_tools.crop.ensure_face_model", lambda *_, **__: None)
    folder = tmp_path / "upload"
    folder.mkdir()
    good, bad = folder / "cat.png", folder / "notes.txt.exe"
    Image.new("RGB", (90, 70), "teal").save(good)
    bad.write_bytes(b"MZ nothing")
    report, said = upload(studio, [good, bad], "")
    project = studio.workspace.project(report["project"])
    assert project.name == photos.NEW_PROJECT and len(project.dataset().images) == 1
    assert report["parts"][0] == "1 added" and "notes.txt.exe" in report["reasons"][0]
    assert said and all(text.startswith(f"{photos.NEW_PROJECT}: ") for text in said)
    assert not folder.exists(), "uploads hold metadata; the project has its own copies"
    assert project.preset == "demo", "cropped for the size that its recipe trains at"
    assert project.dataset().images[0].bucket is not None


def test_a_report_names_the_project_that_it_was_made_for(
    studio: Studio, project: Project, tmp_path: Path
) -> None:
    other = studio.workspace.create_project("Other")
    file = tmp_path / "cat.png"
    Image.new("RGB", (90, 70), "teal").save(file)
    report, said = upload(studio, [file], project.id)
    assert report["project"] == project.id and all(text.startswith("Luna: ") for text in said)
    assert other.dataset().images == ()


def test_a_vanished_project_is_one_sentence(studio: Studio, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    Image.new("RGB", (90, 70), "teal").save(file)
    report, _ = upload(studio, [file], "no-such-project")
    assert report["kind"] == "bad" and not file.exists()
    assert report["parts"] == ["There is no project 'no-such-project'; choose one from the list."]


def test_remove_and_recrop_answer_json(
    studio: Studio, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("http_proxy", "http://127.0.0.1:9"),
        ("https_proxy", "http://127.0.0.1:9"),
    ):
        monkeypatch.setenv(name, value)  # no face model is fetched
    monkeypatch.setattr("studio.processes.subprocess.Popen", ForkedAside)
    remove, recrop = served(studio, photos.remove, photos.recrop)
    image = project.dataset().images[0]
    assert remove({"project": project.id, "id": image.id}) == {}
    assert image.id not in {record.id for record in load_dataset(project.root).images}
    job = recrop({"project": project.id})["job"]
    assert recrop({"project": project.id}) == {"job": job}, "asked for twice it is done once"
    ended = wait_for(lambda: (now := studio.jobs.queue.look().job(job)).over and now, seconds=60)
    assert (ended.kind, ended.state, ended.message) == ("crop", "finished", "")
    assert {record.bucket for record in load_dataset(project.root).images} <= {*project.buckets().sizes(1, 1)}
    assert "cropped" in studio.jobs.log_of(ended).read_text()
    assert "There is no project" in remove({"project": "../x", "id": "y"})["error"]


# Captions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "label", "expected"),
    [
        (
            {"kind": "prefix", "text": "photo of "},
            "“photo of” put before",
            {
                "0.png": "photo of a cat, sofa",
                "1.png": "photo of zwx cat, garden",
                "2.png": "photo of a category, sofa",
                "3.png": "photo of",
            },
        ),
        (
            {"kind": "replace", "find": "cat", "replace": "dog", "whole_words": True},
            "“cat” replaced by “dog”",
            {"0.png": "a dog, sofa", "1.png": "zwx dog, garden"},
        ),
        ({"kind": "remove", "text": "Sofa"}, "“Sofa” removed", {"0.png": "a cat", "2.png": "a category"}),
        (
            {"kind": "trigger"},
            "“zwx cat” inserted",
            {"0.png": "zwx cat, a cat, sofa", "2.png": "zwx cat, a category, sofa"},
        ),
    ],
)
def test_bulk_preview_apply_and_undo(
    project: Project, message: dict[str, Any], label: str, expected: dict[str, str]
) -> None:
    before = by_name(project)
    seen = bulk.preview(project, message)
    assert (seen["label"], seen["count"]) == (label, len(expected))
    assert {row["name"]: row["after"] for row in seen["changes"]} == expected
    assert by_name(project) == before, "a preview changes nothing"
    assert bulk.apply_change(project, message) == {"label": label, "count": len(expected)}
    assert by_name(project) == before | expected
    assert bulk.last_change(project) == label
    assert bulk.undo(project) == {"label": label, "count": len(expected), "kept": 0}
    assert by_name(project) == before
    assert bulk.last_change(project) == ""
    with pytest.raises(UserError, match="nothing to undo"):
        bulk.undo(project)


def test_undo_keeps_what_was_edited_since(project: Project) -> None:
    bulk.apply_change(project, {"kind": "suffix", "text": ", outdoors"})
    edited = next(record for record in project.dataset().images if record.original_name == "0.png")
    project.set_caption(edited.id, "my own words")
    answer = bulk.undo(project)
    assert (answer["count"], answer["kept"]) == (3, 1)
    assert by_name(project)["0.png"] == "my own words"
    assert by_name(project)["1.png"] == "zwx cat, garden"


def test_two_changes_are_undone_one_by_one(project: Project) -> None:
    before = by_name(project)
    bulk.apply_change(project, {"kind": "prefix", "text": "one"})
    middle = by_name(project)
    bulk.apply_change(project, {"kind": "prefix", "text": "two"})
    bulk.undo(project)
    assert by_name(project) == middle
    bulk.undo(project)
    assert by_name(project) == before


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"kind": "replace", "find": "(", "regex": True}, "is not a regular expression"),
        ({"kind": "explode"}, "no bulk change"),
        ({"kind": "prefix", "text": "x" * 3000}, "3000 characters"),
    ],
)
def test_a_wrong_bulk_change_is_one_sentence(
    project: Project, message: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        bulk.preview(project, message)


def test_the_panels_functions_answer_errors_as_json(studio: Studio, project: Project) -> None:
    asked = (captions.about, captions.set_trigger, captions.count_tokens)
    asked += (captions.preview, captions.apply_change, captions.undo)
    functions = {function.__name__: function for function in served(studio, *asked)}
    assert set(functions) == {"about", "set_trigger", "count_tokens", "preview", "apply_change", "undo"}
    for function in functions.values():
        assert "There is no project" in function({"project": "nope"})["error"]
    answer = functions["set_trigger"]({"project": project.id, "trigger": "  dog "})
    assert answer["trigger"] == "dog" and answer["hint"]["kind"] == "warn"
    assert (
        "130 characters" in functions["set_trigger"]({"project": project.id, "trigger": "x" * 130})["error"]
    )
    json.dumps(functions["preview"]({"project": project.id, "kind": "trigger"}))


@pytest.mark.parametrize(
    ("trigger", "kind"),
    [
        ("", ""),
        ("dog", "warn"),
        ("My Dog", "warn"),
        ("luna", "warn"),
        ("zwx", "good"),
        ("zwx cat", "good"),
        ("a.b", "warn"),
    ],
)
def test_trigger_hints(trigger: str, kind: str) -> None:
    found, sentence = trigger_hint(trigger)
    assert found == kind and sentence.endswith(".")


def clip_files(folder: Path) -> Path:
    """A small CLIP vocabulary of single bytes and two merges, in the files of a CLIP repository."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain] + [chr(256 + index) for index in range(256 - len(plain))]
    merges = [("c", "a"), ("ca", "t</w>")]
    tokens = [
        *letters,
        *[f"{letter}</w>" for letter in letters],
        "ca",
        "cat</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    return folder


TEXTS = ["", "cat", "Cat  CAT\n12", "don't", "a café, 日本 🐈 x", "zwx" * 40, "<|endoftext|> cat"]


def test_tokens_are_counted_as_the_text_encoder_does(tmp_path: Path) -> None:
    counter = counters_for("flux", str(clip_files(tmp_path / "base" / "tokenizer").parent))["text_encoder"]
    assert counter.limit == 77, "CLIP's own, of a family that reads 512 with another"
    assert [counter.count(text) for text in ("", "cat", "cat cat", "dog")] == [2, 3, 4, 5]
    transformers = pytest.importorskip("transformers")
    real = transformers.CLIPTokenizer.from_pretrained(str(tmp_path / "base" / "tokenizer"))
    for text in TEXTS[:-1]:
        assert counter.count(text) == len(real(text).input_ids), text


def test_no_tokenizer_no_count(studio: Studio, project: Project) -> None:
    assert counters_for("sdxl", "somebody/not-here") == {}
    assert counters_for("sdxl", "/no/such/folder.safetensors") == {}
    config = parse({"model": {"base": "somebody/not-here"}})
    project.save_config(config.model_copy(update={"dataset": project.config().dataset}))
    assert captions.count_tokens(studio, {"project": project.id, "texts": ["a"]}) == {
        "counts": None,
        "limit": None,
    }


def test_what_the_model_reads_of_a_caption(studio: Studio, project: Project) -> None:
    config = parse(
        {
            "train": {"steps": 100},
            "captions": {"prefix": "photo of luna,", "shuffle": True, "wildcards": True, "warmup_steps": 0.5},
        }
    )
    project.save_config(config.model_copy(update={"dataset": project.config().dataset}))
    record = project.dataset().images[0]
    asked = {"project": project.id, "image": record.id, "text": "{red|blue} hat, sofa, garden"}
    looks = captions.read_as(studio, asked)["looks"]
    json.dumps(looks)
    assert [(look["epoch"], look["step"]) for look in looks] == [(1, 1), (2, 5), (3, 9), (25, 97)]
    for look in looks:
        assert [title for title, _ in look["stages"]][-2:] == ["Tags", "Secondary separator"]
        assert look["stages"][0][1] == asked["text"]
        assert look["stages"][3][1].split()[3] in ("red", "blue")
        last = look["stages"][-1][1]
        assert last.startswith("photo of luna, ") and "{" not in last
        assert [one["encoder"] for one in look["tokens"]] == ["text_encoder", "text_encoder_2"]
        assert all(one["limit"] == 77 and one["count"] > 5 for one in look["tokens"])
    assert looks[0]["stages"][-1][1].count(",") == 1, "the warm-up shows one tag at first"
    assert looks[-1]["stages"][-1][1].count(",") == 3
    empty = captions.read_as(studio, {**asked, "text": " "})["looks"][0]
    assert empty["stages"][0][1] == project.dataset().trigger
    away = parse({"model": {"family": "flux", "base": "somebody/not-here"}})
    project.save_config(away.model_copy(update={"dataset": project.config().dataset}))
    tokens = captions.read_as(studio, asked)["looks"][0]["tokens"]
    assert tokens == [{"encoder": "", "count": 12, "limit": 512}], "an estimate has no encoder"
