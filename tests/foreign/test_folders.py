"""Several folders in a recipe of another program: what holds for one alone there, and for all here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from trainer.contract.fields import parse

from .helpers import line, read, said

TWO = """
[general]
shuffle_caption = true
keep_tokens = 1
[[datasets]]
resolution = 768
batch_size = 3
[[datasets.subsets]]
image_dir = "a"
flip_aug = true
caption_prefix = "zwx,"
[[datasets.subsets]]
image_dir = "b"
shuffle_caption = true
keep_tokens = 3
cache_info = true
"""


def test_kohya(tmp_path: Path) -> None:
    """A second folder without flip_aug is not mirrored there, and so it is not here."""
    config, imported = read(tmp_path, "d.toml", TWO)
    assert config.dataset.flip and config.captions.prefix == "zwx," and config.captions.keep_tokens == 1
    (other,) = config.dataset.subsets
    assert other.line == "b | prefix = | keep_tokens = 3 | flip = false", "the first folder's are its alone"
    assert not [one for one in imported.lines if one.outcome == "missing" and "subsets[1]" in one.option]
    assert line(imported, "subsets[1] keep_tokens").why == "in that subset"
    assert line(imported, "subsets[1] shuffle_caption").outcome == "ignored", "it is the same for both"
    assert line(imported, "subsets[1] cache_info").outcome == "ignored", "it makes no difference"


def test_every_folder_of_kohya_has_its_prefix(tmp_path: Path) -> None:
    more = '[[datasets.subsets]]\nimage_dir = "c"\ncaption_prefix = "qrt,"\ncaption_suffix = ", 4k"\n'
    same = '[[datasets.subsets]]\nimage_dir = "d"\ncaption_prefix = "zwx,"\nflip_aug = true\n'
    config, imported = read(tmp_path, "d.toml", TWO + more + same)
    assert [one.line for one in config.dataset.subsets] == [
        "b | prefix = | keep_tokens = 3 | flip = false",
        "c | prefix = qrt, | suffix = , 4k | flip = false",
        "d",
    ]
    assert line(imported, "subsets[2] caption_prefix").outcome == "ignored"  # as it is in that subset
    assert not [one for one in imported.lines if one.outcome == "missing" and "caption_" in one.option]
    assert parse({"dataset": {"subsets": [one.line for one in config.dataset.subsets]}}).dataset.subsets == (
        config.dataset.subsets
    )


def test_class_pictures_of_kohya_have_settings_of_their_own(tmp_path: Path) -> None:
    """As in kohya's own example; its folder of photos comes second."""
    text = """
[general]
shuffle_caption = true
keep_tokens = 2
[[datasets]]
[[datasets.subsets]]
is_reg = true
image_dir = "people"
class_tokens = "human"
keep_tokens = 1
caption_dropout_rate = 0.2
[[datasets.subsets]]
image_dir = "me"
class_tokens = "ohwx human"
random_crop = true
"""
    config, _ = read(tmp_path, "d.toml", text)
    assert (config.captions.shuffle, config.captions.keep_tokens, config.captions.dropout) == (True, 2, 0)
    (people,) = config.dataset.subsets
    assert people.line == "people | trigger = human | regularisation | keep_tokens = 1 | dropout = 0.2"


def test_further_datasets_of_kohya(tmp_path: Path) -> None:
    more = """
[[datasets]]
resolution = 512
batch_size = 3
[[datasets.subsets]]
image_dir = "a"
[[datasets.subsets]]
image_dir = "c"
num_repeats = 4
flip_aug = true
caption_prefix = "zwx,"
"""
    config, imported = read(tmp_path, "d.toml", TWO + more)
    assert [(one.path, one.repeats) for one in config.dataset.subsets] == [("b", 1), ("c", 4)]
    assert (config.dataset.resolution, config.dataset.more_resolutions) == (768, "512")
    told = [one for one in imported.lines if one.option == "datasets[1] resolution"]
    assert [(one.setting or one.why, one.ours) for one in told] == [
        ("dataset.more_resolutions", "512"),
        ("in that subset", None),
    ]
    assert [(one.resolution, one.more_resolutions) for one in config.dataset.subsets] == [
        (None, ""),  # at 768 alone
        (512, ""),
    ]
    assert line(imported, "datasets[1] batch_size").outcome == "ignored"
    assert "at another resolution" in line(imported, "datasets[1].subsets[0] image_dir").why
    assert line(imported, "datasets[1].subsets[1] flip_aug").outcome == "ignored"


def test_the_same_photos_of_kohya_at_the_same_size_are_shown_once(tmp_path: Path) -> None:
    more = '[[datasets]]\nresolution = 768\n[[datasets.subsets]]\nimage_dir = "a"\nnum_repeats = 3\n'
    config, imported = read(tmp_path, "d.toml", TWO + more)
    assert config.dataset.more_resolutions == "" and config.dataset.subsets[0].resolution is None
    assert line(imported, "datasets[1] resolution").why == "as in datasets[0]"
    assert "shown once" in line(imported, "datasets[1].subsets[0] image_dir").why
    assert line(imported, "datasets[1].subsets[0] num_repeats").outcome == "missing", "and not silently"


