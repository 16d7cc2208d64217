"""The subject of a photo cut out without a model: GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004), by
OpenCV, told where to look by what a crop looks at: heads, else what stands out, else the middle.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset_tools.dataset import Size
from dataset_tools.detect import (
    DetectorUnavailable,
    FaceDetector,
    FloatBox,
    Subject,
    find_subject,
    head_box,
    missing_library,
)
from dataset_tools.models import FACE_MODEL_FILE
from trainer.contract.errors import RunError

SIDE = 384
"""Pixels of the longer side that is cut at; the edge is then as wide as a pixel of this size."""
ROUNDS = 4
RIM = 0.02
"""The outermost share of the sides is background, where the subject is not thought to reach it."""
MIDDLE = 0.7
"""Share of the sides where the subject is looked for when nothing stands out, or nearly everything."""
CLEAR = 0.5
"""A box of what stands out is believed up to this share of the picture."""
MARGIN = 0.15
"""By so much of its sides that box is grown: what is left outside of it counts as background."""
SMALL_PART = 0.1
"""Parts smaller than this share of the largest are specks."""

Codes = NDArray[np.uint8]

_cv2_lock = threading.Lock()


class Cutter:
    """Cuts subjects out of RGB pictures. Faces are looked for only where ``models_dir`` holds the face model
    already: nothing is fetched. A context manager, since the detector has to be closed.

    Raises RunError(config) where OpenCV cannot be loaded.
    """

    def __init__(self, models_dir: Path) -> None:
        try:
            import cv2
        except (ImportError, OSError) as error:
            raise RunError(
                f"Masks without a model need OpenCV: {missing_library(error).rstrip('.')}", "config"
            ) from None
        self.cv2: Any = cv2
        self.detector: FaceDetector | None = None
        model = models_dir / FACE_MODEL_FILE
        if model.is_file():
            with suppress(DetectorUnavailable):  # what stands out is found without
                self.detector = FaceDetector(model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.detector:
            self.detector.close()

    def __call__(self, image: Image.Image) -> Image.Image:
        """The mask of a picture, grey, of its size; all black where nothing is found."""
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        found = find_subject(image, self.detector)
        scale = small.width / image.width
        seed = _seed(found, scale, small.size)
        cut = self._grab(np.asarray(small)[..., ::-1], seed)
        mask = Image.fromarray(self._cleaned(cut) * np.uint8(255))
        return mask.resize(image.size, Image.Resampling.BILINEAR)

    def _grab(self, pixels_HWC: Codes, seed_HW: Codes) -> Codes:
        """1 where the subject is, (H, W)."""
        cv2, cut = self.cv2, seed_HW.copy()
        likely = np.isin(seed_HW, (cv2.GC_FGD, cv2.GC_PR_FGD))
        if likely.all() or not likely.any():
            return np.zeros_like(cut)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        try:
            with _cv2_lock:
                cv2.setRNGSeed(0)  # its clusters begin by lot
                cv2.grabCut(
                    np.ascontiguousarray(pixels_HWC), cut, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK
                )
        except cv2.error as error:  # it has a base of its own
            raise RuntimeError(f"it could not be cut out ({str(error).strip().splitlines()[-1]})") from error
        return np.isin(cut, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)

    def _cleaned(self, cut_HW: Codes) -> Codes:
        """Without threads, specks and holes."""
        cv2 = self.cv2
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
        smooth = cv2.morphologyEx(cv2.morphologyEx(cut_HW, cv2.MORPH_OPEN, disc), cv2.MORPH_CLOSE, disc)
        count, labels, parts, _ = cv2.connectedComponentsWithStats(smooth, connectivity=8)
        if count < 2:
            return np.zeros_like(cut_HW)
        areas = parts[:, cv2.CC_STAT_AREA].copy()
        areas[0] = 0  # the background
        kept = np.isin(labels, np.flatnonzero(areas >= SMALL_PART * areas.max())).astype(np.uint8)
        around = np.pad(1 - kept, 1, constant_values=1)
        _, outside = cv2.connectedComponents(around, connectivity=4)
        filled: Codes = (outside != outside[0, 0])[1:-1, 1:-1].astype(np.uint8)
        return filled


def _seed(subject: Subject, scale: float, size: Size) -> Codes:
    """What GrabCut begins with, (H, W): 0 background, 1 subject, 2 likely background, 3 likely subject."""
    width, height = size
    seed: Codes = np.full((height, width), 2, dtype=np.uint8)
    for face in subject.faces:
        left, top, right, bottom = (at * scale for at in face)
        wide = right - left
        _fill(seed, (left - wide, bottom, right + wide, height), 3)  # the body below
        _fill(seed, head_box((left, top, right, bottom), size), 3)
        _fill(seed, (left, top, right, bottom), 1)
    touched = [False, False, False, True]  # a body is often cut off below
    if not subject.faces:
        left, top, right, bottom = (at * scale for at in subject.box)
        box = _grown((left, top, right, bottom), size)
        _fill(seed, box, 3)
        touched = [box[0] <= 0, box[1] <= 0, box[2] >= width, box[3] >= height]
    x, y = max(1, round(RIM * width)), max(1, round(RIM * height))
    views = (seed[:, :x], seed[:y], seed[:, -x:], seed[-y:])
    for rim, reached in zip(views, touched, strict=True):
        if not reached:
            rim[rim != 1] = 0
    return seed


def _grown(box: FloatBox, size: Size) -> FloatBox:
    """Where the subject is looked for: the box and what is near it; the middle where the box is no help."""
    (left, top, right, bottom), (width, height) = box, size
    if (right - left) * (bottom - top) > CLEAR * width * height:
        x, y = (1 - MIDDLE) / 2 * width, (1 - MIDDLE) / 2 * height
        return x, y, width - x, height - y
    x, y = MARGIN * (right - left), MARGIN * (bottom - top)
    return left - x, top - y, right + x, bottom + y


def _fill(seed_HW: Codes, box: FloatBox, value: int) -> None:
    left, top, right, bottom = (max(0, round(at)) for at in box)
    seed_HW[top:bottom, left:right] = value
