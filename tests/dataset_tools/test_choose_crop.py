from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_tools.buckets import SDXL_BUCKETS, Buckets, scaled_buckets
from dataset_tools.crop import (
    choose_crop,
    crop_dataset,
    crop_project,
    cut_share,
    fit_to_buckets,
    render_crop,
)
from dataset_tools.dataset import Dataset, DatasetError, ImageRecord, load_dataset, update_dataset
from dataset_tools.detect import FloatBox, Subject, head_box
from dataset_tools.images import open_image
from dataset_tools.ingest import ingest

from .pictures import picture


def centre(width: int, height: int) -> Subject:
    return Subject((0.0, 0.0, float(width), float(height)), "centre", 0.0)


def face(box: FloatBox, size: tuple[int, int]) -> Subject:
    return Subject(head_box(box, size), "face", 0.9, (box,))


def test_properties_hold_for_any_picture_and_subject() -> None:
    rng = np.random.default_rng(3)
    for _ in range(1500):
        resolution = int(rng.choice([128, 512, 768, 1000, 1024]))
        buckets = scaled_buckets(resolution)
        width, height = (int(v) for v in np.exp(rng.uniform(np.log(32), np.log(6000), 2)))
        left, right = np.sort(rng.uniform(0, width, 2))
        top, bottom = np.sort(rng.uniform(0, height, 2))
        box = (float(left), float(top), float(right), float(bottom))
        kind = rng.choice(["face", "saliency", "centre"])
        subject = Subject(box, kind, 0.5, (box,) if kind == "face" else ())
        crop = choose_crop(width, height, subject, buckets)
        assert crop == choose_crop(width, height, subject, buckets)
        assert crop.bucket in buckets
        left_, top_, right_, bottom_ = crop.box
        assert 0 <= left_ < right_ <= width and 0 <= top_ < bottom_ <= height
        box_width, box_height = right_ - left_, bottom_ - top_
        bw, bh = crop.bucket
        assert abs(box_width - box_height * bw / bh) <= 1 or abs(box_height - box_width * bh / bw) <= 1
        assert box_width == width or box_height == height, "no larger box fits"
        assert crop.reason.endswith(("% of the photo is cut", "nothing is cut"))


@pytest.mark.parametrize("bucket", SDXL_BUCKETS)
def test_a_picture_of_a_buckets_shape_gets_that_bucket_whole(bucket: tuple[int, int]) -> None:
    for scale in (0.5, 1, 3):
        width, height = round(bucket[0] * scale), round(bucket[1] * scale)
        crop = choose_crop(width, height, centre(width, height), SDXL_BUCKETS)
        assert crop.bucket == bucket and crop.box == (0, 0, width, height)
        assert "nothing is cut" in crop.reason
        assert bool(crop.warnings) == (scale < 1)


def test_a_face_at_the_rim_is_kept_whole() -> None:
    """A panorama: the centre would lose the face, whichever bucket."""
    size = (4000, 1000)
    for x in (50.0, 3700.0):
        subject = face((x, 300.0, x + 250, 550.0), size)
        crop = choose_crop(*size, subject, SDXL_BUCKETS)
        assert cut_share(subject.box, crop.box) == 0
        assert crop.bucket == (1472, 704) and crop.reason.startswith("face kept whole; 4")


def test_two_faces_far_apart_choose_the_wider_bucket() -> None:
    size = (1500, 1000)
    near = Subject(
        (400.0, 200.0, 1100.0, 500.0),
        "face",
        0.9,
        ((450.0, 250.0, 600.0, 400.0), (900.0, 250.0, 1050.0, 400.0)),
    )
    assert choose_crop(*size, near, SDXL_BUCKETS).reason.startswith("2 faces kept whole")
    square_and_tall = [(1024, 1024), (832, 1216)]
    crop = choose_crop(*size, near, square_and_tall)
    assert crop.bucket == (1024, 1024) and cut_share(near.box, crop.box) == 0
    apart = Subject(
        (0.0, 200.0, 1500.0, 500.0),
        "face",
        0.9,
        ((20.0, 250.0, 170.0, 400.0), (1330.0, 250.0, 1480.0, 400.0)),
    )
    crop = choose_crop(*size, apart, [(1024, 1024)])
    assert crop.reason.startswith("1 of 2 faces kept whole") and "face cut" in crop.warnings


