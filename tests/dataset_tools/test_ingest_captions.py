"""Which caption a picture has once it is in a project."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_tools.dataset import load_dataset, read_caption
from dataset_tools.ingest import IngestReport, ingest

from .pictures import photo, tree


def reasons(report: IngestReport) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in report.skipped}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("data", "text", "guess"),
    [
        ("zwx Hündin".encode("cp1252"), "zwx Hündin", "Windows-1252"),
        ("zwx Hündin".encode("utf-16"), "zwx Hündin", ""),
        ("zwx Hündin".encode("utf-16-le"), "zwx Hündin", ""),
        ("zwx Hündin".encode("utf-8-sig"), "zwx Hündin", ""),
        (bytes(range(128, 256)), None, "Latin-1"),
    ],
)
def test_a_caption_in_any_encoding_is_kept(
    data: bytes, text: str | None, guess: str, tmp_path: Path, project: Path
) -> None:
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.txt").write_bytes(data)
    report = ingest([tmp_path / "in"], project)
    caption = read_caption(project, load_dataset(project).images[0])
    assert report.captions == 1 and (caption == text if text else len(caption) > 100)
    told = (f"read as {guess}, being no UTF-8, so check the accents: a.txt",) if guess else ()
    assert report.notes == told


def test_one_picture_takes_one_caption(tmp_path: Path, project: Path) -> None:
    source = tmp_path / "source"
    for index, name in enumerate(("a.png", "e.png", "E.png")):
        photo(source / name, index)
    for name in ("a.caption", "a.txt", "E.txt", "e.txt"):
        (source / name).write_text(f"from {name}")
    report = ingest([source], project)
    found = {r.original_name: read_caption(project, r) for r in load_dataset(project).images}
    assert found == {"a.png": "from a.txt", "e.png": "from e.txt", "E.png": "from E.txt"}
    assert "one caption too many" in reasons(report)["a.caption"] and len(report.skipped) == 1


def test_captions_pair_by_stem_within_their_folder(tmp_path: Path, project: Path) -> None:
    source = tmp_path / "source"
    photo(source / "one" / "a.png", 1)
    photo(source / "two" / "a.png", 2)
    photo(source / "two" / "c.jpg", 3)
    (source / "one" / "a.txt").write_text("first")
    (source / "two" / "a.txt").write_text("second")
    (source / "two" / "c.jpg.txt").write_text("third")
    (source / "two" / "alone.txt").write_text("nobody")
    report = ingest([source], project)
    dataset = load_dataset(project)
    assert [read_caption(project, r) for r in dataset.images] == ["first", "second", "third"]
    assert "no photo of the same name" in reasons(report)["alone.txt"]


def test_captions_may_come_later_than_their_photos(tmp_path: Path, project: Path) -> None:
    first = photo(tmp_path / "a.png")
    words = tmp_path / "a.txt"
    words.write_text("zwx dog")
    ingest([first], project)
    assert "add both together" in ingest([words], project).skipped[0].reason
    report = ingest([first, words], project)
    assert report.added == () and report.captions == 1
    assert reasons(report) == {"a.png": "a.png is already in the project as a.png; its caption was added."}
    record = load_dataset(project).images[0]
    assert read_caption(project, record) == "zwx dog"
    before = tree(project)
    assert reasons(ingest([first, words], project))["a.png"].endswith("as a.png.")
    words.write_text("another")
    report = ingest([first, words], project)
    assert "with another caption, which is kept" in reasons(report)["a.png"]
    assert report.captions == 0 and tree(project) == before


def test_of_twins_the_caption_of_either_is_kept(tmp_path: Path, project: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "b.txt").write_text("zwx dog")
    report = ingest([tmp_path / "in"], project)
    assert len(report.added) == report.captions == 1
    assert read_caption(project, load_dataset(project).images[0]) == "zwx dog"
