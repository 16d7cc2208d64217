"""Every kind of adapter in every format that can say it: the file gives what the trained model gives, text
encoders too, and one wrong sign in it is noticed when it is read again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import trainer.lora_file
from tests.tiny_families import tiny
from trainer.adapters import ADAPTER, adaptable, lora_parameters, lora_weights, use_rank
from trainer.assemble import Model, assemble
from trainer.contract.errors import RunError
from trainer.contract.lora_header import module_and_ending
from trainer.export import FORMATS, Format, diffusers_name, lycoris_name, original_name
from trainer.families.base import Geometry, ModelFamily
from trainer.lora_file import save_and_read_back

from .helpers import opened, recipe
from .kinds import KINDS
from .test_adapter_runs import as_loaders_do

FAMILY = "sd3"  # two text encoders that can be trained, and fused layers; SDXL is in test_adapter_runs.py
SAVED = {
    **{kind: KINDS[kind] for kind in ("rslora", "pissa", "olora", "dylora", "dora", "loha", "lokr", "oft")},
    "by block": {"block_ranks": "0: 2, else: 3", "block_alphas": "0: 1, 1: 6, else: 2.5"},
}
ONLY_LORAS = ("dora", "loha", "lokr", "oft")
SIDE = 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tiny(FAMILY).build(tmp_path_factory.mktemp(FAMILY) / "base")
    return made


@pytest.fixture(scope="module")
def plain(base: Path) -> Tensor:
    """What the base alone answers."""
    family = opened(FAMILY, base)
    return answer(family, family.load_denoiser())


def answer(family: ModelFamily, denoiser: nn.Module) -> Tensor:
    """What denoiser and text encoders make of a caption and noise."""
    noise = torch.randn(1, 16, 8, 8, generator=torch.manual_seed(3))
    with torch.no_grad():
        embeds = family.embed_captions(["a red fox"])
        return family.predict(denoiser, noise, torch.tensor([0.6]), embeds, [Geometry.whole(SIDE, SIDE)])


def trained(family: ModelFamily, config: Any) -> Model:
    """A model with an adapter that has learnt something everywhere."""
    model = assemble(family, config, Path())
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in lora_parameters(model.parts).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def loaded(family: ModelFamily, format: Format, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A fresh denoiser with the file in its weights and in those of the text encoders, as loaders put it
    there; every key is used."""
    denoiser, used = family.load_denoiser(), set()
    rows: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, ending = module_and_ending(key)
        ending = ending.replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        rows.setdefault(stem, {})[ending] = tensor.float()
    for part, model in {family.denoiser_part: denoiser, **family.text_encoders()}.items():
        for module in adaptable(model):
            name, weight = f"{part}.{module}", model.get_parameter(f"{module}.weight")
            stem, native = original_name(format, name, family)
            places = [(lycoris_name(name), None), (stem, native.rows)]
            if format == "diffusers":
                places = [(diffusers_name(name, family), None)]
            for stem, own in places:
                if stem not in rows:
                    continue
                used.add(stem)
                if "lora_up.weight" in rows[stem]:
                    rows[stem].setdefault("alpha", torch.tensor(float(rows[stem]["lora_up.weight"].shape[1])))
                whole = weight.data if own is None else torch.zeros(native.total, *weight.shape[1:])
                whole[slice(*own) if own else ...] = weight.data
                weight.data = as_loaders_do(rows[stem], whole)[slice(*own) if own else ...]
                break
    assert used == set(rows)
    return denoiser


@pytest.mark.parametrize("kind", SAVED)
def test_a_save_gives_what_was_trained_and_a_damaged_one_is_noticed(
    kind: str,
    base: Path,
    plain: Tensor,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {"text_encoder_lr": 1e-3, "text_encoder_2_lr": 1e-3}
    adapter = {"targets": "transformer", "rank": 2, "alpha": 3.0, **SAVED[kind]}
    config = recipe(base, photos, model={"family": FAMILY}, adapter=adapter, train=rates)
    family = opened(FAMILY, base)
    model = trained(family, config)
    rank = 2 if kind == "dylora" else None
    if rank:
        use_rank(model.parts, ADAPTER, rank)
    for module in model.parts.values():
        module.train(bool(rank))  # the rank of a step is for training; samples are drawn at the whole one
    wanted = answer(family, model.denoiser)
    weights = lora_weights(model.parts)
    assert {name.partition(".")[0] for name in weights} == {family.denoiser_part, *family.trainable_text}
    assert (wanted - plain).norm() > 0.002 * plain.norm(), "the adapter does nothing"

    file = tmp_path / "x.safetensors"
    about = {"trigger": "zwx", "step": 1, "base_name": "x", "rank": rank}
    for format in FORMATS:
        if format == "diffusers" and kind in ONLY_LORAS:
            with pytest.raises(RunError, match="diffusers reads plain LoRAs"):
                save_and_read_back(file, weights, family, config, format=format, **about)
            continue
        save_and_read_back(file, weights, family, config, format=format, **about)
        tensors = load_file(file)
        fresh = opened(FAMILY, base)
        got = answer(fresh, loaded(fresh, format, tensors))
        assert (got - wanted).norm() < 0.01 * (wanted - plain).norm(), format

        with safe_open(file, "pt") as opened_file:
            metadata = opened_file.metadata()
        endings = {module_and_ending(name)[1]: name for name in tensors}  # one tensor of each role
        for name in endings.values():
            wrong = {**tensors, name: -tensors[name]}
            with monkeypatch.context() as patch:
                write = partial(save_file, wrong, metadata=metadata)
                patch.setattr(trainer.lora_file, "save_lora", lambda path, *_, write=write, **__: write(path))
                with pytest.raises(RunError, match="does not hold what was trained"):
                    save_and_read_back(file, weights, family, config, format=format, **about)
