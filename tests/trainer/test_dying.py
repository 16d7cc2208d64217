"""Killed at each place where something is half done, one after the other, a run ends as one left alone.

Being killed by the system for want of memory is a SIGKILL as well, and so is what these do: the process ends
between two instructions, and nothing of it runs any more.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import trainer.cache
import trainer.checkpoints
import trainer.data
import trainer.export
import trainer.keeper
import trainer.sampling
from trainer.contract.events import current_events, read_events
from trainer.contract.runs import RunFolder
from trainer.report import Reporter

from .helpers import recipe, sha256, train_here, weights_hash

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
KILLED = 9

PLACES: list[tuple[str, Any, str, int]] = [
    ("while pictures are frozen", trainer.data, "save_frozen", 1),
    ("while photos are encoded", trainer.cache, "_write", 3),
    ("while captions are encoded", trainer.cache, "_write", 4),
    ("while the baseline is drawn", trainer.sampling, "save_sample", 1),
    ("when a checkpoint has just got its name", trainer.checkpoints, "sync_folder", 1),
    ("while a sample is saved", trainer.sampling, "save_sample", 1),
    ("while a checkpoint is removed", trainer.checkpoints.shutil, "rmtree", 3),
    ("before the LoRA is written", trainer.export, "write_bytes", 1),
    ("after the LoRA was written", Reporter, "saved", 1),
    ("before the last word", Reporter, "end", 1),
]
"""(place, where, what is called there, the how manyth call in that process is its last instruction)"""


def killed_at(run: RunFolder, where: Any, name: str, call: int) -> bool:
    """Train in a fork that ends before it calls ``name``; whether it came to that."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            left, real = call, getattr(where, name)

            def watched(*arguments: Any, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    os._exit(KILLED)
                return real(*arguments, **more)

            setattr(where, name, watched)
            train_here(run)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), f"the training failed ({name})"
    return code == KILLED


def losses(run: RunFolder) -> list[tuple[int, float]]:
    events = current_events(read_events(run.events)[0])
    return [(event["step"], event["loss"]) for event in events if event["kind"] == "step"]


def test_killed_in_every_place(
    tiny_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    config = recipe(
        tiny_base,
        photos,
        adapter={"dropout": 0.1},
        train={"ema_decay": 0.9, "steps": 6},
        samples={"every": 3, "steps": 1},
        checkpoints={"every": 2, "keep": 1, "keep_best": 1},
    )
    run, straight = (RunFolder(tmp_path / name / "runs" / "run") for name in ("killed", "straight"))
    for one in (run, straight):
        one.create(config)
    survived = [place for place, *how in PLACES if not killed_at(run, *how)]
    assert not survived
    assert run.read_status().state == "lost"
    assert train_here(run) and train_here(straight)
    assert weights_hash(run, 6) == weights_hash(straight, 6)
    assert losses(run) == losses(straight) and [step for step, _ in losses(run)] == list(range(1, 7))
    for file in (run.result(config), *sorted(run.samples.iterdir())):
        if not file.name.startswith("."):
            assert sha256(file) == sha256(straight.path / file.relative_to(run.path)), file.name
