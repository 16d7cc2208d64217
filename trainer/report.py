"""What a run tells the world: status.json, events.jsonl, and lines (or a bar) on the terminal."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil
import torch
from tqdm import tqdm

from .checkpoints import list_checkpoints, step_of
from .contract.cost import Cost
from .contract.events import EventLog
from .contract.files import is_disk_full
from .contract.ladder import Amendment
from .contract.runs import RunFolder, State, Status
from .memory import describe, memory_use

RESERVE, RESERVE_BYTES = ".reserve", 64 * 1024
"""A file that is there to be removed: on a full disk it makes room for a run's last words."""


class Reporter:
    """The one writer of a run's status and events. Status is replaced at most once a second, except
    when the state changes; the terminal gets at most one line a second, or a bar where a person looks."""

    def __init__(self, run: RunFolder, attempt: int, total: int, device: torch.device) -> None:
        self._run, self._device = run, device
        self._events = EventLog(run.events, attempt)
        # Loading takes a while: until the checkpoint is read, a resumed run shows where it goes on from.
        checkpoints = list_checkpoints(run.checkpoints)
        step = step_of(checkpoints[-1]) if checkpoints else 0
        loss = run.raw_status().loss if checkpoints else None
        self._status = Status(state="starting", attempt=attempt, step=step, total=total, loss=loss)
        self._written = self._printed = self._staged = 0.0
        self._times: deque[float] = deque(maxlen=50)
        self._warned: set[str] = set()
        self._ended = False
        self._turn = threading.RLock()
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Called with every event once it is written, by the thread that told it; they must be quick."""
        self._bar: tqdm[Any] | None = None
        self._interactive = sys.stderr.isatty()
        self._reserve = run.path / RESERVE
        with suppress(OSError):
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))  # zeros may take no room
        self.mirror = ""
        """How far the run is stored elsewhere, for the next status; :mod:`trainer.storage` says it."""
        self._tell("attempt", began=psutil.Process().create_time(), device=describe(device))
        self._write(force=True)

    @property
    def status(self) -> Status:
        return self._status

    def _update(self, **changes: Any) -> None:
        self._status = self._status.model_copy(update=changes)

    def _write(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._written < 1:
            return
        use = memory_use(self._device)
        self._update(
            heartbeat=time.time(), vram=use.vram, vram_total=use.vram_total, ram=use.ram, mirror=self.mirror
        )
        with self._turn:
            if self._ended:
                return
            try:
                self._run.write_status(self._status)
            except OSError as error:
                if not is_disk_full(error):
                    raise
        self._written = now

    def _tell(self, kind: str, **data: Any) -> None:
        with self._turn:
            if self._ended:
                return
            event = self._events.append(kind, **data)
        for listener in self.listeners:
            listener(event)

    def costs(self, cost: Cost, budget: float | None, currency: str) -> None:
        """What the run has cost, for the next status."""
        self._update(
            cost=round(cost.so_far, 6),
            cost_to_go=cost.to_go,
            cost_per_1000=cost.per_1000,
            budget=budget,
            currency=currency,
        )

    def say(self, text: str) -> None:
        """A line on the terminal, clear of the bar."""
        tqdm.write(text, file=sys.stderr) if self._bar else print(text, file=sys.stderr, flush=True)

    def state(self, state: State, message: str = "") -> None:
        """The run enters a state; shown at once."""
        self._update(state=state, stage="", message=message)
        self._write(force=True)
        if message:
            self.say(message)

    def enter(self, stage: str) -> None:
        """A stage begins, of which there is no progress to tell yet."""
        self._update(stage=stage)

    def stage(self, name: str, done: int, total: int, text: str = "") -> None:
        """Progress of a long stage."""
        now = time.monotonic()
        if done < total and now - self._staged < 0.5:
            return
        self._staged = now
        self._update(stage=name, message=f"{text or name} {done}/{total}" if total else text or name)
        self._tell("stage", stage=name, done=done, total=total, text=text)
        self._write()

    def started(self, step: int, total: int, loss: float | None) -> None:
        """Training begins, at ``step`` when resumed."""
        self._tell("started", step=step, total=total)
        self._update(state="training", stage="", step=step, total=total, loss=loss, message="")
        self._write(force=True)
        if self._interactive:
            # Some pseudo-terminals (docker, CI) say that they are 0 columns wide; tqdm would draw nothing.
            known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            self._bar = tqdm(
                total=total,
                initial=step,
                unit="step",
                dynamic_ncols=known,
                ncols=None if known else 80,
                nrows=None if known else 24,
                file=sys.stderr,
            )

    def step(
        self, step: int, loss: float, mean_loss: float, lr: float, grad_norm: float, seconds: float
    ) -> None:
        """One update was made, in ``seconds``; ``step`` updates are done now."""
        self._tell(
            "step",
            step=step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
            seconds=round(seconds, 4),
        )
        self._times.append(seconds)
        rate = len(self._times) / sum(self._times) if sum(self._times) > 0 else None
        left = self._status.total - step
        self._update(
            state="training",
            step=step,
            loss=mean_loss,
            lr=lr,
            steps_per_s=rate,
            eta_s=left / rate if rate else None,
            message="",
        )
        self._write()
        now = time.monotonic()
        if self._bar:
            self._bar.update(1)
            self._bar.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{lr:.2e}", refresh=False)
        elif now - self._printed >= 1 or left == 0:
            self._printed = now
            speed = f"{rate:.2f} steps/s" if rate else ""
            self.say(f"step {step}/{self._status.total}  loss {mean_loss:.4f}  lr {lr:.2e}  {speed}")

    def validation(self, step: int, loss: float, by_time: Sequence[float], pictures: int) -> None:
        """The loss on pictures that are held out, and at each noise level from little to much."""
        self._tell("validation", step=step, loss=loss, by_time=by_time, pictures=pictures)

    def sample(self, step: int, prompt: int, text: str, file: str) -> None:
        self._tell("sample", step=step, prompt=prompt, text=text, file=file)

    def checkpoint(self, step: int, folder: str) -> None:
        self._tell("checkpoint", step=step, folder=folder)
        self.say(f"saved checkpoint {folder}")

    def measured(self, step: int, **figures: Any) -> None:
        """A drawing was compared with the photos and with the base's (:mod:`trainer.learned`)."""
        self._tell("measured", step=step, **figures)

    def weights(self, step: int, norm: float, up: float | None, blocks: dict[str, float]) -> None:
        """How far the LoRA has moved the weights: ‖ΔW‖, ‖B‖, and ‖ΔW‖ / ‖W‖ by block."""
        self._tell("weights", step=step, norm=norm, up=up, blocks=blocks)

    def saved(self, step: int, file: str) -> None:
        self._tell("saved", step=step, file=file)
        self.say(f"saved {file}")

    def adapted(self, change: Amendment) -> None:
        """Lack of GPU memory has changed how the run goes on."""
        self._tell("adapted", rung=change.rung, changes=change.changes, text=change.sentence)
        self.say(change.sentence)

    def warning(self, text: str) -> None:
        """Said once, however often it happens, by any thread; after the last word on the terminal alone."""
        if text in self._warned:
            return
        self._warned.add(text)
        self._tell("warning", text=text)
        self.say(f"warning: {text}")

    def pause(self, message: str) -> None:
        """The last word of a process whose run another one goes on with at once."""
        with self._turn:
            self._close_bar()
            self.state("starting", message)
            self._ended = True
            self._events.close()

    def _close_bar(self) -> None:
        if self._bar:
            self._bar.close()
            self._bar = None

    def end(self, state: State, message: str, cause: str = "", evidence: str = "") -> None:
        """The run's last word; once it is said, nothing more is."""
        with self._turn:
            if self._ended:
                return
            self._close_bar()
            self._update(state=state, stage="", message=message, cause=cause, evidence=evidence, eta_s=None)
            step = self._status.step
            with suppress(OSError):
                self._reserve.unlink(missing_ok=True)
            with suppress(OSError):  # where nothing can be said readers see a run that is lost
                self._tell("end", state=state, step=step, message=message, cause=cause, evidence=evidence)
            with suppress(OSError):
                self._write(force=True)
            self._ended = True
            self._events.close()


class Silent(Reporter):
    """For the processes that do not write: it takes everything and tells nobody."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        return lambda *arguments, **options: None
