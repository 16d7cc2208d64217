"""Sana: captions as its pipeline encodes them, and the published scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SanaPipeline

from tests.tiny_families import sana as tiny
from trainer.families.sana import _INSTRUCTION, Family
from trainer.noise import Flow
from trainer.source import resolve
from trainer.timesteps import Times

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("sana") / "base")


def test_captions_are_encoded_as_the_pipeline_does(base: Path) -> None:
    family = Family(resolve("sana", str(base)), CPU, torch.float32)
    pipeline = SanaPipeline.from_pretrained(base)
    prompt, mask, negative, negative_mask = pipeline.encode_prompt(
        "a red fox", complex_human_instruction=_INSTRUCTION
    )
    ours, empty = (one["prompt"] for one in family.encode_captions(["a red fox", ""]))
    assert torch.allclose(ours, prompt[0][mask[0].bool()], atol=1e-5)
    assert torch.allclose(empty, negative[0][negative_mask[0].bool()], atol=1e-5)
    assert ours.shape == (2 + len("a red fox"), 24), "<bos>, the instruction's end, and the caption"


@pytest.mark.parametrize("name", ["flow_shift", "shift"])
def test_the_scheduler_says_the_shift(name: str) -> None:
    """Published with DPMSolverMultistepScheduler, retrained with FlowMatchEulerDiscreteScheduler."""
    family = Family.__new__(Family)
    family.schedule = {name: 2.0}
    family.denoiser_config = {"sample_size": 32}
    family.vae_config = {"encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]}
    family.setup()
    assert family.noise == Flow(Times("logit_normal", 2.0))
    assert family.resolution == 1024
