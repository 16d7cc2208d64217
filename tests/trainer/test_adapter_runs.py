"""Every kind of adapter in a whole run: it learns, resumes, and its files say what it learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.__main__ import main
from trainer.adapters import lora_weights
from trainer.after import weights_in
from trainer.assemble import assemble, warm_start
from trainer.contract.errors import RunError
from trainer.contract.runs import RunFolder
from trainer.families.sdxl import Family
from trainer.source import resolve

from .helpers import Script, recipe, train_here, weights_hash
from .kinds import KINDS, every_kind

CPU = torch.device("cpu")


def unet_of(base: Path) -> UNet2DConditionModel:
    unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    return unet


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, which share what is encoded once."""
    return tmp_path_factory.mktemp("kinds") / "runs"


@pytest.fixture(scope="module")
def finished(tiny_base: Path, photos: Path, home: Path) -> Callable[[str], RunFolder]:
    """Three steps with a kind of adapter, trained when they are first asked for."""
    runs: dict[str, RunFolder] = {}

    def run(kind: str) -> RunFolder:
        if kind not in runs:
            adapter = {"rank": 2, "alpha": 2.0, "targets": "transformer+conv", **KINDS[kind]}
            if kind == "lokr":
                adapter |= {"rank_dropout": 0.2, "module_dropout": 0.1, "max_norm": 1.0}
            runs[kind] = RunFolder(home / kind)
            more = {"adapter": adapter, "train": {"steps": 3}, "samples": {"prompts": []}}
            runs[kind].create(recipe(tiny_base, photos, **more))
            assert train_here(runs[kind])
        return runs[kind]

    return run


@every_kind
def test_a_run_learns_resumes_to_the_bit_and_its_files_say_what_it_learnt(
    kind: str, finished: Callable[[str], RunFolder], tiny_base: Path, home: Path
) -> None:
    straight, stopped = finished(kind), RunFolder(home / f"{kind} stopped")
    config = straight.config()
    stopped.create(config)
    assert not train_here(stopped, Script(stopped, "stop", 1))
    assert train_here(stopped)
    assert weights_hash(straight, 3) == weights_hash(stopped, 3)

    trained = weights_in(straight.checkpoint(3), config)
    unet = unet_of(tiny_base)
    family = Family(resolve("sdxl", str(tiny_base)), CPU, torch.float32)
    tensors = load_file(straight.result(config))
    used = set()
    for name, weights in trained.items():
        weight = unet.get_parameter(f"{name.removeprefix('unet.')}.weight").detach()
        change = weights.applied(weight) - weight
        assert change.abs().max() > 1e-5, f"{name} was not trained"
        stem = family.kohya_name("unet", name.removeprefix("unet."))
        own = {
            key.removeprefix(f"{stem}."): t.float()
            for key, t in tensors.items()
            if key.startswith(f"{stem}.")
        }
        used |= {f"{stem}.{key}" for key in own}
        read = as_loaders_do(own, weight)
        assert torch.allclose(read, weight + change, atol=1e-3, rtol=5e-3), name
    assert used == set(tensors)


def as_loaders_do(t: dict[str, Tensor], weight: Tensor) -> Tensor:
    """A layer's new weight from a file's tensors, as A1111 and ComfyUI compute it."""
    flat, alpha = weight.flatten(1), float(t["alpha"])
    if "oft_blocks" in t:
        q = t["oft_blocks"] - t["oft_blocks"].mT
        if q.norm() > alpha:
            q = q * alpha / q.norm()
        identity = torch.eye(q.shape[-1])
        r = (identity + q) @ torch.linalg.inv(identity - q)
        rows = flat.reshape(*q.shape[:2], -1)
        return torch.einsum("knm,kni->kmi", r, rows).reshape(weight.shape)
    if "hada_w1_a" in t:
        change = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        scale = alpha / t["hada_w1_b"].shape[0]
    elif any(key.startswith("lokr") for key in t):
        dim = next((t[key].shape[0] for key in ("lokr_w1_b", "lokr_w2_b") if key in t), None)
        w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        w2 = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        change = torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2)
        scale = alpha / dim if dim else 1.0
    else:
        change = t["lora_up.weight"].flatten(1) @ t["lora_down.weight"].flatten(1)
        scale = alpha / t["lora_down.weight"].shape[0]
    merged = weight + scale * change.reshape(weight.shape)
    if "dora_scale" in t:
        columns = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
        norms = columns.reshape(merged.shape[1], *[1] * (merged.ndim - 1)).transpose(0, 1)
        merged = merged * (t["dora_scale"] / norms)
    return merged


