"""How long from Start to the first step: ``python -m bench.first_step [RECIPE.toml] [--runs N]``.

Trains the recipe (default: the demo's photos and preset) for one step in fresh processes over one
workspace: the first run encodes everything ("cold"), the later ones find it encoded ("warm"). Times are
read from the run's own events, so they contain everything: the interpreter's start and every import.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainer.contract.events import read_events
from trainer.contract.fields import dump_recipe, load_recipe, merge, parse, to_tables
from trainer.contract.presets import PRESETS_DIR, load_preset
from trainer.contract.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def demo_recipe(folder: Path) -> Path:
    """The demo preset over the demo photos."""
    tables = merge(load_preset(PRESETS_DIR / "demo.toml").values, {"dataset": {"trigger": "zwx creature"}})
    config = parse(merge(tables, {"dataset": {"path": str(ROOT / "demo" / "photos")}}))
    recipe = folder / "recipe.toml"
    recipe.write_text(dump_recipe(config), encoding="utf-8")
    return recipe


def one_step(recipe: Path, run_dir: Path) -> dict[str, float]:
    """Seconds from the start of the process to each milestone of a one-step run."""
    config = load_recipe(recipe)
    short = parse(merge(to_tables(config), {"train": {"steps": 1}, "samples": {"every": 0}}))
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    copy = run_dir.parent.parent / f"{run_dir.name}.toml"
    copy.write_text(dump_recipe(short), encoding="utf-8")
    began = time.time()
    argv = [sys.executable, "-m", "trainer", "train", str(copy), "--run-dir", str(run_dir)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    events = read_events(RunFolder(run_dir).events)[0]

    def when(kind: str, **match: object) -> float:
        times = [
            e["time"] for e in events if e["kind"] == kind and all(e.get(k) == v for k, v in match.items())
        ]
        return (times[-1] if times else began) - began

    drawn = when("sample", step=0)
    started = when("started")
    return {
        "encoded": when("stage", stage="captions"),
        "loaded": started,
        "baseline drawn": drawn,
        "first step": when("step", step=1),
        "first step, drawing not counted": when("step", step=1) - max(0.0, drawn - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=3, help="warm runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = options.recipe or demo_recipe(Path(folder))
        rows = [one_step(recipe, Path(folder) / "runs" / f"run{n}") for n in range(options.runs + 1)]
    print("| seconds from the start of the process | cold | warm (best of the others) |\n|---|---|---|")
    for name, cold in rows[0].items():
        print(f"| {name} | {cold:.1f} | {min(row[name] for row in rows[1:]):.1f} |")


if __name__ == "__main__":
    main()
