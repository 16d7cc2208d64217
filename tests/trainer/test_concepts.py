"""Several folders in one recipe: each with its own trigger, repeats and weight; regularisation sets."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from dataset_tools.augment import views_of
from dataset_tools.buckets import Buckets
from dataset_tools.dataset import DatasetError, load_dataset, read_caption, save_dataset
from tests.pictures import draw_picture, draw_project
from trainer.__main__ import main
from trainer.cache import pixels_of
from trainer.captions import Captions
from trainer.concepts import TrainImage, balanced
from trainer.contract.config import TrainConfig
from trainer.contract.events import current_events, read_events
from trainer.contract.fields import load_recipe, parse
from trainer.contract.runs import RunFolder
from trainer.contract.settings.dataset import DatasetSettings, OwnSettings
from trainer.data import BatchPlan, Sample, freeze_dataset, load_frozen
from trainer.identity import identity_of

from .helpers import recipe, train_here


def picture(image_id: str, repeats: int = 1, regularisation: bool = False) -> TrainImage:
    return TrainImage(
        id=image_id,
        file=f"{image_id}.png",
        original_name=f"{image_id}.png",
        sha256="0" * 64,
        width=96,
        height=96,
        repeats=repeats,
        regularisation=regularisation,
        caption=image_id,
    )


SIZE = (64, 64)
"""A bucket's: no subject has to be looked for in such a picture, which takes most of a second."""


def freeze(root: Path, told: list[str] | None = None, **settings: object) -> tuple[TrainImage, ...]:
    made = DatasetSettings.model_validate({"path": str(root), **settings})
    notify = (told if told is not None else []).append
    return freeze_dataset(root, made, Buckets(64), root / "models", notify=notify, beside=root)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """rex, a project of five; mia, a project of three whose ids are the same; dogs, a plain folder."""
    draw_project(tmp_path / "rex", trigger="zwx dog")
    draw_project(tmp_path / "mia", count=3, trigger="qrt cat")
    (tmp_path / "mia" / "images" / "picture1.txt").unlink()
    for number in range(2):
        draw_picture(tmp_path / "dogs" / f"{number}.png", 5 + number, SIZE)
    return tmp_path


SUBSETS = [
    "../mia | repeats = 4",
    {"path": "../dogs", "trigger": "dog", "regularisation": True, "weight": 0.25},
]


def test_every_folder_keeps_its_trigger_captions_and_repeats(folders: Path) -> None:
    images = freeze(folders / "rex", repeats=2, subsets=SUBSETS)
    assert len({image.id for image in images}) == 10
    rex, mia, dogs = images[:5], images[5:8], images[8:]
    assert [image.id for image in rex] == [f"picture{number}" for number in range(5)]
    assert {(image.folder, image.trigger, image.repeats) for image in rex} == {("", "zwx dog", 2)}
    assert {(image.folder, image.trigger, image.repeats) for image in mia} == {("../mia", "qrt cat", 4)}
    assert [image.caption for image in mia] == [
        "a photo of qrt cat, number 0",
        "qrt cat",  # its own folder's word stands in for a missing caption
        "a photo of qrt cat, number 2",
    ]
    assert {(image.caption, image.weight, image.regularisation) for image in dogs} == {("dog", 0.25, True)}
    assert all(image.weight == 1 and not image.regularisation for image in (*rex, *mia))
    assert sum(image.repeats for image in dogs) == 5 * 2 + 3 * 4
    # A picture's pixels come from its own folder, though two folders hold a file of the same name.
    assert rex[0].file == mia[0].file
    assert [image.path(folders / "rex").resolve() for image in (rex[0], mia[0], dogs[0])] == [
        folders / "rex/images/picture0.png",
        folders / "mia/images/picture0.png",
        folders / "dogs/0.png",
    ]
    assert not torch.equal(pixels_of(folders / "rex", dogs[0]), pixels_of(folders / "rex", rex[0]))
    looks = Counter(
        sample.image.id
        for plan in [BatchPlan(images, 4, seed=1)]
        for number in range(plan.batches_per_epoch)
        for sample in plan.batch(number)
    )
    assert looks == {image.id: image.repeats for image in images}


