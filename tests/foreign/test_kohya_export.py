"""Our recipe for kohya's scripts, and back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main
from trainer.contract.errors import ConfigError
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import dump_recipe, flatten, merge, parse
from trainer.contract.foreign.importing import read_foreign
from trainer.contract.foreign.kohya_export import _PICTURES, export_kohya

SDXL = {"model": {"family": "sdxl", "base": "stabilityai/stable-diffusion-xl-base-1.0", "precision": "bf16"}}
RECIPE: dict[str, Any] = {
    **SDXL,
    "dataset": {
        "path": "photos",
        "trigger": "zwx cat",
        "resolution": 768,
        "flip": True,
        "buckets": "all",
        "bucket_min": 384,
        "bucket_max": 1536,
        "bucket_step": 32,
        "repeats": 3,
        "subsets": [
            {"path": "more", "trigger": "qrt dog", "repeats": 2},
            {"path": "cats", "regularisation": True, "weight": 0.5},
        ],
    },
    "captions": {
        "dropout": 0.1,
        "shuffle": True,
        "keep_tokens": 2,
        "prefix": "photo of zwx,",
        "wildcards": True,
    },
    "adapter": {"rank": 32, "alpha": 8.0, "dropout": 0.1, "precision": "bf16"},
    "train": {
        "steps": 700,
        "batch_size": 3,
        "gradient_accumulation": 2,
        "learning_rate": 3e-4,
        "text_encoder_lr": 1e-5,
        "text_encoder_2_lr": 1e-5,
        "scheduler": "cosine_with_restarts",
        "restarts": 4,
        "warmup": 0.2,
        "optimizer": "adafactor",
        "weight_decay": 0.03,
        "max_grad_norm": 0.5,
        "gradient_checkpointing": "on",
        "seed": 7,
    },
    "loss": {"min_snr_gamma": 5.0},
    "samples": {
        "prompts": ["zwx cat at sea", "a boat"],
        "negative": "ugly, bad",
        "every": 50,
        "steps": 30,
        "guidance": 6.5,
        "seed": 3,
        "width": 832,
        "height": 640,
    },
    "checkpoints": {"every": 100, "keep": 5},
    "output": {"name": "zwx"},
}


def round_trip(tables: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings before, settings after) by dotted name."""
    config = parse(tables)
    export_kohya(config, folder / "zwx.toml")
    return flatten(config), flatten(parse(read_foreign(folder / "zwx.toml").tables))


def test_there_and_back(tmp_path: Path) -> None:
    before, after = round_trip(RECIPE, tmp_path)
    different = {path: (value, after[path]) for path, value in before.items() if after[path] != value}
    assert not different
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "zwx.dataset.toml",
        "zwx.prompts.txt",
        "zwx.toml",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"scheduler": "constant", "warmup": 0.1}},
        {"train": {"scheduler": "constant", "warmup": 0.0}},
        {"train": {"scheduler": "polynomial", "power": 2.0, "optimizer": "adamw"}},
        {"train": {"text_encoder_lr": 0.0, "text_encoder_2_lr": 0.0}},
        {"adapter": {"targets": "transformer+conv", "conv_rank": 8, "conv_alpha": 4.0}},
        {"adapter": {"type": "lokr", "lokr_factor": 8, "targets": "attention", "dropout": 0.0}},
        {"adapter": {"type": "dylora", "dylora_unit": 4, "module_dropout": 0.1}},
        {"adapter": {"dora": True, "targets": "transformer"}},
        {"adapter": {"block_ranks": ",".join(["8"] * 22 + ["4"])}},
        {"adapter": {"block_weights": "0,0,0,0,1,1,0,1,1 / 1,1,1 / 1,1,1,1,1,1,0.5,0,0"}},
        {"adapter": {"max_norm": 1.0}, "train": {"loraplus_ratio": 16.0, "loraplus_text_ratio": 4.0}},
        {"train": {"optimizer": "prodigy", "optimizer_args": "d_coef=0.8", "learning_rate": 1.0}},
        {"train": {"scheduler": "warmup_stable_decay", "warmup": 100.0, "decay": 0.2}},
        {"loss": {"type": "huber", "huber_schedule": "exponential", "huber_c": 0.2, "debiased": True}},
        {"noise": {"offset": 0.05, "multires_iterations": 6, "input_perturbation": 0.1, "t_max": 0.8}},
        {"captions": {"shuffle": True, "keep_tokens_separator": "|||", "suffix": ", 4k"}},
        {"checkpoints": {"keep": 1}},
        {"train": {"epochs": 12}, "checkpoints": {"every_epochs": 2}, "samples": {"every_epochs": 3}},
        {"loss": {"mask": "kohya", "mask_floor": 0.0}},
        {"dataset": {"buckets": "no_upscale"}},
        {"dataset": {"more_resolutions": "512, 1024"}},
        {
            "dataset": {
                "more_resolutions": "512",
                "subsets": [
                    "b | trigger = zwx cat | more_resolutions =",
                    "c | trigger = qrt | resolution = 1024 | more_resolutions = 640",
                ],
            }
        },
        {
            "dataset": {
                "subsets": [
                    "../b | trigger = qrt | prefix = qrt,",
                    "../c | trigger = b | prefix = | suffix = , 4k",
                ]
            },
            "captions": {"prefix": "zwx,"},
        },
        {"samples": {"prompts": [], "negative": ""}},
        {"samples": {"prompts": ["a", "b --n none --w 512 --d 9 --ss ddim"], "sampler": "euler"}},
    ],
)
def test_there_and_back_with(change: dict[str, Any], tmp_path: Path) -> None:
    before, after = round_trip(merge(RECIPE, change), tmp_path)
    for section, table in change.items():
        for name in table:
            assert after[f"{section}.{name}"] == before[f"{section}.{name}"]


