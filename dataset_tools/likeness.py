"""How alike pictures are, without a neural network: colours where they are, and the run of edges.

Good enough to see a training converge on its photos and to notice a copied one; no judge of art. Pictures
of any size go in; every number is in [-1, 1] or [0, 1] and compares pictures of one run, not of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Vector = NDArray[np.float32]

GRID, CELL, ANGLES = 8, 8, 9
"""Cells a side, pixels a cell and directions of an edge, as in Dalal & Triggs 2005 (unsigned, 9 bins)."""
SIDE = GRID * CELL
THUMB = 24
"""Side of the pictures that are compared pixel by pixel."""


def descriptor(image: Image.Image) -> Vector:
    """Colours (mean of each cell) and edges (histogram of each cell's gradients), both of length 1."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels_HWC = np.asarray(small, dtype=np.float32) / np.float32(255)
    cells = pixels_HWC.reshape(GRID, CELL, GRID, CELL, 3)
    return np.concatenate([_unit(cells.mean(axis=(1, 3)).ravel() - 0.5), _unit(_edges(pixels_HWC))])


def _edges(pixels_HWC: Vector) -> Vector:
    grey = pixels_HWC @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    down, right = np.gradient(grey)
    size = np.hypot(down, right)
    angle = ((np.arctan2(down, right) % np.pi) / np.pi * ANGLES).astype(int) % ANGLES
    rows, columns = np.indices(grey.shape) // CELL
    histogram = np.zeros((GRID, GRID, ANGLES), dtype=np.float32)
    np.add.at(histogram, (rows, columns, angle), size)
    return np.sqrt(histogram).ravel()  # so that one strong edge does not drown the others


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-6 else vector


def likeness(image: Vector, photos: Sequence[Vector], nearest: int = 3) -> float:
    """Mean cosine similarity of a descriptor to the ``nearest`` of the photos', in [-1, 1]."""
    similar = sorted((float(image @ photo) / 2 for photo in photos), reverse=True)
    return float(np.mean(similar[:nearest])) if similar else 0.0


def thumbnail(image: Image.Image) -> Vector:
    """The picture as (THUMB, THUMB, 3), without its mean and of length 1, for :func:`copied_from`."""
    small = image.convert("RGB").resize((THUMB, THUMB), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32)
    return _unit(pixels - pixels.mean())


@dataclass(frozen=True)
class Copy:
    """The photo that a picture is nearest to: its index, and their correlation (1 is the same picture)."""

    photo: int
    score: float


def copied_from(image: Vector, photos: Sequence[Vector]) -> Copy:
    """The nearest photo by plain correlation of pixels, as it stands or mirrored."""
    scores = [max(float((image * p).sum()), float((image * p[:, ::-1]).sum())) for p in photos]
    if not scores:
        return Copy(-1, 0.0)
    best = int(np.argmax(scores))
    return Copy(best, scores[best])


def change(one: Image.Image, other: Image.Image) -> float:
    """Root mean squared difference of two pictures at SIDE pixels, in [0, 1]."""
    a, b = (
        np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32) / 255
        for image in (one, other)
    )
    return float(np.sqrt(np.mean((a - b) ** 2)))
