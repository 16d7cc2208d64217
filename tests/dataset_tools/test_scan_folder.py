"""A plain folder of photos, read in place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from dataset_tools.dataset import DatasetError, load_dataset, read_caption
from dataset_tools.folder import Photos, load_photos, scan_folder
from dataset_tools.images import ImageError
from dataset_tools.ingest import ingest

from .pictures import encoded, photo, picture, tree


def captions(photos: Photos) -> dict[str, str]:
    """file -> caption"""
    return {record.file: photos.captions[record.id] for record in photos.dataset.images}


def test_scanning_a_plain_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    photo(folder / "b.png", 1)
    photo(folder / "a.png", 1)
    photo(folder / "3_zwx dog" / "c.png", 2, (200, 100))
    (folder / "a.txt").write_text("zwx dog")
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned.jpg").write_bytes(encoded(picture(), "JPEG", exif=exif))
    before = tree(folder)
    photos = load_photos(folder)
    assert photos == scan_folder(folder) and tree(folder) == before, "the same every time, nothing written"
    images = photos.dataset.images
    assert [(r.file, r.repeats) for r in images] == [
        ("a.png", 1), ("b.png", 1), ("turned.jpg", 1), ("3_zwx dog/c.png", 3),
    ]  # fmt: skip
    assert images[0].sha256 == images[1].sha256
    assert images[0].id != images[1].id, "twins stay two records"
    assert (images[2].width, images[2].height) == (64, 96)
    assert photos.captions[images[0].id] == "zwx dog" and photos.notes == ()


def test_a_project_is_no_plain_folder(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "10_dog" / "a.png")
    ingest([tmp_path / "in"], tmp_path / "project")
    photos = load_photos(tmp_path / "project")
    assert photos.dataset == load_dataset(tmp_path / "project")
    assert list(photos.captions.values()) == ["dog"]


def test_class_folders_mean_the_same_in_place_and_ingested(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    photo(folder / "10_zwx dog" / "a.png", 1)
    photo(folder / "10_zwx dog" / "b.png", 2)
    (folder / "10_zwx dog" / "b.txt").write_text("zwx dog, asleep")
    photo(folder / "0_none" / "c.png", 3)
    photos = scan_folder(folder)
    ingest([folder / "10_zwx dog"], tmp_path / "project")
    project = load_dataset(tmp_path / "project")
    told = [(r.repeats, photos.captions[r.id]) for r in photos.dataset.images]
    assert told == [(r.repeats, read_caption(tmp_path / "project", r)) for r in project.images]
    assert told == [(10, "zwx dog"), (10, "zwx dog, asleep")]
    assert "0_none: 1" in photos.notes[0]


def test_pictures_in_other_subfolders_are_left_out_aloud(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 1)
    photo(tmp_path / "cats" / "b.JPG", 2)
    photo(tmp_path / "cats" / "deep" / "c.png", 3)
    photo(tmp_path / "5_dog" / "old" / "d.png", 4)
    photo(tmp_path / ".hidden" / "e.png", 5)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("no picture")
    photos = scan_folder(tmp_path)
    assert [r.file for r in photos.dataset.images] == ["a.png"]
    assert photos.notes == (
        "3 pictures in subfolders were left out (5_dog/old: 1, cats: 2); to train on them, rename the "
        "subfolders like 1_cats (repeats, caption)",
    )
    (tmp_path / "cats").rename(tmp_path / "1_cats")
    photos = scan_folder(tmp_path)
    assert [r.file for r in photos.dataset.images] == ["a.png", "1_cats/b.JPG"]
    assert photos.notes == (
        "2 pictures in subfolders were left out (1_cats/deep: 1, 5_dog/old: 1); to train on them, move "
        "them up",
    )
    (tmp_path / "a.png").unlink()
    (tmp_path / "1_cats").rename(tmp_path / "cats")
    with pytest.raises(DatasetError, match=r"itself, but .*\(5_dog/old: 1, cats: 2\); rename .* 1_cats"):
        scan_folder(tmp_path)


@pytest.mark.parametrize(
    ("data", "text", "guess"),
    [
        ("zwx Hündin".encode("utf-8-sig"), "zwx Hündin", None),
        ("zwx Hündin".encode("utf-16"), "zwx Hündin", None),
        ("zwx Hündin".encode("utf-16-be"), "zwx Hündin", None),
        ("zwx Hündin".encode("cp1252"), "zwx Hündin", "Windows-1252"),
        (b"zwx \x81", "zwx \x81", "Latin-1"),
        (b"\xff\xfez", "ÿþz", "Windows-1252"),
        (b"zwx dog,\r\non grass\r\n", "zwx dog,\non grass", None),
        (b"\r\n", "", None),
        (b"", "", None),
    ],
)
def test_captions_in_any_encoding(data: bytes, text: str, guess: str | None, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(data)
    photos = scan_folder(tmp_path)
    assert list(photos.captions.values()) == [text]
    expected = (f"read as {guess}, being no UTF-8, so check the accents: a.txt",) if guess else ()
    assert photos.notes == expected


def test_many_odd_captions_are_one_note(tmp_path: Path) -> None:
    for index in range(5):
        photo(tmp_path / f"{index}.png", index)
        (tmp_path / f"{index}.txt").write_bytes(b"caf\xe9")
    assert scan_folder(tmp_path).notes[0].endswith(": 0.txt, 1.txt, 2.txt and 2 more")


def test_captions_are_found_however_they_are_called(tmp_path: Path) -> None:
    for index, name in enumerate(("A.JPG", "b.png", "c.jpg", "c.png", "d.png", "e.png", "E.png")):
        photo(tmp_path / name, index)
    texts = ("a.TXT", "b.caption", "c.txt", "c.jpg.txt", "d.txt", "d.caption", "e.txt", "E.txt", "readme.txt")
    for name in texts:
        (tmp_path / name).write_text(f"from {name}")
    photos = scan_folder(tmp_path)
    assert captions(photos) == {
        "A.JPG": "from a.TXT",
        "b.png": "from b.caption",
        "c.jpg": "from c.jpg.txt",
        "c.png": "from c.txt",
        "d.png": "from d.txt",
        "e.png": "from e.txt",
        "E.png": "from E.txt",
    }
    assert photos.notes == ("no picture takes the caption files d.caption, readme.txt; check the names",)


def test_scanning_tells_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere does not exist; check"):
        scan_folder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DatasetError, match=r"holds no pictures; put"):
        scan_folder(tmp_path)
    photo(tmp_path / "good.png")
    for index in range(5):
        (tmp_path / f"bad{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(
        ImageError, match=r"^5 of 6 pictures cannot be used: bad0.*bad1.*bad2.*\(and 2 more\)$"
    ):
        scan_folder(tmp_path)


@pytest.mark.parametrize("name", [b"a\\b.png", b"caf\xe9.png"])
def test_a_name_that_no_file_can_hold_is_told(name: bytes, tmp_path: Path) -> None:
    try:
        photo(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(ImageError, match=r"\.png has an odd name; rename it"):
        scan_folder(tmp_path)


def test_odd_but_honest_names_are_taken(tmp_path: Path) -> None:
    names = ["Bildschirmfoto um 3.05\u202fPM.png", "a.b.c.png", "'; rm -rf.png", "x" * 200 + ".png", "猫.png"]
    for index, name in enumerate(names):
        photo(tmp_path / name, index)
        (tmp_path / name).with_suffix(".txt").write_text(str(index))
    assert captions(scan_folder(tmp_path)) == {name: str(index) for index, name in enumerate(names)}


def test_links_are_followed_or_told(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    photo(tmp_path / "elsewhere" / "a.png", 1)
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (folder / "2_dog").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    photos = scan_folder(folder)
    assert [(r.file, r.repeats) for r in photos.dataset.images] == [("a.png", 1), ("2_dog/a.png", 2)]
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ImageError, match=r"2 of 4 .*lost\.png is no file, or a link.*pipe\.png is no file"):
        scan_folder(folder)
