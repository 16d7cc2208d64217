"""What may spoil a training, found before it starts: broken files, poor photos, poor captions."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataset_tools.captions import missing_trigger, read_captions
from dataset_tools.crop import UPSCALE_WARNING
from dataset_tools.dataset import Dataset, ImageRecord, load_dataset
from dataset_tools.images import ImageError, open_image

FEW_IMAGES = 5
TWIN_BITS = 12
"""Of 256: near-duplicates differ in fewer bits of their difference hash."""
TWIN_COLOUR = 12.0
"""And in less than this on average over an 8 × 8 thumbnail, of 255."""
SHARPNESS_SIDE = 512
BLURRY = 40.0
"""Least variance of the Laplacian in the sharpest sixteenth of a photo 512 pixels wide."""


@dataclass(frozen=True)
class Finding:
    """One thing to know about a dataset."""

    level: Literal["error", "warning", "hint"]
    """error: cannot train; warning: will train worse; hint: worth a thought."""
    id: str | None
    """of the picture, None for the dataset as a whole."""
    sentence: str
    remedy: str


@dataclass(frozen=True)
class _Look:
    """What the comparison of pictures needs of one."""

    record: ImageRecord
    hash_bits: NDArray[np.bool_]
    colours: NDArray[np.float64]


def check_project(root: Path, progress: Callable[[int, int, str], None] | None = None) -> list[Finding]:
    """Everything worth telling about a project's enabled pictures, errors first."""
    dataset = load_dataset(root)
    records = dataset.enabled_images()
    if not records:
        return [Finding("error", None, "The dataset has no photos.", "Add some in the Photos step.")]
    findings: list[Finding] = []
    looks: list[_Look] = []
    for done, record in enumerate(records):
        if progress:
            progress(done, len(records), record.original_name)
        look = _check_file(root, record, findings)
        if look:
            looks.append(look)
    findings += _twins(looks)
    findings += _captions(root, dataset)
    findings += _buckets(records)
    if len(records) < FEW_IMAGES:
        findings.append(
            Finding(
                "hint",
                None,
                f"There are only {len(records)} photos.",
                "10 to 30 varied ones teach a subject better.",
            )
        )
    order = ("error", "warning", "hint")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def difference_hash(image: Image.Image) -> NDArray[np.bool_]:
    """256 bits, (16, 16): whether each cell of a 17 × 16 grey thumbnail is brighter than its neighbour."""
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    bits: NDArray[np.bool_] = grey[:, 1:] > grey[:, :-1]
    return bits


def sharpness(image: Image.Image) -> float:
    """The variance of the Laplacian in the sharpest sixteenth of a picture.

    Measured at no more than 512 pixels of the long side, so that it compares between sizes. One
    sharp part is enough: a blurred background is no fault.
    """
    scale = min(1.0, SHARPNESS_SIDE / max(image.size))
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.LANCZOS), dtype=np.float64)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    tiles = [
        tile for band in np.array_split(laplacian, 4, axis=0) for tile in np.array_split(band, 4, axis=1)
    ]
    return max(float(tile.var()) for tile in tiles if tile.size)


def _check_file(root: Path, record: ImageRecord, findings: list[Finding]) -> _Look | None:
    """Findings on one picture alone; None where it cannot be read."""
    name = record.original_name

    def add(level: Literal["error", "warning", "hint"], sentence: str, remedy: str) -> None:
        findings.append(Finding(level, record.id, sentence, remedy))

    path = root / record.file
    try:
        data = path.read_bytes()
        image = open_image(data, name).image
    except FileNotFoundError:
        add("error", f"The file of {name} is missing ({record.file}).", "Remove the photo and add it again.")
        return None
    except (ImageError, OSError) as error:
        add("error", str(error), "Remove the photo and add it again.")
        return None
    if hashlib.sha256(data).hexdigest() != record.sha256:
        add(
            "error",
            f"The file of {name} was changed outside the studio.",
            "Remove the photo and add it again.",
        )
    if record.crop is None or record.bucket is None:
        add("hint", f"{name} is not cropped yet.", "Open the Photos step.")
    else:
        width, height = record.crop[2] - record.crop[0], record.crop[3] - record.crop[1]
        enlarged = math.sqrt(record.bucket[0] * record.bucket[1] / (width * height))
        if enlarged > UPSCALE_WARNING:
            add(
                "warning",
                f"{name} is small: its crop of {width} × {height} pixels is enlarged {enlarged:.1f} times.",
                "Use a larger photo, or train at a lower resolution.",
            )
    if sharpness(image) < BLURRY:
        add("warning", f"{name} looks blurry.", "Leave it out, or use a sharper photo.")
    thumbnail = image.resize((8, 8), Image.Resampling.BOX)
    return _Look(record, difference_hash(image), np.asarray(thumbnail, dtype=np.float64))


def _twins(looks: list[_Look]) -> list[Finding]:
    """One warning for every picture that is nearly the same as an earlier one."""
    found = []
    for index, look in enumerate(looks):
        for earlier in looks[:index]:
            near = np.count_nonzero(look.hash_bits != earlier.hash_bits) < TWIN_BITS
            if near and np.abs(look.colours - earlier.colours).mean() < TWIN_COLOUR:
                sentence = (
                    f"{look.record.original_name} is nearly the same as {earlier.record.original_name}."
                )
                found.append(Finding("warning", look.record.id, sentence, "Keep the better one."))
                break
    return found


def _captions(root: Path, dataset: Dataset) -> list[Finding]:
    names = {record.id: record.original_name for record in dataset.enabled_images()}
    captions = {key: text for key, text in read_captions(root, dataset).items() if key in names}
    found = []
    for image_id, text in captions.items():
        if not text:
            remedy = "Describe what changes from photo to photo, such as the background."
            found.append(Finding("warning", image_id, f"{names[image_id]} has no caption.", remedy))
    if dataset.trigger:
        written = {key: text for key, text in captions.items() if text}
        for image_id in missing_trigger(written, dataset.trigger):
            sentence = f"The caption of {names[image_id]} lacks the trigger word {dataset.trigger!r}."
            found.append(Finding("warning", image_id, sentence, "Insert the trigger word."))
    else:
        remedy = "Choose a rare word that will call up your subject."
        found.append(Finding("warning", None, "There is no trigger word.", remedy))
    if len(captions) > 2 and len(set(captions.values())) == 1 and "" not in captions.values():
        sentence = "All captions are the same, so the model will bake the background into the trigger word."
        found.append(Finding("warning", None, sentence, "Name the background in each caption."))
    return found


def _buckets(records: tuple[ImageRecord, ...]) -> list[Finding]:
    """A bucket with a single picture makes batches of one."""
    counts = Counter(record.bucket for record in records if record.bucket)
    if len(records) < FEW_IMAGES or len(counts) < 2:
        return []
    found = []
    for record in records:
        if record.bucket and counts[record.bucket] == 1:
            size = f"{record.bucket[0]} × {record.bucket[1]}"
            sentence = (
                f"{record.original_name} is alone in its bucket {size}, so it trains in a batch of one."
            )
            found.append(Finding("hint", record.id, sentence, "Crop it like the others, or leave it so."))
    return found
