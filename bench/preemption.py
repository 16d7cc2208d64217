"""How long from SIGTERM to the end: ``python -m bench.preemption [--runs N] [--seed S] [--recipe FILE]``.

Trains the prepared project of ``python app.py --demo``, with validation, class pictures and frequent samples,
each time from nothing, and sends SIGTERM at a random moment between the start of the process and the end of
the training: while it imports, loads, draws class pictures, encodes, draws, measures, trains or saves. Every
run has to end with exit code 3 (or 0, where it was just done), and, resumed, to go on. Wall seconds: on a
machine that does other things as well they are more.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from studio.demo import prepare_demo
from studio.projects import Workspace
from trainer.contract.events import read_events
from trainer.contract.fields import load_recipe, merge, parse, to_tables
from trainer.contract.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]
OFTEN = {
    "train": {"steps": 24},
    "samples": {"every": 6},
    "validation": {"every": 6},
    "checkpoints": {"every": 8},
    "prior": {"method": "class_pictures", "class_name": "creature", "pictures": 4},
}
"""Over the demo: something other than a step most of the time."""


def start(run: RunFolder) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "trainer", "resume", str(run.path)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def doing(run: RunFolder) -> str:
    """What a run is at: its state, or the last long stage."""
    status = run.raw_status()
    if status.state == "queued":
        return "importing"
    return f"{status.state} ({status.stage})" if status.stage else status.state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    rows: list[tuple[float, str, int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder) / "studio")
        config = load_recipe(options.recipe) if options.recipe else prepare_demo(workspace).config()
        tables = to_tables(config) if options.recipe else merge(to_tables(config), OFTEN)
        tables["train"].pop("epochs", None)

        def fresh(name: str) -> RunFolder:
            run = RunFolder(Path(folder) / name / "runs" / "run")  # its own cache: nothing is encoded yet
            run.create(parse(tables))
            return run

        whole = fresh("whole")
        began = time.monotonic()
        if code := start(whole).wait():
            raise SystemExit(f"the training failed with exit code {code}; run it by hand")
        span = time.monotonic() - began
        print(f"undisturbed: {span:.1f} s", flush=True)
        for number in range(options.runs):
            run = fresh(str(number))
            after = chance.uniform(0.5, span)  # before that, Python itself has not begun to listen
            trainer = start(run)
            time.sleep(after)
            was = doing(run)
            trainer.send_signal(signal.SIGTERM)
            began = time.monotonic()
            code = trainer.wait()
            took = time.monotonic() - began
            events = read_events(run.events)[0]
            step = max((event["step"] for event in events if event["kind"] == "step"), default=0)
            kept = not step or run.checkpoint(step).exists()
            if code not in (0, 3) or not kept:
                raise SystemExit(f"{run.path}: exit code {code}, step {step} saved: {kept}")
            rows.append((after, was, code, took))
            print(f"| {after:.1f} s | {was} | {code} | {took:.2f} s |", flush=True)
    times = [took for *_, code, took in rows if code == 3]
    print(
        f"SIGTERM to exit 3, {len(times)} of {len(rows)} runs: median {statistics.median(times):.2f} s, ",
        end="",
    )
    print(f"worst {max(times):.2f} s")


if __name__ == "__main__":
    main()
