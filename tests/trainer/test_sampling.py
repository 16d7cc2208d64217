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

from .helpers import Script, recipe, train_here


def pixels(run: RunFolder, step: int, number: int = 0) -> Any:
    with Image.open(run.sample(step, number)) as image:
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


def baselines(run: RunFolder, count: int) -> list[Any]:
    """What is drawn before the first step, without a warning; the run is left before it draws all again."""
    assert not train_here(run, Script(run, "stop", 1))
    assert not [e["text"] for e in read_events(run.events)[0] if e["kind"] == "warning"]
    return [pixels(run, 0, number) for number in range(count)]


def test_every_sampler_draws_and_prompts_have_sizes_and_seeds_of_their_own(
    tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    lines = [f"zwx --ss {name} --s 4" for name in SAMPLERS]
    lines += ["zwx --s 4 --w 64 --h 96", "zwx --s 4 --d 9", "zwx --s 4 --d 9", "zwx --s 4 --d 9 --n red"]
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(recipe(tiny_base, photos, train={"steps": 1}, samples={"prompts": lines}))
    pictures = baselines(run, len(lines))
    size = len(SAMPLERS)
    assert pictures[size].shape[:2] == (96, 64)
    assert np.array_equal(pictures[size + 1], pictures[size + 2])
    assert not np.array_equal(pictures[size + 2], pictures[size + 3])
    assert len({picture.tobytes() for picture in pictures[1:size]}) == size - 1, "all samplers are others"


def test_samplers_of_flow_models(tmp_path: Path, photos: Path) -> None:
    """Of each prompt's own choice, and of the recipe's."""
    base, usual = tiny("sd3").build(tmp_path / "base"), FLOW_SAMPLERS[-1]
    lines = ["zwx --d 9", *(f"zwx --d 9 --ss {name}" for name in FLOW_SAMPLERS)]
    samples = {"prompts": lines, "sampler": usual, "steps": 3}
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(recipe(base, photos, model={"family": "sd3"}, train={"steps": 1}, samples=samples))
    pictures = baselines(run, len(lines))
    assert all(np.std(picture) > 1 for picture in pictures)
    assert np.array_equal(pictures[0], pictures[-1])
