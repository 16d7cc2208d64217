"""Which part of a picture is trained on, and at which size: chosen by content, explained in words.

The crop is a box in ``dataset.json``; the picture on disk is never cut. :func:`render_crop` makes
both the training crop and the preview, so what is shown is what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dataset_tools.buckets import Buckets
from dataset_tools.dataset import (
    Box,
    Dataset,
    DatasetError,
    ImageRecord,
    Size,
    load_dataset,
    update_dataset,
)
from dataset_tools.images import open_image
from dataset_tools.models import ensure_face_model

if TYPE_CHECKING:  # it brings numpy, which a check of a recipe can do without
    from dataset_tools.detect import FaceDetector, FloatBox, Subject

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""

CUT_WEIGHT = {"face": 8.0, "saliency": 1.5, "centre": 0.0}
"""Cost of cutting the whole subject, against 1 for losing the whole picture."""
UPSCALE_WEIGHT = 0.25
"""Cost of enlarging twofold."""
UPSCALE_WARNING = 1.25


@dataclass(frozen=True)
class Crop:
    """A box of a picture and the bucket that it is resized to."""

    bucket: Size
    box: Box
    reason: str
    warnings: tuple[str, ...] = ()


def choose_crop(width: int, height: int, subject: Subject, buckets: Sequence[Size]) -> Crop:
    """The best crop of a ``width`` × ``height`` picture among the buckets.

    Each bucket's largest box is tried centred on the subject and on each face. The cost of a box is
    the share of the subject that it cuts (faces weigh most), plus the share of the picture that it
    loses, plus how far it has to be enlarged. A pure function; ties go to the earlier bucket.
    """
    centres = [_centre(subject.box), *(_centre(face) for face in subject.faces)]
    candidates = [
        (bucket, largest_box(width, height, bucket, centre)) for bucket in buckets for centre in centres
    ]

    def cost(candidate: tuple[Size, Box]) -> float:
        bucket, box = candidate
        cut = CUT_WEIGHT[subject.kind] * cut_share(subject.box, box)
        if subject.faces:
            # On average, so that of two people who do not both fit one is kept and not half of each.
            cut += (
                CUT_WEIGHT["face"] * sum(cut_share(face, box) for face in subject.faces) / len(subject.faces)
            )
        lost = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (width * height)
        return cut + lost + UPSCALE_WEIGHT * max(0.0, math.log2(_enlargement(box, bucket)))

    bucket, box = min(candidates, key=cost)
    return Crop(bucket, box, _reason(width, height, subject, box), _warnings(subject, box, bucket))


def largest_box(width: int, height: int, bucket: Size, centre: tuple[float, float]) -> Box:
    """The largest box of the bucket's aspect inside the picture, as near to ``centre`` as it goes.

    Its sides are whole pixels, so its aspect is exact to within one pixel.
    """
    bucket_width, bucket_height = bucket
    if width * bucket_height > height * bucket_width:
        box_width, box_height = max(1, round(height * bucket_width / bucket_height)), height
    else:
        box_width, box_height = width, max(1, round(width * bucket_height / bucket_width))
    left = min(max(0, round(centre[0] - box_width / 2)), width - box_width)
    top = min(max(0, round(centre[1] - box_height / 2)), height - box_height)
    return left, top, left + box_width, top + box_height


def fit_to_buckets(record: ImageRecord, buckets: Buckets) -> tuple[Size, Box]:
    """(bucket, box) of a cropped picture among other buckets than those it was cropped for.

    The bucket of the nearest aspect, and the largest box of its aspect inside the chosen crop; a crop that
    has this aspect already is kept to the pixel. Raises :class:`DatasetError` when the picture is not
    cropped yet.
    """
    if record.crop is None:
        raise DatasetError(f"{record.original_name} is not cropped yet; open the Photos step once.")
    left, top, right, bottom = record.crop
    width, height = right - left, bottom - top
    # A small crop's own aspect is a pixel off its bucket's; with "no_upscale" the bucket is no larger.
    wanted = record.bucket if record.bucket and buckets.list != "no_upscale" else (width, height)
    bucket = buckets.nearest(*wanted)
    if abs(width - height * bucket[0] / bucket[1]) <= 1 or abs(height - width * bucket[1] / bucket[0]) <= 1:
        return bucket, record.crop
    inner = largest_box(width, height, bucket, (width / 2, height / 2))
    return bucket, (left + inner[0], top + inner[1], left + inner[2], top + inner[3])


BARELY = 1.02
"""Enlargement that is a pixel of rounding, or two."""


def shown_at(record: ImageRecord, several: Sequence[Buckets]) -> tuple[tuple[Size, Box, int], ...]:
    """(bucket, box, how often) of a cropped picture that is shown at each of several resolutions, the largest
    first. It is not enlarged for that, as in ai-toolkit: where its crop is too small for one of them, it is
    shown once more at the next smaller one. At a single one it is shown as it is, and at the smallest.
    """
    fits = [fit_to_buckets(record, buckets) for buckets in several]
    times: dict[tuple[Size, Box], int] = {}
    for number in range(len(fits)):
        reached = (fit for fit in fits[number:] if _enlargement(fit[1], fit[0]) <= BARELY)
        fit = next(reached, fits[-1])
        times[fit] = times.get(fit, 0) + 1
    return tuple((bucket, box, count) for (bucket, box), count in times.items())


def render_crop(image: Image.Image, box: Box, bucket: Size) -> Image.Image:
    """The box of an upright picture, resized to exactly the bucket, RGB.

    Trainers that resize by OpenCV switch between area (shrinking) and Lanczos (enlarging), because
    OpenCV's Lanczos aliases when it shrinks. Pillow's widens its window with the scale, so one
    filter does both, and needs no system library.
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image.resize(bucket, Image.Resampling.LANCZOS, box=box)


