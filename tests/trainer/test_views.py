"""Views of pictures in a run: encoded once each, drawn by the sample, told to the model as they are."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from dataset_tools.augment import View, views_of
from dataset_tools.dataset import load_dataset, save_dataset
from tests.pictures import draw_project
from trainer.assemble import open_family
from trainer.cache import LatentCache, pixels_of
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import DatasetSettings
from trainer.data import Sample, frozen_images, load_frozen
from trainer.source import resolve

from .helpers import recipe, train_here

VARIED = {"rotate": 10.0, "random_crop": 0.2, "hue": 20.0, "colour": 0.2, "flip": True, "variants": 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_project(tmp_path / "photos")


def test_every_view_is_encoded_once_and_an_edited_photo_alone_anew(
    tiny_base: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(tiny_base, root, dataset={"path": str(root), **VARIED})
    family = open_family(config, resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    made: list[torch.Tensor] = []
    encode = family.encode_images

    def encoded(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        made.append(pixels_BCHW[0])
        return encode(pixels_BCHW)

    monkeypatch.setattr(family, "encode_images", encoded)

    def fill(name: str, settings: DatasetSettings) -> int:
        made.clear()
        run = RunFolder(tmp_path / "runs" / name)
        run.create(config)
        images = frozen_images(run, config, family, tmp_path)
        cache = LatentCache(tmp_path / "cache", family, pytest.fail)
        cache.fill(root, images, settings, lambda done, total: None)
        for image in images:
            for view in views_of(image, settings):
                alone = encode(pixels_of(root, image, view)[None])[0]
                assert torch.allclose(cache.get(image.id, view), alone, atol=1e-6)
        return len(made)

    plain = DatasetSettings(path=str(root))
    assert fill("plain", plain) == 5
    count = fill("varied", config.dataset)
    assert count == 5 * (2 * 3 - 1), "five views of each picture are new; the picture itself was there"
    assert len({tuple(pixels.flatten().tolist()) for pixels in made}) == count
    assert fill("again", config.dataset) == 0
    assert fill("more", config.dataset.model_copy(update={"variants": 4})) == 5 * 2
    file = root / "images" / "picture2.png"
    Image.open(file).rotate(90).save(file)
    dataset = load_dataset(root)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    save_dataset(root, dataset.with_record(dataset.get("picture2").model_copy(update={"sha256": sha256})))
    assert fill("edited", config.dataset) == 6


def test_a_look_draws_its_view_by_itself(tiny_base: Path, root: Path, tmp_path: Path) -> None:
    config = recipe(tiny_base, root, dataset={"path": str(root), **VARIED})
    family = open_family(config, resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(config)
    image = frozen_images(run, config, family, tmp_path)[0]
    looks = [Sample(image, epoch, 0, 7) for epoch in range(200)]
    views = [look.view(config.dataset) for look in looks]
    assert views == [look.view(config.dataset) for look in looks]
    shown = Counter(views)
    assert set(shown) == set(views_of(image, config.dataset)) and min(shown.values()) > 15
    assert {look.view(DatasetSettings()) for look in looks} == {View()}
    mirrored = [look.view(DatasetSettings(flip=True)).flip for look in looks]
    assert mirrored == [view.flip for view in views], "variants change nothing of what is mirrored"


def test_a_varied_run_shows_every_view_and_tells_its_frame(
    tiny_base: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.families.sdxl import Family

    seen = []
    predict = Family.predict

    def watched(self, denoiser, noisy_BCHW, t_B, embeds, geometry):  # type: ignore[no-untyped-def]
        seen.extend(geometry)
        return predict(self, denoiser, noisy_BCHW, t_B, embeds, geometry)

    monkeypatch.setattr(Family, "predict", watched)
    config = recipe(
        tiny_base,
        root,
        dataset={"path": str(root), **VARIED},
        train={"steps": 16, "batch_size": 2},
        samples={"prompts": []},
        checkpoints={"every": 100},
    )
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(config)
    assert train_here(run)
    images = load_frozen(run.dataset)
    told = {image.geometry(view) for image in images for view in views_of(image, config.dataset)}
    assert set(seen) <= told and len(set(seen)) > 2 * len(images)


def test_the_geometry_of_a_frame(tiny_base: Path, root: Path, tmp_path: Path) -> None:
    config = recipe(tiny_base, root, dataset={"path": str(root), "random_crop": 0.5, "variants": 9})
    family = open_family(config, resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(config)
    for image in frozen_images(run, config, family, tmp_path):
        assert image.bucket
        for view in views_of(image, config.dataset)[1:]:
            assert view.variant
            left, top, right, _ = view.variant.frame
            scale = min(1.0, image.bucket[0] / (right - left))
            geometry = image.geometry(view)
            assert geometry.target == image.bucket[::-1]
            assert geometry.crop == (round(top * scale), round(left * scale))
            assert geometry.original == (round(image.height * scale), round(image.width * scale))
            mirrored = image.geometry(View(True, view.variant))
            assert mirrored.crop == (round(top * scale), round((image.width - right) * scale))