def test_a_folder_of_the_same_concept_takes_the_word_of_the_first(folders: Path) -> None:
    draw_picture(folders / "more" / "0.png", 7, SIZE)
    images = freeze(folders / "rex", subsets=["../more"])
    assert images[-1].caption == images[-1].trigger == "zwx dog"
    assert freeze(folders / "rex", subsets=["../more | regularisation"])[-1].caption == ""


def test_a_folder_has_its_own_prefix(folders: Path) -> None:
    subsets = ["../mia | prefix = drawing of", "../dogs | trigger = dog | regularisation"]
    images = freeze(folders / "rex", subsets=subsets)
    config = parse({"captions": {"prefix": "photo of", "suffix": "outdoors"}})
    captions = Captions(config, BatchPlan(images, 2, seed=1))
    shown = [captions.of(Sample(image, 0, 0, 1)) for image in images]
    assert shown[0].startswith("photo of ") and shown[0].endswith(" outdoors")
    assert shown[6] == "drawing of qrt cat outdoors" and shown[-1] == "dog"
    assert {text for _, text in captions.all()} == set(shown), "so they are encoded beforehand"
    assert [one.own for one in map(copied, images)] == [one.own for one in images]


def test_a_run_of_an_earlier_version_is_still_the_same(photos: Path) -> None:
    """It had prefix and suffix where ``own`` is now, and its checkpoints the hash of that."""
    record = load_dataset(photos).images[0].model_dump(mode="json", exclude_none=True)
    plain = record | {"caption": "a cat", "trigger": "", "regularisation": False, "weight": 1.0}
    plain |= {"held_out": False, "mask_sha256": ""}
    before = [plain | {"prefix": "old", "suffix": ""}, plain]
    images = [TrainImage.model_validate(row | {"folder": "", "mask": ""}) for row in before]
    assert images[0].own == OwnSettings(prefix="old", suffix="") and images[1].own == OwnSettings()
    rows = [{name: row[name] for name in row if name not in ("file", "original_name")} for row in before]
    told = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert identity_of(TrainConfig(), images, SimpleNamespace(weights_id=str))["pictures"] == told  # type: ignore[arg-type]


def test_a_folder_is_mirrored_and_shuffled_as_it_says(folders: Path) -> None:
    subsets = ["../mia | flip | shuffle | keep_tokens = 1", "../dogs"]
    images = freeze(folders / "rex", subsets=subsets)
    config = parse({"dataset": {"subsets": subsets}, "train": {"steps": 40}})
    plan = BatchPlan([image.model_copy(update={"caption": "a, b, c"}) for image in images], 2, seed=1)
    captions = Captions(config, plan)
    shown: dict[str, set[tuple[str, bool]]] = {}
    for batch in range(10 * plan.batches_per_epoch):
        for one in plan.batch(batch):
            view = one.view(config.dataset)
            shown.setdefault(one.image.folder, set()).add((captions.of(one), view.flip))
            assert view in views_of(one.image, config.dataset, one.image.own.flips(config.dataset))
    still = {("a, b, c", False)}
    assert shown.pop("../mia") == {(text, flip) for text in ("a, b, c", "a, c, b") for flip in (False, True)}
    assert list(shown.values()) == [still, still]


def copied(image: TrainImage) -> TrainImage:
    """As it comes back from a run's dataset.json."""
    return TrainImage.model_validate_json(image.model_dump_json())


def test_kohya_folders_multiply(folders: Path) -> None:
    draw_picture(folders / "kohya" / "10_abc man" / "0.png", 3, SIZE)
    images = freeze(folders / "rex", subsets=["../kohya | repeats = 3 | trigger = abc"])
    assert (images[-1].repeats, images[-1].caption, images[-1].trigger) == (30, "abc man", "abc")


@pytest.mark.parametrize(
    ("regular", "repeats"),
    [
        ([1, 1, 1], [4, 3, 3]),  # in turn, until there are as many looks as at the others: 10
        ([3, 3, 3], [4, 3, 3]),
        ([6, 6, 6], [6, 4]),  # the last one's are cut, and one is left out
        ([20], [10]),
        ([1] * 12, [1] * 10),
    ],
)
def test_regularisation_never_outweighs(regular: list[int], repeats: list[int]) -> None:
    subject = [picture("a", 4), picture("b", 6)]
    others = [picture(f"r{number}", count, True) for number, count in enumerate(regular)]
    made = balanced([*subject, *others])
    assert made[:2] == tuple(subject)
    assert [image.repeats for image in made[2:]] == repeats
    assert balanced(subject) == tuple(subject)