@pytest.fixture(scope="module")
def nested(tiny_base: Path, photos: Path, home: Path) -> RunFolder:
    run = RunFolder(home / "nested")
    adapter = {"type": "dylora", "rank": 6, "alpha": 3.0, "dylora_unit": 2}
    run.create(recipe(tiny_base, photos, adapter=adapter, train={"steps": 3}, samples={"prompts": []}))
    assert train_here(run)
    return run


def test_a_dylora_is_exported_at_any_of_its_ranks(
    nested: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load_file(nested.result(nested.config()))
    for rank in (2, 4):
        file = tmp_path / f"{rank}.safetensors"
        assert main(["export", str(nested.path), "--rank", str(rank), "--out", str(file)]) == 0
        cut = load_file(file)
        assert set(cut) == set(whole)
        for key, tensor in cut.items():
            if key.endswith("lora_down.weight"):
                assert torch.equal(tensor, whole[key][:rank])
            elif key.endswith("lora_up.weight"):
                assert torch.equal(tensor, whole[key][:, :rank])
            else:
                assert float(tensor) == pytest.approx(0.5 * rank)
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        assert metadata["ss_network_module"] == "networks.dylora"
        assert metadata["ss_network_dim"] == str(rank) and float(metadata["ss_network_alpha"]) == 0.5 * rank
    capsys.readouterr()
    for rank in (3, 8, 0):
        arguments = [
            "export",
            str(nested.path),
            "--rank",
            str(rank),
            "--out",
            str(tmp_path / "x.safetensors"),
        ]
        assert main(arguments) == 2
        assert "give a multiple of 2 up to 6" in capsys.readouterr().err


def test_only_a_dylora_can_be_cut_and_diffusers_reads_only_loras(
    finished: Callable[[str], RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, phrase in (("dora", "a DoRA"), ("loha", "a LoHa"), ("lokr", "a LoKr"), ("oft", "an OFT")):
        run = finished(kind)
        capsys.readouterr()
        out = ["--out", str(tmp_path / "x.safetensors")]
        assert main(["export", str(run.path), "--format", "diffusers", *out]) == 2
        assert phrase in capsys.readouterr().err
        assert main(["export", str(run.path), "--rank", "1", *out]) == 2
        assert "only a dylora" in capsys.readouterr().err
        assert main(["export", str(run.path), "--format", "comfyui", *out]) == 0
        assert all(key.startswith("diffusion_model.") for key in load_file(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("kind", ["pissa", "olora", "rslora", "locon", "dylora"])
def test_diffusers_loads_what_becomes_a_lora(
    kind: str, finished: Callable[[str], RunFolder], tiny_base: Path, tmp_path: Path
) -> None:
    """The unchanged base and the file, in diffusers, draw what the trained model draws."""
    run = finished(kind)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base)
    pipeline.set_progress_bar_config(disable=True)

    def drawn() -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        made = pipeline("zwx", num_inference_steps=2, generator=noise, output_type="np").images[0]
        return np.asarray(made)

    by_file = []
    for format in ("kohya", "diffusers"):
        file = tmp_path / f"{format}.safetensors"
        assert main(["export", str(run.path), "--format", format, "--out", str(file)]) == 0
        pipeline.load_lora_weights(tmp_path, weight_name=file.name)
        by_file.append(drawn())
        pipeline.unload_lora_weights()
    for name, weights in weights_in(run.checkpoint(3), run.config()).items():
        parameter = pipeline.unet.get_parameter(f"{name.removeprefix('unet.')}.weight")
        parameter.data.copy_(weights.applied(parameter.data))
    trained = drawn()
    assert all(np.abs(picture - trained).max() < 0.02 for picture in by_file)


def test_going_on_from_a_dora(
    finished: Callable[[str], RunFolder], tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = finished("dora")
    family = Family(resolve("sdxl", str(tiny_base)), CPU, torch.float32)
    trained = weights_in(run.checkpoint(3), run.config())
    more = {
        "alpha": 2.0,
        "targets": "transformer+conv",
        "dora": True,
        "start_from": str(run.result(run.config())),
    }
    config = recipe(tiny_base, photos, adapter={**more, "rank": 3})
    model = assemble(family, config, tmp_path)
    warm_start(model, family, config, tmp_path)
    for name, weights in lora_weights(model.parts).items():
        assert weights.rank == 3
        assert torch.allclose(weights.magnitude, trained[name].magnitude, rtol=2e-3)
        assert torch.allclose(weights.delta(), trained[name].delta(), atol=1e-4)
    config = recipe(tiny_base, photos, adapter={**more, "dora": False})
    with pytest.raises(RunError, match=r"is a DoRA; set adapter\.dora to true"):
        warm_start(assemble(family, config, tmp_path), family, config, tmp_path)
