"""What a run measures of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.adapters import ADAPTER, add_lora, change_norm, lora_parameters
from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder
from trainer.contract.settings.adapter import AdapterSettings
from trainer.contract.verdict import verdict
from trainer.learned import Weights, block_of

from .helpers import recipe, train_here


@pytest.mark.parametrize(
    ("module", "block"),
    [
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "unet.down_blocks.1.attentions.0",
        ),
        ("unet.mid_block.resnets.1.conv1", "unet.mid_block.resnets.1"),
        ("unet.conv_in", "unet.conv_in"),
        ("transformer.single_transformer_blocks.7.attn.to_k", "transformer.single_transformer_blocks.7"),
        ("text_encoder.encoder.layers.3.mlp.fc1", "text_encoder.encoder.layers.3"),
    ],
)
def test_modules_lie_in_blocks(module: str, block: str) -> None:
    assert block_of(module) == block


def test_a_run_measures_pictures_and_weights(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "one")
    samples = {"prompts": ["a ZWX", "a house"], "every": 4}
    run.create(recipe(tiny_base, photos, dataset={"trigger": "zwx"}, samples=samples))
    assert train_here(run)
    events = read_events(run.events)[0]
    measured = [event for event in events if event["kind"] == "measured"]
    assert [(event["step"], event["prompt"]) for event in measured] == [
        (0, 0),
        (0, 1),
        (4, 0),
        (4, 1),
        (8, 0),
        (8, 1),
    ]
    assert [event["trigger"] for event in measured[:2]] == [True, False]
    assert all(event["change"] == 0 for event in measured[:2]) and measured[-1]["change"] > 0
    assert all(event["photo"].startswith("photo ") for event in measured)
    weights = [event for event in events if event["kind"] == "weights"]
    assert [event["step"] for event in weights] == [0, 4, 8]
    assert weights[0]["norm"] == 0 < weights[1]["norm"] < weights[2]["norm"]
    assert verdict(events).sentences


def test_norms_are_those_of_the_whole_matrices(tiny_base: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    targets = r".*(to_q|conv1)"
    add_lora(unet, AdapterSettings(rank=3, alpha=6.0), targets, 0)
    with torch.no_grad():
        for parameter in lora_parameters({"unet": unet}).values():
            parameter.normal_()
    layers = {name: layer for name, layer in unet.named_modules() if ADAPTER in getattr(layer, "lora_A", {})}
    whole = 0.0
    for layer in layers.values():
        delta = layer.get_delta_weight(ADAPTER)
        assert change_norm(layer) == pytest.approx(float(delta.norm()), rel=1e-4)
        whole += float(delta.norm()) ** 2
    found = Weights({"unet": unet}).measure()
    assert found["norm"] == pytest.approx(whole**0.5, rel=1e-4)
    name = "mid_block.attentions.0"
    here = [layer for key, layer in layers.items() if key.startswith(name)]
    moved = sum(float(layer.get_delta_weight(ADAPTER).norm()) ** 2 for layer in here)
    base = sum(float(layer.get_base_layer().weight.norm()) ** 2 for layer in here)
    assert found["blocks"][f"unet.{name}"] == pytest.approx((moved / base) ** 0.5, rel=1e-3)
