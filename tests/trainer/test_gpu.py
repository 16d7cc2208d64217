"""What only a GPU can show. Skipped without one; run with ``pytest -m gpu``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder

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
