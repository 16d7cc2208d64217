"""A recipe made to fit a card: it fits by the plan's estimate, and stays the same training."""

from __future__ import annotations

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.fields import flatten, merge, parse, to_tables
from trainer.contract.hardware import CARDS, MEMORY, for_card, memory_of, missing_gib, nearest_card
from trainer.contract.plan import Machine, estimate
from trainer.contract.presets import load_presets

PRESETS = {preset.key: preset.apply(TrainConfig()) for preset in load_presets()}
FULL_SIZE = {key: config for key, config in PRESETS.items() if config.model.base != "demo"}
SDXL_GOALS = [
    f"sdxl-{goal}{pace}" for goal in ("subject", "person", "style") for pace in ("-fast", "", "-careful")
]
TOO_LARGE = {
    8: "flux chroma qwenimage krea2 ernieimage hunyuanimage hidream",
    12: "qwenimage krea2 hunyuanimage hidream",
    16: "",
    24: "",
}
"""Families whose own preset fits no card of that size, whatever is saved."""


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("key", SDXL_GOALS)
def test_every_goal_of_sdxl_fits_every_card(key: str, card: int) -> None:
    assert estimate(for_card(PRESETS[key], card), Machine("card", card)).fits


@pytest.mark.parametrize("card", CARDS)
def test_a_family_that_cannot_fit_is_told(card: int) -> None:
    own = {key: config for key, config in FULL_SIZE.items() if "guide" not in key}
    lacking = {config.model.family for config in own.values() if missing_gib(for_card(config, card), card)}
    assert lacking == set(TOO_LARGE[card].split())


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("key", FULL_SIZE)
def test_it_stays_the_same_training(key: str, card: int) -> None:
    before, after = PRESETS[key], for_card(PRESETS[key], card)
    usual = flatten(before)
    changed = {path for path, value in flatten(after).items() if usual[path] != value}
    batch = {"train.batch_size", "train.gradient_accumulation"}
    assert changed <= {*MEMORY, *batch}
    pictures = [one.train.batch_size * one.train.gradient_accumulation for one in (before, after)]
    assert pictures[0] == pictures[1]
    if not missing_gib(before, card):
        assert after == before, "what fits is left as it is"
    assert memory_of(after, before) == before, "and there is a way back"


def test_savings_come_in_the_order_of_what_they_cost() -> None:
    config = PRESETS["sdxl-style-careful"]
    assert for_card(config, 24) == config
    middle, small = for_card(config, 10), for_card(config, 8)
    assert (middle.train.batch_size, middle.train.gradient_accumulation) == (2, 2)
    assert middle.model.quantize == "none" and middle.samples.tiling == "auto"
    assert (small.train.batch_size, small.model.quantize, small.samples.tiling) == (1, "int8", "on")
    assert small.train.optimizer == "adamw", "not needed"


def test_what_the_user_chose_is_not_taken_back() -> None:
    base = PRESETS["sdxl-subject"]
    own = parse(merge(to_tables(base), {"train": {"optimizer": "adafactor", "batch_size": 6}}))
    lean = for_card(own, 8)
    assert lean.train.optimizer == "adafactor"
    assert lean.train.batch_size * lean.train.gradient_accumulation == 6
    assert memory_of(lean, base).train.gradient_accumulation == lean.train.gradient_accumulation


def test_the_way_back_is_not_forced() -> None:
    """The guide's fused backward goes with no accumulation."""
    guide = PRESETS["sdxl-guide-2025"]
    own = parse(
        merge(to_tables(guide), {"train": {"fused_backward": False, "gradient_accumulation": 4}}),
    )
    assert memory_of(own, guide) == own


def test_keeping_what_the_base_draws_needs_memory() -> None:
    plain = PRESETS["sdxl-subject-careful"]
    kept = parse(merge(to_tables(plain), {"prior": {"method": "output", "class_name": "a cat"}}))
    plain_gib, kept_gib = (
        estimate(one, Machine("card", 24)).breakdown["activations"] for one in (plain, kept)
    )
    assert kept_gib == pytest.approx(2 * plain_gib, rel=0.01)


@pytest.mark.parametrize(("vram_gib", "card"), [(6, 8), (7.8, 8), (11.6, 12), (15.9, 16), (20, 16), (80, 24)])
def test_the_card_of_this_machine(vram_gib: float, card: int) -> None:
    assert nearest_card(vram_gib) == card
