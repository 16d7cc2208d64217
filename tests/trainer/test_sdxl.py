"""The SDXL family: the right modules, the right arithmetic, the right names."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from trainer.adapters import LoraOff, add_lora, lora_parameters, lora_weights
from trainer.contract.families import SDXL
from trainer.contract.settings.adapter import AdapterSettings
from trainer.families.base import Geometry, load_family
from trainer.families.ldm_single_file import sgm_name
from trainer.families.sdxl import Family
from trainer.losses import mse
from trainer.source import resolve

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> Family:
    loaded = load_family("sdxl", resolve("sdxl", str(tiny_base)), CPU, torch.float32)
    assert isinstance(loaded, Family)
    return loaded


@pytest.fixture(scope="module")
def full_size() -> UNet2DConditionModel:
    """SDXL's U-Net as published, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def matched(unet: torch.nn.Module, targets: str) -> dict[str, torch.nn.Module]:
    return {name: m for name, m in unet.named_modules() if re.fullmatch(targets, name)}


def test_the_targets_are_kohyas(full_size: UNet2DConditionModel) -> None:
    assert len(matched(full_size, Family.targets["transformer"])) == 722
    assert len(matched(full_size, Family.targets["attention"])) == 560
    everything = matched(full_size, Family.targets["transformer+conv"])
    convolutions = [m for m in everything.values() if isinstance(m, torch.nn.Conv2d)]
    # 17 residual blocks with two convolutions each, 11 of them with a skip convolution, 2 down, 2 up.
    assert len(everything) - 722 == 17 * 3 + 11 + 4
    assert len(convolutions) == 17 * 2 + 11 + 4


def test_the_catalogue_counts_the_parameters(full_size: UNet2DConditionModel) -> None:
    millions = sum(p.numel() for p in full_size.parameters()) / 1e6
    assert SDXL.params[0] == pytest.approx(millions, rel=1e-3)
    for key, per_rank in SDXL.lora_params_per_rank.items():
        counted = 0.0
        for module in matched(full_size, Family.targets[key]).values():
            if isinstance(module, torch.nn.Conv2d):
                counted += module.in_channels * module.kernel_size[0] ** 2 + module.out_channels
            else:
                assert isinstance(module, torch.nn.Linear)
                counted += module.in_features + module.out_features
        assert per_rank == pytest.approx(counted / 1e3, rel=1e-3), key


def test_names_of_the_original_code(full_size: UNet2DConditionModel) -> None:
    config = full_size.config
    names = [sgm_name(name, config) for name in matched(full_size, Family.targets["transformer+conv"])]
    assert len(set(names)) == len(names)
    first = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    assert sgm_name(first, config) == "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
    assert sgm_name("mid_block.resnets.1.conv2", config) == "middle_block.2.out_layers.3"
    assert sgm_name("up_blocks.0.upsamplers.0.conv", config) == "output_blocks.2.2.conv"
    assert (
        sgm_name("up_blocks.2.resnets.2.conv_shortcut", full_size.config)
        == "output_blocks.8.0.skip_connection"
    )
    assert sgm_name("down_blocks.0.downsamplers.0.conv", config) == "input_blocks.3.0.op"


def test_captions_are_encoded_as_the_pipeline_does(family: Family, tiny_base: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base)
    prompt, _, pooled, _ = pipeline.encode_prompt("a red fox", do_classifier_free_guidance=False)
    embeds = family.encode_captions(["a red fox", ""])
    assert torch.allclose(embeds[0]["prompt"], prompt[0], atol=1e-6)
    assert torch.allclose(embeds[0]["pooled"], pooled[0], atol=1e-6)
    # SDXL's unconditional input is zeros, in training (caption dropout) as in sampling.
    assert not embeds[1]["prompt"].any() and not embeds[1]["pooled"].any()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_step_against_a_straight_computation(prediction: str, tmp_path: Path) -> None:
    """Loss and gradient of one training step, computed again from the papers' formulas."""
    from tests.tiny import tiny_sdxl

    base = tiny_sdxl(tmp_path / "base", prediction=prediction, seed=3)
    family = Family(resolve("sdxl", str(base)), CPU, torch.float32)
    unet = family.load_denoiser()
    add_lora(unet, AdapterSettings(rank=2, alpha=1.0), family.targets["transformer"], seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters({"unet": unet}).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator).unbind(0)
    embeds = family.encode_captions(["one", "two, three"])
    sizes = [Geometry((70, 64), (6, 0), (64, 64)), Geometry.whole(64, 64)]

    t_B = family.noise.sample_t(torch.tensor([0.3214, 0.77]))
    prediction_BCHW = family.predict(unet, family.noise.mix(latents, noise, t_B), t_B, embeds, sizes)
    loss = mse(prediction_BCHW, family.noise.target(latents, noise, t_B)).mean()
    loss.backward()
    trained = lora_parameters({"unet": unet}).values()
    gradients = [parameter.grad.clone() for parameter in trained if parameter.grad is not None]

    # Again, by hand: a merged copy of the weights, SD's schedule written out, no code of ours but names.
    plain = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    weights = {n.removeprefix("unet."): w for n, w in lora_weights({"unet": unet}).items()}
    factors = {
        n: (w.down.requires_grad_(), w.up.requires_grad_(), w.alpha / w.rank) for n, w in weights.items()
    }
    merged = {
        f"{n}.weight": plain.get_parameter(f"{n}.weight").detach() + scale * up @ down
        for n, (down, up, scale) in factors.items()
    }
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
    abar = torch.cumprod(1 - betas, 0)[torch.tensor([321, 770])].reshape(2, 1, 1, 1)
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    target = noise if prediction == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * latents
    out = torch.func.functional_call(
        plain,
        merged,
        (noisy, torch.tensor([321, 770]), torch.stack([e["prompt"] for e in embeds])),
        {
            "added_cond_kwargs": {
                "text_embeds": torch.stack([e["pooled"] for e in embeds]),
                "time_ids": torch.tensor([[70.0, 64, 6, 0, 64, 64], [64, 64, 0, 0, 64, 64]]),
            }
        },
    ).sample
    by_hand = ((out - target) ** 2).mean()
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    hand_gradients = [g.grad for down, up, _ in factors.values() for g in (down, up)]
    pairs = [(ours, hand) for ours, hand in zip(gradients, hand_gradients, strict=True) if hand is not None]
    ours, hand = (torch.cat([gradient.flatten() for gradient in side]) for side in zip(*pairs, strict=True))
    assert len(pairs) == len(gradients) and (ours - hand).norm() <= 1e-5 * hand.norm()


