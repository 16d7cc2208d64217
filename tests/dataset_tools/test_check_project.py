from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dataset_tools.captions import apply_captions
from dataset_tools.check import Finding, check_project, difference_hash, sharpness
from dataset_tools.dataset import Dataset, load_dataset, save_dataset, update_dataset
from dataset_tools.ingest import ingest

REAL = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


@pytest.fixture
def project(tmp_path: Path, photos: Path) -> Path:
    """Five real photos with good captions, and nothing to find but their crops."""
    root = tmp_path / "project"
    ids = ingest([photos / name for name in REAL], root).added
    dataset = update_dataset(root, lambda d: d.model_copy(update={"trigger": "zwx"}))
    apply_captions(root, dataset, {key: f"zwx, view {index}" for index, key in enumerate(ids)})
    return root


def sentences(root: Path, level: str = "") -> list[str]:
    return [f.sentence for f in check_project(root) if not level or f.level == level]


def set_crops(
    root: Path, bucket: tuple[int, int] = (128, 128), last: tuple[int, int] | None = None
) -> Dataset:
    def change(dataset: Dataset) -> Dataset:
        records = [r.model_copy(update={"bucket": bucket, "crop": (0, 0, 300, 300)}) for r in dataset.images]
        if last:
            records[-1] = records[-1].model_copy(update={"bucket": last})
        return dataset.with_record(*records)

    return update_dataset(root, change)


def test_a_good_project_has_no_findings(project: Path) -> None:
    set_crops(project)
    assert check_project(project) == []


def test_an_empty_dataset_is_an_error(tmp_path: Path) -> None:
    assert check_project(tmp_path) == [
        Finding("error", None, "The dataset has no photos.", "Add some in the Photos step.")
    ]


def test_missing_and_changed_files_are_errors_and_come_first(project: Path) -> None:
    first, second, third, *_ = set_crops(project).images
    (project / first.file).unlink()
    (project / second.file).write_bytes((project / third.file).read_bytes())
    (project / third.file).write_bytes(b"")
    findings = check_project(project)
    assert [f.id for f in findings[:3]] == [first.id, second.id, third.id]
    assert {f.level for f in findings[:3]} == {"error"}
    assert "is missing" in findings[0].sentence and "changed outside" in findings[1].sentence
    assert "is empty" in findings[2].sentence


def test_captions_are_looked_at(project: Path) -> None:
    first, second, *_ = set_crops(project).images
    apply_captions(project, load_dataset(project), {first.id: "", second.id: "a cat"})
    assert sentences(project) == [
        "astronaut.png has no caption.",
        "The caption of chelsea.png lacks the trigger word 'zwx'.",
    ]
    dataset = load_dataset(project)
    apply_captions(project, dataset, {record.id: "zwx" for record in dataset.images})
    assert any("All captions are the same" in s for s in sentences(project, "warning"))
    update_dataset(project, lambda d: d.model_copy(update={"trigger": ""}))
    assert "There is no trigger word." in sentences(project)


def test_photos_out_of_use_are_not_looked_at(project: Path) -> None:
    dataset = set_crops(project)
    first = dataset.images[0]
    (project / first.file).unlink()
    save_dataset(project, dataset.with_record(first.model_copy(update={"enabled": False})))
    assert not sentences(project, "error")


def test_near_duplicates_are_found_and_different_photos_are_not(
    tmp_path: Path, photos: Path, project: Path
) -> None:
    cat = Image.open(photos / "chelsea.png").convert("RGB")
    cat.crop((4, 3, 447, 297)).save(tmp_path / "twin.jpg", quality=60)
    cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    ingest([tmp_path / "twin.jpg", tmp_path / "mirrored.png"], project)
    twins = [s for s in sentences(project) if "nearly the same" in s]
    assert twins == ["twin.jpg is nearly the same as chelsea.png."]


def test_the_hash_survives_scaling(photos: Path) -> None:
    cat = Image.open(photos / "chelsea.png").convert("RGB")
    assert difference_hash(cat).shape == (16, 16)
    assert np.count_nonzero(difference_hash(cat) != difference_hash(cat.resize((200, 140)))) < 12
    coffee = Image.open(photos / "coffee.png").convert("RGB")
    assert np.count_nonzero(difference_hash(cat) != difference_hash(coffee)) > 60


def test_blur_is_found_in_photos_not_in_their_backgrounds(
    tmp_path: Path, photos: Path, project: Path
) -> None:
    for name in REAL:
        image = Image.open(photos / name).convert("RGB")
        assert sharpness(image) > 100 > 40 > sharpness(image.filter(ImageFilter.GaussianBlur(3)))
    face = Image.open(photos / "astronaut.png").convert("RGB")
    backdrop = face.filter(ImageFilter.GaussianBlur(8))
    backdrop.paste(face.crop((170, 60, 290, 180)), (170, 60))
    assert sharpness(backdrop) > 100
    face.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "shaken.png")
    ingest([tmp_path / "shaken.png"], project)
    assert [s for s in sentences(project) if "blurry" in s] == ["shaken.png looks blurry."]


def test_small_photos_and_lonely_buckets_are_told(project: Path) -> None:
    set_crops(project, (1024, 1024), last=(832, 1216))
    found = sentences(project)
    assert "astronaut.png is small: its crop of 300 × 300 pixels is enlarged 3.4 times." in found
    assert any(s.startswith("motorcycle_left.png is alone in its bucket 832 × 1216") for s in found)
    assert sum("alone in its bucket" in s for s in found) == 1


def test_uncropped_and_few_photos_are_hints(tmp_path: Path, photos: Path) -> None:
    ingest([photos / "coffee.png"], tmp_path / "p")
    assert sentences(tmp_path / "p", "hint") == ["coffee.png is not cropped yet.", "There are only 1 photos."]
