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
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"  # bit for bit
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SOURCE_DATE_EPOCH"] = "1700000000"  # the file says when it was written

from bench.attempt import Attempt, import_like
from trainer.contract.events import current_events, read_events
from trainer.contract.fields import dump_recipe, merge, parse
from trainer.contract.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]
EVERY = 3
"""Steps between checkpoints: what a kill may cost."""

Way = Literal["SIGKILL", "SIGTERM", "SIGINT", "control file"]
WAYS: tuple[Way, ...] = ("SIGKILL", "SIGTERM", "SIGINT", "control file")
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


def losses(run: RunFolder) -> list[tuple[int, float]]:
    events = current_events(read_events(run.events)[0])
    return [(event["step"], event["loss"]) for event in events if event["kind"] == "step"]


@dataclass(frozen=True)
class Now:
    """What an attempt is doing, and the step that it has reached in training."""

    stage: str
    step: int


def now(run: RunFolder, attempt: int, steps: int) -> Now:
    """Status and events together: the one is up to date when its state changes, the others always."""
    status = run.raw_status()
    if status.attempt != attempt or status.state == "starting":
        return Now("starting", 0)
    events = [event for event in read_events(run.events)[0] if event["attempt"] == attempt]
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
class Tally:
    """What was counted over all runs."""

    runs: int = 0
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # (stage, way)
    half: int = 0  # checkpoints that were half written at a death
    damaged: int = 0  # damaged by us afterwards
    chosen: int = 0  # damaged ones that the next attempt went on from
    wrong: int = 0  # attempts that went on from another than the newest whole one
    compared: int = 0  # checkpoints compared with the run in peace
    differences: list[str] = field(default_factory=list)
    lost: Counter[int] = field(default_factory=Counter)  # steps lost by a SIGKILL -> how often
    warned: Counter[int] = field(default_factory=Counter)  # steps lost by a warned stop
    codes: Counter[int] = field(default_factory=Counter)  # exit codes of warned stops
    replayed: int = 0

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    @property
    def good(self) -> bool:
        too_many = any(steps > EVERY for steps in self.lost) or any(self.warned.keys() - {0})
        return not (self.differences or self.chosen or self.wrong or too_many)


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

            self.base, self.photos = str(tiny_sdxl(folder / "base")), draw_project(folder / "photos")

    def recipe(self, number: int, **sections: dict[str, Any]) -> Path:
        tables: dict[str, Any] = {
            "model": {"family": "sdxl", "base": self.base},
            "dataset": {"path": str(self.photos), "trigger": "zwx"},
            "adapter": {"rank": 2, "alpha": 2, "targets": "transformer+conv"},
            "train": {"steps": self.steps, "batch_size": 2, "learning_rate": 1e-2, "seed": number},
            "samples": {"prompts": ["zwx", "a cat"], "every": 4, "steps": 2},
            "checkpoints": {"every": EVERY, "keep": 2},
        }
        for more in (KINDS[self.kind(number)], sections):
            tables = merge(tables, more)
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
        while run.raw_status().state != "finished":
            how = "resume" if run.recipe.exists() and rng.random() < 0.3 else "train"
            before = run.raw_status().attempt
            there = max((step for step, path in checkpoints(run).items() if whole(path)), default=0)
            attempt = self.start(recipe, run, how)
            attempts += 1
            death: tuple[str, Way] | None = None
            if attempts <= kills:
                death = self.kill(attempt, run, before + 1, peace, rng, next(targets))
            code = attempt.wait()
            self.after(number, run, before, there, damaged, death, code, peace)
            if death is None and code not in (0, 3):
                raise SystemExit(f"run {number} failed ({code}); see {self.folder / 'trainer.log'}")
            if death and death[1] == "SIGKILL" and rng.random() < self.options.damage:
                damaged |= damage(run, rng)
                self.tally.damaged += 1
        self.compare(number, run, peace)
        self.tally.runs += 1

    def kill(
        self, attempt: Attempt, run: RunFolder, mine: int, peace: Peace, rng: random.Random, target: float
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
            at = now(run, mine, self.steps)
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
        doing = now(run, mine, self.steps).stage
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
        before: int,
        there: int,
        damaged: set[int],
        death: tuple[str, Way] | None,
        code: int,
        peace: Peace,
    ) -> None:
        """Look at what an attempt has left; ``there`` is the newest whole checkpoint that it found."""
        tally = self.tally
        events = [event for event in read_events(run.events)[0] if event["attempt"] > before]
        began = [event["step"] for event in events if event["kind"] == "started"]
        for step in began:
            tally.chosen += step in damaged
            tally.wrong += step != there
        if began:
            damaged.clear()  # passed over; it is trained anew and saved again
        found = checkpoints(run)
        good = {step for step, path in found.items() if whole(path)}
        tally.half += len(found.keys() - good - damaged) + len(list(run.checkpoints.glob(".step-*.tmp")))
        for step in good:
            tally.compared += 1
            if content(found[step]) != peace.contents[step]:
                tally.differences.append(f"run {number}: checkpoint {step} after {death}")
        if death is None:
            return
        doing, way = death
        if code == 0:
            return  # it had finished before the signal came
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
        if losses(run) != peace.losses:
            self.tally.differences.append(f"run {number}: the losses")
        for file in run.samples.glob("s*.webp"):
            if sha256(file) != sha256(peace.run.samples / file.name):
                self.tally.differences.append(f"run {number}: {file.name}")