def test_a_face_that_cannot_fit_is_told() -> None:
    subject = Subject((0.0, 0.0, 3000.0, 1000.0), "face", 0.9, ((0.0, 0.0, 3000.0, 1000.0),))
    crop = choose_crop(3000, 1000, subject, SDXL_BUCKETS)
    assert "of the face does not fit" in crop.reason and "face cut" in crop.warnings


def test_content_decides_between_buckets() -> None:
    """The same picture: a tall subject keeps the height, a wide one the width."""
    buckets = [(1216, 832), (832, 1216)]
    tall = Subject((450.0, 0.0, 550.0, 1000.0), "face", 0.9, ((450.0, 0.0, 550.0, 1000.0),))
    wide = Subject((0.0, 450.0, 1000.0, 550.0), "face", 0.9, ((0.0, 450.0, 1000.0, 550.0),))
    assert choose_crop(1000, 1000, tall, buckets).bucket == (832, 1216)
    assert choose_crop(1000, 1000, wide, buckets).bucket == (1216, 832)


def test_enlargement_is_told() -> None:
    assert choose_crop(512, 512, centre(512, 512), SDXL_BUCKETS).warnings[0].startswith("upscaled 2.0x")
    assert choose_crop(900, 900, centre(900, 900), SDXL_BUCKETS).warnings == ()


def record(bucket: tuple[int, int] | None, crop: tuple[int, int, int, int] | None) -> ImageRecord:
    return ImageRecord(
        id="a",
        file="a.png",
        original_name="a.png",
        sha256="0" * 64,
        width=4000,
        height=3000,
        bucket=bucket,
        crop=crop,
    )


@pytest.mark.parametrize("resolution", [128, 512, 640, 768, 1000, 1024])
def test_another_resolution_keeps_the_aspect_inside_the_old_box(resolution: int) -> None:
    for index, bucket in enumerate(SDXL_BUCKETS):
        box = choose_crop(4000, 3000, centre(4000, 3000), [bucket]).box
        fitted, inner = fit_to_buckets(record(bucket, box), Buckets(resolution))
        if resolution % 128 == 0:
            assert fitted == scaled_buckets(resolution)[index] and inner == box
        assert box[0] <= inner[0] < inner[2] <= box[2] and box[1] <= inner[1] < inner[3] <= box[3]
        width, height = inner[2] - inner[0], inner[3] - inner[1]
        assert (
            abs(width - height * fitted[0] / fitted[1]) <= 1
            or abs(height - width * fitted[1] / fitted[0]) <= 1
        )


def test_an_uncropped_picture_cannot_be_fitted() -> None:
    with pytest.raises(DatasetError, match=r"a\.png is not cropped yet"):
        fit_to_buckets(record(None, None), Buckets(512))


def test_a_crop_is_rendered_at_exactly_the_buckets_size() -> None:
    image = picture(300, 200)
    crop = choose_crop(300, 200, centre(300, 200), scaled_buckets(128))
    rendered = render_crop(image, crop.box, crop.bucket)
    assert rendered.size == crop.bucket and rendered.mode == "RGB"
    assert (
        render_crop(image, (10, 20, 138, 148), (128, 128)).tobytes()
        == image.crop((10, 20, 138, 148)).tobytes()
    )
    assert render_crop(image.convert("L"), crop.box, crop.bucket).mode == "RGB"


