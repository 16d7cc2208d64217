"""How each program draws noise levels, its defaults made explicit; the Huber border; prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.contract.settings.noise import NoiseSettings

from .helpers import line, read, said


def kohya(folder: Path, script: str, options: str = "") -> tuple[NoiseSettings, str]:
    config, imported = read(folder, "t.sh", f"accelerate launch {script}.py --learning_rate=1e-4 {options}")
    return config.noise, said(imported)


def test_flux_as_kohya_has_it(tmp_path: Path) -> None:
    noise, told = kohya(tmp_path, "flux_train_network")
    assert (noise.timesteps, noise.shift) == ("uniform", 3.0), "the scheduler's levels, shifted by 3"
    assert "sigma_scaled is kohya's default" in told and "plain velocity is trained here" in told
    noise, told = kohya(
        tmp_path,
        "flux_train_network",
        "--timestep_sampling=flux_shift --model_prediction_type=raw --guidance_scale=1.0",
    )
    assert (noise.timesteps, noise.shift) == ("flux_shift", None) and "sigma_scaled" not in told
    noise, _ = kohya(tmp_path, "flux_train_network", "--timestep_sampling=shift --discrete_flow_shift=3.1582")
    assert (noise.timesteps, noise.shift) == ("shift", 3.1582)
    noise, told = kohya(tmp_path, "flux_train_network", "--timestep_sampling=sigmoid --discrete_flow_shift=3")
    assert (noise.timesteps, noise.shift) == ("sigmoid", None)
    assert "ignored discrete_flow_shift" in told, "kohya shifts neither"


def test_sd35_as_kohya_has_it(tmp_path: Path) -> None:
    noise, told = kohya(tmp_path, "sd3_train_network")
    assert noise.kohya_flow and noise.timesteps == "uniform" and noise.shift is None
    assert "counts noise level s by s²" in told
    noise, _ = kohya(
        tmp_path, "sd3_train_network", "--weighting_scheme=logit_normal --training_shift=3 --logit_std=0.5"
    )
    assert (noise.timesteps, noise.shift, noise.logit_std) == ("logit_normal", 3.0, 0.5)
    noise, _ = kohya(tmp_path, "sd3_train_network", "--weighting_scheme=sigma_sqrt")
    assert (noise.timesteps, noise.weighting) == ("uniform", "sigma_sqrt")


def test_unets_have_none_of_it(tmp_path: Path) -> None:
    noise, told = kohya(
        tmp_path, "sdxl_train_network", "--discrete_flow_shift=3 --v_parameterization --zero_terminal_snr"
    )
    assert noise.timesteps == "auto" and noise.shift is None and not noise.kohya_flow
    assert (noise.prediction, noise.zero_terminal_snr) == ("v_prediction", "on")
    assert "only for flow models" in told


def test_huber(tmp_path: Path) -> None:
    options = "--loss_type=smooth_l1 --huber_schedule=snr --huber_c=0.1"
    config, imported = read(tmp_path, "t.sh", f"accelerate launch sdxl_train_network.py {options}")
    assert (config.loss.type, config.loss.huber_schedule, config.loss.huber_c) == ("smooth_l1", "snr", 0.1)
    assert "stop there with flow models" not in said(imported)
    config, imported = read(tmp_path, "t.sh", "accelerate launch flux_train_network.py --loss_type=huber")
    assert config.loss.type == "huber" and "stop there with flow models" in said(imported)
    config, imported = read(
        tmp_path, "t.sh", "accelerate launch train_network.py --huber_c=0.3 --huber_schedule=snr"
    )
    assert config.loss.huber_c == 0.1 and line(imported, "huber_c").outcome == "ignored"


@pytest.mark.parametrize(
    ("options", "timesteps", "shift"),
    [
        ({}, "shift", 3.0),
        ({"flow_schedule_shift": 1.73}, "shift", 1.73),
        ({"flow_use_uniform_schedule": True, "flow_schedule_shift": 1}, "uniform", 1.0),
        ({"flow_schedule_auto_shift": True}, "flux_shift", None),
    ],
)
def test_simpletuner(tmp_path: Path, options: dict[str, Any], timesteps: str, shift: float | None) -> None:
    text = json.dumps({"model_family": "sd3", "model_type": "lora", **options})
    noise = read(tmp_path, "c.json", text)[0].noise
    assert (noise.timesteps, noise.shift) == (timesteps, shift)


@pytest.mark.parametrize(
    ("options", "timesteps", "shift"),
    [
        ({}, "uniform", None),
        ({"timestep_distribution": "LOGIT_NORMAL", "timestep_shift": 2.0}, "logit_normal", 2.0),
        ({"timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True}, "flux_shift", None),
        ({"timestep_distribution": "COS_MAP"}, "auto", None),
    ],
)
def test_onetrainer(tmp_path: Path, options: dict[str, Any], timesteps: str, shift: float | None) -> None:
    text = json.dumps({"training_method": "LORA", "model_type": "FLUX_DEV_1", **options})
    noise = read(tmp_path, "c.json", text)[0].noise
    assert (noise.timesteps, noise.shift) == (timesteps, shift)


def test_onetrainers_width(tmp_path: Path) -> None:
    options = {"timestep_distribution": "LOGIT_NORMAL", "noising_weight": 0.5, "noising_bias": -0.25}
    text = json.dumps({"training_method": "LORA", "model_type": "FLUX_DEV_1", **options})
    noise = read(tmp_path, "c.json", text)[0].noise
    assert (noise.logit_std, noise.logit_mean) == (1.5, -0.25)


@pytest.mark.parametrize(
    ("kind", "timesteps"),
    [(None, "sigmoid"), ("linear", "uniform"), ("shift", "flux_shift"), ("weighted", "auto")],
)
def test_ai_toolkit(tmp_path: Path, kind: str | None, timesteps: str) -> None:
    process = {
        "model": {"name_or_path": "black-forest-labs/FLUX.1-dev"},
        "train": {"timestep_type": kind} if kind else {},
    }
    text = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process]}})
    assert read(tmp_path, "j.yaml", text)[0].noise.timesteps == timesteps
