"""Does a kill cost anything but time? ``python -m bench.kill_test --kills N --seed S [--runs R]``.

Trains recipes whose state is rich (text encoders, dropout, averages, augmentations, odd optimizers), each
once in peace and once more while it is killed again and again: by SIGKILL mostly, by SIGTERM, SIGINT or
a control file, at moments drawn from ``seed`` over the whole life of the run. After each death its
checkpoints are compared with those of the run in peace; at times the newest is damaged as well, as a power
cut may. In the end the LoRA, the samples and the loss of every step have to be the same, byte for byte.

Starts of the interpreter and of torch take seconds: they are done once, and each attempt is a fork of that
process which calls the trainer's command line (``trainer.__main__.main``) in a process group of its own.
With ``--exec`` each is a process of its own, from ``python -m trainer`` on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # bit for bit
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SOURCE_DATE_EPOCH"] = "1700000000"  # the file says when it was written

from bench.attempt import Attempt, import_like
from bench.kill_report import EVERY, WAYS, Tally, Way, report, write
from trainer.contract.events import current_events, read_events
from trainer.contract.fields import dump_recipe, merge, parse
from trainer.contract.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]

WAY_WEIGHTS = (76, 8, 8, 8)
AIMS = ("caching", "saving", "sampling", "exporting")

CAPTIONS = {
    "dropout": 0.2,
    "suffix": ", {red|blue}, one, two, three",
    "protect": False,
    "wildcards": True,
    "shuffle": True,
    "tag_dropout": 0.2,
}
VIEWS = {"flip": True, "rotate": 9, "random_crop": 0.2, "colour": 0.2, "variants": 3}
KINDS: dict[str, dict[str, Any]] = {
    "AdamW, cosine": {},
    "dropouts, caption and picture variants": {
        "adapter": {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1},
        "dataset": VIEWS,
        "captions": CAPTIONS,
    },
    "both text encoders": {
        "train": {"text_encoder_lr": 1e-3, "text_encoder_2_lr": 2e-3},
        "captions": CAPTIONS,
        "adapter": {"dropout": 0.1},
    },
    "EMA, accumulation": {"train": {"ema_decay": 0.9, "gradient_accumulation": 2}, "dataset": VIEWS},
    "Schedule-Free": {"train": {"optimizer": "schedulefree_adamw", "scheduler": "constant", "warmup": 0}},
    "Prodigy": {"train": {"optimizer": "prodigy", "learning_rate": 1.0}, "dataset": VIEWS},
    "LoKr, 8-bit Lion": {"adapter": {"type": "lokr"}, "train": {"optimizer": "lion8bit"}},
    "validation, the best kept": {
        "validation": {"every": EVERY, "share": 0.4},
        "checkpoints": {"keep": 1, "keep_best": 1, "keep_every": 6},
    },
    "output preservation": {"prior": {"method": "output", "class_name": "cat", "share": 0.5}},
}


# What a run folder says -------------------------------------------------------------------------------


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def whole(checkpoint: Path) -> bool:
    """Told apart from the trainer's own check on purpose."""
    try:
        manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
        return bool(manifest) and all(
            sha256(checkpoint / name) == one["sha256"] for name, one in manifest.items()
        )
    except (OSError, ValueError, TypeError, KeyError):
        return False


def content(checkpoint: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in checkpoint.iterdir()}


def checkpoints(run: RunFolder) -> dict[int, Path]:
    return {int(path.name[5:]): path for path in run.checkpoints.glob("step-*")}


def newest(run: RunFolder) -> int:
    """The step of the newest whole checkpoint, in a run's folder or a copy of it; 0 where there is none."""
    return max((step for step, path in checkpoints(run).items() if whole(path)), default=0)


def losses(run: RunFolder) -> list[tuple[int, float]]:
    events = current_events(read_events(run.events)[0])
    return [(event["step"], event["loss"]) for event in events if event["kind"] == "step"]


@dataclass(frozen=True)
class Now:
    """What an attempt is doing, and the step that it has reached in training."""

    stage: str
    step: int


