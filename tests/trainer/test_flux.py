"""FLUX.1: the arithmetic of a training step, files of the published widths, and the assistant LoRA."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.tiny_families.flux import build
from tests.tiny_families.flux_layout import merged
from trainer.adapters import (
    ASSISTANT,
    LoraWeights,
    add_assistant,
    add_lora,
    assistant_off,
    lora_parameters,
    lora_weights,
)
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.lora_header import families_of, read_lora_header
from trainer.contract.runs import RunFolder
from trainer.contract.settings.adapter import AdapterSettings
from trainer.export import FORMATS, tensors_in
from trainer.families.base import Geometry
from trainer.families.flux import Family
from trainer.losses import mse
from trainer.source import resolve

from .helpers import Script, recipe, sha256, train_here, weights_hash

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("flux") / "dev")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("flux") / "schnell", guidance=False)


def opened(base: Path) -> Family:
    return Family(resolve("flux", str(base)), CPU, torch.float32)


# The training step --------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False])
def test_one_step_against_a_straight_computation(guided: bool, tmp_path: Path) -> None:
    """Loss and gradient of one training step, computed again from the formulas of rectified flow."""
    base = build(tmp_path / "base", seed=3, guidance=guided)
    family = opened(base)
    transformer = family.load_denoiser()
    add_lora(transformer, AdapterSettings(rank=2, alpha=1.0), family.targets["transformer"], seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters({"transformer": transformer}).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    latents, noise = torch.randn(2, 2, 4, 8, 6, generator=generator).unbind(0)
    embeds = family.encode_captions(["one", "two, three"])
    u_B = torch.tensor([0.3214, 0.77])

    t_B = family.noise.sample_t(u_B)
    prediction_BCHW = family.predict(
        transformer, family.noise.mix(latents, noise, t_B), t_B, embeds, [Geometry.whole(64, 48)] * 2
    )
    loss = mse(prediction_BCHW, family.noise.target(latents, noise, t_B)).mean()
    loss.backward()
    trained = lora_parameters({"transformer": transformer}).values()
    gradients = [parameter.grad.clone() for parameter in trained if parameter.grad is not None]

    # Again, by hand: a merged copy of the weights, patches cut one by one, no code of ours but names.
    plain = FluxTransformer2DModel.from_pretrained(base, subfolder="transformer")
    weights = lora_weights({"transformer": transformer})
    factors = {
        n.removeprefix("transformer."): (w.down.requires_grad_(), w.up.requires_grad_(), w.alpha / w.rank)
        for n, w in weights.items()
    }
    merged_weights = {
        f"{n}.weight": plain.get_parameter(f"{n}.weight").detach() + scale * up @ down
        for n, (down, up, scale) in factors.items()
    }
    # t = sigmoid(z), z normal: z is where the normal distribution function is u.
    t = 1 / (1 + torch.exp(-(2**0.5) * torch.erfinv(2 * u_B - 1)))
    noisy = (1 - t)[:, None, None, None] * latents + t[:, None, None, None] * noise
    velocity = noise - latents

    def patches(maps: torch.Tensor) -> torch.Tensor:
        corners = [(row, column) for row in range(0, 8, 2) for column in range(0, 6, 2)]
        cut = [maps[:, :, row : row + 2, column : column + 2].flatten(1) for row, column in corners]
        return torch.stack(cut, 1)

    places = torch.tensor([[0.0, row, column] for row in range(4) for column in range(3)])
    out = torch.func.functional_call(
        plain,
        merged_weights,
        (patches(noisy),),
        {
            "encoder_hidden_states": torch.stack([e["prompt"] for e in embeds]),
            "pooled_projections": torch.stack([e["pooled"] for e in embeds]),
            "timestep": t,
            "img_ids": places,
            "txt_ids": torch.zeros(512 if guided else 256, 3),
            "guidance": torch.ones(2) if guided else None,
        },
    ).sample
    by_hand = ((out - patches(velocity)) ** 2).mean()
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    hand_gradients = [g.grad for down, up, _ in factors.values() for g in (down, up)]
    pairs = [(ours, hand) for ours, hand in zip(gradients, hand_gradients, strict=True) if hand is not None]
    ours, hand = (torch.cat([gradient.flatten() for gradient in side]) for side in zip(*pairs, strict=True))
    assert len(pairs) == len(gradients) and (ours - hand).norm() <= 1e-5 * hand.norm()


def test_schnell_is_told_no_guidance_and_reads_256_tokens(dev: Path, schnell: Path) -> None:
    assert [len(opened(base).encode_captions(["x"])[0]["prompt"]) for base in (dev, schnell)] == [512, 256]
    assert [opened(base).metadata()["modelspec.architecture"] for base in (dev, schnell)] == [
        "flux-1-dev/lora",
        "flux-1-schnell/lora",
    ]


# Files --------------------------------------------------------------------------------------------


def full_width(family: Family) -> dict[str, LoraWeights]:
    """A LoRA for the first double and the first single block of the published model."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    generator = torch.Generator().manual_seed(8)
    return {
        f"transformer.{name}": LoraWeights(
            torch.randn(2, layer.in_features, generator=generator),
            torch.randn(layer.out_features, 2, generator=generator),
            5.0,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and re.fullmatch(family.targets["transformer"], name)
    }


def test_a_file_of_the_published_width_is_read_by_diffusers(dev: Path) -> None:
    """Kohya's names: every module is found, and every product of the matrices is the same."""
    family = opened(dev)
    family.denoiser_config |= {"num_attention_heads": 24, "attention_head_dim": 128}
    weights = full_width(family)
    tensors = tensors_in("kohya", weights, family)
    assert len(tensors) == 3 * (10 + 3)
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (7 * 3072, 4 * 2)
    read = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    assert {name.rpartition(".lora_")[0] for name in read} == set(weights)
    probe = torch.randn(1, 15360, generator=torch.Generator().manual_seed(9))
    for name, lora in weights.items():
        x = probe[:, : lora.down.shape[1]]
        ours = x @ lora.down.T @ lora.up.T * lora.scale
        theirs = x @ read[f"{name}.lora_A.weight"].T @ read[f"{name}.lora_B.weight"].T
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-2), name


