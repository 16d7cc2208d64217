"""Validation loss: photos that are never trained on, measured the same every time, without touching a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dataset_tools.buckets import Buckets
from dataset_tools.dataset import DatasetError
from tests.pictures import draw_masked_project, draw_picture, draw_project
from trainer.__main__ import main
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.events import current_events, read_events
from trainer.contract.held_out import held_out
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import DatasetSettings
from trainer.contract.settings.validation import ValidationSettings
from trainer.data import Sample, TrainImage, freeze_dataset, load_frozen
from trainer.objective import Objective
from trainer.validation import QUANTILES, Validation

from .helpers import Script, recipe, train_here, weights_hash

ON = {"every": 4, "share": 0.4}
QUIET = {"samples": {"prompts": []}}


def measured(run: RunFolder) -> dict[int, float]:
    """step -> validation loss"""
    events = current_events(read_events(run.events)[0])
    return {event["step"]: event["loss"] for event in events if event["kind"] == "validation"}


def made(path: Path, config: TrainConfig) -> RunFolder:
    run = RunFolder(path)
    run.create(config)
    return run


# Which ------------------------------------------------------------------------------------------


def test_a_share_is_held_out_by_content() -> None:
    names = [f"{number:064x}" for number in range(20)]
    assert len(held_out(names, 0.1)) == 2 and len(held_out(names, 0.01)) == 1
    assert held_out(names, 0.1) == held_out(names[::-1], 0.1) < held_out(names, 0.3)
    assert held_out(names[:1], 0.5) == set() == held_out(names, 0.0)
    assert len(held_out(names[:2], 0.5)) == 1 == len(held_out([*names[:2], names[0], names[1]], 0.5))
    assert held_out(names, 1.0) == set(names)


def freeze(root: Path, told: list[str], validation: dict[str, Any], **dataset: Any) -> tuple[TrainImage, ...]:
    return freeze_dataset(
        root,
        DatasetSettings(path=str(root), **dataset),
        Buckets(64, step=8),
        root / "models",
        notify=told.append,
        beside=root,
        validation=ValidationSettings(**validation),
    )


def test_every_folder_gives_some_and_class_pictures_none(tmp_path: Path) -> None:
    draw_project(tmp_path / "one", 5, "zwx")
    draw_project(tmp_path / "two", 3, "qrt")
    draw_project(tmp_path / "class", 5, "cat")
    subsets = (
        {"path": "../two", "trigger": "qrt", "repeats": 2},
        {"path": "../class", "trigger": "cat", "regularisation": True},
    )
    images = freeze(tmp_path / "one", [], ON, subsets=subsets)
    held = [image for image in images if image.held_out]
    assert sorted(image.trigger for image in held) == ["qrt", "zwx", "zwx"]
    assert not any(image.regularisation for image in held)
    looks = {True: 0, False: 0}
    for image in images:
        if not image.held_out:
            looks[image.regularisation] += image.repeats
    assert looks == {False: 3 + 2 * 2, True: 7}, "class pictures balance those that are trained on"
    off = freeze(tmp_path / "one", [], {"every": 0, "share": 0.4})
    assert len(off) == 5 and not any(image.held_out for image in off)


def test_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("trainer.data", "dataset_tools.crop"):  # no faces are looked for in these
        monkeypatch.setattr(f"{place}.ensure_face_model", lambda *_, **__: None)
    draw_project(tmp_path / "one", 3, "zwx")
    others = tmp_path / "others"
    for number in (5, 6):
        draw_picture(others / f"{number}.png", number)
    told: list[str] = []
    images = freeze(tmp_path / "one", told, {"every": 4, "path": "../others"}, trigger="zwx")
    held = [image for image in images if image.held_out]
    assert [image.file for image in held] == ["5.png", "6.png"] and len(images) == 5
    assert all(image.caption == "zwx" and image.path(tmp_path / "one").exists() for image in held)
    with_subset = freeze(
        tmp_path / "one", [], {"every": 4, "path": "../others"}, subsets=({"path": "../one", "trigger": "a"},)
    )
    assert [one.id for one in with_subset if one.held_out] == [one.id for one in held]
    shutil.copy(tmp_path / "one" / "images" / "picture0.png", others / "again.png")
    freeze(tmp_path / "one", told, {"every": 4, "path": "../others"})
    assert "1 photo of validation.path is trained on as well: again.png" in told


def test_too_few_photos(tmp_path: Path) -> None:
    draw_project(tmp_path / "one", 1)
    with pytest.raises(DatasetError, match="no folder has more than one; add photos"):
        freeze(tmp_path / "one", [], ON)


def test_recipes_with_nothing_to_measure_on(tiny_base: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match="hold out a share"):
        recipe(tiny_base, photos, validation={"every": 5, "share": 0})
    with pytest.raises(ConfigError, match="these photos are trained on"):
        recipe(tiny_base, photos, validation={"every": 5, "path": str(photos)})


def test_check_tells_of_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_project(tmp_path / "photos", 8)
    (tmp_path / "recipe.toml").write_text('[dataset]\npath = "photos"\n[validation]\nevery = 250\n')
    main(["check", str(tmp_path / "recipe.toml")])
    assert "One of 8 photos is held out" in capsys.readouterr().out
    main(["check", str(tmp_path / "recipe.toml"), "--set", "validation.share=0.25"])
    assert "held out" not in capsys.readouterr().out
    main(["check", str(tmp_path / "recipe.toml"), "--set", "validation.path=nowhere"])
    assert "validation.path = 'nowhere' does not exist" in capsys.readouterr().err


# The measurement --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tiny_base: Path, photos: Path) -> TrainConfig:
    return recipe(
        tiny_base,
        photos,
        **QUIET,
        validation=ON,
        dataset={"flip": True},
        captions={"dropout": 0.2, "shuffle": True},
        adapter={"dropout": 0.1},
    )


@pytest.fixture(scope="module")
def straight(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = made(tmp_path_factory.mktemp("straight") / "runs" / "straight", config)
    assert train_here(run)
    return run


def test_held_out_photos_are_measured_and_never_trained_on(
    config: TrainConfig, straight: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, looked = set(), set()
    losses, fixed = Objective.losses, Objective.fixed_losses

    def watched(self: Objective, samples: list[Sample]) -> torch.Tensor:
        trained.update(one.image.id for one in samples)
        return losses(self, samples)

    def measuring(self: Objective, samples: Any, u: Any) -> torch.Tensor:
        looked.update(one.image.id for one in samples)
        return fixed(self, samples, u)

    monkeypatch.setattr(Objective, "losses", watched)
    monkeypatch.setattr(Objective, "fixed_losses", measuring)
    run = made(straight.path.with_name("watched"), config)
    assert train_here(run)
    images = load_frozen(run.dataset)
    assert looked == {image.id for image in images if image.held_out} and len(looked) == 2
    assert trained == {image.id for image in images if not image.held_out} and len(trained) == 3
    assert measured(run) == measured(straight), "the same every time"


def test_it_is_reported_with_its_noise_levels(straight: RunFolder) -> None:
    events = [event for event in read_events(straight.events)[0] if event["kind"] == "validation"]
    assert [event["step"] for event in events] == [0, 4, 8]
    for event in events:
        assert event["pictures"] == 2 and len(event["by_time"]) == len(QUANTILES)
        assert event["loss"] == pytest.approx(sum(event["by_time"]) / len(QUANTILES))
    assert len({event["loss"] for event in events}) == 3


@pytest.mark.parametrize("step", [4, 6])
def test_a_resumed_run_measures_the_same(config: TrainConfig, straight: RunFolder, step: int) -> None:
    run = made(straight.path.with_name(f"stopped-{step}"), config)
    assert not train_here(run, Script(run, "stop", step))
    assert train_here(run)
    assert weights_hash(run, 8) == weights_hash(straight, 8)
    assert measured(run) == measured(straight) and set(measured(run)) == {0, 4, 8}


def test_measuring_changes_nothing(config: TrainConfig, straight: RunFolder) -> None:
    """The same photos held out, but never looked at before the end: the LoRA is the same to the bit."""
    tables = config.model_dump()
    tables["validation"]["every"] = 100
    run = made(straight.path.with_name("seldom"), TrainConfig.model_validate(tables))
    assert train_here(run)
    assert set(measured(run)) == {0, 8}
    assert weights_hash(run, 8) == weights_hash(straight, 8)


def test_another_seed_is_measured_alike(config: TrainConfig, straight: RunFolder) -> None:
    tables = config.model_dump()
    tables["train"] |= {"seed": 8, "steps": 1, "batch_size": 3}
    run = made(straight.path.with_name("seed"), TrainConfig.model_validate(tables))
    assert train_here(run)
    assert measured(run)[0] == pytest.approx(measured(straight)[0], rel=1e-5)


def test_no_random_state_is_touched(
    config: TrainConfig, straight: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, states = Validation.measure, []

    def watched(self: Validation, step: int) -> None:
        torch.manual_seed(step)
        before = torch.get_rng_state()
        training = [module.training for module in self.objective.model.parts.values()]
        measure(self, step)
        states.append(torch.equal(before, torch.get_rng_state()))
        assert training == [module.training for module in self.objective.model.parts.values()]

    monkeypatch.setattr(Validation, "measure", watched)
    tables = config.model_dump()
    tables["train"]["steps"] = 4
    run = made(straight.path.with_name("states"), TrainConfig.model_validate(tables))
    assert train_here(run)
    assert states == [True] * 5


def test_the_loss_is_the_objectives_own(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Straight from the formula, with masks, weights by noise level and one photo at once."""
    draw_masked_project(tmp_path / "photos")
    config = recipe(
        tiny_base,
        tmp_path / "photos",
        **QUIET,
        validation={"every": 1, "share": 0.2},
        loss={"mask": "normalised", "mask_floor": 0.2, "min_snr_gamma": 5.0},
        train={"steps": 1, "batch_size": 1, "learning_rate": 1e-2, "seed": 7},
    )
    held: list[Validation] = []
    measure = Validation.measure

    def watched(self: Validation, step: int) -> None:
        held.append(self)
        measure(self, step)

    monkeypatch.setattr(Validation, "measure", watched)
    run = made(tmp_path / "runs" / "r", config)
    assert train_here(run)
    objective, (image,) = held[0].objective, held[0].images
    clean = objective.latents.get(image.id)[None]
    mask = objective.latents.mask(image.id)[None].clamp_min(0.2)
    expected = []
    for number, quantile in enumerate(QUANTILES):
        noise = Sample(image, 0, number, 0).noise_like(clean[0])[None]
        process: Any = objective.family.noise
        t = process.sample_t(torch.tensor([quantile]), process.times, 64)
        embeds = objective.texts.embeds([image.caption])
        with torch.no_grad(), objective.model.drawing():
            noisy = process.mix(clean, noise, t)
            answer = objective.family.predict(objective.model.denoiser, noisy, t, embeds, [image.geometry()])
        error = (answer - noise).square() * mask / mask.mean()
        snr = process.snr(t)
        expected.append((error.mean() * snr.clamp_max(5) / snr).item())
    assert expected == pytest.approx(held[0].losses(image).tolist(), rel=1e-4)
    (event,) = [e for e in read_events(run.events)[0] if e["kind"] == "validation" and e["step"] == 1]
    assert event["by_time"] == pytest.approx(expected, rel=1e-4)


def test_a_run_that_is_asked_to_stop_does_not_measure_on(
    config: TrainConfig, straight: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(straight.path.with_name("asked"), config)
    script = Script(run, "stop", 4)
    losses = Validation.losses

    def slow(self: Validation, image: TrainImage) -> torch.Tensor:
        found = losses(self, image)
        script._verb = "stop"
        monkeypatch.setattr(script, "stop", lambda: True)
        return found

    script._verb = None
    monkeypatch.setattr(Validation, "losses", slow)
    assert not train_here(run, script)
    assert measured(run) == {} and run.read_status().state == "stopped"


def test_averaged_weights_are_what_is_measured(config: TrainConfig, straight: RunFolder) -> None:
    """The training is the same with them, the measurement not."""
    tables = config.model_dump()
    tables["train"]["ema_decay"] = 0.9
    run = made(straight.path.with_name("averages"), TrainConfig.model_validate(tables))
    assert train_here(run)
    losses = [
        [event["loss"] for event in read_events(each.events)[0] if event["kind"] == "step"]
        for each in (run, straight)
    ]
    assert losses[0] == losses[1]
    assert measured(run)[0] == measured(straight)[0] and measured(run)[8] != measured(straight)[8]
