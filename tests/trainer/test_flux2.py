"""FLUX.2: latents by the VAE's batch norm, dev beside klein, and which base a single file goes with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from safetensors.torch import save_file

from tests.tiny_families.flux2 import build, build_dev
from trainer.adapters import add_lora, lora_parameters, lora_weights
from trainer.contract.settings.adapter import AdapterSettings
from trainer.families.base import Geometry
from trainer.families.flux2 import Family
from trainer.families.identify import kind_of_file, kind_of_pipeline, read_header
from trainer.losses import mse
from trainer.source import resolve

CPU = torch.device("cpu")
BUILD = {"klein": build, "dev": build_dev}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name) / "base") for name, make in BUILD.items()}


def opened(base: Path) -> Family:
    return Family(resolve("flux2", str(base)), CPU, torch.float32)


def test_latents_are_normalised_by_the_batch_norm(bases: dict[str, Path]) -> None:
    family = opened(bases["klein"])
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae = family._load_vae(torch.float32)
    with torch.no_grad():
        plain = vae.encode(pixels).latent_dist.mode()
        # One channel after the other, and in it the patch's rows: (C, 2, 2).
        corners = [plain[:, c, row::2, column::2] for c in range(4) for row in (0, 1) for column in (0, 1)]
        expected = vae.bn.eval()(torch.stack(corners, 1))
    assert torch.allclose(family.encode_images(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("name", BUILD)
def test_one_step_against_a_straight_computation(name: str, bases: dict[str, Path]) -> None:
    """Loss and gradient of one training step, computed again from the formulas of rectified flow."""
    base = bases[name]
    family = opened(base)
    transformer = family.load_denoiser()
    add_lora(transformer, AdapterSettings(rank=2, alpha=1.0), family.targets["transformer"], seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters({"transformer": transformer}).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    latents, noise = torch.randn(2, 2, 16, 4, 3, generator=generator).unbind(0)
    embeds = family.encode_captions(["one", "two, three"])
    u_B = torch.tensor([0.3214, 0.77])
    t_B = family.noise.sample_t(u_B)
    prediction_BCHW = family.predict(
        transformer, family.noise.mix(latents, noise, t_B), t_B, embeds, [Geometry.whole(64, 48)] * 2
    )
    loss = mse(prediction_BCHW, family.noise.target(latents, noise, t_B)).mean()
    loss.backward()
    trained = lora_parameters({"transformer": transformer}).values()

    plain = Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer")
    weights = lora_weights({"transformer": transformer})
    factors = {
        n.removeprefix("transformer."): (w.down.requires_grad_(), w.up.requires_grad_(), w.alpha / w.rank)
        for n, w in weights.items()
    }
    merged = {
        f"{n}.weight": plain.get_parameter(f"{n}.weight").detach() + scale * up @ down
        for n, (down, up, scale) in factors.items()
    }
    t = 1 / (1 + torch.exp(-(2**0.5) * torch.erfinv(2 * u_B - 1)))
    noisy = (1 - t)[:, None, None, None] * latents + t[:, None, None, None] * noise
    cells = [(row, column) for row in range(4) for column in range(3)]

    def tokens(maps: torch.Tensor) -> torch.Tensor:
        return torch.stack([maps[:, :, row, column] for row, column in cells], 1)

    out = torch.func.functional_call(
        plain,
        merged,
        (tokens(noisy),),
        {
            "encoder_hidden_states": torch.stack([e["prompt"] for e in embeds]),
            "timestep": t,
            "img_ids": torch.tensor([[0, row, column, 0] for row, column in cells]),
            "txt_ids": torch.tensor([[0, 0, 0, token] for token in range(512)]),
            "guidance": torch.ones(2) if name == "dev" else None,
        },
    ).sample
    by_hand = ((out - tokens(noise - latents)) ** 2).mean()
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    hand = [g.grad for down, up, _ in factors.values() for g in (down, up)]
    for parameter, expected in zip(trained, hand, strict=True):
        assert parameter.grad is not None and expected is not None
        assert torch.allclose(
            parameter.grad, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max() + 1)
        )


def test_dev_is_drawn_by_its_own_pipeline(bases: dict[str, Path]) -> None:
    """Mistral's hidden layers, the system message, the guidance that dev is told; and predict follows it."""
    family = opened(bases["dev"])
    positive, negative = family.encode_captions(["a red fox", ""])
    family.free_encoders()
    denoiser = family.load_denoiser()

    def drawn(pipeline: Any, **inputs: Any) -> Any:
        pipeline.set_progress_bar_config(disable=True)
        size = {"width": 64, "height": 64, "num_inference_steps": 2}
        return pipeline(**size, **{"output_type": "np", **inputs}).images

    ours, theirs = (
        drawn(pipeline, generator=torch.Generator().manual_seed(0), **inputs, **family.guidance(4.0))
        for pipeline, inputs in (
            (family.pipeline(denoiser), family.pipeline_inputs(positive, negative)),
            (Flux2Pipeline.from_pretrained(bases["dev"]), {"prompt": "a red fox"}),
        )
    )
    assert np.abs(ours - theirs).max() < 2e-3
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(4))
    pipeline = family.pipeline(denoiser)
    final = drawn(
        pipeline,
        latents=family.to_pipeline(noise),
        output_type="latent",
        **family.pipeline_inputs(positive, negative),
        **family.guidance(1.0),
    )
    x = noise
    with torch.no_grad():
        for now, after in pairwise(pipeline.scheduler.sigmas):
            x = x + (after - now) * family.predict(
                denoiser, x, now.reshape(1), [positive], [Geometry.whole(64, 64)]
            )
    assert torch.allclose(x.flatten(2).transpose(1, 2), final, atol=1e-4)
    assert family.decode(family._load_vae(torch.float32), x).shape == (1, 3, 64, 64)


def test_a_distilled_klein_is_drawn_without_guidance(bases: dict[str, Path]) -> None:
    family = opened(bases["klein"])
    assert family.pipeline(family.load_denoiser()).config.is_distilled is False
    family.index["is_distilled"] = True
    assert family.pipeline(family.load_denoiser()).config.is_distilled is True


@pytest.mark.parametrize(
    ("width", "reference"),
    [(7680, ""), (12288, "black-forest-labs/FLUX.2-klein-base-9B"), (15360, "black-forest-labs/FLUX.2-dev")],
)
def test_a_single_file_says_which_base_lends_the_rest(width: int, reference: str, tmp_path: Path) -> None:
    names = ("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight")
    file = tmp_path / "x.safetensors"
    save_file({**{n: torch.zeros(1) for n in names}, "txt_in.weight": torch.zeros(1, width)}, file)
    kind = kind_of_file(read_header(file))
    assert (kind.phrase, kind.family, kind.reference) == ("a FLUX.2 checkpoint", "flux2", reference)


def test_folders_are_told_by_their_pipeline() -> None:
    for cls in (Flux2Pipeline, Flux2KleinPipeline):
        assert kind_of_pipeline(cls.__name__).family == "flux2"
