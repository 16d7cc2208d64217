"""What the product's trainer teaches the demo model: ``python -m bench.demo_lora [--creature stranger]``.

Trains the demo preset over the demo photos (or over photos of the stranger) in a process of its own, as a
user would, and prints seconds, distance to the creature and drift as ``demo.evaluate`` defines them.
``--set section.field=value`` changes the recipe; several ``--set`` of one run count together.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from demo.evaluate import MODEL, STEPS, evaluate_lora, load_pipeline, picture
from demo.make_photos import PHOTOS, TRIGGER, make_photos, pet, stranger
from trainer.contract.config import TrainConfig
from trainer.contract.fields import dump_recipe, merge, parse
from trainer.contract.presets import PRESETS_DIR, load_preset
from trainer.contract.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Result:
    """``seconds`` of wall time, of which ``steps_seconds`` are steps (samples and start not counted)."""

    seconds: float
    steps_seconds: float
    figures: dict[str, float]
    images: dict[str, list[Image.Image]]


def demo_recipe(photos: Path, trigger: str = TRIGGER, base: str = "demo") -> TrainConfig:
    """The demo preset over a folder of photos."""
    values = load_preset(PRESETS_DIR / "demo.toml").values
    own: dict[str, Any] = {
        "model": {"base": base},
        "dataset": {"path": str(photos), "trigger": trigger},
        "samples": {"prompts": [f"a photo of {trigger}"], "every": 0},
    }
    return parse(merge(values, own))


def train(config: TrainConfig, folder: Path, settings: tuple[str, ...] = ()) -> tuple[Path, float, float]:
    """(the LoRA's file, wall seconds, seconds of the steps) of a training in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.toml"
    recipe.write_text(dump_recipe(config), encoding="utf-8")
    run = RunFolder(folder / "runs" / "run")
    argv = [sys.executable, "-m", "trainer", "train", str(recipe), "--run-dir", str(run.path)]
    began = time.monotonic()
    subprocess.run([*argv, *(f"--set={s}" for s in settings)], cwd=ROOT, check=True, capture_output=True)
    seconds = time.monotonic() - began
    events = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    steps = [event["time"] for event in events if event["kind"] == "step"]
    return run.result(run.config()), seconds, steps[-1] - steps[0]


def measure(
    creature: str,
    settings: tuple[str, ...],
    count: int,
    folder: Path,
    base: Path = MODEL,
    steps: int = STEPS,
) -> Result:
    """Train and judge; ``count`` pictures a row, drawn in so many ``steps``."""
    painter = {"pet": pet, "stranger": stranger}[creature]
    photos = PHOTOS
    if creature != "pet":
        photos = folder / "photos"
        make_photos(painter, photos)
    name = "demo" if base == MODEL else str(base)
    lora, seconds, steps_seconds = train(demo_recipe(photos, TRIGGER, name), folder, settings)
    figures, images = evaluate_lora(load_pipeline(base), lora, painter, TRIGGER, count, steps)
    return Result(seconds, steps_seconds, figures, images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--creature", choices=("pet", "stranger"), default="pet")
    parser.add_argument("--set", action="append", default=[], metavar="section.field=value")
    parser.add_argument("--count", type=int, default=24, help="pictures per row")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--picture", type=Path, help="write base and LoRA side by side here")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.creature, tuple(args.set), args.count, Path(folder), args.model)
    print(f"{'seconds, of which steps':28} {result.seconds:.0f} {result.steps_seconds:.0f}")
    for name, value in result.figures.items():
        print(f"{name:28} {value:.4f}")
    if args.picture:
        picture(result.images).quantize(256).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
