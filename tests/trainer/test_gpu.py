"""What only a GPU can show. Skipped without one; run with ``pytest -m gpu``."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder
from trainer.restart import Restart

from .helpers import Script, recipe, train_here

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_every_precision_trains_and_resumes(
    precision: str, tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "runs" / precision)
    run.create(recipe(tiny_base, photos, model={"precision": precision}, train={"steps": 30}))
    assert not train_here(run, Script(run, "stop", 4))
    assert train_here(run)
    status = run.read_status()
    assert status.vram and status.vram_total and 0 < status.vram < status.vram_total
    losses = [event["loss"] for event in read_events(run.events)[0] if event["kind"] == "step"]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert len(list(run.samples.iterdir())) == 2


def test_checkpointing_saves_memory(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    peaks = {}
    for switch in ("off", "on"):
        run = RunFolder(tmp_path / "runs" / switch)
        changes = {"gradient_checkpointing": switch, "batch_size": 4, "steps": 2}
        run.create(recipe(tiny_base, photos, train=changes, samples={"prompts": []}))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        assert train_here(run)
        peaks[switch] = torch.cuda.max_memory_allocated()
    assert peaks["on"] < peaks["off"]


def peak_of(run: RunFolder) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert train_here(run)
    return torch.cuda.max_memory_reserved()


def made(path: Path, base: Path, photos: Path, **machine: Any) -> RunFolder:
    changes = {"batch_size": 4, "steps": 4, "gradient_checkpointing": "off"}
    run = RunFolder(path)
    run.create(recipe(base, photos, train=changes, samples={"prompts": []}, machine=machine))
    return run


def test_blocks_in_ram_train_the_same(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    runs = [made(tmp_path / "runs" / f"{on}", tiny_base, photos, offload=on) for on in (False, True)]
    for run in runs:
        assert train_here(run)
    losses = [[e["loss"] for e in read_events(run.events)[0] if e["kind"] == "step"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # in half precision


def test_a_gpu_that_is_really_full_is_adapted_to(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    few = peak_of(made(tmp_path / "runs" / "few", tiny_base, photos, pictures_at_once=1))
    many = peak_of(made(tmp_path / "runs" / "many", tiny_base, photos))
    assert few < many
    run = made(tmp_path / "runs" / "full", tiny_base, photos)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((few + many) / 2 / whole)
    try:
        for _ in range(10):
            try:
                assert train_here(run)
                break
            except Restart:
                gc.collect()
                torch.cuda.empty_cache()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    rungs = [event["rung"] for event in read_events(run.events)[0] if event["kind"] == "adapted"]
    assert run.read_status().state == "finished" and rungs[:2] == ["free", "checkpointing"]
