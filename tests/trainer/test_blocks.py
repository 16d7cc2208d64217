"""Ranks, alphas and learning rates by block: which block is which, and what they do in a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.tiny_families import KEYS, tiny
from tests.tiny_families import full_size as published
from trainer.adapters import lora_weights
from trainer.assemble import assemble, place
from trainer.contract.blocks import block_of
from trainer.contract.errors import RunError
from trainer.contract.families import SDXL, block_maps
from trainer.contract.runs import RunFolder
from trainer.contract.settings.adapter import AdapterSettings
from trainer.families.base import family_class, load_family
from trainer.families.ldm_single_file import sgm_name
from trainer.families.sdxl import Family
from trainer.source import resolve

from .helpers import recipe, train_here
from .test_sdxl import full_size  # noqa: F401 (a fixture)

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def tiny_base(deeper_base: Path) -> Path:
    """One that has every layer of a block, as SDXL has."""
    return deeper_base


@pytest.mark.parametrize("key", KEYS)
def test_every_target_is_in_a_block_that_is_there(key: str) -> None:
    """The catalogue's blocks, against the published denoisers."""
    for base, denoiser in published(key).items():
        (blocks,) = block_maps(key, base)
        assert place(AdapterSettings(), load_row(key), denoiser).blocks == blocks
        pattern = family_class(key).targets_in(denoiser.config)["transformer+conv"]
        found = {block_of(n, blocks) for n, _ in denoiser.named_modules() if re.fullmatch(pattern, n)}
        assert found == {number for number, block in enumerate(blocks) if block.holds != "nothing"}


def load_row(key: str) -> Any:
    return family_class(key).row


def test_sdxls_slots_are_kohyas(full_size: UNet2DConditionModel) -> None:  # noqa: F811
    """23 slots by the original code's names: input_blocks 0-8 are 1 to 9, the middle 10-12, output_blocks
    0-8 are 13 to 21. Without convolutions 5, 6, 8, 9, 11 and 13 to 18 hold the 722 modules."""
    blocks, config = SDXL.blocks, full_size.config
    assert len(blocks) == 23
    for name, module in full_size.named_modules():
        if not re.fullmatch(Family.targets["transformer+conv"], name):
            continue
        side, first = re.match(r"(input|output|middle)_blocks?\.(\d+)", sgm_name(name, config)).groups()  # type: ignore
        expected = int(first) + {"input": 1, "middle": 10, "output": 13}[side]
        assert block_of(name, blocks) == expected, name
        assert module is not None
    linear = [n for n, _ in full_size.named_modules() if re.fullmatch(Family.targets["transformer"], n)]
    slots = [block_of(name, blocks) for name in linear]
    assert len(slots) == 722
    assert {slot: slots.count(slot) for slot in sorted(set(slots))} == {  # type: ignore[type-var]
        **dict.fromkeys((5, 6), 22),
        **dict.fromkeys((8, 9), 102),
        11: 102,
        **dict.fromkeys((13, 14, 15), 102),
        **dict.fromkeys((16, 17, 18), 22),
    }


