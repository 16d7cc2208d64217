"""Whether a drawing is decoded in tiles: by the recipe alone."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import merge, parse
from trainer.contract.ladder import Amendment, amended
from trainer.contract.plan import Machine, estimate
from trainer.contract.working import TILE, in_tiles

SDXL = {"model": {"base": "stabilityai/stable-diffusion-xl-base-1.0"}, "samples": {"prompts": ["a cat"]}}


def of(**sections: Any) -> TrainConfig:
    return parse(merge(SDXL, sections))


def test_what_would_be_the_peak_is_decoded_in_tiles() -> None:
    assert in_tiles(of(), 1024, 1024)
    assert not in_tiles(of(train={"batch_size": 4}), 1024, 1024)
    assert in_tiles(of(train={"batch_size": 4}), 2048, 2048)
    assert not in_tiles(of(train={"gradient_checkpointing": "off"}), 1024, 1024)
    assert in_tiles(of(train={"batch_size": 4}, machine={"pictures_at_once": 1}), 1024, 1024)


def test_small_pictures_are_not() -> None:
    assert not in_tiles(of(), TILE, TILE)
    assert not in_tiles(of(model={"base": "demo"}), 128, 128)
    assert in_tiles(of(samples={"tiling": "on"}), TILE, TILE), "which changes nothing in such a picture"


def test_it_is_the_users_to_say() -> None:
    assert not in_tiles(of(samples={"tiling": "off"}), 4096, 4096)
    assert in_tiles(of(train={"batch_size": 64}, samples={"tiling": "on"}), 1024, 1024)


@pytest.mark.parametrize(("before", "now"), [(True, "on"), (False, "off")])
def test_recipes_of_earlier_versions_are_read(before: bool, now: str) -> None:
    assert of(samples={"tiling": before}).samples.tiling == now
    change = Amendment("tiling", {"samples.tiling": before}, "")  # as an old ladder.json has it
    assert amended(of(), [change]).samples.tiling == now
    with pytest.raises(ConfigError, match="tiling"):
        of(samples={"tiling": "perhaps"})


BASES = [(row.key, base.id) for row in CATALOGUE.values() for base in row.bases if base.resolution > TILE]


@pytest.mark.parametrize(("family", "base"), BASES)
def test_drawing_is_planned_within_training(family: str, base: str) -> None:
    """At the base's own resolution, a picture a step. Sana's VAE alone is larger than what a step takes."""
    planned = estimate(of(model={"family": family, "base": base}), Machine("", 200.0)).vram_gib
    over = planned["sample"] - planned["train"]
    assert over <= (0.8 if family == "sana" else 0.0)
