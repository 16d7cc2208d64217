"""Bases that look like one that can be trained, and are not quite: told before anything is encoded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_families import tiny
from trainer.contract.errors import RunError
from trainer.contract.fields import parse
from trainer.contract.headers import read_header
from trainer.families.base import Geometry
from trainer.families.identify import require_weights, rounded
from trainer.families.ldm_single_file import schedule
from trainer.memory import require_formats
from trainer.source import resolve

from .helpers import opened

CPU = torch.device("cpu")


def test_a_base_for_inpainting_is_refused_at_opening(tiny_base: Path, tmp_path: Path) -> None:
    """Its U-Net is given the mask and the picture without what is masked, as well."""
    folder = tmp_path / "inpaint"
    shutil.copytree(tiny_base, folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    with pytest.raises(
        RunError, match="inpaint takes 9 channels, not the 4 of a picture: it is for inpainting"
    ):
        opened("sdxl", folder)


def test_a_checkpoint_for_inpainting_is_refused_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny("sd15").build(tmp_path / "base")
    names = ("input_blocks.0.0.weight", "input_blocks.1.1.norm.weight")
    shapes = ((32, 9, 3, 3), (4,))
    file = tmp_path / "inpaint.safetensors"
    save_file(
        {f"model.diffusion_model.{n}": torch.zeros(s) for n, s in zip(names, shapes, strict=True)}, file
    )
    monkeypatch.setattr("trainer.source.fetch_pipeline", lambda repo, *args, **options: base)
    with pytest.raises(RunError, match="takes 9 channels"):
        opened("sd15", file)


@pytest.mark.parametrize("scale", ["x.scale_weight", "scaled_fp8", "x.weight_scale", "x.weight.absmax"])
def test_weights_that_are_nothing_without_scales_are_refused(scale: str, tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    save_file({"x.weight": torch.zeros(4), f"model.diffusion_model.{scale}": torch.zeros(1)}, file)
    with pytest.raises(RunError, match="small is quantised"):
        require_weights(read_header(file), "small")
    with pytest.raises(RunError, match="quantised"):
        resolve("flux", str(file))


@pytest.mark.parametrize("name", ["blocks.0.norm.scale", "logit_scale", "scale_shift_table", "x.scale"])
def test_scales_of_layers_are_no_such_thing(name: str, tmp_path: Path) -> None:
    file = tmp_path / "plain.safetensors"
    save_file({f"model.diffusion_model.{name}": torch.zeros(1)}, file)
    require_weights(read_header(file), "plain")


def original(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    base = tiny(key).build(tmp_path / key)
    monkeypatch.setattr("trainer.source.fetch_pipeline", lambda repo, *args, **options: base)
    tensors: dict[str, Tensor] = {n: t.contiguous() for n, t in tiny(key).original(base).items()}
    return tensors


def test_plain_fp8_is_trained_on_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = original("flux", tmp_path, monkeypatch)
    file = tmp_path / "flux-fp8.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, file)
    base = resolve("flux", str(file))
    assert base.remark.startswith("flux-fp8 has its weights in 8 bits (fp8).")
    weights = opened("flux", file).load_denoiser().state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    save_file(tensors, tmp_path / "flux.safetensors")
    assert resolve("flux", str(tmp_path / "flux.safetensors")).remark == ""
    assert rounded(read_header(tmp_path / "flux.safetensors"), "x") == ""


def test_noise_counted_as_in_edm_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cosxl.safetensors"
    save_file({"edm_vpred.sigma_max": torch.ones(1)}, file)
    with pytest.raises(RunError, match="EDM's way"):
        schedule(read_header(file))


def test_a_text_encoder_that_overflows_in_fp16_is_refused() -> None:
    for key in ("sana", "lumina2"):
        config = parse({"model": {"family": key, "base": "me/x"}})
        with pytest.raises(RunError, match=r"overflows in fp16; set model\.precision to fp32"):
            require_formats(config, torch.float16)
        require_formats(config, torch.bfloat16)
    require_formats(parse({}), torch.float16)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("key", ["sd3", "sana"])
def test_a_checkpoint_in_one_file_can_be_quantised(
    key: str, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These two are read by diffusers' own converters."""
    pytest.importorskip({"int8": "torchao", "nf4": "bitsandbytes"}[quantization])
    file = tmp_path / "one.safetensors"
    save_file(original(key, tmp_path, monkeypatch), file)
    family = opened(key, file, quantized=quantization)
    plain = opened(key, file)
    embeds = family.encode_captions(["a fox"])
    noisy = torch.randn(
        family.encode_images(torch.zeros(1, 3, 64, 64)).shape, generator=torch.Generator().manual_seed(3)
    )
    inputs = (noisy, torch.tensor([0.5]), embeds, [Geometry.whole(64, 64)])
    with torch.no_grad():
        exact = plain.predict(plain.load_denoiser(), *inputs)
        rough = family.predict(family.load_denoiser(), *inputs)
    error = ((rough - exact).norm() / exact.norm()).item()
    assert 0 < error < {"int8": 0.05, "nf4": 0.5}[quantization]


def test_weights_in_bf16_alone_are_loaded(tiny_base: Path, tmp_path: Path) -> None:
    """Where the Hub has them they are fetched instead of those in 32 bits."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(weights, file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    file.unlink()
    loaded = opened("sdxl", folder).load_denoiser().state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in weights.items())
