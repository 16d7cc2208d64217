"""Differential output preservation: what is kept, from which captions, and that it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.adapters import lora_parameters
from trainer.assemble import assemble, open_family
from trainer.cache import LatentCache, TextCache
from trainer.captions import Captions
from trainer.checkpoints import load_adapter
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.runs import RunFolder
from trainer.contract.settings.prior import PriorSettings
from trainer.contract.trigger import without_trigger
from trainer.data import BatchPlan, Sample, load_frozen
from trainer.objective import Objective
from trainer.prior import kept_caption, kept_captions
from trainer.source import resolve

from .helpers import Script, recipe, train_here, weights_hash

KEEP = {"method": "output", "class_name": "cat", "share": 1.0}


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("zwx cat on a sofa", "zwx cat", "cat on a sofa"),
        ("a photo of ZWX Cat, zwx cat", "zwx cat", "a photo of cat, cat"),
        ("party art", "art", "party cat"),
        ("a.b on a sofa, aXb", "a.b", "cat on a sofa, aXb"),
        ("a sofa", "zwx", "a sofa"),
        ("a sofa", "", "a sofa"),
    ],
)
def test_the_class_takes_the_place_of_the_trigger(caption: str, trigger: str, expected: str) -> None:
    assert without_trigger(caption, trigger, "cat") == expected


def test_a_caption_without_the_trigger_is_not_kept_itself() -> None:
    prior = PriorSettings(**KEEP, captions=("a dog",))  # type: ignore[arg-type]
    assert kept_captions(prior, "zwx cat runs", "zwx cat") == ["cat runs", "a dog"]
    assert kept_captions(prior, "something else", "zwx cat") == ["cat", "a dog"]


def test_nothing_to_keep_is_refused(tiny_base: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match="say what the subject is one of"):
        recipe(tiny_base, photos, prior={"method": "output"})


def objective_of(config: TrainConfig, run: RunFolder, cache: Path) -> tuple[Objective, list[Sample]]:
    """The objective of a run that was trained, over a fresh LoRA, and a batch of its pictures."""
    cpu = torch.device("cpu")
    family = open_family(config, resolve("sdxl", config.model.base), cpu, torch.float32)
    images = load_frozen(run.dataset)
    latents, texts = LatentCache(cache, family, pytest.fail), TextCache(cache, family, pytest.fail)
    latents.fill(Path(config.dataset.path), images, config.dataset, lambda done, total: None)
    captions = [image.caption for image in images]
    captions += [kept for one in captions for kept in kept_captions(config.prior, one, "zwx")]
    texts.fill(captions, lambda done, total: None)
    model = assemble(family, config, run.path)
    samples = [Sample(image, 0, 0, 3) for image in images if image.bucket == images[0].bucket]
    plan = BatchPlan(images, 2, 3)
    return Objective(family, model, latents, texts, Captions(config, plan), config, cpu), samples


def test_what_the_lora_changes_is_what_counts(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    config = recipe(tiny_base, photos, dataset={"trigger": "zwx"}, prior=KEEP)
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(config)
    assert train_here(run)
    objective, samples = objective_of(config, run, tmp_path / "cache")
    batch = objective.batch(samples)
    free = replace(objective, config=config.model_copy(update={"prior": PriorSettings()}))

    def change_of(objective: Objective) -> torch.Tensor:
        return objective.losses(samples) - free.losses(samples)

    assert change_of(objective).abs().max() < 1e-6, "a fresh LoRA changes nothing"
    parameters = lora_parameters(objective.model.parts)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    change = change_of(objective)
    kept = objective.texts.embeds(
        [kept_caption(config.prior, one, one.image.caption) or "" for one in samples]
    )
    shown = batch.part([*range(len(samples))], kept)
    with torch.no_grad():
        with_lora = objective.predict(shown)
        with objective.base_alone:
            without = objective.predict(shown)
    assert torch.allclose(change, (with_lora - without).square().mean(dim=(1, 2, 3)), atol=1e-5)
    assert change.min() > 0 and change.requires_grad
    assert all(parameter.requires_grad for parameter in parameters.values())
    half = objective.config.model_copy(update={"prior": PriorSettings(**{**KEEP, "share": 0.5})})  # type: ignore[arg-type]
    some = change_of(replace(objective, config=half))
    asked = torch.tensor([one.uniform("prior") < 0.5 for one in samples])
    assert torch.allclose(some, torch.where(asked, change, 0), atol=1e-5)


def drift(tiny_base: Path, photos: Path, folder: Path, **prior: Any) -> float:
    """How far a trained LoRA moves the answers to the class from the base's."""
    more = {
        "dataset": {"trigger": "zwx"},
        "prior": {**KEEP, **prior},
        "samples": {"prompts": []},
        "train": {"steps": 10, "learning_rate": 1e-2, "text_encoder_lr": 1e-2},
    }
    config = recipe(tiny_base, photos, **more)
    run = RunFolder(folder / "runs" / "one")
    run.create(config)
    assert train_here(run)
    objective, samples = objective_of(config, run, folder / "cache")
    load_adapter(run.checkpoint(10), objective.model.parameters())
    with torch.no_grad():
        kept = objective.kept(samples)
        shown = objective.texts.embeds(list(kept.values()))
        second = objective.second_look(objective.batch(samples), kept, shown)
        return (objective.predict(second.batch) - second.answer_BCHW).square().mean().item()


