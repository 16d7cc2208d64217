"""Masked loss: the formulas, masks in the frame of their photos, and that what is masked is not learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from dataset_tools.augment import Variant, View, fitted
from dataset_tools.images import ImageError
from tests.pictures import draw_masked_project, draw_picture, left_of
from trainer.__main__ import main
from trainer.assemble import assemble, open_family
from trainer.cache import LatentCache, TextCache, pixels_of
from trainer.captions import Captions
from trainer.checkpoints import load_checkpoint
from trainer.contract.config import TrainConfig
from trainer.contract.events import read_events
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder
from trainer.contract.settings.loss import MaskMode
from trainer.data import BatchPlan, Sample, TrainImage, frozen_images, load_frozen
from trainer.masks import mask_at, mask_weights
from trainer.objective import Objective
from trainer.source import resolve

from .helpers import Script, recipe, train_here, weights_hash


def warnings_of(run: RunFolder) -> list[str]:
    return [event["text"] for event in read_events(run.events)[0] if event["kind"] == "warning"]


def quiet(done: int, total: int) -> None:
    pass


# The formulas -----------------------------------------------------------------------------------

LOSSES = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 5.0], [1.0, 1.0]]]])  # (2, 1, 2, 2)
MASKS = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [0.5, 0.0]]]])


def means(mode: MaskMode, floor: float) -> list[float]:
    return (LOSSES * mask_weights(MASKS, mode, floor)).mean(dim=(1, 2, 3)).tolist()


def test_the_three_modes_straight_from_the_paper() -> None:
    assert means("kohya", 0.0) == pytest.approx([1 / 4, (5 + 5 + 0.5) / 4])
    assert means("normalised", 0.0) == pytest.approx([1.0, (5 + 5 + 0.5) / 2.5])
    assert means("batch", 0.0) == pytest.approx([1 / 4 / (3.5 / 8), 10.5 / 4 / (3.5 / 8)])
    # With a floor: 1, .1, .1, .1 and 1, 1, .5, .1.
    first, second = 1 + 0.1 * (2 + 3 + 4), 5 + 5 + 0.5 + 0.1
    assert means("kohya", 0.1) == pytest.approx([first / 4, second / 4])
    assert means("normalised", 0.1) == pytest.approx([first / 1.3, second / 2.6])
    assert means("batch", 0.1) == pytest.approx([first / 4 / (3.9 / 8), second / 4 / (3.9 / 8)])


@pytest.mark.parametrize("share", [1, 4, 16, 64])
def test_a_small_mask_shrinks_kohyas_loss_and_no_other(share: int) -> None:
    """Of 64 places with the same loss, ``share`` are shown."""
    mask = (torch.arange(64).reshape(1, 1, 8, 8) < share).float()
    loss = torch.full((1, 4, 8, 8), 3.0)

    def mean(mode: MaskMode) -> float:
        return (loss * mask_weights(mask, mode, 0.0)).mean().item()

    assert mean("kohya") == pytest.approx(3 * share / 64)
    assert mean("normalised") == pytest.approx(3) == mean("batch")


def test_masks_that_show_all_or_nothing() -> None:
    for mode in ("normalised", "kohya", "batch"):
        assert torch.equal(mask_weights(torch.ones(2, 1, 3, 3), mode, 0.1), torch.ones(2, 1, 3, 3))
        assert torch.equal(mask_weights(torch.zeros(2, 1, 3, 3), mode, 0.0), torch.zeros(2, 1, 3, 3))


# The frame --------------------------------------------------------------------------------------


def blobs(size: tuple[int, int], seed: int) -> Image.Image:
    """Grey, without any symmetry."""
    rng = np.random.default_rng(seed)
    picture = Image.new("L", size, 30)
    pen = ImageDraw.Draw(picture)
    for _ in range(5):
        x, y, r = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(5, 25)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=int(rng.integers(60, 255)))
    return picture


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 12.0])
@pytest.mark.parametrize(
    ("crop", "bucket"), [((8, 8, 88, 88), (64, 64)), ((0, 10, 90, 80), (72, 56)), ((30, 2, 60, 92), (32, 96))]
)
def test_a_mask_follows_its_photo(
    tmp_path: Path, crop: tuple[int, int, int, int], bucket: tuple[int, int], flip: bool, degrees: float
) -> None:
    """The photo is its own mask: their pixels must be the same."""
    picture = blobs((96, 100), 3)
    picture.convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "masks" / "a.png")
    image = TrainImage(
        id="a", file="a.png", original_name="a.png", sha256="0" * 64, width=96, height=100, crop=crop,
        bucket=bucket, caption="", mask="masks/a.png",
    )  # fmt: skip
    size = (bucket[1] // 8, bucket[0] // 8)
    turned = Variant(fitted(crop, (96, 100), degrees), degrees) if degrees else None
    view = View(flip, turned)
    photo = F.interpolate(pixels_of(tmp_path, image, view)[None], size, mode="area")[0, :1]
    mask = mask_at(tmp_path, image, view, size)
    assert mask.shape == (1, *size)
    assert torch.allclose(mask, photo / 2 + 0.5, atol=1e-6)
    assert not torch.allclose(mask, mask.flip(-1), atol=0.05)
    picture.resize((192, 200), Image.Resampling.BICUBIC).save(tmp_path / "masks" / "a.png")
    assert torch.allclose(mask_at(tmp_path, image, view, size), mask, atol=0.03), "masks of another size"


# The cache and the run --------------------------------------------------------------------------


def test_only_an_edited_mask_is_made_anew(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    root = draw_masked_project(tmp_path / "photos")
    config = recipe(tiny_base, root, loss={"mask": "normalised"}, dataset={"flip": True})
    family = open_family(config, resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    run = RunFolder(tmp_path / "runs" / "r")
    run.create(config)
    images = frozen_images(run, config, family, tmp_path)
    assert all(image.mask == f"masks/{image.id}.png" and image.mask_sha256 for image in images)
    made: list[str] = []
    encode, make = family.encode_images, mask_at

    def encoded(pixels_BCHW: Tensor) -> Tensor:
        made.append("latents")
        return encode(pixels_BCHW)

    def masked(root: Path, image: TrainImage, view: View, size: tuple[int, int]) -> Tensor:
        made.append(image.id)
        return make(root, image, view, size)

    monkeypatch.setattr(family, "encode_images", encoded)
    monkeypatch.setattr("trainer.cache.mask_at", masked)

    def filled(told: list[str]) -> LatentCache:
        made.clear()
        cache = LatentCache(tmp_path / "cache", family, told.append)
        cache.fill(root, images, config.dataset, quiet)
        return cache

    told: list[str] = []
    cache = filled(told)
    assert made.count("latents") == 10 and len(made) == 20 and not told
    for image in images:
        mask = cache.mask(image.id)
        assert mask.shape == (1, *cache.get(image.id).shape[-2:])
        assert torch.allclose(mask.flip(-1), cache.mask(image.id, View(flip=True)), atol=1e-6)
    filled(told)
    assert not made and not told
    left_of((96, 96), 0.9).save(root / "masks" / "picture2.png")
    edited = filled(told)
    assert made == ["picture2", "picture2"]
    assert told == ["the mask of photo 2.png was changed; it is used as it is now"] * 2
    assert edited.mask("picture2").mean() > cache.mask("picture2").mean() + 0.2


@pytest.mark.parametrize("mode", ["off", "normalised"])
def test_masks_and_setting_that_do_not_go_together_are_told(
    tiny_base: Path, photos: Path, tmp_path: Path, mode: str
) -> None:
    root = draw_masked_project(tmp_path / "photos") if mode == "off" else photos
    run = RunFolder(tmp_path / "runs" / "r")
    run.create(recipe(tiny_base, root, loss={"mask": mode}, train={"steps": 1}, samples={"prompts": []}))
    assert train_here(run)
    expected = {
        "off": "all 5 photos have a mask, but loss.mask is off, so all of the photo is learnt",
        "normalised": "no photo has a mask, though loss.mask is normalised, so all is learnt",
    }
    assert warnings_of(run) == [expected[mode]]
    assert not any(image.mask for image in load_frozen(run.dataset))


def test_check_counts_the_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_masked_project(tmp_path / "photos")
    (tmp_path / "photos" / "masks" / "picture1.png").unlink()
    (tmp_path / "recipe.toml").write_text('[dataset]\npath = "photos"\n')
    main(["check", str(tmp_path / "recipe.toml")])
    assert "4 of 5 photos have a mask, but loss.mask is off" in capsys.readouterr().out
    main(["check", str(tmp_path / "recipe.toml"), "--set", "loss.mask=normalised"])
    assert "4 of 5 photos have a mask, the others are learnt whole" in capsys.readouterr().out


def test_a_mask_of_another_frame_is_refused_before_the_model_loads(tiny_base: Path, tmp_path: Path) -> None:
    root = draw_masked_project(tmp_path / "photos")
    left_of((96, 40)).save(root / "masks" / "picture1.png")
    config = recipe(tiny_base, root, loss={"mask": "kohya"})
    run = RunFolder(tmp_path / "runs" / "r")
    run.create(config)
    family = open_family(config, resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    with pytest.raises(ImageError, match=r"picture1\.png is 96 × 40 pixels, but its photo 90 × 96"):
        frozen_images(run, config, family, tmp_path)


def test_a_black_mask_is_told(tiny_base: Path, tmp_path: Path) -> None:
    root = draw_masked_project(tmp_path / "photos")
    left_of((96, 96), 0).save(root / "masks" / "picture0.png")
    run = RunFolder(tmp_path / "runs" / "r")
    run.create(
        recipe(tiny_base, root, loss={"mask": "normalised"}, train={"steps": 1}, samples={"prompts": []})
    )
    assert train_here(run)
    assert warnings_of(run) == ["the mask of photo 0.png is black all over its crop; choose another crop"]


# Learning ---------------------------------------------------------------------------------------


def run_of(home: Path, tiny_base: Path, side: str, steps: int, **loss: Any) -> tuple[RunFolder, TrainConfig]:
    """A training on one photo whose mask shows its left or its right."""
    root = home / side
    if not root.exists():
        draw_picture(root / "cat.png", 1, (64, 64))
        left = left_of((64, 64))
        mask = left if side == "left" else left.point(lambda value: 255 - value)
        mask.save(root / "cat-mask.png")
    config = recipe(
        tiny_base,
        root,
        loss=loss,
        train={"steps": steps, "batch_size": 1, "learning_rate": 1e-2},
        samples={"prompts": []},
        checkpoints={"every": 99},
        dataset={"resolution": 64},
        adapter={"rank": 32, "alpha": 32.0, "targets": "transformer+conv"},
    )
    run = RunFolder(home / "runs" / f"{side}-{steps}-{loss}")
    run.create(config)
    assert train_here(run)
    return run, config


def objective_of(run: RunFolder, config: TrainConfig, cache: Path, step: int | None = None) -> Objective:
    """The objective of a trained run, with the LoRA of a checkpoint or a fresh one."""
    cpu = torch.device("cpu")
    family = open_family(config, resolve("sdxl", config.model.base), cpu, torch.float32)
    images = load_frozen(run.dataset)
    latents, texts = LatentCache(cache, family, pytest.fail), TextCache(cache, family, pytest.fail)
    latents.fill(Path(config.dataset.path), images, config.dataset, quiet)
    texts.fill([image.caption for image in images], quiet)
    model = assemble(family, config, run.path)
    if step is not None:
        parameters = model.parameters()
        load_checkpoint(run.checkpoint(step), parameters, torch.optim.AdamW(parameters.values()))
    captions = Captions(config, BatchPlan(images, 1, 0))
    return Objective(family, model, latents, texts, captions, config, cpu)


def halves(objective: Objective, looks: list[Sample]) -> tuple[float, float]:
    """The loss of the photo's left and of its right."""
    with torch.no_grad(), objective.model.drawing():
        batch = objective.batch(looks)
        losses_BCHW = objective.elementwise(objective.predict(batch), batch)
    middle = losses_BCHW.shape[-1] // 2
    return losses_BCHW[..., :middle].mean().item(), losses_BCHW[..., middle:].mean().item()


