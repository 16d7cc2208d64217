"""The plan: what is counted, what it says of a card that is too small."""

from __future__ import annotations

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.fields import merge, parse
from trainer.contract.plan import Machine, Plan, estimate

SDXL = {"model": {"base": "stabilityai/stable-diffusion-xl-base-1.0"}, "samples": {"prompts": ["a cat"]}}


def plan(vram: float | None = 24.0, **sections: dict[str, object]) -> Plan:
    config: TrainConfig = parse(merge(SDXL, sections))
    return estimate(config, Machine("a card" if vram else "CPU", vram))


def test_sdxl_weights_are_counted() -> None:
    parts = plan().breakdown
    assert parts["denoiser"] == pytest.approx(4.78, abs=0.01)  # 2.567 billion in 16 bits
    r32 = plan(adapter={"rank": 32, "targets": "attention"}).breakdown
    assert r32["lora"] * 1024 == pytest.approx(177, abs=1)  # MiB, 46.4 million in 32 bits
    assert r32["optimizer"] == pytest.approx(2 * r32["lora"], abs=2e-3)
    assert plan(train={"optimizer": "adafactor"}).breakdown["optimizer"] < 0.1 * parts["optimizer"]


def test_accumulation_is_free_and_batch_is_not() -> None:
    one = plan().vram_gib["train"]
    assert plan(train={"gradient_accumulation": 8}).vram_gib["train"] == one
    assert plan(train={"batch_size": 4}).vram_gib["train"] > one
    assert plan(dataset={"resolution": 512}).vram_gib["train"] < one
    assert plan(train={"gradient_checkpointing": "off"}).vram_gib["train"] > one + 3


def test_a_card_that_is_too_small_is_told_so() -> None:
    assert plan(24.0).fits is True and not plan(24.0).warnings
    small = plan(6.0, train={"batch_size": 8})
    assert small.fits is False
    assert "a card has 6.0 GiB" in small.warnings[0] and "lower the batch size" in small.warnings[0]


def test_without_a_gpu() -> None:
    cpu = plan(None)
    assert cpu.fits is None and set(cpu.vram_gib.values()) == {0.0}
    assert any("no GPU" in warning for warning in cpu.warnings)
    demo = plan(None, model={"base": "demo"})
    assert not demo.warnings and demo.ram_gib < 3 and demo.download_gib == 0


def test_no_prompts_no_drawing() -> None:
    assert plan(samples={"prompts": []}).vram_gib["sample"] == 0
    assert plan().download_gib == pytest.approx(6.9)