def test_a_lora_is_recognised_by_its_names(dev: Path, tmp_path: Path) -> None:
    """Without metadata; one that adapts no modulation could be Chroma's too."""
    family = opened(dev)
    family.denoiser_config |= {"num_attention_heads": 24, "attention_head_dim": 128}
    weights = full_width(family)
    for format in FORMATS:
        for left_out, expected in (("none", ["flux"]), (r".*norm.*linear", ["flux", "chroma"])):
            kept = {name: lora for name, lora in weights.items() if not re.fullmatch(left_out, name)}
            save_file(tensors_in(format, kept, family), tmp_path / "x.safetensors")
            assert families_of(read_lora_header(tmp_path / "x.safetensors")) == expected, format


def test_checkpoints_that_cannot_be_trained(
    dev: Path, schnell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetched(repo: str, **options: Any) -> Path:
        asked.append(repo)
        return schnell if repo.endswith("schnell") else dev

    monkeypatch.setattr("trainer.source.fetch_pipeline", fetched)
    file = tmp_path / "x.safetensors"

    def loading(tensors: dict[str, torch.Tensor]) -> str:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        with pytest.raises(RunError) as caught:
            opened(file).load_denoiser()
        assert caught.value.cause == "model_missing"
        return str(caught.value)

    whole = merged(FluxTransformer2DModel.from_pretrained(dev, subfolder="transformer"))
    name = "single_blocks.1.linear2.weight"
    assert loading({n: t for n, t in whole.items() if n != name}).startswith(f"x.safetensors lacks {name}")
    assert "1 tensors that FLUX.1 does not" in loading(whole | {"double_blocks.0.extra": torch.zeros(1)})
    assert "is quantised (it has scaled_fp8)" in loading(whole | {"scaled_fp8": torch.zeros(1)})
    assert "img_in.weight of shape (32, 384)" in loading(whole | {"img_in.weight": torch.zeros(32, 384)})
    assert "lacks guidance_in" in loading({n: t for n, t in whole.items() if "guidance_in.in" not in n})
    # Which base lends text encoders and VAE is told by the guidance embedding.
    quick = merged(FluxTransformer2DModel.from_pretrained(schnell, subfolder="transformer"))
    save_file({n: t.contiguous() for n, t in quick.items()}, file)
    assert opened(file).load_denoiser().config["guidance_embeds"] is False
    assert set(asked[:-1]) == {"black-forest-labs/FLUX.1-dev"}
    assert asked[-1] == "black-forest-labs/FLUX.1-schnell"


# The assistant ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assistant(schnell: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of some strength, with diffusers' names, as the published training adapter has them."""
    family = opened(schnell)
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for name, layer in family.load_denoiser().named_modules():
        if re.fullmatch(family.targets["attention"], name):
            assert isinstance(layer, torch.nn.Linear)
            down = torch.randn(3, layer.in_features, generator=generator) * 0.3
            up = torch.randn(layer.out_features, 3, generator=generator) * 0.3
            tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    file = tmp_path_factory.mktemp("assistant") / "adapter.safetensors"
    save_file(tensors, file)
    return file


def run_with(base: Path, photos: Path, assistant: str, folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.create(
        recipe(
            base,
            photos,
            model={"family": "flux", "assistant": assistant},
            adapter={"targets": "attention", "dropout": 0.1},
            train={"steps": 4, "batch_size": 1},
            checkpoints={"every": 2},
        )
    )
    return run


def losses(run: RunFolder) -> list[float]:
    return [event["loss"] for event in read_events(run.events)[0] if event["kind"] == "step"]


def test_the_assistant_trains_but_neither_samples_nor_is_saved(
    schnell: Path, assistant: Path, photos: Path, tmp_path: Path
) -> None:
    plain, helped, off = (
        run_with(schnell, photos, text, tmp_path / "runs" / name)
        for name, text in (("plain", ""), ("helped", str(assistant)), ("off", "none"))
    )
    assert all(train_here(run) for run in (plain, helped, off))
    assert losses(off) == losses(plain)
    assert all(abs(a - b) > 1e-4 for a, b in zip(losses(helped), losses(plain), strict=True))
    # Before the first step the LoRA is nothing, so the samples are the base's own: without the assistant.
    assert sha256(helped.sample(0, 0)) == sha256(plain.sample(0, 0))
    assert sha256(helped.sample(4, 0)) != sha256(plain.sample(4, 0))
    result = helped.result(helped.config())
    assert set(load_file(result)) == set(load_file(plain.result(plain.config())))
    with safe_open(result, framework="pt") as file:
        ranks = {file.get_tensor(key).shape[0] for key in file.keys() if "lora_down" in key}  # noqa: SIM118
    assert ranks == {2, 6}, "rank 2 as asked for, 6 where q, k and v are one layer; none is the assistant's 3"


def test_a_resumed_run_has_the_same_assistant(
    schnell: Path, assistant: Path, photos: Path, tmp_path: Path
) -> None:
    straight = run_with(schnell, photos, str(assistant), tmp_path / "runs" / "straight")
    stopped = run_with(schnell, photos, str(assistant), tmp_path / "runs" / "stopped")
    assert train_here(straight)
    assert not train_here(stopped, Script(stopped, "stop", 3))
    assert train_here(stopped)
    assert weights_hash(stopped, 4) == weights_hash(straight, 4)
    assert losses(stopped) == losses(straight)
    assert sha256(stopped.sample(4, 0)) == sha256(straight.sample(4, 0))


def test_the_assistant_is_frozen_and_adds_what_it_says(schnell: Path) -> None:
    family = opened(schnell)
    transformer = family.load_denoiser()
    module = "transformer_blocks.0.attn.to_q"
    generator = torch.Generator().manual_seed(12)
    lora = LoraWeights(torch.randn(3, 32, generator=generator), torch.randn(32, 3, generator=generator), 1.5)
    x = torch.randn(2, 32, generator=generator)
    before = transformer.get_submodule(module)(x)
    add_lora(transformer, AdapterSettings(rank=2, alpha=2.0), family.targets["attention"], seed=0)
    add_assistant(transformer, {module: lora})
    layer = transformer.get_submodule(module)
    assert torch.allclose(layer(x), before + x @ lora.down.T @ lora.up.T * 0.5, atol=1e-5)
    with assistant_off(transformer):
        assert torch.equal(layer(x), before)
    named = dict(transformer.named_parameters())
    assert not any(p.requires_grad for name, p in named.items() if f".{ASSISTANT}." in name)
    assert {id(p) for p in named.values() if p.requires_grad} == {
        id(p) for p in lora_parameters({"": transformer}).values()
    }
