"""The finished file: every format gives the same picture, every key is used, nothing private inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load, load_file, save

import trainer.lora_file
from tests.conftest import ROOT
from trainer.__main__ import main
from trainer.after import weights_in
from trainer.contract.drawings import list_drawings
from trainer.contract.errors import RunError
from trainer.contract.runs import RunFolder
from trainer.contract.whole import list_checkpoints, step_of
from trainer.data import frozen_trigger
from trainer.export import save_lora
from trainer.families.sdxl import Family
from trainer.lora_file import read_lora, save_and_read_back
from trainer.lora_metadata import with_metadata
from trainer.source import resolve

from .helpers import recipe, train_here


@pytest.fixture(scope="module")
def run(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run whose alpha is twice its rank, over linear layers and convolutions."""
    run = RunFolder(tmp_path_factory.mktemp("export") / "runs" / "secret-name")
    run.create(recipe(tiny_base, photos))
    assert train_here(run)
    return run


def draw(base: Path, lora: Path | None) -> np.ndarray:
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    if lora:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    generator = torch.Generator().manual_seed(0)
    images = pipeline("zwx", num_inference_steps=3, generator=generator, output_type="np").images
    return np.asarray(images[0])


def test_diffusers_loads_both_formats_to_the_same_picture(
    run: RunFolder, tiny_base: Path, tmp_path: Path
) -> None:
    files = {format: tmp_path / f"{format}.safetensors" for format in ("kohya", "diffusers", "comfyui")}
    for format, file in files.items():
        assert main(["export", str(run.path), "--format", format, "--out", str(file)]) == 0
    base = draw(tiny_base, None)
    finished = draw(tiny_base, run.result(run.config()))
    assert np.abs(finished - base).mean() > 0.01  # it did learn something
    for format in ("kohya", "diffusers"):
        assert np.abs(draw(tiny_base, files[format]) - finished).max() < 0.02, format
    # ComfyUI's names are read by no library here: the tensors are compared one by one instead.
    with safe_open(files["kohya"], "pt") as kohya, safe_open(files["comfyui"], "pt") as comfy:
        assert len(list(comfy.keys())) == len(list(kohya.keys()))
        for key in comfy.keys():  # noqa: SIM118 (a safetensors handle is no dict)
            stem, _, end = key.removeprefix("diffusion_model.").partition(".lora_")
            other = {"A.weight": ".lora_down.weight", "B.weight": ".lora_up.weight", "": ".alpha"}[end]
            stem = stem.removesuffix(".alpha").replace(".", "_")
            assert torch.equal(comfy.get_tensor(key), kohya.get_tensor(f"lora_unet_{stem}{other}")), key


def test_every_module_is_in_the_file_and_comes_back(run: RunFolder, tiny_base: Path) -> None:
    from trainer.after import weights_in

    config = run.config()
    family = Family(resolve("sdxl", str(tiny_base)), torch.device("cpu"), torch.float32)
    trained = weights_in(run.checkpoint(8), config)
    back = read_lora(run.result(config), family, list(trained))
    assert set(back) == set(trained)
    for name, lora in trained.items():
        assert back[name].alpha == lora.alpha == 4.0
        assert torch.allclose(back[name].up, lora.up, atol=1e-3)
        assert lora.up.any(), f"{name} was never trained"


def test_metadata_tells_what_loaders_need_and_nothing_private(run: RunFolder) -> None:
    file = run.result(run.config())
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert metadata["ss_network_dim"] == "2" and metadata["ss_network_alpha"] == "4"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.trigger_phrase"] == frozen_trigger(run.dataset) == "zwx"
    assert len(metadata["sshs_model_hash"]) == 64
    text = json.dumps(metadata)
    for private in (str(run.path.parent), str(ROOT), "secret-name", "/tmp", "/home", "/root"):
        assert private not in text


def test_export_refuses_in_one_sentence(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.path), "--out", str(tmp_path / "x.ckpt")]) == 2
    assert "has to end in .safetensors" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "holds no run" in capsys.readouterr().err
    out = ["--out", str(tmp_path / "x.safetensors")]
    assert main(["export", str(run.path), "--weights", "average", *out]) == 2
    assert "keeps no average" in capsys.readouterr().err


