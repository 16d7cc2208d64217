"""Which pictures a step sees, and everything random about them.

Nothing here has state. The order of an epoch and the noise, timestep, flip and caption choice of a
sample are functions of (seed, epoch, image id, repeat), so a resumed run needs to know only its step,
and several processes agree without talking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dataset_tools.augment import View, variant
from dataset_tools.buckets import Buckets
from dataset_tools.concepts import Concept, concepts_of
from dataset_tools.crop import crop_dataset, shown_at, with_whole_pictures
from dataset_tools.dataset import DatasetError
from dataset_tools.folder import load_photos
from dataset_tools.models import ensure_face_model

from .concepts import TrainImage, apart, balanced, held_out_in_words, id_at, id_in
from .contract.config import TrainConfig
from .contract.files import read_json, seen_from, write_json
from .contract.held_out import held_out
from .contract.randomness import derived_seed
from .contract.runs import RunFolder
from .contract.settings.dataset import DatasetSettings, all_resolutions, is_varied, variants_of
from .contract.settings.validation import ValidationSettings
from .contract.sizes import rounded
from .contract.steps import batches_per_epoch
from .families.base import ModelFamily
from .masks import with_masks

Progress = Callable[[int, int], None]
"""done, total"""
Stages = Callable[[str, str], Progress]
"""A stage's name and its words for the page -> where its progress goes."""


def _unwatched(stage: str, text: str) -> Progress:
    return lambda done, total: None


def _unheard(sentence: str) -> None:
    pass


class Frozen(NamedTuple):
    """The pictures of one folder, and the trigger word that holds for them."""

    trigger: str
    images: tuple[TrainImage, ...]


def freeze_dataset(
    root: Path,
    settings: DatasetSettings,
    buckets: Buckets,
    models: Path,
    stages: Stages = _unwatched,
    notify: Callable[[str], None] = _unheard,
    beside: Path = Path(),
    validation: ValidationSettings = ValidationSettings(),  # noqa: B008 (frozen)
) -> tuple[TrainImage, ...]:
    """The pictures of a recipe as this run will see them: cropped to ``buckets``, with captions; last those
    that are held out.

    ``root`` is the folder of dataset.path; those of dataset.subsets and validation.path are looked up in
    ``beside``. ``notify`` is told what was left out, and where there is no face detector. Raises DatasetError
    when there is nothing to train on.
    """
    images: list[TrainImage] = []
    for place, concept in enumerate(concepts_of(settings, validation, root, beside)):
        number = -1 if concept.held_share == 1 else place  # the same beside any number of subsets
        frozen = freeze_folder(concept, buckets, models, stages, notify)
        shared = {
            "folder": seen_from(root, concept.folder) if number else "",
            "trigger": frozen.trigger or ("" if concept.regularisation or not images else images[0].trigger),
            "own": concept.own,
        }
        chosen = held_out([image.sha256 for image in frozen.images], concept.held_share)
        measured_at = set[str]()
        for image in frozen.images:
            held = image.sha256 in chosen
            if held and image.file in measured_at:
                continue  # it is measured at the largest of its resolutions
            measured_at |= {image.file} if held else set()
            own = {
                "id": id_in(number, image.id),
                "caption": image.caption or shared["trigger"],
                "held_out": held,
            }
            images.append(image.model_copy(update=shared | own))
    trained, measured = apart(images)
    if sentence := held_out_in_words(validation, trained, measured):
        notify(sentence)
    taken = balanced(trained)
    if left := len(trained) - len(taken):
        notify(
            f"{left} regularisation picture{'s are' if left > 1 else ' is'} not used: the others are shown "
            f"{sum(image.repeats for image in taken if not image.regularisation)} times an epoch, and "
            "regularisation sets must not outweigh them"
        )
    return (*taken, *measured)