def damage(run: RunFolder, rng: random.Random) -> set[int]:
    """Spoil the newest whole checkpoint as a lost write may; its step."""
    good = [step for step, path in checkpoints(run).items() if whole(path)]
    if not good:
        return set()
    file = rng.choice(sorted(run.checkpoint(max(good)).iterdir()))
    data = bytearray(file.read_bytes())
    how = rng.choice(("cut", "flip", "zeros", "gone"))
    if how == "gone":
        file.unlink()
        return {max(good)}
    at = rng.randrange(len(data))
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data[:at] if how == "cut" else bytes(len(data)) if how == "zeros" else data)
    return {max(good)}


# Report -----------------------------------------------------------------------------------------------


def report(bench: Bench, seconds: float) -> str:
    tally, options = bench.tally, bench.options
    stages = sorted(
        {stage for stage, _ in tally.kills}, key=lambda one: -sum(tally.kills[one, w] for w in WAYS)
    )
    lines = [f"| killed while | {' | '.join(WAYS)} | all |", f"|---|{'--:|' * (len(WAYS) + 1)}"]
    for one in stages:
        row = [tally.kills[one, way] for way in WAYS]
        lines.append(f"| {one} | {' | '.join(map(str, row))} | {sum(row)} |")
    sums = [sum(tally.kills[one, way] for one in stages) for way in WAYS]
    lines.append(f"| **all** | {' | '.join(map(str, sums))} | **{sum(sums)}** |")
    kinds = ", ".join(list(KINDS)[: min(tally.runs, len(KINDS))])
    figures = {
        "runs": str(tally.runs),
        "kills": str(tally.total),
        "final LoRAs, samples or losses that differ from the run in peace": str(len(tally.differences)),
        "checkpoints compared with those of the run in peace": str(tally.compared),
        "checkpoints half written at a death": str(tally.half),
        "checkpoints damaged by us after a death": str(tally.damaged),
        "damaged checkpoints that a resume went on from": str(tally.chosen),
        "resumes from another than the newest whole checkpoint": str(tally.wrong),
        f"steps lost by a SIGKILL (a checkpoint every {EVERY}): steps × times": spread(tally.lost),
        "steps lost by a warned stop (exit code 3): steps × times": spread(tally.warned),
        "exit codes of warned stops": spread(tally.codes),
    }
    own = " --exec" if options.exec else ""
    return "\n".join(
        [
            f"`python -m bench.kill_test --kills {options.kills} --seed {options.seed} "
            f"--runs {options.runs} --model {options.model}{own}`: {seconds / 60:.0f} minutes, one thread, "
            f"{bench.steps} steps a run.",
            f"Recipes: {kinds}.",
            "",
            *lines,
            "",
            "| | |",
            "|---|--:|",
            *(f"| {what} | {value} |" for what, value in figures.items()),
            *(f"- {one}" for one in tally.differences),
        ]
    )


def spread(counts: Counter[int]) -> str:
    return ", ".join(f"{value} × {times}" for value, times in sorted(counts.items())) or "none"


def run_all(options: argparse.Namespace, folder: Path) -> Iterator[Bench]:
    """The bench after each run."""
    bench = Bench(options, folder)
    if not options.exec:
        import trainer.train  # noqa: F401

        import_like(lambda: void(bench.in_peace(999)), folder)
    each = -(-options.kills // options.runs)
    number = 0
    while bench.tally.runs < options.runs or bench.tally.total < options.kills:
        bench.killed(number, each)
        number += 1
        yield bench


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
    parser.add_argument("--model", choices=("tiny", "demo"), default="tiny")
    parser.add_argument("--exec", action="store_true", help="a new process for each attempt, not a fork")
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
        for bench in run_all(options, folder):
            seconds = time.monotonic() - began
            tally = bench.tally
            print(
                f"{seconds:6.0f} s  {tally.runs} runs  {tally.total} kills  "
                f"{len(tally.differences)} differences",
                flush=True,
            )
            if options.write:
                write(options.write, report(bench, seconds))
    print(report(bench, seconds))
    return 0 if bench.tally.good else 1


MARK = "<!-- figures -->"


def write(file: Path, text: str) -> None:
    """Replace what follows the mark."""
    head = file.read_text(encoding="utf-8").partition(MARK)[0]
    file.write_text(f"{head}{MARK}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
