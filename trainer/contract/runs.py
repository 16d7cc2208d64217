"""A run is a folder. This module knows every file name in it, and who may write which.

The trainer writes status.json, events.jsonl, samples/, checkpoints/ and the LoRA; the studio writes
launch.json, starred.json and control/; recipe.toml and dataset.json are frozen when the run is made. Whether
a trainer is alive is told by the OS lock it holds, never by a pid.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from . import agent
from .config import TrainConfig
from .errors import RunError
from .events import read_events
from .fields import dump_recipe, load_recipe
from .files import make_folder, read_json, replace_json, write_json, write_text
from .ladder import amended, read_ladder

State = Literal[
    "queued",
    "starting",
    "downloading",
    "preparing",
    "training",
    "sampling",
    "saving",
    "stopping",
    "finished",
    "stopped",
    "failed",
    "lost",
]
TERMINAL: tuple[State, ...] = ("finished", "stopped", "failed", "lost")

CAUSES: dict[str, str] = {
    "gpu_oom": "The GPU ran out of memory.",
    "host_oom": "The computer ran out of memory.",
    "nan": "The loss became infinite or not a number.",
    "disk_full": "The disk is full.",
    "gated_model": "The base model needs an access token.",
    "model_missing": "The base model was not found.",
    "bad_image": "A picture cannot be read.",
    "killed": "The training was killed from outside.",
    "config": "The recipe does not work.",
    "unknown": "The training failed.",
}

Verb = Literal["stop", "save", "sample"]

INHERITED_LOCK = "TRAINER_LOCK_DESCRIPTOR"
"""The environment's word on the open file through which a process was handed its run's lock."""
LOCK_HOLDER = "TRAINER_LOCK_HOLDER"
"""And on the parent, by its pid, that holds the lock for those whom it has started."""


class InheritedLock:
    """A run's lock, held since before this process took the place of the one that acquired it; or, without a
    ``descriptor``, by the parent."""

    def __init__(self, descriptor: int | None) -> None:
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
        self._descriptor = descriptor

    def __enter__(self) -> InheritedLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


RunLock = BaseFileLock | InheritedLock

EVENTS_TAIL = 64 * 1024
"""Bytes at the end of events.jsonl in which its last events are found."""
PROBE_S = 0.01
"""How long a lock is held at most by somebody who only asks whether a trainer holds it."""


class Status(BaseModel):
    """status.json, replaced at most once a second by the trainer.

    ``vram`` is GiB of GPU memory at its peak (None without a GPU), ``ram`` GiB of the process;
    ``heartbeat`` is Unix seconds. ``loss`` is an exponential mean. Costs are None for a machine without a
    price, in ``currency``, over all attempts (:mod:`trainer.contract.cost`). ``mirror`` says how far the run
    is stored elsewhere, "" where it is not.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: State = "queued"
    stage: str = ""
    step: int = 0
    total: int = 0
    eta_s: float | None = None
    steps_per_s: float | None = None
    loss: float | None = None
    lr: float | None = None
    vram: float | None = None
    vram_total: float | None = None
    ram: float | None = None
    cost: float | None = None
    cost_to_go: float | None = None
    cost_per_1000: float | None = None
    budget: float | None = None
    currency: str = ""
    heartbeat: float = 0.0
    attempt: int = 0
    message: str = ""
    cause: str = ""
    evidence: str = ""
    mirror: str = ""

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def wants_help(self) -> bool:
        """Whether it ended by itself before its end, so that a person has to see to it."""
        return self.state in ("failed", "lost") or (self.state == "stopped" and bool(self.cause))


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def ladder(self) -> Path:
        """What was changed since the recipe was frozen, see :mod:`.ladder`."""
        return self.path / "ladder.json"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset.json"

    @property
    def launch(self) -> Path:
        return self.path / "launch.json"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def agent(self) -> Path:
        """See :mod:`.agent`."""
        return self.path / "agent"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "trainer.log"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def drawings(self) -> Path:
        """Pictures that were asked for after the training, see :mod:`.drawings`."""
        return self.path / "drawings"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stars(self) -> Path:
        return self.path / "starred.json"

    @property
    def unsent(self) -> Path:
        """Messages that nobody took yet (:mod:`trainer.webhooks`)."""
        return self.path / "unsent.json"

    @property
    def folders(self) -> Path:
        """{picture's id: its folder, seen from dataset.path}, where pictures of several came in one."""
        return self.path / "folders.json"

    @property
    def pictures(self) -> Path:
        """The photos, where they came with the run from its storage; else they lie where the recipe says."""
        return self.path / "pictures"

    def sample(self, step: int, prompt: int) -> Path:
        return self.samples / f"s{step:06d}_p{prompt:02d}.webp"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def result(self, config: TrainConfig) -> Path:
        """The finished LoRA."""
        return self.path / f"{config.output.name}.safetensors"

    def create(self, config: TrainConfig) -> None:
        """Make the folder and freeze the recipe as the run's own. Raises RunError where one is there."""
        if self.recipe.exists():
            raise RunError(
                f"{self.path} already holds a run; resume it, or choose another folder", cause="config"
            )
        try:
            for folder in (self.control, self.samples, self.checkpoints):
                make_folder(folder)
            write_text(self.recipe, dump_recipe(self.own(config)))
        except OSError as error:
            raise self._not_writable(error) from None

    def own(self, config: TrainConfig) -> TrainConfig:
        """A recipe as this run freezes it."""
        return config.model_copy(update={"storage": config.storage.for_run(self.id)})

    def _not_writable(self, error: OSError) -> RunError:
        if error.errno == errno.ENOSPC:
            return RunError(f"the disk of {self.path} is full; free some space", cause="disk_full")
        return RunError(
            f"{self.path} cannot hold a run ({error.strerror}); choose a folder that can be written",
            cause="config",
        )

    def config(self) -> TrainConfig:
        """The frozen recipe."""
        if not self.recipe.exists():
            raise RunError(f"{self.path} holds no run (no recipe.toml); name a run folder", cause="config")
        return load_recipe(self.recipe)

    def amended(self) -> TrainConfig:
        """The recipe as it is trained: the frozen one with what lack of memory has changed since."""
        return amended(self.config(), read_ladder(self.ladder))

    # Liveness -----------------------------------------------------------------------------------

    def hold(self) -> RunLock:
        """Take the run's lock for this process. Raises RunError when a trainer already has it."""
        if handed := os.environ.pop(INHERITED_LOCK, ""):
            return InheritedLock(int(handed))
        if os.environ.get(LOCK_HOLDER) == str(os.getppid()):
            return InheritedLock(None)
        lock = FileLock(self.lock)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A reader's probe holds the lock for microseconds; a trainer holds it for good.
            lock.acquire(timeout=2, poll_interval=0.05)
            if agent.lives(self.agent):
                lock.release()
                raise Timeout(str(self.lock))
            os.utime(self.lock)  # a studio does not probe a run that has ended before its files change
        except Timeout:
            raise RunError(f"the run {self.id} is already being trained; stop it first", "config") from None
        except OSError as error:
            raise self._not_writable(error) from None
        return lock

    def alive(self) -> bool:
        """Whether a trainer holds the lock, or is about to be started again by whoever did so before."""
        if not self.lock.exists():
            return False
        probe = FileLock(self.lock)
        try:
            # Another reader's probe is over in a moment: two studios may look into one workspace.
            probe.acquire(timeout=PROBE_S, poll_interval=PROBE_S / 2)
        except Timeout:
            return True
        probe.release()
        return agent.lives(self.agent)

    # Status -------------------------------------------------------------------------------------

    def write_status(self, status: Status) -> None:
        replace_json(self.status, status.model_dump())

    def raw_status(self) -> Status:
        """status.json as the trainer left it; a queued status while there is none."""
        try:
            return Status.model_validate(read_json(self.status))
        except (FileNotFoundError, ValueError, ValidationError):
            return Status()

    def next_attempt(self) -> int:
        """The number of a process that begins now. After a power cut status.json may be gone, and the events
        know which one was the last."""
        tail = max(0, self.events.stat().st_size - EVENTS_TAIL) if self.events.exists() else 0
        told = [int(event.get("attempt", 0)) for event in read_events(self.events, tail)[0]]
        return max(self.raw_status().attempt, *told, 0) + 1

    def read_status(self) -> Status:
        """The status a page shows: what the trainer wrote, or ``lost`` when it died without a word.

        A run that was launched and whose trainer has not taken the lock yet is ``starting``.
        """
        status = self.raw_status()
        if status.terminal or self.alive():
            return status
        launched = self._launched_at()
        if launched is None and status.state == "queued":
            return status
        if launched is not None and launched > status.heartbeat and abs(time.time() - launched) < 30:
            return status.model_copy(update={"state": "starting"})
        again = self.raw_status()  # it may have ended between our two looks
        if again.terminal:
            return again
        return again.model_copy(
            update={
                "state": "lost",
                "message": f"The trainer died at step {again.step} without a word (killed, or power lost).",
                "cause": "killed",
            }
        )

    def _launched_at(self) -> float | None:
        try:
            return float(read_json(self.launch)["time"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    # Stars --------------------------------------------------------------------------------------

    def starred(self) -> frozenset[int]:
        """The steps whose checkpoints a person wants to keep. Raises RunError where the file is damaged."""
        try:
            return frozenset(int(step) for step in read_json(self.stars))
        except FileNotFoundError:
            return frozenset()
        except (ValueError, TypeError):
            raise RunError(f"{self.stars} is damaged; remove it, and star again what is to stay") from None

    def star(self, step: int, on: bool = True) -> None:
        """Keep the checkpoint of ``step`` whatever the recipe says, or no longer. Raises RunError where there
        is none to be kept."""
        if on and not self.checkpoint(step).is_dir():
            raise RunError(f"{self.id} has no checkpoint of step {step}; star one that is there", "config")
        steps = self.starred() | {step} if on else self.starred() - {step}
        try:
            write_json(self.stars, sorted(steps))
        except OSError as error:
            raise self._not_writable(error) from None

    # Control ------------------------------------------------------------------------------------

    def send(self, verb: Verb) -> None:
        """Ask the trainer for something: one small file, consumed once."""
        write_json(self.control / f"{time.time_ns():020d}-{secrets.token_hex(3)}.json", {"verb": verb})

    def take_controls(self, before_ns: int | None = None) -> list[Verb]:
        """The verbs sent since the last call, oldest first, each removed before it is returned.

        ``before_ns``: only those sent before this Unix time in nanoseconds.
        """
        verbs: list[Verb] = []
        if not self.control.is_dir():
            return verbs
        for file in sorted(self.control.glob("*.json")):
            sent_ns = file.name.partition("-")[0]
            if not sent_ns.isdigit() or (before_ns is not None and int(sent_ns) >= before_ns):
                continue
            try:
                verb = read_json(file).get("verb")
            except (ValueError, AttributeError):
                verb = None
            file.unlink(missing_ok=True)
            if verb in ("stop", "save", "sample"):
                verbs.append(verb)
        return verbs


def slug(text: str, fallback: str = "run") -> str:
    """A name that is safe as a folder, URL part and id: ``[a-z0-9][a-z0-9-]{0,47}``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or fallback


def new_run_id(name: str) -> str:
    """``20260131-142501-my-cat-3f``: sorts by time, unique without looking at the disk."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(name)}-{secrets.token_hex(1)}"


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs in a folder, newest first."""
    if not runs_dir.is_dir():
        return []
    return sorted(
        (RunFolder(path) for path in runs_dir.iterdir() if (path / "recipe.toml").exists()),
        key=lambda run: run.id,
        reverse=True,
    )


def launch_record(pid: int, started: float, argv: list[str], attempt: int) -> dict[str, Any]:
    """launch.json: who started the trainer and how. ``started`` is the process's creation time."""
    return {"pid": pid, "started": started, "argv": argv, "attempt": attempt, "time": time.time()}