def freeze_folder(
    concept: Concept,
    buckets: Buckets,
    models: Path,
    stages: Stages = _unwatched,
    notify: Callable[[str], None] = _unheard,
) -> Frozen:
    """The pictures of one folder: a project (has dataset.json; its crops are kept) or a plain folder of
    pictures with sidecar captions (crops are chosen now, with the face detector in ``models``). One that is
    shown at several resolutions is several here, the largest first, which has its own id.

    A picture without a caption has "" here. Raises DatasetError when there is none to train on.
    """
    root = concept.folder
    if not root.is_dir():
        raise DatasetError(
            f"the folder {root} does not exist; check dataset.path, dataset.subsets, validation.path and "
            "prior.path"
        )
    photos = load_photos(root)
    for note in photos.notes:
        notify(note)
    several = buckets.at(concept.resolutions)
    dataset = with_whole_pictures(photos.dataset, several[0])
    uncropped = [record.id for record in dataset.images if record.crop is None or record.bucket is None]
    if uncropped:
        fetching, cropping = stages("detector", "Fetching the face detector (MB)"), stages("crop", "Cropping")
        ensure_face_model(
            models, progress=lambda done, total, _: fetching(done // 10**6, total // 10**6), notify=notify
        )
        dataset = crop_dataset(
            root,
            dataset,
            several[0],
            models_dir=models,
            only=uncropped,
            progress=lambda done, total, _: cropping(done, total),
            notify=notify,
        )
    images = []
    small = 0
    for record in dataset.enabled_images():
        looks = shown_at(record, several)
        small += len(looks) < len(several)
        for number, (bucket, crop, times) in enumerate(looks):
            fields = record.model_dump() | {
                "id": id_at(bucket, record.id) if number else record.id,
                "bucket": bucket,
                "crop": crop,
                "repeats": record.repeats * concept.repeats * times,
                "caption": photos.captions[record.id],
                "regularisation": concept.regularisation,
                "weight": concept.weight,
                "mask": photos.masks.get(record.id, ""),
            }
            images.append(TrainImage(**fields))
    if not images:
        raise DatasetError(f"there are no pictures to train on in {root}; add some, or include them again")
    if small:
        largest = several[0].resolution
        notify(
            f"{small} photo{'s are' if small > 1 else ' is'} too small for {largest} px without being "
            "enlarged, and shown at the next smaller size instead"
        )
    return Frozen(concept.trigger or dataset.trigger, tuple(images))


def save_frozen(path: Path, trigger: str, images: Sequence[TrainImage]) -> None:
    rows = [image.model_dump(mode="json") for image in images]
    write_json(path, {"version": 1, "time": int(time.time()), "trigger": trigger, "images": rows})


def load_frozen(path: Path) -> tuple[TrainImage, ...]:
    return tuple(TrainImage.model_validate(row) for row in read_json(path)["images"])


def frozen_at(path: Path) -> float | None:
    """When the pictures were frozen, Unix seconds: the date of the run's LoRA, however often it was resumed.
    None for runs that began before it was noted."""
    at = read_json(path).get("time")
    return float(at) if at is not None else None


def frozen_trigger(path: Path) -> str:
    """The trigger words of a run, one of each concept: "zwx cat, qrt dog"."""
    frozen = read_json(path)
    others = (image["trigger"] for image in frozen["images"] if not image["regularisation"])
    return ", ".join(dict.fromkeys(filter(None, (frozen["trigger"], *others))))


def photo_folder(run: RunFolder, config: TrainConfig) -> Path:
    """The folder of photos: the run's own where they came with it from its storage, else that of the frozen
    recipe, which names it relative to the run or absolutely."""
    return run.pictures if run.pictures.is_dir() else (run.path / config.dataset.path).resolve()


def frozen_images(
    run: RunFolder,
    config: TrainConfig,
    family: ModelFamily,
    models: Path,
    stages: Stages = _unwatched,
    notify: Callable[[str], None] = _unheard,
) -> tuple[TrainImage, ...]:
    """The run's pictures: frozen at its first start, the same ever after."""
    if not run.dataset.exists():
        root = photo_folder(run, config)
        multiple = family.row.size_multiple
        buckets = Buckets.of(config.dataset, family.resolution, multiple)
        for side in all_resolutions(config.dataset, family.resolution):
            if buckets.list == "standard" and (sentence := rounded(side, multiple)):
                notify(sentence)
        images = freeze_dataset(
            root, config.dataset, buckets, models, stages, notify, run.path, config.validation
        )
        project = root / "dataset.json"
        trigger = config.dataset.trigger or (read_json(project)["trigger"] if project.exists() else "")
        save_frozen(run.dataset, trigger, with_masks(images, config.loss, root, notify))
    return load_frozen(run.dataset)


# Randomness without state -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One look at one picture, in the run's batch number ``batch``."""

    image: TrainImage
    epoch: int
    repeat: int
    seed: int
    batch: int = 0

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh generator for one purpose ("noise", "t", "flip", …) of this sample, on the CPU."""
        seed = derived_seed(self.seed, self.epoch, self.image.id, self.repeat, purpose)
        return torch.Generator().manual_seed(seed)

    def uniform(self, purpose: str) -> float:
        """A number in [0, 1)."""
        return torch.rand((), generator=self.generator(purpose)).item()

    def view(self, settings: DatasetSettings) -> View:
        """Whether the picture is mirrored in this look, and which of its variants is shown."""
        number = int(self.uniform("variant") * variants_of(settings)) if is_varied(settings) else 0
        flip = self.image.own.flips(settings) and self.uniform("flip") < 0.5
        return View(flip, variant(self.image, number, settings))

    def noise_like(self, latents_CHW: Tensor) -> Tensor:
        return torch.randn(latents_CHW.shape, generator=self.generator("noise"))


class BatchPlan:
    """Batches of one bucket each; the last one of a bucket may be smaller, none is dropped.

    ``batch(i)`` is a pure function of i, the number of the batch since the start of the run.
    """

    def __init__(self, images: Sequence[TrainImage], batch_size: int, seed: int) -> None:
        self.images, self._batch_size, self._seed = tuple(images), batch_size, seed
        self._buckets: dict[tuple[int, int], list[tuple[TrainImage, int]]] = {}
        for image in images:
            assert image.bucket
            looks = [(image, repeat) for repeat in range(image.repeats)]
            self._buckets.setdefault(image.bucket, []).extend(looks)
        self.batches_per_epoch = batches_per_epoch(
            {bucket: len(looks) for bucket, looks in self._buckets.items()}, batch_size
        )
        self._epoch: tuple[int, list[list[Sample]]] | None = None

    def batch(self, index: int) -> list[Sample]:
        epoch, position = divmod(index, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._plan(epoch))
        return self._epoch[1][position]

    def step(self, step: int, accumulation: int) -> list[list[Sample]]:
        """The batches whose gradients make up one step."""
        return [self.batch(step * accumulation + micro) for micro in range(accumulation)]

    def _plan(self, epoch: int) -> list[list[Sample]]:
        batches: list[list[Sample]] = []
        for looks in self._buckets.values():
            samples = [Sample(image, epoch, repeat, self._seed) for image, repeat in looks]
            samples.sort(key=lambda s: derived_seed(self._seed, epoch, s.image.id, s.repeat, "order"))
            size = self._batch_size
            batches += [samples[start : start + size] for start in range(0, len(samples), size)]
        first = "batch order"
        batches.sort(key=lambda b: derived_seed(self._seed, epoch, b[0].image.id, b[0].repeat, first))
        start = epoch * self.batches_per_epoch
        return [[replace(one, batch=start + n) for one in batch] for n, batch in enumerate(batches)]
