"""Files of families whose original code has one layer for several: each kind of adapter, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_families import tiny
from trainer.adapters import add_lora, lora_parameters, lora_weights
from trainer.contract.settings.adapter import AdapterSettings
from trainer.export import lycoris_name, original_name, tensors_in
from trainer.families.base import load_family
from trainer.lora_metadata import network_metadata
from trainer.source import resolve

from .kinds import KINDS
from .test_adapter_runs import as_loaders_do

CPU = torch.device("cpu")


@pytest.mark.parametrize("key", ["flux", "zimage", "sana"])
@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
def test_fused_layers(key: str, kind: str, tmp_path: Path) -> None:
    """What a loader adds to the rows of each of our modules is what that module learnt."""
    family = load_family(key, resolve(key, str(tiny(key).build(tmp_path / "base"))), CPU, torch.float32)
    denoiser = family.load_denoiser()
    settings = AdapterSettings(**{"rank": 2, "alpha": 3.0, **KINDS[kind]})
    plain = {name: weight.detach().clone() for name, weight in denoiser.named_parameters()}
    add_lora(denoiser, settings, family.targets["transformer"], seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in lora_parameters({"": denoiser}).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    weights = lora_weights({"transformer": denoiser})
    fused = 0
    for format in ("kohya", "comfyui"):
        tensors, used = tensors_in(format, weights, family), set()  # type: ignore[arg-type]
        for name, each in weights.items():
            module = name.removeprefix("transformer.")
            weight = plain[f"{module}.weight"]
            stem, native = original_name(format, name, family)  # type: ignore[arg-type]
            own, rows = of_stem(tensors, stem), native.rows
            if not own or (rows and f"{lycoris_name(name)}.alpha" in tensors):
                stem, rows = lycoris_name(name), None
                own = of_stem(tensors, stem)
                assert kind in ("dora", "lokr")
            used |= {f"{stem}.{ending}" for ending in own}
            own = {k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): t for k, t in own.items()}
            if rows is None:
                assert torch.allclose(as_loaders_do(own, weight), each.applied(weight), atol=1e-4), name
                continue
            fused += 1
            whole = torch.zeros(native.total, *weight.shape[1:])
            whole[slice(*rows)] = weight
            changed = as_loaders_do(own, whole)
            assert torch.allclose(changed[slice(*rows)], each.applied(weight), atol=1e-4), name
        assert used == set(tensors)
    assert fused or kind in ("dora", "lokr")


def of_stem(tensors: dict[str, Tensor], stem: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{stem}."): t for key, t in tensors.items() if key.startswith(f"{stem}.")}


@pytest.mark.parametrize(
    ("settings", "module", "size"),
    [
        ({"rank": 8, "alpha": 4}, "networks.lora", ("8", "4")),
        ({"rank": 16, "alpha": 8, "rslora": True}, "networks.lora", ("16", "32")),
        ({"rank": 8, "alpha": 4, "init": "pissa"}, "networks.lora", ("16", "8")),
        ({"rank": 8, "alpha": 8, "dora": True}, "lycoris.kohya", ("8", "8")),
        ({"rank": 8, "alpha": 4, "type": "loha"}, "lycoris.kohya", ("8", "4")),
        ({"rank": 8, "alpha": 4, "type": "dylora"}, "networks.dylora", ("8", "4")),
    ],
)
def test_metadata_say_what_it_is(settings: dict[str, Any], module: str, size: tuple[str, str]) -> None:
    found = network_metadata(AdapterSettings(**settings))
    assert found["ss_network_module"] == module
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == size


def test_metadata_of_arguments() -> None:
    adapter = AdapterSettings(
        type="lokr", lokr_factor=8, targets="transformer+conv", conv_rank=4, block_ranks="else: 6", max_norm=1
    )
    found = network_metadata(adapter)
    for part in ('"algo": "lokr"', '"factor": "8"', '"conv_dim": "4"', '"block_dims": "else: 6"'):
        assert part in found["ss_network_args"]
    assert found["ss_scale_weight_norms"] == "1"
    assert "ss_network_args" not in network_metadata(AdapterSettings())
