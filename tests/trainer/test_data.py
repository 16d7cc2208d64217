"""Order and randomness without state; freezing; the caches' keys."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_tools.augment import View
from dataset_tools.buckets import Buckets
from dataset_tools.dataset import DatasetError, load_dataset, save_dataset
from dataset_tools.images import ImageError
from tests.pictures import draw_picture, draw_project
from trainer.__main__ import main
from trainer.cache import DAMAGED, LatentCache, TextCache, pixels_of
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import DatasetSettings
from trainer.data import (
    BatchPlan,
    Progress,
    TrainImage,
    freeze_dataset,
    frozen_images,
    load_frozen,
    save_frozen,
)
from trainer.failures import explain
from trainer.families.sdxl import Family
from trainer.source import resolve

from .helpers import recipe


def freeze(root: Path, resolution: int = 64, **settings: object) -> tuple[TrainImage, ...]:
    made = DatasetSettings.model_validate({"path": str(root), **settings})
    return freeze_dataset(root, made, Buckets(resolution), root / "models")


@pytest.fixture
def images(photos: Path) -> tuple[TrainImage, ...]:
    return freeze(photos)


def test_every_look_comes_once_an_epoch_and_no_batch_mixes_buckets(images: tuple[TrainImage, ...]) -> None:
    repeated = (images[0].model_copy(update={"repeats": 3}), *images[1:])
    plan = BatchPlan(repeated, batch_size=2, seed=1)
    assert plan.batches_per_epoch == 3 + 1  # five looks in one bucket, two in the other; none is dropped
    for epoch in range(3):
        batches = [plan.batch(epoch * 4 + number) for number in range(4)]
        looks = Counter(look.image.id for batch in batches for look in batch)
        assert looks == {image.id: image.repeats for image in repeated}
        assert all(len({look.image.bucket for look in batch}) == 1 for batch in batches)
        assert all(look.epoch == epoch for batch in batches for look in batch)


def test_order_differs_by_epoch_and_seed_and_by_nothing_else(images: tuple[TrainImage, ...]) -> None:
    def order(seed: int, epoch: int, of: tuple[TrainImage, ...] = images) -> list[list[str]]:
        plan = BatchPlan(of, batch_size=1, seed=seed)
        return [[look.image.id for look in plan.batch(epoch * 5 + number)] for number in range(5)]

    assert order(1, 0) == order(1, 0) == order(1, 0, images[::-1])
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) > 3


def test_noise_belongs_to_the_look_and_not_to_the_batch(images: tuple[TrainImage, ...]) -> None:
    def noises(batch_size: int) -> dict[str, torch.Tensor]:
        plan = BatchPlan(images, batch_size, seed=5)
        looks = [look for number in range(plan.batches_per_epoch) for look in plan.batch(number)]
        return {look.image.id: look.noise_like(torch.zeros(4, 2, 2)) for look in looks}

    one, three = noises(1), noises(3)
    assert all(torch.equal(one[key], three[key]) for key in one)
    assert len({tuple(noise.flatten().tolist()) for noise in one.values()}) == len(images)
    look = BatchPlan(images, 1, seed=5).batch(0)[0]
    assert look.uniform("t") == look.uniform("t") != look.uniform("flip")


def test_freezing_keeps_crops_and_fills_in_captions(tmp_path: Path) -> None:
    root = draw_project(tmp_path / "p")
    (root / "images" / "picture3.txt").unlink()
    dataset = load_dataset(root)
    off = dataset.get("picture4").model_copy(update={"enabled": False})
    save_dataset(root, dataset.with_record(off))
    frozen = freeze(root)
    assert [image.id for image in frozen] == ["picture0", "picture1", "picture2", "picture3"]
    assert frozen[0].caption == "a photo of zwx, number 0"
    assert frozen[3].caption == "zwx"  # the trigger stands in for a missing caption
    assert frozen[0].crop == (8, 8, 88, 88) and frozen[0].bucket == (64, 64)
    save_frozen(tmp_path / "dataset.json", "zwx", frozen)
    assert load_frozen(tmp_path / "dataset.json") == frozen


def test_freezing_refuses_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"does not exist; check dataset\.path"):
        freeze(tmp_path / "nowhere")
    root = draw_project(tmp_path / "p", count=1)
    record = load_dataset(root).images[0].model_copy(update={"enabled": False})
    save_dataset(root, load_dataset(root).with_record(record))
    with pytest.raises(DatasetError, match="no pictures to train on"):
        freeze(root)


def test_geometry_is_told_at_the_training_scale(images: tuple[TrainImage, ...]) -> None:
    square = next(image for image in images if image.bucket == (64, 64))
    geometry = square.geometry()
    assert geometry.original == (round(96 * 0.8), round(96 * 0.8))  # crop of 80 px shrunk to 64
    assert geometry.crop == (round(8 * 0.8), round(8 * 0.8)) and geometry.target == (64, 64)
    enlarged = square.model_copy(update={"crop": (0, 0, 32, 32)})
    assert enlarged.geometry().original == (96, 96)  # never told larger than it was
    moved = square.model_copy(update={"crop": (16, 8, 96, 88)})
    assert moved.geometry(View(flip=True)).crop == (round(8 * 0.8), 0)


class CountingFamily:
    """The tiny family's encoders, counting what they are asked for."""

    def __init__(self, base: Path, vae_name: str = "vae") -> None:
        self._family = Family(resolve("sdxl", str(base)), torch.device("cpu"), torch.float32)
        self.vae_name = vae_name
        self.images = self.captions = 0

    def image_encoder_id(self) -> str:
        return self.vae_name

    def text_encoder_id(self) -> str:
        return "text"

    def encode_images(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        self.images += len(pixels_BCHW)
        return self._family.encode_images(pixels_BCHW)

    def encode_captions(self, captions: list[str]) -> list[dict[str, torch.Tensor]]:
        self.captions += len(captions)
        return self._family.encode_captions(captions)


def quiet(done: int, total: int) -> None:
    pass


def test_only_what_changed_is_encoded_again(tiny_base: Path, tmp_path: Path) -> None:
    root = draw_project(tmp_path / "p")
    warnings: list[str] = []

    def encode(vae: str = "vae", flip: bool = False) -> tuple[int, LatentCache]:
        family = CountingFamily(tiny_base, vae)
        cache = LatentCache(tmp_path / "cache", family, warnings.append)  # type: ignore[arg-type]
        cache.fill(root, freeze(root), DatasetSettings(flip=flip), quiet)
        return family.images, cache

    assert encode()[0] == 5
    assert encode()[0] == 0
    assert encode(vae="another")[0] == 5
    assert encode(flip=True)[0] == 5  # the mirrored ones
    dataset = load_dataset(root)
    moved = dataset.get("picture0").model_copy(update={"crop": (0, 0, 80, 80)})
    save_dataset(root, dataset.with_record(moved))
    assert encode()[0] == 1  # another crop
    edited = Image.open(root / "images" / "picture2.png").rotate(90)
    assert not warnings
    edited.save(root / "images" / "picture2.png")
    assert encode()[0] == 1  # another picture, though the project still has the old one's hash
    assert encode()[0] == 0 and len(warnings) == 2
    assert "photo 2.png was changed after it was added" in warnings.pop() == warnings.pop()
    victim = max((tmp_path / "cache" / "latents").rglob("*.safetensors"), key=lambda p: p.stat().st_mtime)
    victim.write_bytes(victim.read_bytes()[:50])
    count, cache = encode()
    assert count == 1 and warnings[1:] == [DAMAGED]
    # Looked up by id: every latent is that of its own picture, whatever the order.
    family = Family(resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    for image in reversed(freeze(root)):
        alone = family.encode_images(pixels_of(root, image)[None])[0]
        assert torch.allclose(cache.get(image.id), alone, atol=1e-6)


def test_the_training_crop_is_the_previewed_one(images: tuple[TrainImage, ...], photos: Path) -> None:
    from dataset_tools.crop import render_crop
    from dataset_tools.images import open_image

    image = images[1]
    assert image.crop and image.bucket
    opened = open_image(photos / image.file, name=image.original_name).image
    preview = render_crop(opened, image.crop, image.bucket)
    pixels = pixels_of(photos, image)
    assert pixels.shape == (3, image.bucket[1], image.bucket[0])
    as_bytes = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(as_bytes, np.asarray(preview))
    assert torch.equal(pixels_of(photos, image, View(flip=True)), pixels.flip(-1))


def test_a_picture_that_was_changed_is_told_each_time_and_encoded_once(
    images: tuple[TrainImage, ...], photos: Path, tiny_base: Path, tmp_path: Path
) -> None:
    changed = images[0].model_copy(update={"sha256": "0" * 64})
    warnings: list[str] = []
    for encoded in (2, 0):
        family = CountingFamily(tiny_base)
        cache = LatentCache(tmp_path, family, warnings.append)  # type: ignore[arg-type]
        cache.fill(photos, [changed, images[1]], DatasetSettings(), quiet)
        assert torch.allclose(
            cache.get(changed.id), family.encode_images(pixels_of(photos, images[0])[None])[0], atol=1e-6
        )
        assert family.images == encoded + 1
    assert len(warnings) == 2 and "photo 0.png was changed" in warnings[0]


def test_cropping_is_watched_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.data

    class Enough(Exception):
        pass

    seen: list[tuple[str, int, int]] = []

    def stages(stage: str, text: str) -> Progress:
        def progress(done: int, total: int) -> None:
            seen.append((stage, done, total))
            if (stage, done) == ("crop", 2):
                raise Enough

        return progress

    def no_detector(models: Path, **options: Any) -> None:
        options["progress"](3_000_000, 36_000_000, "fetching")
        options["notify"]("no detector")

    told: list[str] = []
    monkeypatch.setattr(trainer.data, "ensure_face_model", no_detector)
    monkeypatch.setattr("dataset_tools.crop.ensure_face_model", lambda *args, **options: None)
    for number in range(3):
        draw_picture(tmp_path / f"{number}.png", number)
    with pytest.raises(Enough):
        freeze_dataset(tmp_path, DatasetSettings(), Buckets(64), tmp_path / "models", stages, told.append)
    assert seen == [("detector", 3, 36), ("crop", 0, 3), ("crop", 1, 3), ("crop", 2, 3)]
    assert told == ["no detector"]


def test_a_plain_folder_is_trained_as_kohya_would_and_the_rest_is_told(tmp_path: Path) -> None:
    draw_picture(tmp_path / "photos" / "0.png", 0)
    draw_picture(tmp_path / "photos" / "10_dog" / "1.png", 1)
    draw_picture(tmp_path / "photos" / "cats" / "2.png", 2)
    told: list[str] = []
    settings = DatasetSettings(trigger="zwx")
    frozen = freeze_dataset(
        tmp_path / "photos", settings, Buckets(64), tmp_path / "models", notify=told.append
    )
    assert [(image.file, image.repeats, image.caption) for image in frozen] == [
        ("0.png", 1, "zwx"),
        ("10_dog/1.png", 10, "dog"),
    ]
    assert told[0].startswith("1 picture in subfolders was left out (cats: 1)")


def test_check_tells_it_before_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_picture(tmp_path / "photos" / "3_dog" / "0.png", 0)
    draw_picture(tmp_path / "photos" / "cats" / "1.png", 1)
    settings = '[model]\nfamily = "sdxl"\nbase = "demo"\n[dataset]\npath = "photos"\nresolution = 100\n'
    (tmp_path / "recipe.toml").write_text(settings)
    assert main(["check", str(tmp_path / "recipe.toml")]) == 0
    told = capsys.readouterr().out
    assert "warning: 1 picture in subfolders was left out (cats: 1)" in told
    assert "warning: 100 px is no multiple of 8" in told


@pytest.mark.parametrize(("resolution", "side"), [(100, 96), (96, 96)])
def test_a_resolution_that_is_rounded_is_told_once(
    resolution: int, side: int, tiny_base: Path, tmp_path: Path
) -> None:
    photos = draw_project(tmp_path / "photos")
    config = recipe(tiny_base, photos, dataset={"path": str(photos), "resolution": resolution})
    run = RunFolder(tmp_path / "run")
    run.create(config)
    family = Family(resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    told: list[str] = []
    for _ in range(2):
        images = frozen_images(run, config, family, tmp_path, notify=told.append)
    assert images[0].bucket == (side, side)
    sentence = "100 px is no multiple of 8, as the buckets need; it trains at 96 px."
    assert told == ([] if side == resolution else [sentence])


def test_a_missing_picture_is_named(images: tuple[TrainImage, ...], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"photo 0\.png cannot be read") as error:
        pixels_of(tmp_path, images[0])
    assert explain(error.value)[1] == "bad_image"


def test_captions_are_encoded_once_and_the_empty_one_always(tiny_base: Path, tmp_path: Path) -> None:
    family = CountingFamily(tiny_base)
    cache = TextCache(tmp_path, family, lambda text: None)  # type: ignore[arg-type]
    cache.fill(["a fox", "a fox", "a cat"], quiet)
    assert family.captions == 3
    assert not cache.embeds([""])[0]["prompt"].any()
    again = TextCache(tmp_path, family, lambda text: None)  # type: ignore[arg-type]
    again.fill(["a cat"], quiet)
    assert family.captions == 3
    assert torch.equal(again.embeds(["a cat"])[0]["prompt"], cache.embeds(["a cat"])[0]["prompt"])