FLUX = {"family": "flux", "base": "black-forest-labs/FLUX.1-dev", "precision": "bf16"}
SD3 = {"family": "sd3", "base": "stabilityai/stable-diffusion-3.5-large", "precision": "bf16"}


@pytest.mark.parametrize(
    ("model", "noise"),
    [
        (FLUX, {"timesteps": "flux_shift", "sigmoid_scale": 0.8}),
        (FLUX, {"timesteps": "shift", "shift": 3.1582}),
        (FLUX, {"timesteps": "uniform", "shift": 2.0}),
        (FLUX, {"timesteps": "logit_normal", "shift": 3.0, "logit_std": 0.5, "logit_mean": -0.5}),
        (FLUX, {"timesteps": "sigmoid", "t_min": 0.2, "t_max": 0.9}),
        (SD3, {"timesteps": "logit_normal", "shift": 3.0, "logit_std": 0.5, "kohya_flow": True}),
        (SD3, {"timesteps": "uniform", "kohya_flow": True, "weighting": "cosmap"}),
    ],
)
def test_noise_levels_there_and_back(model: dict[str, Any], noise: dict[str, Any], tmp_path: Path) -> None:
    before, after = round_trip({"model": model, "noise": noise}, tmp_path)
    for name in noise:
        assert after[f"noise.{name}"] == before[f"noise.{name}"]
    options = (tmp_path / "zwx.toml").read_text(encoding="utf-8")
    assert ('model_prediction_type = "raw"' in options) == (model is FLUX), "kohya's default is a trap"


def test_plain_velocity_for_sd35_is_sigma_sqrt_there(tmp_path: Path) -> None:
    """1/s² of the error of the picture, which is s times that of the velocity."""
    export_kohya(parse({"model": SD3, "noise": {"timesteps": "uniform"}}), tmp_path / "zwx.toml")
    assert 'weighting_scheme = "sigma_sqrt"' in (tmp_path / "zwx.toml").read_text(encoding="utf-8")
    made = export_kohya(parse({"model": SD3}), tmp_path / "own.toml")
    assert "noise.kohya_flow" in [line.option for line in made.lines if line.outcome == "missing"]


def test_what_kohya_reads(tmp_path: Path) -> None:
    export_kohya(parse(RECIPE), tmp_path / "zwx.toml")
    tables = tomllib.loads((tmp_path / "zwx.toml").read_text(encoding="utf-8"))
    options = {name: value for table in tables.values() for name, value in table.items()}
    assert options["network_dim"] == 32 and options["network_alpha"] == 8
    assert options["optimizer_args"][1:] == [
        "relative_step=False",
        "scale_parameter=False",
        "warmup_init=False",
    ]
    dataset = tomllib.loads((tmp_path / "zwx.dataset.toml").read_text(encoding="utf-8"))["datasets"][0]
    assert dataset["max_bucket_reso"] == 1536, "not the 1024 that kohya has where nothing is said"
    assert dataset["caption_extension"] == ".txt" and dataset["subsets"][2]["is_reg"]
    assert "caption_prefix" not in dataset["subsets"][2] and "caption_prefix" in dataset["subsets"][1]
    prompts = (tmp_path / "zwx.prompts.txt").read_text(encoding="utf-8").splitlines()
    assert prompts[1] == "a boat --w 832 --h 640 --d 3 --s 30 --l 6.5 --n ugly, bad"


def test_what_kohya_cannot_do_is_told(tmp_path: Path) -> None:
    change = {
        "prior": {"method": "output", "class_name": "cat"},
        "adapter": {"targets": "attention"},
        "train": {"text_encoder_lr": 1e-5, "text_encoder_2_lr": 2e-5},
        "samples": {"prompts": ["n cats"]},
    }
    made = export_kohya(parse(merge(RECIPE, change)), tmp_path / "zwx.toml")
    missing = {line.option: line.why for line in made.lines if line.outcome == "missing"}
    assert set(missing) == {
        "prior.method",
        "prior.class_name",
        "adapter.targets",
        "train.text_encoder_2_lr",
        "samples.prompts",
    }
    assert "begins with 'n'" in missing["samples.prompts"]


def test_families_that_kohya_trains_and_others(tmp_path: Path) -> None:
    scripts = {key: row.kohya[0] for key, row in CATALOGUE.items() if row.kohya}
    assert scripts["sdxl"] == "sdxl_train_network.py" and scripts["flux"] == "flux_train_network.py"
    config = parse({"model": {"family": "zimage", "base": "Tongyi-MAI/Z-Image"}})
    with pytest.raises(ConfigError, match="train no LoRA for Z-Image"):
        export_kohya(config, tmp_path / "x.toml")
    with pytest.raises(ConfigError, match="demo model"):
        export_kohya(parse({}), tmp_path / "x.toml")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(dump_recipe(parse(RECIPE)), encoding="utf-8")
    argv = ["export", str(tmp_path / "r.toml"), "--format", "kohya-toml", "--out", str(tmp_path / "k.toml")]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert (
        "adapter.rank = 32 → network_dim = 32" in said and "accelerate launch sdxl_train_network.py" in said
    )
    assert main(argv) == 2 and "is there already" in capsys.readouterr().err
    argv = ["import", str(tmp_path / "k.toml"), "--out", str(tmp_path / "back.toml")]
    assert main(argv) == 0
    assert "network_dim = 32 → adapter.rank = 32" in capsys.readouterr().out


def test_every_caption_setting_that_kohya_has_goes_over() -> None:
    assert {"captions.shuffle", "captions.prefix", "captions.tag_dropout", "dataset.flip"} <= set(_PICTURES)
