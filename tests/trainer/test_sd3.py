"""Stable Diffusion 3.5: the arithmetic of a step, and the names of Stability's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import save_file

from tests.tiny_families import sd3 as tiny
from trainer.adapters import add_lora, lora_parameters, lora_weights
from trainer.contract.settings.adapter import AdapterSettings
from trainer.families.base import Geometry, Native
from trainer.families.identify import kind_of_file, read_header
from trainer.families.sd3 import Family
from trainer.losses import mse
from trainer.source import resolve

from .original_layout import write_names

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("sd3") / "base", seed=3)


@pytest.fixture(scope="module")
def family(base: Path) -> Family:
    return Family(resolve("sd3", str(base)), CPU, torch.float32)


def test_captions_are_encoded_as_the_pipeline_does(family: Family, base: Path) -> None:
    pipeline = StableDiffusion3Pipeline.from_pretrained(base)
    prompt, _, pooled, _ = pipeline.encode_prompt("a red fox", None, None, do_classifier_free_guidance=False)
    embeds = family.encode_captions(["a red fox", ""])
    assert embeds[0]["prompt"].shape == (77 + 256, 48) and embeds[0]["pooled"].shape == (40,)
    assert torch.allclose(embeds[0]["prompt"], prompt[0], atol=1e-5)
    assert torch.allclose(embeds[0]["pooled"], pooled[0], atol=1e-5)
    assert embeds[1]["prompt"].any(), "unlike SDXL's, the empty caption is encoded"


def test_one_step_against_a_straight_computation(family: Family, base: Path) -> None:
    """Loss and gradient of one step, computed again from Esser et al. 2024: logit-normal times (their
    equation 19), the shift of 23, the straight path of 13 and its velocity."""
    denoiser: Any = family.load_denoiser()
    add_lora(denoiser, AdapterSettings(rank=2, alpha=1.0), family.targets["transformer"], seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters({"": denoiser}).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    latents, noise = torch.randn(2, 2, 16, 8, 8, generator=generator).unbind(0)
    embeds = family.encode_captions(["one", "two, three"])
    t_B = family.noise.sample_t(torch.tensor([0.3214, 0.77]))
    prediction = family.predict(
        denoiser, family.noise.mix(latents, noise, t_B), t_B, embeds, [Geometry.whole(64, 64)] * 2
    )
    loss = mse(prediction, family.noise.target(latents, noise, t_B)).mean()
    loss.backward()
    gradients = [parameter.grad for parameter in lora_parameters({"": denoiser}).values()]

    plain = SD3Transformer2DModel.from_pretrained(base, subfolder="transformer")
    factors = {
        name.removeprefix("."): (w.down.requires_grad_(), w.up.requires_grad_())
        for name, w in lora_weights({"": denoiser}).items()
    }
    merged = {
        f"{name}.weight": plain.get_parameter(f"{name}.weight").detach() + 0.5 * up @ down
        for name, (down, up) in factors.items()
    }
    normal = 2**0.5 * torch.erfinv(2 * torch.tensor([0.3214, 0.77]) - 1)
    t = 1 / (1 + torch.exp(-normal))
    t = 3 * t / (1 + (3 - 1) * t)
    t_B111 = t.reshape(2, 1, 1, 1)
    out = torch.func.functional_call(
        plain,
        merged,
        ((1 - t_B111) * latents + t_B111 * noise,),
        {
            "timestep": t * 1000,
            "encoder_hidden_states": torch.stack([e["prompt"] for e in embeds]),
            "pooled_projections": torch.stack([e["pooled"] for e in embeds]),
        },
    ).sample
    by_hand = ((out - (noise - latents)) ** 2).mean()
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    hands = [factor.grad for pair in factors.values() for factor in pair]
    for ours, hand in zip(gradients, hands, strict=True):
        assert ours is not None and hand is not None
        assert (ours - hand).norm() <= 1e-5 * hand.norm()


def test_names_of_the_original_code(family: Family) -> None:
    """tests/trainer/test_families.py merges a LoRA by all of them into an original checkpoint."""
    block = "transformer_blocks.1"
    assert family.kohya_name("transformer", f"{block}.attn.add_k_proj") == (
        "lora_unet_joint_blocks_1_context_block_attn_qkv"
    )
    assert family.kohya_name("text_encoder_2", "text_model.encoder.layers.0.mlp.fc1") == (
        "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    )
    native = family.native(f"{block}.attn2.to_v")
    assert (native.name, native.rows, native.total) == ("joint_blocks.1.x_block.attn2.qkv", (32, 48), 48)
    assert family.native(f"{block}.ff_context.net.0.proj").name == "joint_blocks.1.context_block.mlp.fc1"
    # The last block's text modulation has its halves swapped in diffusers.
    name = "joint_blocks.{}.context_block.adaLN_modulation.1"
    last = "transformer_blocks.2.norm1_context.linear"
    assert family.native(last) == Native(name.format(2), swapped=True)
    assert family.native(f"{block}.norm1_context.linear") == Native(name.format(1))


def test_checkpoints_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    names = [f"model.diffusion_model.{name}" for name in ("joint_blocks.0.x_block.attn2.qkv.weight",)]
    assert kind_of_file(read_header(write_names(file, names))).phrase == "an SD 3.5 Medium checkpoint"
    save_file({"joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(1, 2432)}, file)
    assert kind_of_file(read_header(file)).reference == tiny.LARGE