def test_a_dataset_file_wins_over_the_command(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(TWO)
    command = "accelerate launch sdxl_train_network.py --dataset_config d.toml --resolution=1024,1024 "
    command += "--train_batch_size 8 --keep_tokens 5 --caption_dropout_rate 0.1 --train_data_dir x "
    config, imported = read(tmp_path, "t.sh", command + "--enable_bucket --max_bucket_reso 1536 --seed 7")
    assert (config.dataset.resolution, config.train.batch_size, config.captions.keep_tokens) == (768, 3, 1)
    assert config.dataset.path == "a" and config.train.seed == 7
    for option in ("resolution", "train_batch_size", "keep_tokens", "train_data_dir"):
        assert any(
            one.outcome == "ignored" and one.option == option and "wins" in one.why for one in imported.lines
        ), option
    assert (config.captions.dropout, config.dataset.buckets) == (0.1, "all"), "the file says nothing of them"
    assert config.dataset.bucket_max == 1536


def test_ai_toolkit(tmp_path: Path) -> None:
    sizes = [512, 768, 1024]
    datasets: list[dict[str, Any]] = [
        {"folder_path": "a", "flip_x": True, "shuffle_tokens": True, "cache_latents_to_disk": True},
        {"folder_path": "b", "shuffle_tokens": False, "caption_dropout_rate": 0.2},
    ]
    datasets[0]["resolution"], datasets[1]["resolution"] = sizes, 768
    process = {"model": {"name_or_path": "black-forest-labs/FLUX.1-dev"}, "datasets": datasets}
    text = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process]}})
    config, imported = read(tmp_path, "j.yaml", text)
    assert config.dataset.flip and config.captions.shuffle and not config.captions.dropout
    (other,) = config.dataset.subsets
    assert (other.flip, other.shuffle, other.dropout, other.keep_tokens) == (False, False, 0.2, None)
    assert (config.dataset.resolution, config.dataset.more_resolutions) == (1024, "512, 768")
    assert (other.resolution, other.more_resolutions) == (768, "")
    told = {one.option: one.outcome for one in imported.lines if one.option.startswith("datasets[1].")}
    assert set(told.values()) <= {"converted", "ignored"} and "datasets[1].flip_x" in told


def test_onetrainer(tmp_path: Path) -> None:
    concepts = [
        {"path": "a", "image": {"enable_random_flip": True}, "text": {"keep_tags_count": 1}},
        {"path": "b", "image": {"enable_random_flip": False}, "text": {"keep_tags_count": 1}, "seed": 3},
    ]
    recipe = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "concepts": concepts}
    _, imported = read(tmp_path, "p.json", json.dumps(recipe))
    assert line(imported, "concepts[1].image.enable_random_flip").outcome == "missing"
    assert line(imported, "concepts[1].text.keep_tags_count").outcome == "ignored"
    assert line(imported, "concepts[1].seed").outcome == "ignored"


def test_resolutions_of_onetrainer(tmp_path: Path) -> None:
    """One of several is drawn for each look there, so that epochs are longer here."""
    override = {"enable_resolution_override": True, "resolution_override": "640"}
    concepts = [{"path": "a"}, {"path": "b", "image": override}]
    recipe = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_XL_10_BASE", "concepts": concepts}
    recipe |= {"resolution": "512,768,1024", "epochs": 90}
    config, imported = read(tmp_path, "p.json", json.dumps(recipe))
    assert (config.dataset.resolution, config.dataset.more_resolutions) == (1024, "512, 768")
    assert config.train.epochs == 30 and "as 90 epochs there" in said(imported)
    (other,) = config.dataset.subsets
    assert (other.resolution, other.more_resolutions) == (640, "")
    assert line(imported, "concepts[1].image.resolution_override").why == "in that subset"
    concepts[0]["image"] = override | {"resolution_override": "512,640"}
    config, _ = read(tmp_path, "p.json", json.dumps(recipe))
    assert (config.dataset.resolution, config.dataset.more_resolutions) == (640, "512")
    assert not config.dataset.subsets[0].resolution and config.dataset.subsets[0].more_resolutions == ""


def test_simpletuner(tmp_path: Path) -> None:
    rows = [
        {"id": "one", "instance_data_dir": "a", "caption_strategy": "textfile"},
        {"id": "two", "instance_data_dir": "b", "caption_strategy": "filename", "resolution": 768},
        {"id": "three", "instance_data_dir": "a", "caption_strategy": "textfile", "resolution": 0.25},
        {"id": "four", "instance_data_dir": "b", "resolution": 512, "repeats": 3},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    options = {"--model_family": "sdxl", "--data_backend_config": "data.json", "--resolution": 1024}
    config, imported = read(tmp_path, "config.json", json.dumps(options))
    assert "one has textfile" in line(imported, "two caption_strategy").why
    assert (config.dataset.resolution, config.dataset.more_resolutions) == (1024, "512")
    (other,) = config.dataset.subsets
    assert (other.resolution, other.more_resolutions) == (768, None), "and 512, as all"
    assert line(imported, "two resolution").why == "in that subset"
    assert line(imported, "four repeats").outcome == "missing", "the same photos, repeated otherwise"
    assert "unknown" not in said(imported)
