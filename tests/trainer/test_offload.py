"""A base whose blocks lie in RAM trains the same LoRA, and nothing but a fetch touches its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.assemble import Model, assemble
from trainer.families.base import Geometry, ModelFamily
from trainer.learned import Weights

from .helpers import opened, recipe
from .kinds import KINDS


def left_behind(model: Model) -> list[Any]:
    return [layer for layer in model.denoiser.modules() if hasattr(layer, "fetch")]


def take_away(model: Model) -> int:
    """Leave nothing of the weights that lie in RAM but what is fetched: whoever else reads one fails."""
    layers = left_behind(model)
    for layer in layers:
        layer.weight = nn.Parameter(torch.empty_like(layer.weight.data, device="meta"), requires_grad=False)
    return len(layers)


def one_step(family: ModelFamily, model: Model, embeds: list[Any]) -> dict[str, torch.Tensor]:
    """The answer to one noisy picture, and the gradients it leaves."""
    for number, parameter in enumerate(model.parameters().values()):
        torch.manual_seed(number)  # from zero only the outer factors would get a gradient
        parameter.data += 0.02 * torch.randn_like(parameter)
    torch.manual_seed(1)
    noisy = torch.randn(1, *family.encode_images(torch.zeros(1, 3, 64, 64)).shape[1:])
    answer = family.predict(model.denoiser, noisy, torch.tensor([0.4]), embeds, [Geometry.whole(64, 64)])
    answer.float().square().mean().backward()
    grads = {name: one.grad for name, one in model.parameters().items() if one.grad is not None}
    return {"answer": answer.detach(), **grads}


@pytest.mark.parametrize(
    ("kind", "checkpointing"),
    [("locon", True), ("locon", False), ("dora", False), ("loha", False), ("oft", False)],
)
def test_every_kind_of_adapter_learns_the_same(
    kind: str, checkpointing: bool, tiny_base: Path, photos: Path
) -> None:
    adapter = {"rank": 4, "alpha": 4.0, "targets": "transformer+conv", **KINDS[kind]}
    found = []
    for in_ram in (False, True):
        config = recipe(tiny_base, photos, adapter=adapter, machine={"offload": in_ram})
        family = opened("sdxl", tiny_base)
        embeds = family.encode_captions(["zwx"])
        model = assemble(family, config, Path())
        if in_ram:
            assert take_away(model) > 70
        if checkpointing:
            model.use_checkpointing()
        model.denoiser.train()
        found.append(one_step(family, model, embeds))
        moved = Weights(model.parts).measure()
        found[-1]["moved"] = torch.tensor([moved["norm"], *moved["blocks"].values()])
    whole, fetched = found
    assert whole.keys() == fetched.keys() and len(whole) > 10
    for name, expected in whole.items():
        assert torch.allclose(fetched[name], expected, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_quantised_blocks_are_fetched_too(quantize: str, tiny_base: Path, photos: Path) -> None:
    found = []
    for in_ram in (False, True):
        model_settings = {"quantize": quantize}
        config = recipe(tiny_base, photos, model=model_settings, machine={"offload": in_ram})
        family = opened("sdxl", tiny_base, quantized=quantize)
        embeds = family.encode_captions(["zwx"])
        model = assemble(family, config, Path())
        model.denoiser.train()
        found.append(one_step(family, model, embeds))
        assert bool(left_behind(model)) is in_ram
    whole, fetched = found
    for name, expected in whole.items():
        assert torch.allclose(fetched[name], expected, rtol=1e-2, atol=1e-5), name
