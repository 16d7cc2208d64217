"""A LoRA on the text encoders too: it moves, it resumes, and other programs read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.tiny_families import tiny
from trainer.__main__ import main
from trainer.after import weights_in
from trainer.assemble import assemble
from trainer.contract.errors import ConfigError
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import parse
from trainer.contract.randomness import derived_seed
from trainer.contract.runs import RunFolder
from trainer.export import FORMATS
from trainer.families.base import family_class

from .helpers import Script, opened, recipe, train_here, weights_hash

FAMILIES = [key for key, row in CATALOGUE.items() if row.trainable_text]
RATES = {"text_encoder_lr": 5e-2, "text_encoder_2_lr": 4e-2}
STEPS = 3


def rates(key: str) -> dict[str, float]:
    """A learning rate for each of the family's trainable encoders."""
    return dict(list(RATES.items())[: len(CATALOGUE[key].trainable_text)])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {key: tiny(key).build(tmp_path_factory.mktemp(key) / "base") for key in FAMILIES}


def make(path: Path, key: str, base: Path, photos: Path, **train: Any) -> RunFolder:
    settings = {"steps": STEPS, "scheduler": "constant", "warmup": 0.0, **rates(key), **train}
    config = recipe(
        base,
        photos,
        model={"family": key},
        adapter={"targets": "attention"},
        train=settings,
        samples={"guidance": 3.0},
        checkpoints={"every": 1, "keep": 9},
    )
    run = RunFolder(path)
    run.create(config)
    return run


@pytest.fixture(scope="module")
def runs(
    bases: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RunFolder]:
    """A finished run of each family."""
    made = {}
    for key, base in bases.items():
        made[key] = make(tmp_path_factory.mktemp("runs") / "runs" / key, key, base, photos)
        assert train_here(made[key])
    return made


@pytest.mark.parametrize("key", FAMILIES)
def test_each_encoder_moves_at_its_own_rate(key: str, runs: dict[str, RunFolder]) -> None:
    run = runs[key]
    config = run.config()
    first = weights_in(run.checkpoint(1), config)
    last = weights_in(run.checkpoint(STEPS), config)
    parts = {name.partition(".")[0] for name in first}
    assert parts == {family_class(key).denoiser_part, *CATALOGUE[key].trainable_text}
    for part in parts:
        # Adam's first step is the learning rate itself, whatever the gradient; B begins at zero.
        steps = torch.cat([lora.up.flatten() for name, lora in first.items() if name.startswith(f"{part}.")])
        rate = config.text_encoder_rates().get(part, config.train.learning_rate)
        assert steps.abs().max().item() == pytest.approx(rate, rel=1e-3), part
    moved = {name for name, lora in last.items() if not torch.equal(lora.up, first[name].up)}
    # SDXL reads its first encoder before the last layer, as kohya's files have it: that one stays zero.
    still = {name for name in last if name.startswith("text_encoder.encoder.layers.1.")}
    assert moved == set(last) - (still if key == "sdxl" else set())


@pytest.mark.parametrize("key", FAMILIES)
def test_captions_are_encoded_live_and_never_cached(key: str, runs: dict[str, RunFolder]) -> None:
    cache = runs[key].path.parent.parent / "cache"
    assert (cache / "latents").is_dir() and not (cache / "text").exists()


@pytest.mark.parametrize("key", FAMILIES)
def test_other_programs_draw_the_runs_last_sample(
    key: str, runs: dict[str, RunFolder], bases: dict[str, Path], tmp_path: Path
) -> None:
    run = runs[key]
    ours = np.asarray(Image.open(run.sample(STEPS, 0)), dtype=float) / 255
    pipeline = family_class(key).pipeline_class.from_pretrained(bases[key])
    pipeline.set_progress_bar_config(disable=True)
    files = {format: tmp_path / f"{format}.safetensors" for format in FORMATS}
    for format, file in files.items():
        assert main(["export", str(run.path), "--format", format, "--out", str(file)]) == 0
    without = tmp_path / "denoiser-only.safetensors"
    tensors = load_file(files["diffusers"])
    save_file({name: t for name, t in tensors.items() if not name.startswith("text_encoder")}, without)
    assert np.abs(draw(pipeline, without) - ours).max() > 0.02, "the encoders' part does nothing"
    assert np.abs(draw(pipeline, None) - ours).max() > 0.02
    for file in (files[format] for format in tiny(key).READ_BY_DIFFUSERS):
        assert np.abs(draw(pipeline, file) - ours).max() < 0.015, file.name  # 1/255 and half precision
    kohya, comfy = load_file(files["kohya"]), load_file(files["comfyui"])
    number = "1" if len(CATALOGUE[key].trainable_text) > 1 else ""
    stem = f"lora_te{number}_text_model_encoder_layers_1_self_attn_q_proj"
    native = "text_encoders.{}.transformer.text_model.encoder.layers.1.self_attn.q_proj"
    native = native.format(opened(key, bases[key]).clip_names["text_encoder"])
    assert torch.equal(kohya[f"{stem}.lora_down.weight"], comfy[f"{native}.lora_A.weight"])
    assert torch.equal(kohya[f"{stem}.lora_up.weight"], comfy[f"{native}.lora_B.weight"])
    assert kohya[f"{stem}.alpha"] == comfy[f"{native}.alpha"] == 4.0
    assert len(kohya) == len(comfy)


