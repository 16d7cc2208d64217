"""diffusers' training scripts: what they do where nothing is said, and options that change the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.config import TrainConfig

from .helpers import line, read


def recipe(folder: Path, script: str, options: str = "") -> TrainConfig:
    return read(folder, "t.sh", f"accelerate launch {script}.py --max_train_steps=500 {options}")[0]


@pytest.mark.parametrize(
    ("script", "batch", "resolution", "decay"),
    [
        ("train_dreambooth_lora", 4, 512, 0.01),
        ("train_dreambooth_lora_sdxl", 4, 1024, 1e-4),
        ("train_dreambooth_lora_flux", 4, 512, 1e-4),
        ("train_text_to_image_lora", 16, 512, 0.01),
    ],
)
def test_defaults(tmp_path: Path, script: str, batch: int, resolution: int, decay: float) -> None:
    config = recipe(tmp_path, script)
    assert (config.train.batch_size, config.dataset.resolution) == (batch, resolution)
    assert config.train.weight_decay == decay and config.adapter.init == "gaussian"


def test_noise_levels_of_flow_models(tmp_path: Path) -> None:
    def noise(script: str, options: str = "") -> tuple[str, float | None, str, bool]:
        found = recipe(tmp_path, f"train_dreambooth_lora_{script}", options).noise
        return found.timesteps, found.shift, found.weighting, found.kohya_flow

    assert noise("flux") == ("uniform", None, "none", False)
    assert noise("flux", "--weighting_scheme=mode") == ("mode", None, "none", False)
    # Its estimates of the picture count noise level s by s², which 1/s² takes back.
    assert noise("sd3") == ("logit_normal", 3.0, "none", True)
    assert noise("sd3", "--weighting_scheme=sigma_sqrt") == ("uniform", 3.0, "sigma_sqrt", True)
    assert noise("sd3", "--precondition_outputs=0") == ("logit_normal", 3.0, "none", False)
    assert noise("sdxl", "--weighting_scheme=mode") == ("auto", None, "none", False)
    width = recipe(tmp_path, "train_dreambooth_lora_sd3", "--logit_std=0.8 --logit_mean=0.1").noise
    assert (width.logit_std, width.logit_mean) == (0.8, 0.1)


def test_what_was_told_to_change_nothing(tmp_path: Path) -> None:
    train = recipe(tmp_path, "train_dreambooth_lora_sdxl", "--use_8bit_adam --adam_beta2=0.99").train
    assert (train.optimizer, train.optimizer_args) == ("adamw8bit", "betas=0.9,0.99")
    options = "--learning_rate=1e-4 --scale_lr --train_batch_size=2 --gradient_accumulation_steps=4"
    assert recipe(tmp_path, "train_dreambooth_lora_sdxl", options).train.learning_rate == pytest.approx(8e-4)
    prodigy = recipe(tmp_path, "train_dreambooth_lora_flux", "--optimizer=prodigy --use_8bit_adam").train
    assert prodigy.optimizer == "prodigy" and "safeguard_warmup=True" in prodigy.optimizer_args
    assert prodigy.weight_decay == 1e-4


def test_text_encoders_are_trained_together(tmp_path: Path) -> None:
    def rates(script: str, options: str = "") -> tuple[float, float]:
        train = recipe(tmp_path, script, f"--train_text_encoder {options}").train
        return train.text_encoder_lr, train.text_encoder_2_lr

    assert rates("train_dreambooth_lora_sdxl") == (5e-6, 5e-6)
    assert rates("train_dreambooth_lora_sdxl", "--text_encoder_lr=1e-5") == (1e-5, 1e-5)
    assert rates("train_dreambooth_lora", "--learning_rate=2e-4") == (2e-4, 0)
    flux = "accelerate launch train_dreambooth_lora_flux.py --train_text_encoder"
    assert line(read(tmp_path, "t.sh", flux)[1], "train_text_encoder").outcome == "missing"
