"""Captions written by a model, whatever the model is: what becomes of its words, of failures and of kills."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dataset_tools import undo
from dataset_tools.captioning import Outcome, Wishes, caption_project, pending, went_well, work_of
from dataset_tools.dataset import (
    caption_path,
    load_dataset,
    read_caption,
    update_dataset,
    write_caption,
)
from dataset_tools.images import save_clean_png
from dataset_tools.ingest import ingest
from trainer.contract.errors import RunError

from .pictures import encoded, picture

Said = Callable[[Image.Image, int], str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Four pictures of sizes of their own; the second has a caption."""
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(encoded(picture(100 + index, 80, index)))
    (tmp_path / "1.txt").write_text("by hand")
    root = tmp_path / "project"
    ingest([tmp_path / f"{index}.png" for index in range(4)] + [tmp_path / "1.txt"], root)
    return root


def texts(root: Path) -> list[str]:
    return [read_caption(root, record) for record in load_dataset(root).images]


def words(image: Image.Image, seed: int) -> str:
    """A model that says how wide a picture is."""
    return f" {image.width}\n wide "


KEEP = Wishes()


def write(root: Path, model: Said = words, wishes: Wishes = KEEP, lines: list[str] | None = None) -> Outcome:
    tell = [].append if lines is None else lines.append
    work = work_of(wishes)
    return caption_project(root, lambda: model, wishes, label="Captions by it", work=work, tell=tell)


def test_only_what_has_no_caption_is_captioned(project: Path) -> None:
    lines: list[str] = []
    outcome = write(project, lines=lines)
    assert texts(project) == ["100 wide", "by hand", "102 wide", "103 wide"]
    assert lines[0] == "[1/3] 0.png: 100 wide" and outcome.summary() == "3 captioned"

    def never() -> Said:
        raise AssertionError("no model is loaded for nothing")

    again = caption_project(project, never, Wishes(), label="", work="", tell=lines.append)
    assert again.summary() == "0 captioned: every photo has its caption" and went_well(again.summary())


@pytest.mark.parametrize(
    ("wishes", "captions"),
    [
        (Wishes("replace"), ["zwx, 100 wide", "zwx, 101 wide"]),
        (Wishes("append"), ["zwx, 100 wide", "zwx, by hand, 101 wide"]),
        (Wishes("replace", trigger=False), ["100 wide", "101 wide"]),
        (Wishes("replace", prefix="see zwx,"), ["see zwx, 100 wide", "see zwx, 101 wide"]),
        (Wishes("append", "here", ", big"), ["zwx, here 100 wide, big", "zwx, by hand, here 101 wide, big"]),
    ],
)
def test_what_becomes_of_the_words(project: Path, wishes: Wishes, captions: list[str]) -> None:
    update_dataset(project, lambda dataset: dataset.model_copy(update={"trigger": "zwx"}))
    write(project, wishes=wishes)
    assert texts(project)[:2] == captions


def test_the_model_sees_the_crop(project: Path) -> None:
    first = load_dataset(project).images[0]
    update_dataset(
        project, lambda dataset: dataset.with_record(first.model_copy(update={"crop": (10, 0, 50, 80)}))
    )
    write(project)
    assert texts(project)[0] == "40 wide"


def test_a_photo_that_fails_is_named_and_the_others_go_on(project: Path) -> None:
    damaged, gone = load_dataset(project).images[0], load_dataset(project).images[2]
    (project / damaged.file).write_bytes(b"nothing")
    (project / gone.file).unlink()
    lines: list[str] = []
    outcome = write(project, lines=lines)
    assert texts(project) == ["", "by hand", "", "103 wide"]
    assert [*outcome.failed] == ["0.png", "2.png"] and "0.png could not be captioned" in lines[0]
    assert outcome.summary().startswith("1 captioned, 2 not: 0.png (") and not went_well(outcome.summary())


def test_when_all_fail_it_gives_up(project: Path) -> None:
    def refuses(image: Image.Image, seed: int) -> str:
        raise ValueError("too small\nfor me")

    with pytest.raises(RunError, match="The first 3 photos all failed, the last one with: too small for me"):
        write(project, refuses)


def test_a_machine_that_cannot_ends_it_and_what_is_written_stays(project: Path) -> None:
    def full(image: Image.Image, seed: int) -> str:
        if image.width > 100:
            raise RunError("the GPU has too little memory", "gpu_oom")
        return "first"

    with pytest.raises(RunError, match="too little"):
        write(project, full)
    assert texts(project) == ["first", "by hand", "", ""]


@pytest.mark.parametrize("existing", ["keep", "replace", "append"])
def test_a_kill_costs_one_photo_and_the_same_work_goes_on(project: Path, existing: str) -> None:
    wishes = Wishes(existing)  # type: ignore[arg-type]
    seen: list[int] = []

    def dies(image: Image.Image, seed: int) -> str:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(image.width)
        return f"once {image.width}"

    with pytest.raises(KeyboardInterrupt):
        write(project, dies, wishes)
    there = texts(project)
    assert sum("once" in text for text in there) == 2

    def goes_on(image: Image.Image, seed: int) -> str:
        assert image.width not in seen
        return f"then {image.width}"

    write(project, goes_on, wishes)
    now = texts(project)
    assert (
        sum("once" in text for text in now) == 2
        and sum("then" in text for text in now) == len(pending_at_first(wishes)) - 2
    )
    assert len(undo.changes(project)) == 1, "one press of Undo takes all of it back"
    ids = [record.id for record in load_dataset(project).images]
    (change,) = undo.changes(project)
    assert {key: before for key, (before, _) in change["captions"].items() if before} == (
        {} if existing == "keep" else {ids[1]: "by hand"}
    )
    assert "work" not in change
    write(project, lambda image, seed: "new", wishes)
    assert len(undo.changes(project)) == (1 if existing == "keep" else 2), "asked for again it begins anew"


def pending_at_first(wishes: Wishes) -> list[int]:
    return [0, 2, 3] if wishes.existing == "keep" else [0, 1, 2, 3]


def test_what_somebody_does_meanwhile_is_respected(project: Path) -> None:
    images = load_dataset(project).images

    def slow(image: Image.Image, seed: int) -> str:
        if image.width == 100:
            write_caption(project, images[2], "typed meanwhile")
            update_dataset(project, lambda dataset: dataset.without([images[3].id]))
        return "by the model"

    lines: list[str] = []
    assert write(project, slow, lines=lines).summary() == "1 captioned"
    assert texts(project) == ["by the model", "by hand", "typed meanwhile"]
    assert not caption_path(project, images[3]).exists()
    assert pending(project, Wishes()) == []


def test_nothing_is_written_that_could_not_be_taken_back(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "undo.json")

    monkeypatch.setattr(undo, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        write(project)
    assert texts(project) == ["", "by hand", "", ""]


def test_a_photo_is_always_seen_with_the_same_luck(project: Path) -> None:
    def lucky(image: Image.Image, seed: int) -> str:
        return str(seed)

    write(project, lucky)
    first = texts(project)
    assert len({*first}) == 4
    image = load_dataset(project).images[0]
    save_clean_png(Image.new("RGB", (100, 80), "red"), project / image.file)
    write(project, lucky, Wishes("replace", suffix="x"))
    assert texts(project)[2] == f"{first[2]} x", "what draws lots draws the same for the same photo"
