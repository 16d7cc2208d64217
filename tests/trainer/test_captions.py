"""The captions of a run: what is encoded beforehand is what is shown, and memory is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dataset_tools.buckets import Buckets
from dataset_tools.caption_preview import caption_previews
from dataset_tools.dataset import load_dataset, write_caption
from tests.pictures import draw_project
from trainer import cache
from trainer.__main__ import main
from trainer.cache import TextCache
from trainer.captions import Captions
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import DatasetSettings
from trainer.contract.steps import Folder
from trainer.data import BatchPlan, TrainImage, freeze_dataset

from .helpers import recipe, train_here, weights_hash

TAGS = "zwx, {red|green} hat, a, b, c, d"
MOVING = {"shuffle": True, "wildcards": True, "keep_tokens": 1, "tag_dropout": 0.3, "dropout": 0.2}


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    root = draw_project(tmp_path / "tagged")
    for record in load_dataset(root).images:
        write_caption(root, record, f"{TAGS}, {record.id}")
    return root


def captions_of(root: Path, images: tuple[TrainImage, ...], steps: int, **captions: Any) -> Captions:
    train = {"steps": steps, "batch_size": 2, "gradient_accumulation": 2}
    config = recipe(root, root, train=train, captions={**MOVING, **captions})
    return Captions(config, BatchPlan(images, 2, config.train.seed))


def shown(captions: Captions) -> set[tuple[str, str]]:
    """What the loop shows, step by step."""
    return {
        (one.image.id, text)
        for step in range(captions.config.train.steps)
        for micro in range(2)
        for one in captions.plan.batch(step * 2 + micro)
        if (text := captions.of(one))
    }


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"variants": 3},
        {"variants": 3, "warmup_steps": 0.5},
        {"variants": 1, "warmup_steps": 100},
        {"variants": 2, "protect": False, "prefix": "one, two,"},
    ],
)
def test_what_is_encoded_is_what_is_shown(more: dict[str, Any], tagged: Path) -> None:
    images = freeze_dataset(tagged, DatasetSettings(path=str(tagged)), Buckets(64), tagged)
    images = (images[0].model_copy(update={"repeats": 3}), *images[1:])
    captions = captions_of(tagged, images, 40, **more)
    every = captions.all()
    assert shown(captions) <= every
    assert {text for _, text in every if "{" in text or "|" in text} == set()
    if more.get("variants") == 3 and len(more) == 1:
        assert len(every) <= 3 * len(images)
        assert len(every) == len(shown(captions)), "of 40 steps none is missed"
    if not more:
        assert len(every) > 40, "every look has its own"


def test_the_step_is_that_of_the_update(tagged: Path) -> None:
    """With accumulation two batches are of one step; the warm-up counts steps."""
    images = freeze_dataset(tagged, DatasetSettings(path=str(tagged)), Buckets(64), tagged)
    captions = captions_of(tagged, images, 40, warmup_steps=20, tag_dropout=0, shuffle=False)
    counts = [
        [len(captions.of(one, dropout=False).split(", ")) for one in captions.plan.batch(number)]
        for number in range(50)
    ]
    flexible = 6  # beside the trigger
    for number, found in enumerate(counts):
        step = number // 2
        expected = flexible if step >= 20 else step * (flexible - 1) // 20 + 1
        assert set(found) == {1 + expected}, number


class Encoders:
    """Embeddings of a kilobyte that tell whose they are."""

    encoded = 0

    def text_encoder_id(self) -> str:
        return "text"

    def encode_captions(self, captions: list[str]) -> list[dict[str, torch.Tensor]]:
        self.encoded += len(captions)
        return [{"prompt": torch.full((256,), float(len(caption)))} for caption in captions]


def test_many_captions_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "IN_MEMORY", 4 * 1024)
    family: Any = Encoders()
    texts = TextCache(tmp_path, family, pytest.fail)
    captions = ["x" * length for length in range(1, 30)]
    texts.fill(captions, lambda done, total: None)
    assert family.encoded == 30
    held: Any = texts._embeds
    for caption in [*captions, *captions[::-1], captions[5]]:
        assert texts.embeds([caption])[0]["prompt"].unique().item() == len(caption)
        assert len(held) <= 4
    assert family.encoded == 30, "the encoders are gone by then"
    last = next(iter(held))
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    texts.embeds([last])
    with pytest.raises(RunError, match="resume to make it again"):
        texts.embeds([next(caption for caption in captions if caption not in held)])


@pytest.mark.parametrize("live", [False, True])
def test_a_variant_that_is_cut_is_told(live: bool, tiny_base: Path, tagged: Path, tmp_path: Path) -> None:
    """The short choice fits and the long one does not; some variant has it."""
    record = load_dataset(tagged).images[1]
    write_caption(tagged, record, "zwx {a|" + "a" * 90 + "}")
    train = {"steps": 2, "text_encoder_lr": 1e-4 if live else 0.0}
    settings = {"wildcards": True, "variants": 8}
    config = recipe(tiny_base, tagged, samples={"prompts": []}, train=train, captions=settings)
    run = RunFolder(tmp_path / "runs" / "r")
    run.create(config)
    assert train_here(run)
    told = [event["text"] for event in read_events(run.events)[0] if event["kind"] == "warning"]
    assert len(told) == 1 and told[0].startswith("1 caption is longer than the 77 tokens")
    assert f"that of {record.original_name}" in told[0]


@pytest.mark.parametrize("variants", [0, 3])
def test_the_preview_shows_what_is_trained(variants: int, tagged: Path) -> None:
    """Every epoch that is shown, of every picture, by the same draw."""
    settings = DatasetSettings(path=str(tagged), repeats=2)
    images = freeze_dataset(tagged, settings, Buckets(64), tagged)
    captions = captions_of(tagged, images, 40, variants=variants, prefix="photo,")
    trained = {
        (one.image.id, one.epoch + 1): captions.of(one)
        for batch in range(80)
        for one in captions.plan.batch(batch)
        if one.repeat == 0
    }
    for image in images:
        previews = caption_previews(
            image.caption,
            captions.config,
            {},
            image_id=image.id,
            repeats=image.repeats,
            folders=[Folder("zwx", tuple((one.bucket, one.repeats) for one in images if one.bucket))],
        )
        assert len(previews) == 4
        for preview in previews[:-1]:  # of the last epoch this run shows a part
            assert preview.stages.caption == trained[image.id, preview.epoch]
    assert len(set(trained.values())) > 6


def test_check_shows_captions_stage_by_stage(tagged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tagged.parent / "recipe.toml"
    settings = "shuffle = true\nwildcards = true\nkeep_tokens = 1\n"
    file.write_text(f'[dataset]\npath = "{tagged}"\n[captions]\n{settings}')
    assert main(["check", str(file)]) == 0
    assert "epoch" not in capsys.readouterr().out
    assert main(["check", str(file), "--captions", "2"]) == 0
    told = capsys.readouterr().out
    assert told.count(f": {TAGS}, picture") == 2
    assert told.count("  epoch 1: ") == 2 and "of 77 tokens (text_encoder_2)" in told
    tags = [line.split(":", 1)[1].strip() for line in told.splitlines() if line.startswith("    Tags:")]
    assert len(tags) >= 7 and all(line.startswith("zwx, ") and "{" not in line for line in tags)
    assert len(set(tags)) > 5


def test_what_is_made_of_captions_is_what_is_learnt(tiny_base: Path, tagged: Path, tmp_path: Path) -> None:
    """Each of these changes the LoRA; the same captions give the same one."""
    plain: dict[str, Any] = {"wildcards": True}
    changes: list[dict[str, Any]] = [
        {},
        {},
        {"prefix": "photo of"},
        {"shuffle": True},
        {"tag_dropout": 0.5},
        {"warmup_steps": 3},
        {"dropout_every_epochs": 1},
        {"wildcards": False},
    ]
    found = []
    for number, change in enumerate(changes):
        train = {"steps": 2, "batch_size": 2, "learning_rate": 1e-2}
        sections = {"samples": {"prompts": []}, "train": train, "captions": {**plain, **change}}
        run = RunFolder(tmp_path / "runs" / str(number))
        run.create(recipe(tiny_base, tagged, **sections))
        assert train_here(run)
        found.append(weights_hash(run, 2)[0])
    assert found[0] == found[1] and len(set(found)) == len(changes) - 1


def test_a_preview_of_epochs_knows_how_many_there_are() -> None:
    """Five photos in batches of two: three batches an epoch, and the warm-up is half of the run."""
    train = {"epochs": 8, "batch_size": 2}
    config = recipe(Path("x"), Path("x"), train=train, captions={"warmup_steps": 0.5})
    folders = [Folder("zwx", (((64, 64), 1),) * 5)]
    text = ", ".join("abcdefghi")
    previews = caption_previews(text, config, {}, image_id="x", repeats=1, folders=folders)
    assert [(one.epoch, one.step) for one in previews] == [(1, 0), (2, 3), (3, 6), (8, 21)]
    assert [one.stages.caption.count(",") for one in previews] == [0, 2, 4, 8]
