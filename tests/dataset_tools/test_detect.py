"""Faces and saliency on real photos."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_tools import crop as crop_module
from dataset_tools import detect
from dataset_tools.buckets import SDXL_BUCKETS, Buckets
from dataset_tools.crop import choose_crop, crop_project, cut_share
from dataset_tools.dataset import load_dataset
from dataset_tools.detect import (
    DetectorUnavailable,
    FaceDetector,
    FloatBox,
    Subject,
    find_subject,
    missing_library,
    saliency_box,
)
from dataset_tools.images import open_image
from dataset_tools.ingest import ingest

from .pictures import encoded

ASTRONAUT_FACE: FloatBox = (173.0, 67.0, 276.0, 170.0)


def overlap(a: FloatBox, b: FloatBox) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


@pytest.mark.network
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_astronauts_face_is_kept_whole_however_the_camera_was_held(
    orientation: int, photos: Path, detector: FaceDetector
) -> None:
    upright = Image.open(photos / "astronaut.png").convert("RGB").crop((100, 0, 400, 512))
    turns = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turn = turns[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(turn) if turn is not None else upright
    image = open_image(encoded(stored, "JPEG", exif=exif, quality=95), "a.jpg").image
    assert image.size == (300, 512)
    subject = find_subject(image, detector)
    assert subject.kind == "face" and len(subject.faces) == 1
    assert overlap(subject.faces[0], (73.0, 67.0, 176.0, 170.0)) > 0.7
    crop = choose_crop(*image.size, subject, SDXL_BUCKETS)
    assert cut_share(subject.box, crop.box) == 0 and crop.reason.startswith("face kept whole")
    assert crop.bucket[0] < crop.bucket[1], "a tall photo gets a tall bucket"


@pytest.mark.network
def test_a_face_off_centre_moves_the_crop(photos: Path, detector: FaceDetector) -> None:
    astronaut = Image.open(photos / "astronaut.png").convert("RGB")
    wide = Image.new("RGB", (1800, 512), (120, 130, 140))
    wide.paste(astronaut, (1288, 0))
    subject = find_subject(wide, detector)
    assert subject.kind == "face"
    crop = choose_crop(1800, 512, subject, SDXL_BUCKETS)
    assert cut_share(subject.box, crop.box) == 0 and crop.box[0] > 600


@pytest.mark.network
def test_small_faces_are_found(photos: Path, detector: FaceDetector) -> None:
    image = Image.open(photos / "coffee.png").convert("RGB").resize((1024, 1024))
    width = 24
    scale = width / (ASTRONAUT_FACE[2] - ASTRONAUT_FACE[0])
    small = Image.open(photos / "astronaut.png").convert("RGB")
    small = small.resize((round(512 * scale), round(512 * scale)), Image.Resampling.LANCZOS)
    image.paste(small, (400, 300))
    (box, _), *others = detector.find(image)
    assert not others
    left, top, right, bottom = ASTRONAUT_FACE
    assert (
        overlap(box, (400 + left * scale, 300 + top * scale, 400 + right * scale, 300 + bottom * scale)) > 0.4
    )


@pytest.mark.network
@pytest.mark.parametrize(
    "name", ["chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg"]
)
def test_no_face_is_seen_where_there_is_none(name: str, photos: Path, detector: FaceDetector) -> None:
    assert detector.find(open_image(photos / name).image) == []


@pytest.mark.network
def test_large_photos_give_boxes_in_their_own_pixels(photos: Path, detector: FaceDetector) -> None:
    image = Image.open(photos / "astronaut.png").convert("RGB").resize((4096, 4096))
    (box, score), *_ = detector.find(image)
    assert score > 0.7 and overlap(box, tuple(8 * v for v in ASTRONAUT_FACE)) > 0.7  # type: ignore[arg-type]


@pytest.mark.network
def test_native_chatter_stays_out_of_stderr(
    face_model: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with FaceDetector(face_model) as detector:
        assert detector.find(open_image(photos / "astronaut.png").image)
        print("ours", file=sys.stderr)
    detector.close()
    assert capfd.readouterr().err == "ours\n"


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    pytest.importorskip("mediapipe", exc_type=ImportError)
    path = tmp_path / "model.tflite"
    path.write_bytes(b"no model")
    with pytest.raises(DetectorUnavailable, match=r"model\.tflite does not load; delete it"):
        FaceDetector(path)


@pytest.mark.parametrize("with_cv2", [True, False])
@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("chelsea.png", (150.0, 90.0, 330.0, 240.0)),  # eyes and nose of the cat
        ("coffee.png", (190.0, 40.0, 400.0, 260.0)),  # the cup
        ("motorcycle_left.png", (180.0, 150.0, 640.0, 380.0)),
    ],
)
def test_saliency_holds_the_subject(
    name: str, inside: FloatBox, with_cv2: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_cv2:
        without_module(
            monkeypatch, "cv2", "libGL.so.1: cannot open shared object file: No such file or directory"
        )
    image = open_image(photos / name).image
    found = saliency_box(image)
    assert found is not None
    box, score = found
    assert 0 < score <= 1
    assert 0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height
    assert cut_share(inside, tuple(round(v) for v in box)) < 0.15  # type: ignore[arg-type]
    assert (box[2] - box[0]) * (box[3] - box[1]) < 0.75 * image.width * image.height


def test_saliency_finds_an_odd_thing_off_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    for x in (60, 420):
        pixels = rng.normal(128, 4, (400, 600, 3))
        pixels[150:250, x : x + 100] = (230, 40, 30)
        box, _ = saliency_box(Image.fromarray(pixels.clip(0, 255).astype(np.uint8))) or ((0, 0, 0, 0), 0)
        assert abs((box[0] + box[2]) / 2 - (x + 50)) < 45 and abs((box[1] + box[3]) / 2 - 200) < 45


def test_an_even_picture_is_cropped_at_its_centre() -> None:
    subject = find_subject(Image.new("RGB", (600, 300), (90, 140, 60)), None)
    assert subject == Subject((0.0, 0.0, 600.0, 300.0), "centre", 0.0, (), False)
    crop = choose_crop(600, 300, subject, SDXL_BUCKETS)
    assert abs((crop.box[0] + crop.box[2]) - 600) <= 1
    assert "nothing stands out: cropped at the centre" in crop.reason


def without_module(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    """Importing ``name`` fails as it does where a system library is missing."""
    real = builtins.__import__

    def importer(module: str, *args: object, **kwargs: object) -> object:
        if module.partition(".")[0] == name:
            raise ImportError(message)
        return real(module, *args, **kwargs)  # type: ignore[arg-type]

    for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", importer)


@pytest.mark.parametrize(
    ("library", "package"),
    [("libEGL.so.1", "libegl1"), ("libGLESv2.so.2", "libgles2"), ("libGL.so.1", "libgl1")],
)
def test_a_missing_system_library_is_named_with_its_package(
    library: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{library}: cannot open shared object file: No such file or directory"
    assert package in missing_library(OSError(text))
    without_module(monkeypatch, "mediapipe", text)
    with pytest.raises(DetectorUnavailable, match=f"apt-get install {package}"):
        FaceDetector(tmp_path / "model.tflite")
    assert detect._stderr_lock.acquire(blocking=False)
    detect._stderr_lock.release()


def test_without_a_detector_crops_go_on_by_saliency(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_module, "ensure_face_model", lambda *args, **kwargs: tmp_path / "model.tflite")
    without_module(monkeypatch, "mediapipe", "libEGL.so.1: cannot open shared object file")
    ingest([photos / "astronaut.png"], tmp_path / "project")
    told: list[str] = []
    crop_project(tmp_path / "project", models_dir=tmp_path, notify=told.append)
    assert len(told) == 1 and "libegl1" in told[0] and "what stands out instead" in told[0]
    record = load_dataset(tmp_path / "project").images[0]
    assert record.bucket == (1024, 1024) and record.reason.startswith("faces were not looked for")


@pytest.mark.network
def test_a_project_is_cropped_by_face(tmp_path: Path, photos: Path, face_model: Path) -> None:
    report = ingest([photos / "astronaut.png", photos / "chelsea.png"], tmp_path / "project")
    cropped = crop_project(tmp_path / "project", Buckets(512), models_dir=face_model.parent)
    person, cat = (cropped.get(image_id) for image_id in report.added)
    assert person.reason.startswith("face kept whole") and person.bucket == (512, 512)
    assert cat.reason.startswith("no face found: what stands out") and cat.bucket == (608, 416)
    assert cat.warnings and cat.warnings[0].startswith("upscaled 1.4x")
