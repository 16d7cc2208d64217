"""The stop ladder: a job is asked, told, and at last killed, each after its own time.

1. asked: a control file; the trainer finishes its step, saves everything and ends.
2. term: SIGTERM to the whole process group, which a trainer that still listens takes for the same.
3. kill: SIGKILL to the group. What was done since the last checkpoint is lost.

On which rung a job stands is kept in the queue (:class:`studio.queue.Stop`), so the ladder goes on in the
next studio. The supervisor's thread climbs it; no page has to be open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainer.contract.runs import RunFolder, Status
from trainer.contract.settings.machine import MachineSettings

from .queue import Job, Rung, Stop

NEXT: dict[Rung, Rung] = {"asked": "term", "term": "kill", "kill": "kill"}
GRACE_S = MachineSettings().grace_s
STEPS_TO_WAIT = 3
"""A step that takes a minute is not a trainer that does not listen."""


@dataclass(frozen=True)
class Patience:
    """Seconds on each rung. While the trainer says that it is saving, it is not killed for ``saving_s``."""

    asked_s: float = 60.0
    term_s: float = 35.0
    """More than machine.grace_s usually is (:data:`GRACE_S`), within which a trainer ends by itself; where
    that is longer, so is this."""
    kill_s: float = 5.0
    saving_s: float = 300.0
    storing_s: float = 660.0
    """Once the trainer has saved and said its last word, it uploads for ten minutes at most."""

    def seconds(self, stop: Stop, status: Status | None, grace_s: float = GRACE_S) -> float:
        """How long a job may take on its rung; ``status`` and ``grace_s`` are a training's."""
        rung = stop.rung
        if rung == "asked" and status and status.terminal and status.heartbeat >= stop.since:
            return self.storing_s
        if rung == "asked":
            pace = status.steps_per_s if status else None
            return max(self.asked_s, STEPS_TO_WAIT / pace if pace else 0.0)
        if rung == "term":
            saving = status and status.state == "saving"
            return self.saving_s if saving else self.term_s + max(0.0, grace_s - GRACE_S)
        return self.kill_s

    def left(self, stop: Stop, status: Status | None, now: float, grace_s: float = GRACE_S) -> float:
        """Seconds until the next rung, 0 when it is due."""
        return max(0.0, stop.since + self.seconds(stop, status, grace_s) - now)


def saved_step(run: RunFolder) -> int | None:
    """The newest checkpoint's step, None where there is none."""
    whole = (folder.parent.name for folder in run.checkpoints.glob("step-*/MANIFEST.json"))
    return max((int(name.removeprefix("step-")) for name in whole), default=None)


def at_stake(run: RunFolder, step: int) -> str:
    """What killing it now would cost, in words."""
    saved = saved_step(run)
    lost = max(0, step - (saved or 0))
    if not lost:
        return "nothing would be lost"
    steps = f"{lost:,} step{'' if lost == 1 else 's'}"
    return (
        f"{steps} since the checkpoint of step {saved:,} would be lost" if saved else f"{steps} would be lost"
    )


def told(
    job: Job, run: RunFolder | None, status: Status | None, left_s: float, foreign: bool = False
) -> dict[str, Any]:
    """What a page shows of a stop that is under way: ``rung``, ``left_s`` (until the next rung), ``text``
    and ``hurry``, what the button that skips ahead says ("" on the last rung). ``foreign``: no studio has
    started the trainer."""
    assert job.stop is not None
    seconds = f"{math.ceil(left_s)} s"
    cost = at_stake(run, status.step) if run and status else "what it was doing would be lost"
    asked = "It finishes its step, saves and ends."
    if foreign:
        asked += " It was started outside of the studio: if it does not listen, end it there."
        return {"rung": "asked", "left_s": round(left_s, 1), "text": asked, "hurry": ""}
    text, hurry = {
        "asked": (f"{asked} If it has not in {seconds}, it is told with a signal.", "Stop now"),
        "term": (
            f"It was told to end with a signal. If it has not in {seconds}, it is killed: {cost}.",
            "Kill now",
        ),
        "kill": ("It is being killed.", ""),
    }[job.stop.rung]
    return {"rung": job.stop.rung, "left_s": round(left_s, 1), "text": text, "hurry": hurry}
