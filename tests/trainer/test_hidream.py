"""HiDream-I1: an encoder from another repository, experts, sizes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HiDreamImageTransformer2DModel
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU

from tests.tiny_families import tiny
from trainer.contract.errors import RunError
from trainer.families.base import Geometry

from .helpers import opened

CPU = torch.device("cpu")
TALL = (80, 48)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny("hidream").build(tmp_path_factory.mktemp("hidream") / "base")
    return folder


def test_llama_comes_from_its_own_repository(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published folder names it in model_index.json, and has it not; Llama's lies in one folder, flat."""
    published, llama = tmp_path / "published", tmp_path / "llama"
    shutil.copytree(base, published)
    shutil.copytree(published / "text_encoder_4", llama)
    shutil.copytree(published / "tokenizer_4", llama, dirs_exist_ok=True)
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.rmtree(published / part)
    asked: list[str] = []
    monkeypatch.setattr("trainer.source.fetch_pipeline", lambda repo, **options: asked.append(repo) or llama)
    whole, parts = opened("hidream", base), opened("hidream", published)
    assert asked == ["unsloth/Meta-Llama-3.1-8B-Instruct"], "once, and not for a folder that has it"
    one, two = (family.encode_captions(["a fox"])[0] for family in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert parts.cut_captions(["a fox", "x" * 200]) == ["x" * 200]
    assert parts.text_encoder_id() == opened("hidream", published).text_encoder_id()


def test_experts_are_diffusers_own_and_learn(base: Path) -> None:
    theirs = HiDreamImageTransformer2DModel.from_pretrained(base, subfolder="transformer")
    ours = opened("hidream", base).load_denoiser()
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    layers = zip(theirs.modules(), ours.modules(), strict=True)
    pairs = [(one, two) for one, two in layers if isinstance(one, MOEFeedForwardSwiGLU)]
    assert len(pairs) == 2
    for one, two in pairs:
        with torch.no_grad():
            expected = one(x)
        given = x.clone().requires_grad_()
        assert torch.allclose(two(given), expected, atol=1e-6)
        two.train()
        assert torch.allclose(two(given), expected, atol=1e-6), "training and drawing are the same"
        routed = two(given) - two.shared_experts(given)
        assert bool(torch.autograd.grad(routed.sum(), given)[0].any()), "no gradient through the experts"
        # Finite differences, in double precision: the gate's weights count too.
        exact = two.double()
        assert torch.autograd.gradcheck(exact, given.detach().double().requires_grad_())
        exact.float()


def test_a_picture_that_is_no_square(base: Path) -> None:
    """Padded inside the transformer; drawn in the size that was asked for."""
    family = opened("hidream", base)
    positive, negative = family.encode_captions(["a fox", ""])
    denoiser = family.load_denoiser()
    pipeline: Any = family.pipeline(denoiser)
    pipeline.set_progress_bar_config(disable=True)
    height, width = TALL
    options = {"width": width, "height": height, "num_inference_steps": 1, "guidance_scale": 1.0}
    noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(4))
    inputs = family.pipeline_inputs(positive, negative)
    picture = pipeline(**inputs, **options).images[0]
    assert picture.size == (width, height)
    drawn = pipeline(**inputs, **options, latents=noise, output_type="latent").images
    with torch.no_grad():
        sizes = [Geometry.whole(height, width)]
        velocity = family.predict(denoiser.train(), noise, torch.ones(1), [positive], sizes)
    assert torch.allclose(noise - velocity, drawn, atol=1e-5)


def test_a_picture_that_does_not_fit_is_refused(base: Path) -> None:
    family = opened("hidream", base)
    embeds = family.encode_captions(["a fox"])
    noise = torch.zeros(1, 4, 16, 8)
    with pytest.raises(RunError, match=r"cannot be trained at 64 × 128 px; set dataset\.resolution to 64"):
        family.predict(family.load_denoiser(), noise, torch.ones(1), embeds, [Geometry.whole(128, 64)])