def test_sample_draws_with_the_trained_weights(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    order: list[str] = []

    def watch(part: str, inner: Callable[..., object]) -> None:
        def watched(self: Family, **options: bool) -> object:
            order.append(part)
            return inner(self, **options)

        monkeypatch.setattr(Family, part, watched)

    watch("load_denoiser", Family.load_denoiser)
    watch("free_encoders", Family.free_encoders)
    argv = ["sample", str(run.path), "--prompt", "zwx", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert order[:2] == ["free_encoders", "load_denoiser"]
    drawn = Path(capsys.readouterr().out.strip())
    # The recipe's own prompt, seed and size: the picture of the last step, again.
    assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(run.sample(8, 0))))
    assert list_drawings(run) == [], "what goes elsewhere is not the run's"

    first = min(list_checkpoints(run.checkpoints), key=step_of)
    argv = ["sample", str(run.path), "--prompt", "zwx --d 7", "--prompt", "a tree", "--step"]
    assert main([*argv, str(step_of(first))]) == 0
    second, one = list_drawings(run)
    assert (one.text, one.seed, one.step) == ("zwx", 7, step_of(first)) and second.text == "a tree"
    assert (run.drawings / one.file).is_file() and step_of(first) < 8
    assert main([*argv, "4"]) == 2
    assert "no whole checkpoint of step 4; take one of 3, 6, 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factor", "dtype"), [(1.0, torch.float16), (1e8, torch.float32), (1e-10, torch.float32)], ids=str
)
def test_a_file_that_half_precision_would_spoil_is_in_single(
    run: RunFolder, tiny_base: Path, tmp_path: Path, factor: float, dtype: torch.dtype
) -> None:
    family, config = family_of(tiny_base), run.config()
    weights = {name: replace(lora, up=lora.up * factor) for name, lora in read_back(run).items()}
    file = tmp_path / "lora.safetensors"
    save_and_read_back(file, weights, family, config, trigger="zwx", step=8, base_name="x")
    written = load_file(file)
    assert {tensor.dtype for name, tensor in written.items() if "lora_up" in name} == {dtype}
    for name, lora in read_lora(file, family, weights).items():
        assert torch.allclose(
            lora.delta(), weights[name].delta(), rtol=0.02, atol=0.01 * abs(weights[name].delta()).max()
        )


def test_a_file_that_lacks_a_module_is_no_success(
    run: RunFolder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, config = family_of(tiny_base), run.config()
    weights = read_back(run)
    lost = next(iter(weights))

    def forgets(path: Path, weights: Any, *more: Any, **named: Any) -> None:
        save_lora(path, {name: lora for name, lora in weights.items() if name != lost}, *more, **named)

    monkeypatch.setattr(trainer.lora_file, "save_lora", forgets)
    with pytest.raises(RunError, match=f"does not hold what was trained: {lost} is missing"):
        save_and_read_back(
            tmp_path / "l.safetensors", weights, family, config, trigger="", step=8, base_name="x"
        )


def family_of(base: Path) -> Family:
    return Family(resolve("sdxl", str(base)), torch.device("cpu"), torch.float32)


def read_back(run: RunFolder) -> dict[str, Any]:
    """The finished LoRA's weights, as they were trained."""
    return weights_in(run.checkpoint(8), run.config())


def test_the_same_lora_is_the_same_file() -> None:
    """The library writes metadata in another order each time."""
    tensors = {"b": torch.ones(3), "a": torch.arange(4)}
    metadata = {f"name {number}": "é" * number for number in range(9)}
    files = {with_metadata(save(tensors), metadata) for _ in range(8)}
    assert len(files) == 1
    data = files.pop()
    found = load(data)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"b": [1, 1, 1], "a": [0, 1, 2, 3]}
    end = 8 + int.from_bytes(data[:8], "little")
    assert end % 8 == 0 and json.loads(data[8:end])["__metadata__"] == metadata
