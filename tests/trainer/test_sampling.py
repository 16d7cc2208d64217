"""What the base alone draws is drawn once for all runs over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trainer.sampling
from trainer.contract.runs import RunFolder
from trainer.sampling import draw

from .helpers import recipe, train_here


def pixels(run: RunFolder, step: int) -> Any:
    with Image.open(run.sample(step, 0)) as image:
        return np.asarray(image)


def test_the_baseline_is_drawn_once_and_again_when_it_would_differ(
    tiny_base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def counted(family: Any, model: Any, texts: Any, settings: Any, prompt: str, **more: Any) -> Image.Image:
        drawn.append(prompt)
        return draw(family, model, texts, settings, prompt, **more)

    monkeypatch.setattr(trainer.sampling, "draw", counted)

    def run_of(name: str, **samples: Any) -> RunFolder:
        run = RunFolder(tmp_path / "runs" / name)
        run.create(recipe(tiny_base, photos, train={"steps": 1}, samples=samples))
        assert train_here(run)
        return run

    first = run_of("first")
    assert len(drawn) == 2  # before the first step and after the last
    second = run_of("second")
    assert len(drawn) == 3
    assert np.array_equal(pixels(first, 0), pixels(second, 0))
    for number, samples in enumerate(
        ({"seed": 1}, {"prompts": ["other"]}, {"steps": 3}, {"negative": "red"})
    ):
        run_of(f"other{number}", **samples)
        assert len(drawn) == 5 + 2 * number, samples

    (kept,) = [
        file
        for file in (tmp_path / "cache" / "baselines").iterdir()
        if np.array_equal(np.asarray(Image.open(file)), pixels(first, 0))
    ]
    kept.write_bytes(kept.read_bytes()[:40])
    drawn.clear()
    third = run_of("third")
    assert len(drawn) == 2
    assert np.array_equal(pixels(first, 0), pixels(third, 0))
