"""What a LoRA does to the demo model, by the trainer, in fewer and smaller steps than the preset's, at three
times its rate."""

from __future__ import annotations

import pytest

from bench.demo_lora import measure

from ..forks import ForkedAside

SETTINGS = ("train.steps=30", "train.batch_size=2", "train.learning_rate=3e-3", "samples.prompts=[]")


@pytest.mark.timeout(900)
def test_the_pet_is_learnt_and_the_rest_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.demo_lora.subprocess.Popen", ForkedAside)
    figures = measure("pet", SETTINGS, 4, tmp_path, steps=12).figures
    # demo/README.md has the figures of the whole preset: 0.33, and drifts of 0.010 and 0.011.
    assert figures["ratio LoRA / base"] <= 0.6
    assert figures["LoRA, another creature"] >= 0.8 * figures["base, another creature"]
    assert figures["drift, another creature"] <= 0.0144
    assert figures["drift, star"] <= 0.0128