def now(run: RunFolder, since: float, steps: int) -> Now:
    """Of the attempt that began at Unix second ``since``. Status and events together: the one is up to date
    when its state changes, the others always."""
    status = run.raw_status()
    if status.heartbeat < since or status.state == "starting":
        return Now("starting", 0)
    events = [event for event in read_events(run.events)[0] if event["time"] >= since]
    step = max((event["step"] for event in events if event["kind"] in ("started", "step")), default=0)
    if any(run.checkpoints.glob(".step-*.tmp")):
        return Now("saving", step)
    if status.state == "saving" and step == steps and run.checkpoint(steps).exists():
        return Now("exporting", step)
    if status.state == "preparing":
        last = events[-1].get("stage") if events else ""
        return Now("caching" if last in ("encode", "captions") else "loading", step)
    return Now({"downloading": "loading"}.get(status.state, status.state), step)


# The kills --------------------------------------------------------------------------------------------


@dataclass
class Peace:
    """A run that nobody disturbed: what every other one has to end as."""

    run: RunFolder
    seconds: float
    setup: float
    lora: str
    losses: list[tuple[int, float]]
    contents: dict[int, dict[str, str]]


class Bench:
    """All runs of one invocation, in ``folder``."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder, self.tally = options, folder, Tally()
        self.steps: int = options.steps
        if options.model == "demo":
            self.base, self.photos = "demo", ROOT / "demo" / "photos"
        else:
            from tests.pictures import draw_project
            from tests.tiny import tiny_sdxl

            self.base = str(tiny_sdxl(folder / "base", layers=1, blocks=2))
            self.photos = draw_project(folder / "photos")

    def recipe(self, number: int, **sections: dict[str, Any]) -> Path:
        tables: dict[str, Any] = {
            "model": {"family": "sdxl", "base": self.base},
            "dataset": {"path": str(self.photos), "trigger": "zwx"},
            "adapter": {"rank": 2, "alpha": 2, "targets": "transformer+conv"},
            "train": {"steps": self.steps, "batch_size": 2, "learning_rate": 1e-2, "seed": number},
            "samples": {"prompts": ["zwx"], "every": 4, "steps": 2},
            "checkpoints": {"every": EVERY, "keep": 2},
        }
        for more in (KINDS[self.kind(number)], sections):
            tables = merge(tables, more)
        if not sections and (store := self.store(number)):
            tables["storage"] = {"url": f"file://{store.path}"}
        name = f"{number:03d}-{'peace' if sections else 'killed'}"
        file = self.folder / "recipes" / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(dump_recipe(parse(tables)), encoding="utf-8")
        return file

    def kind(self, number: int) -> str:
        return list(KINDS)[number % len(KINDS)]

    def start(self, recipe: Path, run: RunFolder, how: str = "train") -> Attempt:
        named = ["train", str(recipe), "--run-dir", str(run.path)]
        arguments = named if how == "train" else ["resume", str(run.path)]
        run.path.parent.mkdir(parents=True, exist_ok=True)
        return Attempt(arguments, self.folder / "trainer.log", self.options.exec)

    def in_peace(self, number: int) -> Peace:
        run = RunFolder(self.folder / f"peace-{number}" / "runs" / "run")
        attempt = self.start(self.recipe(number, checkpoints={"every": 1, "keep": 1000}), run)
        if code := attempt.wait():
            raise SystemExit(f"run {number} failed in peace ({code}); see {self.folder / 'trainer.log'}")
        seconds = time.monotonic() - attempt.began
        events = read_events(run.events)[0]
        times = {event["kind"]: event["time"] for event in reversed(events)}
        setup = seconds - (events[-1]["time"] - times["started"])
        found = {step: content(path) for step, path in checkpoints(run).items()}
        return Peace(run, seconds, setup, sha256(run.result(run.config())), losses(run), found)

    def killed(self, number: int, kills: int) -> None:
        """Train the same recipe, killed so often."""
        rng = random.Random(f"{self.options.seed}/{number}")
        peace = self.in_peace(number)
        run = RunFolder(self.folder / f"killed-{number}" / "runs" / "run")
        recipe = self.recipe(number)
        targets = iter(sorted(rng.uniform(0, self.steps) for _ in range(kills)))
        attempts = 0
        damaged: set[int] = set()
        store = self.store(number)
        while run.raw_status().state != "finished":
            how = "resume" if run.recipe.exists() and rng.random() < 0.3 else "train"
            there = {newest(run), newest(store)} if store else {newest(run)}
            since = time.time()
            attempt = self.start(recipe, run, how)
            attempts += 1
            death: tuple[str, Way] | None = None
            if attempts <= kills:
                death = self.kill(attempt, run, since, peace, rng, next(targets))
            code = attempt.wait()
            self.after(number, run, since, there, damaged, death, code, peace)
            if death is None and code not in (0, 3):
                raise SystemExit(f"run {number} failed ({code}); see {self.folder / 'trainer.log'}")
            if not death or death[1] != "SIGKILL":
                continue
            if store and rng.random() < 0.4:
                self.tally.machines += 1
                self.tally.lost_with_machine[max(0, newest(run) - newest(store))] += 1
                shutil.rmtree(run.path.parent.parent)
                damaged.clear()
            elif rng.random() < self.options.damage and (spoilt := damage(run, rng)):
                damaged.add(spoilt)
                self.tally.damaged += 1
        self.compare(number, run, peace)
        self.tally.runs += 1

    def store(self, number: int) -> RunFolder | None:
        """Where every second run is stored as well, with --storage."""
        stored = self.options.storage and number % 2
        return RunFolder(self.folder / f"stored-{number}") if stored else None

    def kill(
        self, attempt: Attempt, run: RunFolder, since: float, peace: Peace, rng: random.Random, target: float
    ) -> tuple[str, Way] | None:
        """Kill at a moment that is drawn: by the clock, at a step, or in a stage from that step on. None
        when it ended before."""
        way = rng.choices(WAYS, WAY_WEIGHTS)[0]
        moment = rng.choices(("clock", "step", "stage"), (35, 30, 35))[0]
        left = peace.setup + (peace.seconds - peace.setup) * (1 - run.raw_status().step / self.steps)
        deadline = attempt.began + rng.uniform(0, left)
        aim = rng.choices(AIMS[1:], (2, 1, 1))[0]
        late = rng.uniform(0, 0.02 if aim == "saving" else 0.06)
        if not checkpoints(run) and rng.random() < 0.6:
            moment, aim = "stage", "caching"  # it happens at the first start alone
        while True:
            if attempt.code() is not None:
                return None
            at = now(run, since, self.steps)
            if moment == "clock":
                due = time.monotonic() >= deadline
            elif moment == "step":
                due = at.step >= target and at.stage not in ("starting", "loading", "caching")
            else:
                far = at.step >= target or aim == "caching"
                due = (far and at.stage == aim) or at.step >= target + EVERY
            if due:
                break
            time.sleep(0.003)
        if moment != "clock":
            time.sleep(late)
        doing = now(run, since, self.steps).stage
        if attempt.code() is not None or run.raw_status().state == "finished":
            return None
        if way == "control file":
            if not run.control.is_dir():
                return None
            run.send("stop")
        else:
            attempt.kill(signal.Signals[way])
        return doing, way

    def after(
        self,
        number: int,
        run: RunFolder,
        since: float,
        there: set[int],
        damaged: set[int],
        death: tuple[str, Way] | None,
        code: int,
        peace: Peace,
    ) -> None:
        """Look at what an attempt has left; ``there`` are the newest whole checkpoints that it found."""
        tally = self.tally
        events = [event for event in read_events(run.events)[0] if event["time"] >= since]
        began = [event["step"] for event in events if event["kind"] == "started"]
        for step in began:
            tally.chosen += step in damaged - there
            tally.wrong += step not in there
        if began:
            damaged.clear()  # passed over; it is trained anew and saved again
        found = checkpoints(run)
        good = {step for step, path in found.items() if whole(path)}
        tally.half += len(found.keys() - good - damaged) + len(list(run.checkpoints.glob(".step-*.tmp")))
        for step in good - damaged:  # a manifest may be spoilt where hashes do not tell
            tally.compared += 1
            if content(found[step]) != peace.contents[step]:
                tally.differences.append(f"run {number}: checkpoint {step} after {death}")
        if death is None:
            return
        doing, way = death
        if code == 0:
            return  # it had finished before the signal came
        store = self.store(number)
        if store and doing in ("training", "sampling") and newest(store) < max(good, default=0):
            doing = "uploading"
        tally.kills[doing, way] += 1
        trained = max((event["step"] for event in events if event["kind"] == "step"), default=0)
        lost = max(0, trained - max(good, default=0)) if trained else 0
        if way == "SIGKILL":
            tally.lost[lost] += 1
        else:
            tally.codes[code] += 1
            if code == 3:
                tally.warned[lost] += 1

    def compare(self, number: int, run: RunFolder, peace: Peace) -> None:
        if sha256(run.result(run.config())) != peace.lora:
            self.tally.differences.append(f"run {number} ({self.kind(number)}): the LoRA")
        store = self.store(number)
        if store and sha256(store.path / "lora.safetensors") != peace.lora:
            self.tally.differences.append(f"run {number} ({self.kind(number)}): the stored LoRA")
        known = losses(run)  # events are stored now and then: those of a lost machine may be missing
        if not set(known) <= set(peace.losses) or (not store and known != peace.losses):
            self.tally.differences.append(f"run {number}: the losses")
        for file in run.samples.glob("s*.webp"):
            if sha256(file) != sha256(peace.run.samples / file.name):
                self.tally.differences.append(f"run {number}: {file.name}")


def damage(run: RunFolder, rng: random.Random) -> int:
    """Spoil the newest whole checkpoint as a lost write may; its step, 0 where there is none."""
    step = newest(run)
    if not step:
        return 0
    file = rng.choice(sorted(run.checkpoint(step).iterdir()))
    data = bytearray(file.read_bytes())
    how = rng.choice(("cut", "flip", "zeros", "gone"))
    if how == "gone":
        file.unlink()
        return step
    at = rng.randrange(len(data))
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data[:at] if how == "cut" else bytes(len(data)) if how == "zeros" else data)
    return step


# All of them ----------------------------------------------------------------------------------------


def run_all(options: argparse.Namespace, folder: Path) -> Iterator[Tally]:
    """What all jobs together have counted, after each change."""
    bench = Bench(options, folder)
    if not options.exec:
        import trainer.train  # noqa: F401

        import_like(lambda: void(bench.in_peace(999)), folder)
    jobs = {_fork_job(bench, number): folder / f"tally-{number}" for number in range(options.jobs)}
    before = None
    while jobs or before is None:
        time.sleep(1.0)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid and jobs.pop(pid) and os.waitstatus_to_exitcode(status):
            raise SystemExit("a job failed")
        parts = [pickle.loads(file.read_bytes()) for file in folder.glob("tally-*[0-9]")]
        total = sum(parts, Tally())
        if total != before:
            before = total
            yield total


def _fork_job(bench: Bench, job: int) -> int:
    """Every so many-th run, in a process of its own that writes down what it counts."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        options, tally = bench.options, bench.tally
        number, runs, kills = job, -(-options.runs // options.jobs), -(-options.kills // options.jobs)
        each = -(-options.kills // options.runs)
        while tally.runs < runs or tally.total < kills:
            bench.killed(number, each)
            number += options.jobs
            file = bench.folder / f"tally-{job}"
            file.with_suffix(".new").write_bytes(pickle.dumps(tally))
            file.with_suffix(".new").replace(file)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def void(_: object) -> None:
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=2, help="at least so many, each killed equally often")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--model", choices=("tiny", "demo"), default="tiny")
    parser.add_argument("--exec", action="store_true", help="a new process for each attempt, not a fork")
    parser.add_argument("--storage", action="store_true", help="store every second run, and lose machines")
    parser.add_argument(
        "--damage", type=float, default=0.25, help="share of deaths after which one is damaged"
    )
    parser.add_argument("--folder", type=Path, help="where to train; kept afterwards")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the figures into docs/kill-test.md")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for tally in run_all(options, folder):
            seconds = time.monotonic() - began
            differ = len(tally.differences)
            print(
                f"{seconds:6.0f} s  {tally.runs} runs  {tally.total} kills  {differ} differences", flush=True
            )
            text = report(tally, options, list(KINDS), seconds)
            if options.write:
                write(options.write, text)
    print(text)
    return 0 if tally.good else 1


if __name__ == "__main__":
    sys.exit(main())
