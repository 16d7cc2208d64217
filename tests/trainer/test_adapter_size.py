"""The plan's count of an adapter's numbers, against adapters on SDXL's published U-Net."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainer.adapters import add_lora, lora_parameters
from trainer.assemble import place
from trainer.contract.adapter_size import adapter_size
from trainer.contract.families import SDXL
from trainer.contract.settings.adapter import AdapterSettings
from trainer.families.sdxl import Family

from .test_sdxl import full_size  # noqa: F401 (a fixture)


@pytest.mark.parametrize(
    ("adapter", "tolerance"),
    [
        ({"rank": 8}, 0.01),
        ({"rank": 8, "block_ranks": "8-9: 2, 13-18: 0"}, 0.12),
        ({"rank": 8, "targets": "transformer+conv", "conv_rank": 2}, 0.05),
        ({"rank": 8, "type": "loha"}, 0.01),
        ({"rank": 8, "type": "lokr"}, 0.35),
        ({"rank": 1000, "type": "lokr", "lokr_factor": 8}, 0.35),
        ({"rank": 8, "type": "oft"}, 0.25),
    ],
    ids=str,
)
def test_it_is_about_what_there_is(
    adapter: dict[str, Any],
    tolerance: float,
    full_size: UNet2DConditionModel,  # noqa: F811
) -> None:
    settings = AdapterSettings(**adapter)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(full_size.config)
        placed = place(settings, SDXL, unet)
        add_lora(unet, settings, Family.targets[settings.targets], 0, placed)
    counted = sum(parameter.numel() for parameter in lora_parameters({"": unet}).values())
    weights = SDXL.params[0] * SDXL.linear_share
    size = adapter_size(settings, SDXL.lora_params_per_rank, SDXL.blocks, weights)
    assert size.trained == pytest.approx(counted, rel=tolerance)