def with_whole_pictures(dataset: Dataset, buckets: Buckets) -> Dataset:
    """The dataset with pictures that are not cropped, and of a bucket's very size, taken whole: no subject
    has to be looked for. Drawn class pictures are such."""
    taken = []
    for record in dataset.images:
        size = record.width, record.height
        if (record.crop is None or record.bucket is None) and size in buckets.sizes(*size):
            changes = {"bucket": size, "crop": (0, 0, *size), "reason": "of a bucket's size; nothing is cut"}
            taken.append(record.model_copy(update=changes))
    return dataset.with_record(*taken)


def crop_dataset(
    root: Path,
    dataset: Dataset,
    buckets: Buckets,
    *,
    models_dir: Path | None = None,
    only: Collection[str] | None = None,
    detector: FaceDetector | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Dataset:
    """The dataset with bucket, crop, reason and warnings chosen for every picture, or those in ``only``.

    Faces are looked for with ``detector``, else with one opened from ``models_dir``; with neither,
    by saliency alone. ``notify`` gets one sentence where faces cannot be looked for. Nothing is
    saved. Raises :class:`~dataset_tools.images.ImageError` for a picture that cannot be read.
    """
    from dataset_tools.detect import find_subject

    wanted = [record for record in dataset.images if only is None or record.id in only]
    cropped: list[ImageRecord] = []
    with ExitStack() as stack:
        if detector is None and models_dir is not None and wanted:
            detector = _open_detector(models_dir, progress, notify)
            if detector is not None:
                stack.enter_context(detector)
        for done, record in enumerate(wanted):
            if progress:
                progress(done, len(wanted), record.original_name)
            image = open_image(root / record.file, record.original_name).image
            crop = choose_crop(*image.size, find_subject(image, detector), buckets.sizes(*image.size))
            changes = {
                "bucket": crop.bucket,
                "crop": crop.box,
                "reason": crop.reason,
                "warnings": crop.warnings,
            }
            cropped.append(record.model_copy(update=changes))
    if progress and wanted:
        progress(len(wanted), len(wanted), "cropped")
    return dataset.with_record(*cropped)


SAVED_AT_ONCE = 8


def crop_project(
    root: Path,
    buckets: Buckets = Buckets(),  # noqa: B008 (frozen)
    *,
    models_dir: Path | None = None,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Dataset:
    """Crop a project's pictures and save, a few at a time: frames appear while the rest is looked at,
    and a crash costs little. What else changed meanwhile is kept.

    By default only those without a crop, so that crops already made stay; ``only`` names others.
    """
    dataset = load_dataset(root)
    buckets.sizes(1024, 1024)  # a resolution that cannot be is told even where nothing is to be cropped
    wanted = [
        record for record in dataset.images if (record.crop is None if only is None else record.id in only)
    ]
    with ExitStack() as stack:
        detector = _open_detector(models_dir, progress, notify) if models_dir and wanted else None
        if detector is not None:
            stack.enter_context(detector)
        for start in range(0, len(wanted), SAVED_AT_ONCE):
            some = {record.id for record in wanted[start : start + SAVED_AT_ONCE]}

            def tell(done: int, total: int, text: str, before: int = start) -> None:
                if progress:
                    progress(before + done, len(wanted), text)

            cropped = crop_dataset(root, dataset, buckets, only=some, detector=detector, progress=tell)
            _save_crops(root, [record for record in cropped.images if record.id in some])
    return load_dataset(root)


def _save_crops(root: Path, cropped: Iterable[ImageRecord]) -> None:
    """Put the crops of these records into the project as it is now."""
    changed = {record.id: record for record in cropped}

    def merge(current: Dataset) -> Dataset:
        fields = ("bucket", "crop", "reason", "warnings")
        return current.with_record(
            *(
                record.model_copy(update={name: getattr(changed[record.id], name) for name in fields})
                for record in current.images
                if record.id in changed
            )
        )

    update_dataset(root, merge)


def cut_share(subject: FloatBox, box: Box) -> float:
    """The share of the subject's area that lies outside the box, in [0, 1]."""
    left, top, right, bottom = subject
    area = (right - left) * (bottom - top)
    if area <= 0:
        return 0.0
    kept_width = max(0.0, min(right, box[2]) - max(left, box[0]))
    kept_height = max(0.0, min(bottom, box[3]) - max(top, box[1]))
    return max(0.0, 1 - kept_width * kept_height / area)


def _open_detector(
    models_dir: Path, progress: Progress | None, notify: Callable[[str], None] | None
) -> FaceDetector | None:
    """The face detector, or None after telling why there is none."""
    from dataset_tools.detect import DetectorUnavailable, FaceDetector

    model = ensure_face_model(models_dir, progress=progress, notify=notify)
    if model is None:
        return None
    try:
        return FaceDetector(model)
    except DetectorUnavailable as error:
        if notify:
            notify(f"{error} Crops follow what stands out instead.")
        return None


def _centre(box: FloatBox) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _enlargement(box: Box, bucket: Size) -> float:
    """How many bucket pixels one picture pixel becomes, along a side."""
    return math.sqrt(bucket[0] * bucket[1] / ((box[2] - box[0]) * (box[3] - box[1])))


def _percent(share: float) -> int:
    """Whole percent, at least 1: what is a little is not nothing."""
    return max(1, round(100 * share))


def _reason(width: int, height: int, subject: Subject, box: Box) -> str:
    """Why this crop, e.g. "face kept whole; 6 % of the photo is cut"."""
    cut = cut_share(subject.box, box)
    lost = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (width * height)
    loss = f"{_percent(lost)} % of the photo is cut" if lost > 0.002 else "nothing is cut"
    none_found = "no face found" if subject.looked_for_faces else "faces were not looked for"
    if subject.kind == "face":
        whole = [face for face in subject.faces if cut_share(face, box) < 0.005]
        many = len(subject.faces)
        if len(whole) == many:
            what = "face kept whole" if many == 1 else f"{many} faces kept whole"
        elif many == 1:
            what = f"{_percent(cut_share(subject.faces[0], box))} % of the face does not fit"
        else:
            what = f"{len(whole)} of {many} faces kept whole"
    elif subject.kind == "saliency":
        kept = "is kept whole" if cut < 0.005 else f"is centred, {_percent(cut)} % of it does not fit"
        what = f"{none_found}: what stands out {kept}"
    else:
        what = f"{none_found} and nothing stands out: cropped at the centre"
    return f"{what}; {loss}"


def _warnings(subject: Subject, box: Box, bucket: Size) -> tuple[str, ...]:
    found = []
    if subject.kind == "face" and any(cut_share(face, box) >= 0.005 for face in subject.faces):
        found.append("face cut")
    enlargement = _enlargement(box, bucket)
    if enlargement > UPSCALE_WARNING:
        found.append(f"upscaled {enlargement:.1f}x: a larger photo would train sharper")
    return tuple(found)