def test_zero_terminal_snr_is_read_from_the_scheduler(tmp_path: Path) -> None:
    """NoobAI's kind: v-prediction, and a last step that is nothing but noise (Lin et al. 2023)."""
    from tests.tiny import tiny_sdxl

    base = tiny_sdxl(tmp_path / "base")
    plain_snr = resolve("sdxl", str(tiny_sdxl(tmp_path / "plain")))
    plain = resolve("sdxl", str(base))
    assert Family(plain, CPU, torch.float32).noise.alphas_cumprod[-1] > 0.004
    # The repository's scheduler is plain SDXL's; the catalogue knows better.
    corrected = Family(replace(plain, name="Laxhar/noobai-XL-Vpred-1.0"), CPU, torch.float32)
    file = base / "scheduler" / "scheduler_config.json"
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    said = Family(plain, CPU, torch.float32)
    for family in (corrected, said):
        noise = family.noise
        assert noise.prediction == "v_prediction" and noise.alphas_cumprod[-1] == 0
        picture, pure = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
        last = noise.sample_t(torch.tensor([0.9999]))
        assert torch.equal(noise.mix(picture, pure, last), pure)
        assert torch.equal(noise.target(picture, pure, last), -picture)
        assert family.sampler().config.rescale_betas_zero_snr
        assert family.metadata()["ss_v_parameterization"] == "True"
        # q = √ā, from q_0 to 0 instead of to q_T: (q - q_T) q_0 / (q_0 - q_T)
        q = Family(plain_snr, CPU, torch.float32).noise.alphas_cumprod.sqrt()
        stretched = (q - q[-1]) * q[0] / (q[0] - q[-1])
        assert torch.allclose(noise.alphas_cumprod.sqrt(), stretched, atol=1e-5)
    assert corrected.sampler().config.timestep_spacing == "trailing"


def test_a_fresh_lora_changes_nothing_and_can_be_switched_off(family: Family) -> None:
    unet = family.load_denoiser()
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([0.5]), family.encode_captions(["x"]))
    geometry = [Geometry.whole(64, 64)]
    with torch.no_grad():
        before = family.predict(unet, *inputs, geometry)
        add_lora(unet, AdapterSettings(rank=2, alpha=2.0), family.targets["transformer+conv"], seed=0)
        assert torch.allclose(family.predict(unet, *inputs, geometry), before, atol=1e-6)
        for parameter in lora_parameters({"unet": unet}).values():
            parameter.add_(0.1)
        assert not torch.allclose(family.predict(unet, *inputs, geometry), before, atol=1e-3)
        with LoraOff(unet):
            assert torch.allclose(family.predict(unet, *inputs, geometry), before, atol=1e-6)


def test_tiles_are_smaller_than_the_picture() -> None:
    """SDXL's own VAE has tiles of 1024 px, as large as its pictures: they would save nothing."""
    from tests.tiny import tiny_vae
    from trainer.families.pipeline_family import _tile

    vae = tiny_vae()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 1024, 128
    latents = torch.randn(1, 4, 80, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents).sample
        _tile(vae)
        assert vae.use_tiling and (vae.tile_sample_min_size, vae.tile_latent_min_size) == (512, 64)
        tiled = vae.decode(latents).sample
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.1 * whole.abs().mean()
