"""Where the subject of a picture is: a face, else what is most salient, else the centre.

Faces: MediaPipe Tasks with the full-range BlazeFace model. Saliency: the spectral residual (Hou and
Zhang, CVPR 2007), by OpenCV, or by numpy where OpenCV cannot be loaded.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.contract.errors import UserError

log = logging.getLogger(__name__)

FloatBox = tuple[float, float, float, float]
"""left, top, right, bottom in pixels."""

SEARCH_SIDE = 1536
"""Pixels of the long side that faces are looked for at; the model itself sees 192 × 192."""
FACE_SCORE = 0.5
SURE_SCORE = 0.75
"""A face seen in the whole picture with this score is believed; others are looked at again, closer."""
CLOSER_SCORE = 0.6
"""Least mean score of the two closer looks (2.5 and 4 face widths): patterns seldom pass both."""
TILE_LEVELS = (2, 4)
"""Where the whole picture shows no face, tiles of 1/2, then 1/4 of its sides are searched."""
SALIENCY_GRID = 32
SALIENCY_MASS = 0.85
"""The subject is the smallest box that holds this share of the saliency above average."""
CLEAR_SUBJECT_AREA = 0.75
"""A salient box larger than this share of the picture says nothing: there is no clear subject."""

_DEBIAN_PACKAGES = {
    "libEGL": "libegl1",
    "libGLESv2": "libgles2",
    "libGL.": "libgl1",
    "libgthread": "libglib2.0-0",
}
_stderr_lock = threading.Lock()


class DetectorUnavailable(UserError):
    """Faces cannot be looked for; the sentence says what is missing. Saliency goes on without."""


@dataclass(frozen=True)
class Subject:
    """What a crop should keep."""

    box: FloatBox
    """pixels; for faces the heads, that is the face boxes with room for hair and chin."""
    kind: Literal["face", "saliency", "centre"]
    score: float
    """confidence in [0, 1]."""
    faces: tuple[FloatBox, ...] = ()
    """every face that counts, the largest first."""
    looked_for_faces: bool = True


class FaceDetector:
    """Finds faces in RGB pictures. A context manager; :meth:`close` frees the native graph.

    Raises :class:`DetectorUnavailable` when mediapipe or a system library is missing or the model
    cannot be loaded.
    """

    def __init__(self, model: Path) -> None:
        os.environ.setdefault("GLOG_minloglevel", "2")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            with _quiet_stderr():
                import mediapipe
                from mediapipe.tasks.python import BaseOptions, vision

                self._mediapipe: Any = mediapipe
                self._detector: Any = vision.FaceDetector.create_from_options(
                    vision.FaceDetectorOptions(
                        base_options=BaseOptions(model_asset_path=str(model)),
                        min_detection_confidence=FACE_SCORE,
                    )
                )
        except (ImportError, OSError) as error:
            raise DetectorUnavailable(f"Faces cannot be looked for: {missing_library(error)}") from error
        except (RuntimeError, ValueError) as error:
            raise DetectorUnavailable(
                f"Faces cannot be looked for: {model.name} does not load; delete it to fetch it again."
            ) from error

    def __enter__(self) -> FaceDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the detector. Further calls do nothing."""
        detector, self._detector = self._detector, None
        if detector is not None:
            with _quiet_stderr():
                detector.close()

    def find(self, image: Image.Image) -> list[tuple[FloatBox, float]]:
        """(box in pixels of ``image``, score) of every face, the largest first.

        Where the whole picture shows none, overlapping tiles are searched; that finds faces down
        to about a fiftieth of the picture's width.
        """
        small = image.convert("RGB")
        small.thumbnail((SEARCH_SIDE, SEARCH_SIDE), Image.Resampling.BOX)
        scale = small.width / image.width
        seen = self._detect(small)
        found = [face for face in seen if face[1] >= SURE_SCORE or self._is_face_closer(small, face[0])]
        for level in TILE_LEVELS:
            if found:
                break
            seen = [face for tile in _tiles(*small.size, level) for face in self._detect(small, tile)]
            found = [face for face in _without_overlaps(seen) if self._is_face_closer(small, face[0])]
        faces = [((b[0] / scale, b[1] / scale, b[2] / scale, b[3] / scale), score) for b, score in found]
        return sorted(faces, key=lambda face: -_area(face[0]))

    def _is_face_closer(self, image: Image.Image, face: FloatBox) -> bool:
        """Whether what looked like a face still does, seen larger and with two framings."""
        scores = []
        for widths in (2.5, 4.0):
            half = widths / 2 * max(face[2] - face[0], face[3] - face[1])
            x, y = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
            window = (
                max(0, int(x - half)),
                max(0, int(y - half)),
                min(image.width, int(x + half)),
                min(image.height, int(y + half)),
            )
            view = image.crop(window)
            closer = view.resize((384, max(1, 384 * view.height // view.width)), Image.Resampling.BICUBIC)
            scores.append(max((score for _, score in self._detect(closer)), default=0.0))
        return sum(scores) / len(scores) >= CLOSER_SCORE

    def _detect(
        self, image: Image.Image, window: tuple[int, int, int, int] | None = None
    ) -> list[tuple[FloatBox, float]]:
        """Faces of an RGB picture or of a window of it, in pixels of the whole."""
        left, top = window[:2] if window else (0, 0)
        pixels_HWC = np.ascontiguousarray(np.asarray(image.crop(window) if window else image))
        frame = self._mediapipe.Image(image_format=self._mediapipe.ImageFormat.SRGB, data=pixels_HWC)
        with _quiet_stderr():
            detections = self._detector.detect(frame).detections
        found: list[tuple[FloatBox, float]] = []
        for detection in detections:
            box = detection.bounding_box
            x, y = float(left + box.origin_x), float(top + box.origin_y)
            found.append(((x, y, x + box.width, y + box.height), float(detection.categories[0].score)))
        return found


def find_subject(image: Image.Image, detector: FaceDetector | None) -> Subject:
    """The subject of an upright RGB picture. Without a detector, faces are not looked for."""
    faces = detector.find(image) if detector else []
    if faces:
        largest = faces[0][0]
        # People far behind are background: their faces are less than a third as wide.
        boxes = [box for box, _ in faces if (box[2] - box[0]) * 3 >= largest[2] - largest[0]]
        heads = [head_box(box, image.size) for box in boxes]
        union = (
            min(b[0] for b in heads),
            min(b[1] for b in heads),
            max(b[2] for b in heads),
            max(b[3] for b in heads),
        )
        return Subject(union, "face", faces[0][1], tuple(boxes))
    salient = saliency_box(image)
    if salient:
        return Subject(salient[0], "saliency", salient[1], (), detector is not None)
    width, height = image.size
    return Subject((0.0, 0.0, float(width), float(height)), "centre", 0.0, (), detector is not None)


def head_box(face: FloatBox, size: tuple[int, int]) -> FloatBox:
    """A face box (brows to chin) with room for hair, ears and neck, inside the picture."""
    left, top, right, bottom = face
    width, height = right - left, bottom - top
    return (
        max(0.0, left - 0.25 * width),
        max(0.0, top - 0.5 * height),
        min(float(size[0]), right + 0.25 * width),
        min(float(size[1]), bottom + 0.25 * height),
    )


def saliency_box(image: Image.Image) -> tuple[FloatBox, float] | None:
    """(box in pixels, score in [0, 1]) of what stands out; None where nothing does."""
    saliency = saliency_map(image)
    # What stands at the rim is more often clutter than subject.
    axis = np.linspace(-1, 1, SALIENCY_GRID)
    near_centre = np.exp(-0.7 * (axis[:, None] ** 2 + axis[None, :] ** 2))
    mass = np.maximum(saliency - saliency.mean(), 0) * near_centre
    if mass.sum() <= 0:
        return None
    left, top, right, bottom = _smallest_box(mass, SALIENCY_MASS)
    area = (right - left) * (bottom - top) / SALIENCY_GRID**2
    if area > CLEAR_SUBJECT_AREA:
        return None
    sx, sy = image.width / SALIENCY_GRID, image.height / SALIENCY_GRID
    # A cell more on each side: the limbs of a subject stand out less than its middle.
    left, top = max(0, left - 1), max(0, top - 1)
    right, bottom = min(SALIENCY_GRID, right + 1), min(SALIENCY_GRID, bottom + 1)
    return (left * sx, top * sy, right * sx, bottom * sy), 1 - area


def saliency_map(image: Image.Image) -> NDArray[np.float64]:
    """The smoothed spectral residual of a picture, (32, 32), zero for an even one."""
    grey = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX))
    if grey.std() < 2:
        return np.zeros((SALIENCY_GRID, SALIENCY_GRID))
    try:
        import cv2

        module: Any = cv2.saliency
        _, raw = module.StaticSaliencySpectralResidual_create().computeSaliency(grey)
        residual = np.asarray(raw, dtype=np.float64)
    except (ImportError, OSError, AttributeError) as error:
        log.debug("saliency by numpy: %s", missing_library(error))
        residual = spectral_residual(grey.astype(np.float64))
    cells = np.sqrt(np.maximum(_smooth(residual, sigma=2.5), 0))  # The root keeps one glint from winning.
    pooled: NDArray[np.float64] = cells.reshape(SALIENCY_GRID, 2, SALIENCY_GRID, 2).mean(axis=(1, 3))
    return pooled


def spectral_residual(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Saliency (H, W) of a grey picture (H, W): what its log spectrum has beyond its own 3 × 3 mean."""
    spectrum = np.fft.fft2(grey)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9)
    padded = np.pad(log_amplitude, 1, mode="wrap")
    height, width = grey.shape
    mean = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3)) / 9
    residual = np.exp(log_amplitude - mean + 1j * np.angle(spectrum))
    saliency: NDArray[np.float64] = np.abs(np.fft.ifft2(residual)) ** 2
    return saliency


def missing_library(error: BaseException) -> str:
    """A sentence for a failed import, naming the Debian package of a missing system library."""
    text = str(error)
    for library, package in _DEBIAN_PACKAGES.items():
        if library in text:
            name = library.rstrip(".")
            return f"the system library {name} is missing; install it with: apt-get install {package}."
    return f"{text.splitlines()[0] if text else type(error).__name__}; reinstall the requirements."


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what native code writes to file descriptor 2 to nowhere.

    The descriptor belongs to the process, so this is held as briefly as possible and by one thread.
    """
    with _stderr_lock:
        saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)


def _tiles(width: int, height: int, level: int) -> Iterator[tuple[int, int, int, int]]:
    """Tiles of 1/level of the sides, each overlapping its neighbours by half."""
    for row in range(2 * level - 1):
        for column in range(2 * level - 1):
            left, top = column * width // (2 * level), row * height // (2 * level)
            yield left, top, left + width // level, top + height // level


def _without_overlaps(faces: list[tuple[FloatBox, float]]) -> list[tuple[FloatBox, float]]:
    """The surest of each group of boxes that overlap by more than three tenths of the smaller one."""
    kept: list[tuple[FloatBox, float]] = []
    for box, score in sorted(faces, key=lambda face: -face[1]):
        if all(_overlap(box, other) <= 0.3 * min(_area(box), _area(other)) for other, _ in kept):
            kept.append((box, score))
    return kept


def _area(box: FloatBox) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _overlap(a: FloatBox, b: FloatBox) -> float:
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _smooth(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Gaussian blur of (H, W) that mirrors at the rim."""
    height, width = values.shape
    mirrored = np.pad(values, ((0, height), (0, width)), mode="symmetric")
    fy = np.fft.fftfreq(2 * height)[:, None]
    fx = np.fft.fftfreq(2 * width)[None, :]
    kernel = np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    blurred: NDArray[np.float64] = np.fft.ifft2(np.fft.fft2(mirrored) * kernel).real[:height, :width]
    return blurred


def _smallest_box(mass: NDArray[np.float64], share: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in cells of the smallest rectangle with ``share`` of the mass."""
    rows, columns = mass.shape
    table = np.zeros((rows + 1, columns + 1))
    table[1:, 1:] = mass.cumsum(0).cumsum(1)
    tops, bottoms = np.triu_indices(rows + 1, k=1)
    lefts, rights = np.triu_indices(columns + 1, k=1)
    bands = table[bottoms] - table[tops]  # (row pairs, columns + 1)
    inside = bands[:, rights] - bands[:, lefts]  # (row pairs, column pairs)
    areas = (bottoms - tops)[:, None] * (rights - lefts)[None, :]
    # Of equally small boxes, the one that holds most.
    cost = np.where(inside >= share * table[-1, -1], areas - inside / table[-1, -1], np.inf)
    row, column = np.unravel_index(int(cost.argmin()), cost.shape)
    return int(lefts[column]), int(tops[row]), int(rights[column]), int(bottoms[row])