def test_a_lora_learns_what_its_mask_shows(tiny_base: Path, tmp_path: Path) -> None:
    """Of one photo, one LoRA is shown the left and one the right: each knows its half better."""
    loss = {}
    for side in ("left", "right"):
        run, config = run_of(tmp_path, tiny_base, side, 32, mask="normalised", mask_floor=0.0)
        (image,) = load_frozen(run.dataset)
        looks = [Sample(image, 0, repeat, seed=99) for repeat in range(24)]
        loss[side] = halves(objective_of(run, config, tmp_path / "cache", 32), looks)
    assert loss["left"][0] < 0.95 * loss["right"][0] and loss["right"][1] < 0.95 * loss["left"][1], loss


@pytest.fixture(scope="module")
def shown_left(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Objective, Sample]:
    """An objective over one photo whose mask shows its left, and a look at it."""
    home = tmp_path_factory.mktemp("left")
    run, config = run_of(home, tiny_base, "left", 1, mask="normalised")
    (image,) = load_frozen(run.dataset)
    return objective_of(run, config, home / "cache"), Sample(image, 0, 0, seed=99)


@pytest.mark.parametrize("mode", ["normalised", "kohya", "batch"])
def test_what_is_masked_is_not_learnt_beyond_the_floor(
    shown_left: tuple[Objective, Sample], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Every number of the answer is learnt by itself here, so that what a place learns is what it counts."""
    whole, look = shown_left
    learnt = {}
    for floor in (0.0, 0.1, 1.0):
        config = parse(merge(to_tables(whole.config), {"loss": {"mask": mode, "mask_floor": floor}}))
        objective = replace(whole, config=config)
        answer = torch.zeros_like(objective.latents.get(look.image.id))[None].requires_grad_()
        monkeypatch.setattr(Objective, "predict", lambda self, batch, answer=answer: answer)
        before = halves(objective, [look])
        objective.losses([look]).sum().backward()  # type: ignore[no-untyped-call]
        answer.data -= answer.grad * answer.numel() / 100
        after = halves(objective, [look])
        learnt[floor] = [1 - new / old for old, new in zip(before, after, strict=True)]
    left, right = learnt[0.0]
    assert left > 0.03 and abs(right) < 0.003 * left  # the edge is not on a latent
    left, right = learnt[0.1]
    assert left > 0.03 and 0.09 < right / left < 0.11
    assert learnt[1.0][0] == pytest.approx(learnt[1.0][1], rel=1e-4)


def test_a_floor_of_one_is_no_mask(tiny_base: Path, tmp_path: Path) -> None:
    hashes = {
        weights_hash(run_of(tmp_path, tiny_base, "left", 3, **loss)[0], 3)
        for loss in ({}, {"mask": "kohya", "mask_floor": 1.0})
    }
    assert len(hashes) == 1


def test_resume_with_masks_is_bit_exact(tiny_base: Path, tmp_path: Path) -> None:
    root = draw_masked_project(tmp_path / "photos")
    config = recipe(tiny_base, root, loss={"mask": "batch"}, dataset={"flip": True}, samples={"prompts": []})
    straight, stopped = RunFolder(tmp_path / "runs" / "a"), RunFolder(tmp_path / "runs" / "b")
    for run in (straight, stopped):
        run.create(config)
    assert train_here(straight)
    assert not train_here(stopped, Script(stopped, "stop", 5))
    assert train_here(stopped)
    assert weights_hash(stopped, 8) == weights_hash(straight, 8)
    plain = RunFolder(tmp_path / "runs" / "plain")
    plain.create(recipe(tiny_base, root, dataset={"flip": True}, samples={"prompts": []}))
    assert train_here(plain)
    assert weights_hash(plain, 8) != weights_hash(straight, 8)
