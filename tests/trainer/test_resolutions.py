"""Photos at several resolutions: each in its own buckets, never enlarged; such a run resumes exactly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dataset_tools.buckets import Buckets
from dataset_tools.concepts import concepts_of, survey
from tests.pictures import draw_sizes
from trainer.cache import pixels_of
from trainer.captions import Captions
from trainer.concepts import TrainImage, apart
from trainer.contract.length import batches_of
from trainer.contract.runs import RunFolder
from trainer.contract.settings.validation import ValidationSettings
from trainer.contract.steps import calculation
from trainer.data import BatchPlan, Sample, freeze_dataset, load_frozen

from .helpers import Script, recipe, train_here, weights_hash

SIDES = (128, 128, 80)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_sizes(tmp_path / "photos", SIDES)


def frozen(
    root: Path,
    told: list[str] | None = None,
    validation: ValidationSettings = ValidationSettings(),  # noqa: B008 (frozen)
    **dataset: Any,
) -> tuple[TrainImage, ...]:
    settings = recipe(Path("base"), root, dataset=dataset).dataset
    notify = (told if told is not None else []).append
    buckets = Buckets.of(settings, 64)
    return freeze_dataset(
        root, settings, buckets, root / "models", notify=notify, beside=root, validation=validation
    )


def looks(images: tuple[TrainImage, ...]) -> list[tuple[str, tuple[int, int], int]]:
    return [(image.original_name, image.bucket or (0, 0), image.repeats) for image in images]


def test_each_photo_is_shown_at_each_size_that_it_has(photos: Path) -> None:
    told: list[str] = []
    images = frozen(photos, told, resolution=64, more_resolutions=[96, 128], repeats=2)
    assert looks(images) == [
        *(
            (f"photo {number}.png", (side, side), 2)
            for number in range(2)
            for side in (128, 96, 64)  # the largest first, whichever is named the resolution
        ),
        ("photo 2.png", (64, 64), 6),  # as often as the others, and never enlarged
    ]
    assert told == [
        "1 photo is too small for 128 px without being enlarged, and shown at the next smaller size instead"
    ]
    assert len({image.id for image in images}) == len(images)
    assert [image.id for image in images if image.id.startswith("picture")] == [
        f"picture{number}" for number in range(3)
    ], "the first size keeps the picture's own"
    assert [pixels_of(photos, image).shape[1] for image in images[:3]] == [128, 96, 64]
    noise = [Sample(image, 0, 0, 7).noise_like(torch.zeros(4, 8, 8)) for image in images[:3]]
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[1], noise[2])


def test_at_a_single_size_photos_are_shown_as_before(photos: Path) -> None:
    assert looks(frozen(photos, resolution=128))[2] == ("photo 2.png", (128, 128), 1)
    own_size = frozen(photos, resolution=128, more_resolutions=64, buckets="no_upscale")
    assert looks(own_size)[-2:] == [("photo 2.png", (80, 80), 1), ("photo 2.png", (64, 64), 1)]


def test_folders_have_sizes_of_their_own(photos: Path, tmp_path: Path) -> None:
    for name in ("small", "both", "one"):
        draw_sizes(tmp_path / name, (128,))
    subsets = [
        "../small | resolution = 72",
        "../both | more_resolutions = 64, 96",
        "../one | more_resolutions =",
    ]
    images = frozen(photos, resolution=128, more_resolutions=64, subsets=subsets)
    sides = {
        name: [image.bucket[0] for image in images if image.folder == name and image.bucket]
        for name in ("", "../small", "../both", "../one")
    }
    assert sides == {
        "": [128, 64, 128, 64, 64],
        "../small": [72, 64],
        "../both": [128, 96, 64],
        "../one": [128],
    }


def test_what_is_held_out_is_measured_once_and_never_shown(photos: Path) -> None:
    held = ValidationSettings(every=5, share=0.3)
    trained, measured = apart(frozen(photos, validation=held, resolution=128, more_resolutions=64))
    assert len(measured) == 1 and not {one.file for one in trained} & {one.file for one in measured}


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_calculator_counts_what_is_trained(photos: Path, batch: int) -> None:
    dataset = {"resolution": 128, "more_resolutions": [64, 96], "repeats": 5}
    config = recipe(Path("base"), photos, dataset=dataset, train={"batch_size": batch, "epochs": 2})
    buckets = Buckets.of(config.dataset, 64)
    found = survey(concepts_of(config.dataset, config.validation, photos, photos), buckets)
    images = frozen(photos, **dataset)
    assert batches_of(config, found.facts["folders"]) == BatchPlan(images, batch, 1).batches_per_epoch
    assert found.facts["images"] == 3
    (said, *_) = calculation(config, found.facts["folders"])
    assert said.startswith("3 photos, in all sizes 7, × 5 to 15 repeats in 3 buckets")
    shown = Counter[str]()
    for number in range(BatchPlan(images, batch, 1).batches_per_epoch):
        for sample in BatchPlan(images, batch, 1).batch(number):
            shown[sample.image.original_name] += 1
    assert set(shown.values()) == {15}, "every photo as often as every other"


def test_captions_of_all_sizes_are_encoded(photos: Path) -> None:
    images = frozen(photos, resolution=128, more_resolutions=64)
    config = recipe(Path("base"), photos, captions={"shuffle": True, "suffix": "a, b, c"})
    plan = BatchPlan(images, 2, 1)
    captions = Captions(config, plan)
    shown = {
        (sample.image.id, captions.of(sample, dropout=False))
        for number in range(config.train.steps)
        for sample in plan.batch(number)
    }
    assert shown <= captions.all()


def test_a_run_of_two_sizes_resumes_exactly(tiny_base: Path, tmp_path: Path) -> None:
    photos = draw_sizes(tmp_path / "photos", (96, 96, 64))
    config = recipe(
        tiny_base,
        photos,
        dataset={"resolution": 96, "more_resolutions": [64], "flip": True},
        captions={"dropout": 0.2},
        train={"steps": 5},
    )
    runs = [RunFolder(tmp_path / "runs" / name) for name in ("straight", "stopped")]
    for run in runs:
        run.create(config)
    straight, stopped = runs
    assert train_here(straight)
    assert not train_here(stopped, Script(stopped, "stop", 2))
    assert train_here(stopped)
    assert weights_hash(stopped, 5) == weights_hash(straight, 5)
    sizes = Counter(image.bucket for image in load_frozen(straight.dataset))
    assert sizes == {(96, 96): 2, (64, 64): 3}
    with Image.open(straight.sample(5, 0)) as drawn:
        assert drawn.size == (96, 96), "samples are of the largest"
    with safe_open(straight.result(config), framework="pt") as lora:
        assert lora.metadata()["ss_resolution"] == "(96, 96)"
