"""A plain folder of photos, read in place."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dataset_tools.dataset import DatasetError, read_caption
from dataset_tools.images import ImageError
from dataset_tools.ingest import load_or_scan, scan_folder

from .pictures import encoded, photo, picture, tree


def test_scanning_a_plain_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    photo(folder / "b.png", 1)
    photo(folder / "a.png", 1)
    photo(folder / "3_zwx dog" / "c.png", 2, (200, 100))
    photo(folder / "other" / "d.png", 3)
    (folder / "a.txt").write_text("zwx dog")
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned.jpg").write_bytes(encoded(picture(), "JPEG", exif=exif))
    before = tree(folder)
    dataset = load_or_scan(folder)
    assert dataset == scan_folder(folder) and tree(folder) == before, "the same every time, nothing written"
    assert [(r.file, r.repeats) for r in dataset.images] == [
        ("a.png", 1), ("b.png", 1), ("turned.jpg", 1), ("3_zwx dog/c.png", 3),
    ]  # fmt: skip
    assert dataset.images[0].sha256 == dataset.images[1].sha256
    assert dataset.images[0].id != dataset.images[1].id, "twins stay two records"
    assert (dataset.images[2].width, dataset.images[2].height) == (64, 96)
    assert read_caption(folder, dataset.images[0]) == "zwx dog"


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
