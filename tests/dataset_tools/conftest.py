"""Pictures for these tests: real photos that ship with scikit-image, and files made on the spot."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataset_tools import models
from dataset_tools.detect import DetectorUnavailable, FaceDetector
from dataset_tools.models import ensure_face_model


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of scikit-image's bundled photos."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image (the source of the real test photos) is not installed")
    return Path(spec.origin).parent / "data"


@pytest.fixture(scope="session")
def face_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The genuine face model, fetched as a user's first crop would fetch it."""
    path = ensure_face_model(tmp_path_factory.mktemp("models"))
    models._failed_at.clear()
    if path is None:
        pytest.skip("the face model cannot be fetched without a network")
    return path


@pytest.fixture(scope="session")
def detector(face_model: Path) -> Iterator[FaceDetector]:
    try:
        detector = FaceDetector(face_model)
    except DetectorUnavailable as error:
        pytest.skip(str(error))
    with detector:
        yield detector
