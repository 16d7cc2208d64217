"""How long from Start to the first step: ``python -m bench.first_step [RECIPE.toml] [--runs N]``.

Trains the recipe (default: the prepared project of ``python app.py --demo``) for one step in fresh
processes over one workspace: the first run encodes everything ("cold"), the later ones find it encoded
("warm"). Times are read from the run's own events, so they contain everything: the interpreter's start
and every import. Processor seconds hardly depend on what else the machine does; wall seconds do.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from studio.demo import prepare_demo
from studio.projects import Workspace
from trainer.contract.events import read_events
from trainer.contract.fields import dump_recipe, load_recipe, merge, parse, to_tables
from trainer.contract.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def one_step(recipe: Path, run: RunFolder) -> dict[str, float]:
    """Seconds from the start of the process to each milestone of a one-step run."""
    began = time.time()
    argv = [sys.executable, "-m", "trainer", "train", str(recipe), "--run-dir", str(run.path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as trainer:
        used, process = 0.0, psutil.Process(trainer.pid)
        while trainer.poll() is None and not used:
            time.sleep(0.02)
            if any(event["kind"] == "step" for event in read_events(run.events)[0]):
                used = process.cpu_times().user + process.cpu_times().system
    if trainer.returncode:
        raise SystemExit(f"the training failed with exit code {trainer.returncode}; run the recipe by hand")
    events = read_events(run.events)[0]

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
        "first step, processor seconds": used,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=5, help="warm runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        config = load_recipe(options.recipe) if options.recipe else prepare_demo(workspace).config()
        one = parse(merge(to_tables(config), {"train": {"steps": 1}, "samples": {"every": 0}}))
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(dump_recipe(one), encoding="utf-8")
        runs = [RunFolder(workspace.runs / f"run{number}") for number in range(options.runs + 1)]
        cold, *warm = [one_step(recipe, run) for run in runs]
    print("| seconds from the start of the process | cold | warm, least | median |\n|---|---|---|---|")
    for name in cold:
        times = [row[name] for row in warm]
        print(f"| {name} | {cold[name]:.1f} | {min(times):.1f} | {statistics.median(times):.1f} |")


if __name__ == "__main__":
    main()