def draw(pipeline: Any, lora: Path | None) -> np.ndarray:
    if lora:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    noise = torch.Generator().manual_seed(derived_seed(42, 0))
    size = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 3.0}
    drawn = np.asarray(pipeline("zwx", **size, generator=noise, output_type="np").images[0])
    pipeline.unload_lora_weights()
    return drawn


@pytest.mark.parametrize("key", FAMILIES)
def test_stop_and_resume_is_bit_exact(
    key: str, runs: dict[str, RunFolder], bases: dict[str, Path], photos: Path
) -> None:
    run = make(runs[key].path.with_name(f"{key} stopped"), key, bases[key], photos)
    assert not train_here(run, Script(run, "stop", 1))
    assert train_here(run)
    assert weights_hash(run, STEPS) == weights_hash(runs[key], STEPS)
    assert run.sample(STEPS, 0).read_bytes() == runs[key].sample(STEPS, 0).read_bytes()


@pytest.mark.parametrize("key", FAMILIES)
def test_recomputed_activations_give_the_same_lora(
    key: str, runs: dict[str, RunFolder], bases: dict[str, Path], photos: Path
) -> None:
    run = make(
        runs[key].path.with_name(f"{key} checkpointed"), key, bases[key], photos, gradient_checkpointing="on"
    )
    model = assemble(opened(key, bases[key]), run.config(), run.path)
    model.use_checkpointing()
    assert len(model.parts) > 1
    assert all(part.is_gradient_checkpointing for part in model.parts.values())
    assert train_here(run)
    one = weights_in(runs[key].checkpoint(STEPS), run.config())
    two = weights_in(run.checkpoint(STEPS), run.config())
    for name, lora in one.items():
        assert torch.allclose(lora.up, two[name].up, atol=1e-4), name


def test_one_encoder_alone(bases: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    run = make(tmp_path / "runs" / "second", "sdxl", bases["sdxl"], photos, text_encoder_lr=0.0, steps=1)
    assert train_here(run)
    parts = {name.partition(".")[0] for name in weights_in(run.checkpoint(1), run.config())}
    assert parts == {"unet", "text_encoder_2"}
    with safe_open(run.result(run.config()), "pt") as file:
        stems = {key.split("_text_model")[0] for key in file.keys() if key.startswith("lora_te")}  # noqa: SIM118
    assert stems == {"lora_te2"}  # the second keeps its number


def test_sample_draws_with_the_trained_encoders(
    runs: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["sdxl"]
    assert main(["sample", str(run.path), "--prompt", "zwx", "--out", str(tmp_path)]) == 0
    drawn = Path(capsys.readouterr().out.strip())
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(run.sample(STEPS, 0))))


def test_the_modules_are_kohyas() -> None:
    """72 in CLIP-L, 192 in OpenCLIP's G, at full size."""
    large = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    giant = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    with torch.device("meta"):
        one: nn.Module = CLIPTextModel(CLIPTextConfig(**large))
        two: nn.Module = CLIPTextModelWithProjection(CLIPTextConfig(**giant, num_attention_heads=20))
    for key, encoder, count in (("sd15", one, 72), ("sdxl", one, 72), ("sdxl", two, 192)):
        pattern = family_class(key).text_targets
        assert sum(bool(re.fullmatch(pattern, name)) for name, _ in encoder.named_modules()) == count


def test_a_family_without_trainable_encoders_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError) as error:
        parse({"model": {"family": "sd15"}, "train": {"text_encoder_2_lr": 1e-5}})
    assert list(error.value.problems) == ["train.text_encoder_2_lr"]
    assert "Stable Diffusion 1.5" in str(error.value) and "set it to 0" in str(error.value)
