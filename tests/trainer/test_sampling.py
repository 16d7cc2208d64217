"""What the base alone draws is drawn once for all runs over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trainer.sampling
from tests.tiny_families import tiny
from trainer.contract.events import read_events
from trainer.contract.prompt import FLOW_SAMPLERS, SAMPLERS
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

    def counted(*arguments: Any, **more: Any) -> Image.Image:
        drawn.append(arguments[4].text)
        return draw(*arguments, **more)

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


def test_every_sampler_draws_and_prompts_have_sizes_and_seeds_of_their_own(
    tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    lines = [f"zwx --ss {name} --s 4" for name in SAMPLERS]
    lines += ["zwx --s 4 --w 64 --h 96", "zwx --s 4 --d 9", "zwx --s 4 --d 9", "zwx --s 4 --d 9 --n red"]
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(recipe(tiny_base, photos, train={"steps": 1}, samples={"prompts": lines}))
    assert train_here(run)
    assert not [e["text"] for e in read_events(run.events)[0] if e["kind"] == "warning"]
    pictures = []
    for number in range(len(lines)):
        with Image.open(run.sample(0, number)) as image:
            pictures.append(np.asarray(image).astype(int))
    size = len(SAMPLERS)
    assert pictures[size].shape[:2] == (96, 64)
    assert np.array_equal(pictures[size + 1], pictures[size + 2])
    assert not np.array_equal(pictures[size + 2], pictures[size + 3])
    assert len({picture.tobytes() for picture in pictures[1:size]}) == size - 1, "all samplers are others"


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_samplers_of_flow_models(sampler: str, tmp_path: Path, photos: Path) -> None:
    base = tmp_path / "base"
    tiny("sd3").build(base)
    more = {"model": {"family": "sd3", "base": str(base)}, "train": {"steps": 1}}
    samples = {"prompts": ["zwx"], "sampler": sampler, "steps": 3}
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(recipe(base, photos, **more, samples=samples))
    assert train_here(run)
    assert not [e["text"] for e in read_events(run.events)[0] if e["kind"] == "warning"]
    assert np.std(pixels(run, 0)) > 1
