"""What the kill test has counted, and its figures as a page. See :mod:`bench.kill_test`."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

EVERY = 3
"""Steps between checkpoints: what a kill may cost."""

Way = Literal["SIGKILL", "SIGTERM", "SIGINT", "control file"]
WAYS: tuple[Way, ...] = ("SIGKILL", "SIGTERM", "SIGINT", "control file")


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
    machines: int = 0  # how often the run's folder and its caches went, and its storage was left
    lost_with_machine: Counter[int] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        both = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return Tally(*(mine + yours for mine, yours in both))

    @property
    def total(self) -> int:
        return sum(self.kills.values())

    @property
    def good(self) -> bool:
        too_many = any(steps > EVERY for steps in self.lost) or any(self.warned.keys() - {0})
        return not (self.differences or self.chosen or self.wrong or too_many)


def report(tally: Tally, options: argparse.Namespace, kinds: list[str], seconds: float) -> str:
    stages = sorted(
        {stage for stage, _ in tally.kills}, key=lambda one: -sum(tally.kills[one, w] for w in WAYS)
    )
    lines = [f"| killed while | {' | '.join(WAYS)} | all |", f"|---|{'--:|' * (len(WAYS) + 1)}"]
    for one in stages:
        row = [tally.kills[one, way] for way in WAYS]
        lines.append(f"| {one} | {' | '.join(map(str, row))} | {sum(row)} |")
    sums = [sum(tally.kills[one, way] for one in stages) for way in WAYS]
    lines.append(f"| **all** | {' | '.join(map(str, sums))} | **{sum(sums)}** |")
    figures = {
        "runs": str(tally.runs),
        "kills": str(tally.total),
        "final LoRAs, samples or losses that differ from the run in peace": str(len(tally.differences)),
        "checkpoints compared with those of the run in peace": str(tally.compared),
        "checkpoints half written at a death": str(tally.half),
        "checkpoints damaged by us after a death": str(tally.damaged),
        "machines lost after a death: run folder and caches gone, its storage left": str(tally.machines),
        "steps lost with a machine beyond those of its kill: steps × times": spread(tally.lost_with_machine),
        "damaged checkpoints that a resume went on from": str(tally.chosen),
        "resumes from another than the newest whole checkpoint": str(tally.wrong),
        f"steps lost by a SIGKILL (a checkpoint every {EVERY}): steps × times": spread(tally.lost),
        "steps lost by a warned stop (exit code 3): steps × times": spread(tally.warned),
        "exit codes of warned stops": spread(tally.codes),
    }
    own = (" --storage" if options.storage else "") + (" --exec" if options.exec else "")
    return "\n".join(
        [
            f"`python -m bench.kill_test --kills {options.kills} --seed {options.seed} "
            f"--runs {options.runs} --jobs {options.jobs} --model {options.model}{own}`: "
            f"{seconds / 60:.0f} minutes, one thread each, {options.steps} steps a run.",
            f"Recipes: {'; '.join(kinds[: tally.runs])}.",
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


MARK = "<!-- figures -->"


def write(file: Path, text: str) -> None:
    """Replace what follows the mark."""
    head = file.read_text(encoding="utf-8").partition(MARK)[0]
    file.write_text(f"{head}{MARK}\n\n{text}\n", encoding="utf-8")
