"""Chroma: what is left out of the padding is what the model does not attend to."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ChromaPipeline
from transformers import T5Tokenizer

from tests.tiny_families.chroma import build
from trainer.adapters import add_lora, lora_parameters
from trainer.contract.errors import RunError
from trainer.contract.settings.adapter import AdapterSettings
from trainer.families.base import Geometry
from trainer.families.chroma import Family
from trainer.families.packing import pack
from trainer.families.t5_tokenizer import T5FolderTokenizer
from trainer.source import resolve

CAPTIONS = ["a fox", "two longer captions, of different length"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("chroma") / "base")


def opened(base: Path) -> Family:
    return Family(resolve("chroma", str(base)), torch.device("cpu"), torch.float32)


def test_leaving_out_padding_is_masking_it(base: Path) -> None:
    """The caption's tokens and one of padding, against all 512 and a mask in every layer."""
    family = opened(base)
    denoiser = family.load_denoiser()
    pipeline = ChromaPipeline.from_pretrained(base)
    prompts, text_ids, masks, *_ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    assert prompts.shape[1] == 512
    noisy = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    t_B = torch.tensor([0.2, 0.9])
    embeds = family.encode_captions(CAPTIONS)
    lengths = [len(pipeline.tokenizer(caption).input_ids) for caption in CAPTIONS]
    assert [len(e["prompt"]) for e in embeds] == [length + 1 for length in lengths]
    with torch.no_grad():
        ours = family.predict(denoiser, noisy, t_B, embeds, [Geometry.whole(64, 48)] * 2)
        masked: Any = denoiser(
            pack(noisy),
            encoder_hidden_states=prompts,
            timestep=t_B,
            img_ids=family.grid(4, 3),
            txt_ids=text_ids,
            attention_mask=torch.cat([masks.bool(), torch.ones(2, 12, dtype=torch.bool)], 1),
        ).sample
    assert torch.allclose(pack(ours), masked, atol=1e-5)


def test_the_pipelines_own_mask_lets_padding_through(base: Path) -> None:
    """Why samples are not drawn by diffusers' pipeline as it is. When this fails, it can be."""
    family = opened(base)

    def drawn(pipeline: Any) -> np.ndarray:
        pipeline.set_progress_bar_config(disable=True)
        return np.asarray(
            pipeline(
                "a fox",
                width=64,
                height=64,
                num_inference_steps=1,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images
        )

    theirs, masked = (drawn(cls.from_pretrained(base)) for cls in (ChromaPipeline, family.pipeline_class))
    assert np.abs(theirs - masked).max() > 1e-5


def test_a_tokenizer_that_is_a_sentencepiece_model_alone(base: Path, tmp_path: Path) -> None:
    """As in the published folder; the file is written here byte by byte, as protobuf defines it."""
    whole = T5Tokenizer.from_pretrained(base / "tokenizer")
    pieces = json.loads((base / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]

    def field(number: int, content: bytes) -> bytes:
        assert len(content) < 128
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str, score: float) -> bytes:
        return field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", score) + bytes([3 << 3, 1])

    model = b"".join(field(1, piece(text, score)) for text, score in pieces)
    (tmp_path / "spiece.model").write_bytes(
        model + field(2, b"the trainer") + field(3, field(1, b"identity"))
    )
    alone = T5FolderTokenizer.from_pretrained(tmp_path)
    for caption in ("", *CAPTIONS):
        assert alone(caption).input_ids == whole(caption).input_ids
    (tmp_path / "spiece.model").write_bytes(model[:-3])
    with pytest.raises(RunError, match=r"spiece\.model is damaged"):
        T5FolderTokenizer.from_pretrained(tmp_path)


def test_recomputing_activations_changes_nothing(base: Path) -> None:
    """diffusers forgets the mask of the single blocks then; without a mask there is none to forget."""
    family = opened(base)
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    embeds = family.encode_captions(CAPTIONS)
    gradients = []
    for recompute in (False, True):
        denoiser = family.load_denoiser().train()
        add_lora(denoiser, AdapterSettings(rank=2, alpha=2), family.targets["transformer"], seed=0)
        if recompute:
            denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        prediction = family.predict(
            denoiser, noisy, torch.tensor([0.2, 0.9]), embeds, [Geometry.whole(64, 64)] * 2
        )
        prediction.square().mean().backward()
        gradients.append([p.grad for p in lora_parameters({"": denoiser}).values()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None and again is not None and torch.allclose(plain, again, atol=1e-6)
