"""Quantised bases through whole runs: train, resume, sample, export; and a library that is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.tiny_families import KEYS, full_size
from trainer.__main__ import main
from trainer.adapters import add_lora, begin_from_base, change_norm, lora_parameters
from trainer.after import weights_in
from trainer.contract.errors import ConfigError
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import dump_recipe, parse
from trainer.contract.runs import RunFolder
from trainer.contract.settings.adapter import AdapterSettings
from trainer.families.base import load_family
from trainer.quantize import SMALLEST, quantize
from trainer.source import resolve

from .helpers import Script, recipe, train_here, weights_hash
from .kinds import KINDS

CHOICES = {"int8": "torchao", "nf4": "bitsandbytes"}


@pytest.mark.parametrize("quantization", CHOICES)
def test_a_whole_run(
    quantization: str,
    tiny_base: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(CHOICES[quantization])
    config = recipe(
        tiny_base,
        photos,
        model={"quantize": quantization, "quantize_text": quantization},
        train={"steps": 2},
    )
    runs = [RunFolder(tmp_path / "runs" / name) for name in ("straight", "stopped")]
    for run in runs:
        run.create(config)
    assert train_here(runs[0])
    assert not train_here(runs[1], Script(runs[1], "stop", 1)) and train_here(runs[1])
    assert weights_hash(runs[0], 2) == weights_hash(runs[1], 2)
    assert all(bool(lora.up.any()) for lora in weights_in(runs[0].checkpoint(2), config).values())

    def pixels(run: RunFolder, step: int) -> np.ndarray:
        return np.asarray(Image.open(run.sample(step, 0)))

    assert np.array_equal(pixels(runs[0], 2), pixels(runs[1], 2))
    assert not np.array_equal(pixels(runs[0], 2), pixels(runs[0], 0))
    capsys.readouterr()
    assert main(["sample", str(runs[0].path), "--prompt", "zwx", "--out", str(tmp_path)]) == 0
    drawn = Path(capsys.readouterr().out.strip())
    assert np.array_equal(np.asarray(Image.open(drawn)), pixels(runs[0], 2))
    out = tmp_path / "x.safetensors"
    assert main(["export", str(runs[0].path), "--format", "diffusers", "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000


def test_an_embedding_of_a_quantised_encoder_has_a_cache_key_of_its_own(tiny_base: Path) -> None:
    def key(quantization: Any) -> str:
        base = resolve("sdxl", str(tiny_base))
        family = load_family("sdxl", base, torch.device("cpu"), torch.float32, "none", quantization)
        return family.text_encoder_id()

    assert len({key(each) for each in ("none", *CHOICES)}) == 3


@pytest.mark.parametrize("setting", ["quantize", "quantize_text"])
@pytest.mark.parametrize("quantization", CHOICES)
def test_a_missing_library_is_told_before_anything_loads(
    setting: str,
    quantization: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainer.quantize.find_spec", lambda name: None)
    monkeypatch.setattr("trainer.train.find_base", lambda *args: pytest.fail("the base was looked for"))
    file = tmp_path / "recipe.toml"
    file.write_text(dump_recipe(recipe(Path("demo"), photos, model={setting: quantization})))
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run")]) == 2
    sentence = f"model.{setting} = {quantization} needs {CHOICES[quantization]}; run pip install"
    assert sentence in capsys.readouterr().err
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "failed" and status["cause"] == "config"


@pytest.mark.parametrize("key", KEYS)
def test_the_catalogue_knows_how_much_can_be_quantised(key: str) -> None:
    for base, denoiser in full_size(key).items():
        linear = [m.weight.numel() for m in denoiser.modules() if isinstance(m, nn.Linear)]
        share = sum(n for n in linear if n >= SMALLEST) / sum(p.numel() for p in denoiser.parameters())
        assert CATALOGUE[key].linear_share == pytest.approx(share, abs=0.05), base


@pytest.mark.parametrize("quantization", CHOICES)
@pytest.mark.parametrize("kind", ["dora", "pissa", "olora", "loha", "lokr", "oft"])
def test_every_kind_of_adapter_over_it(kind: str, quantization: str) -> None:
    """Nothing changes at the start, and three steps move every layer."""
    pytest.importorskip(CHOICES[quantization])
    if kind in ("loha", "lokr") and quantization == "nf4":
        with pytest.raises(ConfigError, match=f"a {kind} cannot be trained over nf4"):
            parse({"model": {"quantize": "nf4"}, "adapter": {"type": kind}})
        return
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 96)).requires_grad_(False)
    model = quantize(layers, quantization, torch.device("cpu"))  # type: ignore[arg-type]
    x = torch.randn(4, 128)
    before = model(x)
    settings = AdapterSettings(**{"rank": 4, "alpha": 4.0, **KINDS[kind]})
    add_lora(model, settings, "0|2", seed=1)
    if settings.init != "default":
        begin_from_base(model, settings, 1)
    assert torch.allclose(model(x), before, atol=1e-5)
    optimizer = torch.optim.AdamW(lora_parameters({"": model}).values(), lr=1e-2)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (model(x) - before).abs().max() > 0.02
    assert all(change_norm(model[place]) > 0.05 for place in (0, 2))  # type: ignore[index]