def test_the_class_stays_nearer_to_the_base(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    free = drift(tiny_base, photos, tmp_path / "free", weight=1e-6)
    kept = drift(tiny_base, photos, tmp_path / "kept", weight=5)
    assert kept < 0.5 * free


def test_resume_is_exact(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    prior = {**KEEP, "captions": ["a dog"], "share": 0.6}
    config = recipe(tiny_base, photos, dataset={"trigger": "zwx"}, prior=prior, adapter={"dropout": 0.1})
    whole, broken = RunFolder(tmp_path / "runs" / "whole"), RunFolder(tmp_path / "runs" / "broken")
    for run in (whole, broken):
        run.create(config)
    assert train_here(whole)
    assert not train_here(broken, Script(broken, "stop", 4))
    assert train_here(broken)
    assert weights_hash(whole, 8) == weights_hash(broken, 8)


def test_class_pictures_are_drawn_once_and_trained_on(
    tiny_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = {
        "method": "class_pictures",
        "class_name": "cat",
        "captions": ["a dog"],
        "pictures": 5,
        "weight": 0.5,
    }

    def run_of(name: str, **more: Any) -> RunFolder:
        run = RunFolder(tmp_path / "runs" / name)
        own: dict[str, Any] = {
            "dataset": {"trigger": "zwx"},
            "train": {"steps": 2},
            "prior": {**prior, **more},
        }
        run.create(recipe(tiny_base, photos, **own))
        return run

    monkeypatch.setattr("trainer.data.ensure_face_model", lambda *_, **__: pytest.fail("as they are drawn"))
    first = run_of("first")
    # Ended while they are drawn, and gone on with.
    script = Script(first)
    asked = iter([False] * 3 + [True] * 1000)
    monkeypatch.setattr(script, "stop", lambda: next(asked))
    assert not train_here(first, script)
    assert train_here(first)
    (folder,) = (tmp_path / "cache" / "class-pictures").iterdir()
    files = sorted(folder.glob("*.webp"))
    assert len(files) == 5
    captions = [file.with_suffix(".txt").read_text() for file in files]
    assert captions == ["a photo of cat", "a dog"] * 2 + ["a photo of cat"]
    assert len({file.read_bytes() for file in files}) == 5
    regular = [image for image in load_frozen(first.dataset) if image.regularisation]
    own = [image for image in load_frozen(first.dataset) if not image.regularisation]
    assert 0 < len(regular) <= 5 and all(image.weight == 0.5 for image in regular)
    assert {image.caption for image in regular} <= {"a photo of cat", "a dog"}
    assert {(image.bucket, image.crop) for image in regular} == {((64, 64), (0, 0, 64, 64))}
    assert own and all(image.weight == 1 for image in own)

    before = {file: file.stat().st_mtime_ns for file in files}
    assert train_here(run_of("second", weight=0.25))
    assert {file: file.stat().st_mtime_ns for file in files} == before
    third = run_of("third", path=str(folder))
    assert train_here(third)
    assert [image.sha256 for image in load_frozen(third.dataset)] == [
        image.sha256 for image in load_frozen(first.dataset)
    ]