def test_sd15_has_kohyas_25(tmp_path: Path) -> None:
    (denoiser,) = (d for base, d in published("sd15").items() if "v1-5" in base)
    (blocks,) = block_maps("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    pattern = family_class("sd15").targets["transformer"]
    slots = [block_of(n, blocks) for n, _ in denoiser.named_modules() if re.fullmatch(pattern, n)]
    assert len(blocks) == 25 and len(slots) == 192
    assert set(slots) == {1, 2, 4, 5, 7, 8, 12, *range(16, 25)}


# What the recipe does with them ----------------------------------------------------------------------------


def assembled(base: Path, photos: Path, **adapter: Any) -> tuple[Any, Any]:
    family = Family(resolve("sdxl", str(base)), CPU, torch.float32)
    config = recipe(base, photos, adapter={"targets": "transformer", **adapter})
    return assemble(family, config, Path()), config


def test_ranks_and_alphas_by_block(tiny_base: Path, photos: Path) -> None:
    ranks = ",".join(map(str, range(23)))  # the rank is the slot
    model, _ = assembled(tiny_base, photos, block_ranks=ranks, block_alphas="5-9: 3, else: 2", conv_rank=1)
    loras = lora_weights(model.parts)
    assert loras
    for name, lora in loras.items():
        slot = block_of(name.removeprefix("unet."), SDXL.blocks)
        assert slot is not None
        assert (lora.rank, lora.alpha) == (slot, 3.0 if 5 <= slot <= 9 else 2.0)


def test_kohyas_seed_example_removes_two_blocks(tiny_base: Path, photos: Path) -> None:
    """down 0,0,0,0,1,1,0,1,1 keeps the slots 5, 6, 8 and 9; a weight of 0 creates no module."""
    weights = "0,0,0,0,1,1,0,1,1 / 0,0,0 / zeros"
    model, _ = assembled(tiny_base, photos, block_weights=weights)
    slots = {block_of(name.removeprefix("unet."), SDXL.blocks) for name in lora_weights(model.parts)}
    assert slots == {5, 6, 8, 9}


def test_learning_rates_by_block_are_groups(tiny_base: Path, photos: Path) -> None:
    model, config = assembled(tiny_base, photos, block_weights="5-6: 0.5, 8-9: 0, 11: 2")
    groups = model.groups(config)
    assert {rate for rate, _ in groups} == {0.5e-2, 1e-2, 2e-2}
    names = {id(parameter): name for name, parameter in model.parameters().items()}
    assert sum(len(parameters) for _, parameters in groups) == len(names)
    for rate, parameters in groups:
        for parameter in parameters:
            slot = block_of(names[id(parameter)].removeprefix("unet."), SDXL.blocks)
            assert slot not in (8, 9) and rate == 1e-2 * {5: 0.5, 6: 0.5, 11: 2.0}.get(slot or 0, 1.0)


def test_convolutions_have_a_rank_of_their_own(tiny_base: Path, photos: Path) -> None:
    model, _ = assembled(
        tiny_base, photos, targets="transformer+conv", rank=4, alpha=4, conv_rank=2, conv_alpha=1
    )
    for name, lora in lora_weights(model.parts).items():
        wide = lora.down.ndim == 4 and lora.down.shape[-1] == 3
        assert (lora.rank, lora.alpha) == ((2, 1.0) if wide else (4, 4.0)), name


def test_targets_by_name(tiny_base: Path, photos: Path) -> None:
    model, _ = assembled(tiny_base, photos, target_regex=r"attn2\.to_[kv]$|^conv_in")
    names = [name.removeprefix("unet.") for name in lora_weights(model.parts)]
    assert "conv_in" in names and len(names) > 10
    assert all(re.search(r"attn2\.to_[kv]$|^conv_in$", name) for name in names)
    with pytest.raises(RunError, match=r"no layer for adapter\.target_regex"):
        assembled(tiny_base, photos, target_regex="attn3")


def test_blocks_of_a_base_that_nobody_knows_are_counted(tmp_path: Path, photos: Path) -> None:
    """The small model has two and two blocks: a list for FLUX.1's 57 is refused once it is loaded."""
    base = tiny("flux").build(tmp_path / "base")
    family = load_family("flux", resolve("flux", str(base)), CPU, torch.float32)
    model = {"family": "flux", "base": str(base)}
    config = recipe(
        base, photos, model=model, adapter={"targets": "transformer", "block_ranks": "1: 3, 2: 5"}
    )
    loras = lora_weights(assemble(family, config, tmp_path).parts)
    ranks = {".".join(name.split(".")[1:3]): lora.rank for name, lora in loras.items()}
    assert ranks == {
        "transformer_blocks.0": 2,
        "transformer_blocks.1": 3,
        "single_transformer_blocks.0": 5,
        "single_transformer_blocks.1": 2,
    }
    config = recipe(base, photos, model=model, adapter={"block_ranks": "10-18: 8", "targets": "transformer"})
    with pytest.raises(RunError, match=r"block_ranks: there is no block 10-18; .* blocks 0 to 3"):
        assemble(family, config, tmp_path)


def test_a_guides_list_is_refused_before_anything_is_loaded(tmp_path: Path, photos: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "guide")
    run.create(recipe(Path("no/such/base"), photos, adapter={"block_ranks": ",".join("8" * 25)}))
    with pytest.raises(RunError, match=r"block_ranks: .*25 values.*SDXL has 23.* Write '8,8"):
        train_here(run)