def test_what_is_left_out_is_told(folders: Path) -> None:
    for number in range(7):
        draw_picture(folders / "many" / f"{number}.png", number, SIZE)
    told: list[str] = []
    assert len(freeze(folders / "rex", told, subsets=["../many | regularisation"])) == 10
    assert any("2 regularisation pictures are not used" in sentence for sentence in told)


def test_a_folder_that_is_not_there(folders: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere does not exist; check dataset\.path, dataset\.subsets"):
        freeze(folders / "rex", subsets=["../nowhere"])


def losses(run: RunFolder) -> list[float]:
    return [event["loss"] for event in current_events(read_events(run.events)[0]) if event["kind"] == "step"]


def train(path: Path, config: TrainConfig) -> RunFolder:
    run = RunFolder(path)
    run.create(config)
    assert train_here(run)
    return run


def test_a_run_over_two_concepts_and_a_weight_that_scales_the_loss(folders: Path, tiny_base: Path) -> None:
    def one(weight: float) -> RunFolder:
        subsets = [
            {"path": str(folders / "mia")},
            {"path": str(folders / "dogs"), "trigger": "dog", "regularisation": True, "weight": weight},
        ]
        config = recipe(
            tiny_base,
            folders / "rex",
            dataset={"path": str(folders / "rex"), "subsets": subsets},
            train={"steps": 16, "batch_size": 1, "learning_rate": 1e-12},
            samples={"prompts": []},
            checkpoints={"every": 100},
        )
        return train(folders / "runs" / f"w{weight}", config)

    full, less = one(1.0), one(0.25)
    images = load_frozen(less.dataset)
    assert Counter((image.trigger, image.weight) for image in images) == {
        ("zwx dog", 1.0): 5,
        ("qrt cat", 1.0): 3,
        ("dog", 0.25): 2,
    }
    with safe_open(less.result(less.config()), "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "zwx dog, qrt cat"
    plan = BatchPlan(images, 1, seed=7)
    assert plan.batches_per_epoch == 16
    for step, (a, b) in enumerate(zip(losses(full), losses(less), strict=True)):
        assert b / a == pytest.approx(plan.batch(step)[0].image.weight, rel=1e-4)


def test_paths_are_looked_up_beside_the_recipe(
    folders: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folders / "rex" / "recipe.toml"
    file.write_text(
        f'[model]\nbase = "{tiny_base}"\n[dataset]\npath = "."\n'
        '[[dataset.subsets]]\npath = "../mia"\ntrigger = "qrt cat"\n'
        "[train]\nsteps = 1\n[samples]\nprompts = []\n"
    )
    assert main(["train", str(file), "--run-dir", str(folders / "run")]) == 0
    run = RunFolder(folders / "run")
    assert run.config().dataset.subsets[0].path == str(folders / "mia")
    assert {image.trigger for image in load_frozen(run.dataset)} == {"zwx dog", "qrt cat"}
    assert main(["train", str(file), "--run-dir", str(folders / "run")]) == 0  # the same command again
    wrong = ["train", str(file), "--set", 'dataset.subsets=["../nobody | repeats = 2"]']
    assert main(wrong) == 2
    assert "dataset.subsets.path = '../nobody' does not exist" in capsys.readouterr().err
    assert load_recipe(file).dataset.subsets[0].line == "../mia | trigger = qrt cat"


def test_an_edited_caption_of_a_subset_is_read_from_its_own_folder(folders: Path) -> None:
    dataset = load_dataset(folders / "mia")
    record = dataset.images[0]
    assert read_caption(folders / "mia", record) in {
        image.caption for image in freeze(folders / "rex", subsets=["../mia"])
    }
    save_dataset(folders / "mia", dataset.with_record(record.model_copy(update={"enabled": False})))
    assert len(freeze(folders / "rex", subsets=["../mia"])) == 7
