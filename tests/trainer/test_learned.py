"""What a run measures of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pictures import draw_picture
from trainer.adapters import add_lora, lora_parameters, read_weights
from trainer.adapters.norms import product_norm
from trainer.checkpoints import adapter_tensors
from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder
from trainer.contract.settings.adapter import AdapterSettings
from trainer.contract.verdict import verdict
from trainer.data import load_frozen
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


def test_a_run_measures_pictures_and_weights(
    tiny_base: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "runs" / "one")
    samples = {"prompts": ["a ZWX", "a house of zwxes"], "every": 4}
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
    for figure in ("norm", "up"):
        assert weights[0][figure] == 0 < weights[1][figure] < weights[2][figure]
    tensors = adapter_tensors(run.checkpoint(8), "adapter.safetensors")
    ups = torch.cat([tensor.flatten() for name, tensor in tensors.items() if ".lora_B." in name])
    assert weights[2]["up"] == pytest.approx(ups.norm().item(), rel=1e-5)
    told = capsys.readouterr().err
    assert [s.text for s in verdict(events).sentences if s.text not in told] == []
    assert "The LoRA changes the base's weights" in told


@pytest.mark.parametrize(
    "kind",
    [{}, {"type": "loha"}, {"type": "lokr"}, {"type": "oft"}, {"dora": True}, {"init": "pissa"}],
    ids=str,
)
def test_norms_are_those_of_what_the_layers_do(tiny_base: Path, kind: dict[str, Any]) -> None:
    """Against the answers of the linear layers to unit vectors, the columns of their weights."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    names = [name for name, _ in unet.named_modules() if name.endswith(("attn1.to_q", "attn2.to_k"))]
    before = {name: layer.weight.detach().clone() for name, layer in unet.named_modules() if name in names}
    settings = AdapterSettings.model_validate({"rank": 3, "alpha": 6.0, **kind})
    add_lora(unet, settings, r".*(attn1\.to_q|attn2\.to_k)", 0)
    parts: dict[str, Any] = {"unet": unet}
    assert Weights(parts).measure()["norm"] == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        for parameter in lora_parameters(parts).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    unet.eval()
    layers = dict(unet.named_modules())
    moved: dict[str, float] = {}
    for name in names:
        out = layers[name](torch.eye(before[name].shape[1])).T
        bias = getattr(layers[name].base_layer, "bias", None)
        out = out if bias is None else out - bias[:, None]
        moved[name] = float((out - before[name]).norm()) ** 2
    found = Weights(parts).measure()
    assert found["norm"] == pytest.approx(sum(moved.values()) ** 0.5, rel=1e-3)
    block = block_of(f"unet.{names[0]}")
    here = [name for name in names if block_of(f"unet.{name}") == block]
    share = sum(moved[name] for name in here) / sum(float(before[name].norm()) ** 2 for name in here)
    assert found["blocks"][block] == pytest.approx(share**0.5, rel=1e-3)


def test_the_weights_that_are_handed_out_are_measured(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(recipe(tiny_base, photos, train={"ema_decay": 0.9}))
    assert train_here(run)
    told = [event["norm"] for event in read_events(run.events)[0] if event["kind"] == "weights"][-1]
    lora = read_weights(adapter_tensors(run.checkpoint(8)))
    assert told == pytest.approx(sum(product_norm(one) ** 2 for one in lora.values()) ** 0.5, rel=1e-4)


def test_the_class_is_no_trigger(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    """A folder of class pictures without captions: they are of the class, and its prompts are controls."""
    folder = tmp_path / "cats"
    for number in range(2):
        draw_picture(folder / f"{number}.png", number, (64, 64))
    run = RunFolder(tmp_path / "runs" / "one")
    prior = {"method": "class_pictures", "class_name": "cat", "path": str(folder)}
    samples = {"prompts": ["a cat"]}
    train = {"steps": 1}
    run.create(
        recipe(tiny_base, photos, dataset={"trigger": "zwx"}, prior=prior, samples=samples, train=train)
    )
    assert train_here(run)
    regular = [image for image in load_frozen(run.dataset) if image.regularisation]
    assert regular and {image.caption for image in regular} == {"cat"}
    measured = [event for event in read_events(run.events)[0] if event["kind"] == "measured"]
    assert measured and not any(event["trigger"] for event in measured)