def test_shrinking_does_not_alias() -> None:
    """A fine chequerboard must become even grey, not moiré."""
    board = np.indices((512, 512)).sum(0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    values = np.asarray(render_crop(image, (0, 0, 512, 512), (152, 152)), dtype=float)
    assert np.abs(values[8:-8, 8:-8] - 127.5).max() < 6


def test_a_project_is_cropped_once_and_other_changes_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    for seed in (1, 2):
        picture(300, 200, seed).save(tmp_path / f"{seed}.png")
    first, second = ingest([tmp_path / "1.png", tmp_path / "2.png"], root).added
    seen: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        seen.append(f"{done}/{total}")
        # Meanwhile, in another tab: a picture is switched off.
        update_dataset(root, lambda d: d.with_record(d.get(first).model_copy(update={"enabled": False})))

    cropped = crop_project(root, Buckets(128), progress=progress)
    assert seen == ["0/2", "1/2", "2/2"]
    assert cropped == load_dataset(root)
    assert not cropped.get(first).enabled
    for image in cropped.images:
        assert (
            image.bucket == (152, 104) and image.crop and image.reason.startswith("faces were not looked for")
        )
    by_hand = cropped.get(second).model_copy(
        update={"crop": (0, 0, 128, 128), "bucket": (128, 128), "reason": "yours"}
    )
    update_dataset(root, lambda d: d.with_record(by_hand))
    assert crop_project(root, Buckets(128)).get(second).reason == "yours"
    assert crop_project(root, Buckets(128), only={second}).get(second).bucket == (152, 104)


def test_a_crash_while_cropping_costs_little(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for seed in range(11):
        picture(96, 64, seed).save(tmp_path / f"{seed}.png")
    ingest([tmp_path / f"{seed}.png" for seed in range(11)], root)
    told: list[tuple[int, int]] = []

    def crash_at_nine(done: int, total: int, name: str) -> None:
        told.append((done, total))
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crop_project(root, Buckets(128), progress=crash_at_nine)
    assert sum(record.crop is not None for record in load_dataset(root).images) == 8
    assert told[-1] == (9, 11)
    assert all(record.crop for record in crop_project(root, Buckets(128)).images)


def test_the_preview_is_the_training_crop(tmp_path: Path) -> None:
    """Box and bucket from dataset.json, through one function: what is shown is what is trained."""
    root = tmp_path / "project"
    picture(321, 200).save(tmp_path / "a.png")
    ingest([tmp_path / "a.png"], root)
    shown = crop_dataset(root, load_dataset(root), Buckets(128))
    assert load_dataset(root).images[0].crop is None, "nothing is saved"
    crop_project(root, Buckets(128))
    trained = load_dataset(root).images[0]
    assert trained.crop and trained.bucket
    assert trained.crop == shown.images[0].crop
    assert fit_to_buckets(trained, Buckets(128)) == (trained.bucket, trained.crop)
    image = open_image(root / trained.file).image
    assert (
        render_crop(image, trained.crop, trained.bucket).tobytes()
        == render_crop(picture(321, 200), trained.crop, trained.bucket).tobytes()
    )


def test_only_the_named_pictures_are_cropped() -> None:
    assert (
        crop_dataset(Path("/nowhere"), Dataset(images=(record(None, None),)), Buckets(128), only=set())
        .images[0]
        .crop
        is None
    )


def test_a_crop_for_other_buckets_stays_inside_the_chosen_one() -> None:
    trained = record((1216, 832), (0, 100, 1900, 1400))
    bucket, box = fit_to_buckets(trained, Buckets(1024, "all"))
    assert bucket == (1216, 832) and box == trained.crop
    small = record((1216, 832), (10, 10, 510, 352))
    bucket, box = fit_to_buckets(small, Buckets(1024, "no_upscale"))
    assert bucket == (448, 320)  # not enlarged to a megapixel
    left, top, right, bottom = box
    assert left >= 10 and top >= 10 and right <= 510 and bottom <= 352
    assert (right - left) / (bottom - top) == pytest.approx(448 / 320, rel=0.01)
    assert (right - left) >= 448 and (bottom - top) >= 320
