"""events.jsonl: what happened in a run, one JSON object a line, written by the trainer alone.

Every line has ``seq`` (1, 2, …), ``time`` (Unix seconds), ``attempt`` (1 = first start, +1 per resume)
and ``kind``:

============  ==========================================================================
attempt       began (when the process did), device      the first of each attempt
started       step (0, or the step resumed from: earlier lines beyond it are void), total
stage         stage, done, total, text    a long stage's progress, at most 2 a second
step          step, loss, lr, grad_norm (null where fp16 overflowed), seconds
validation    step, loss (on held-out photos), by_time (at each noise level), pictures (how many)
sample        step, prompt (index), text, file
checkpoint    step, folder
measured      step, prompt, text, trigger (whether the prompt has it), likeness, change, copied, photo
weights       step, norm, up, blocks      how far the LoRA has moved the base's weights, by block
saved         step, file                  the LoRA itself
adapted       rung, changes ({setting: value}), text      GPU memory ran out; see ladder.json
warning       text
end           state (finished, stopped, failed), step, message, cause, evidence
============  ==========================================================================
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from .files import is_disk_full, sync_folder

KINDS = (
    "attempt",
    "started",
    "stage",
    "step",
    "validation",
    "sample",
    "checkpoint",
    "measured",
    "weights",
    "saved",
    "adapted",
    "warning",
    "end",
)


MOST_WAITING = 10_000
"""Events that a full disk holds up; the oldest are lost beyond that."""


class EventLog:
    """Appends events. One writer per run: the trainer that holds the run's lock; any of its threads."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._attempt = attempt
        self._seq = 0
        self._turn = threading.Lock()
        torn = False
        if path.exists():
            events, offset = read_events(path)
            self._seq = max((event["seq"] for event in events), default=0)
            torn = offset < path.stat().st_size
        new = not path.exists()
        self._file = path.open("ab", buffering=0)
        if new:
            sync_folder(path.parent)
        # A writer that was killed left half a line; without an end it would swallow our first event.
        self._torn = torn
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)

    def append(self, kind: str, **data: Any) -> dict[str, Any]:
        """Write an event down and return it. On a full disk it waits for a later one: no training ends over
        its diary. Raises ValueError after :meth:`close`."""
        assert kind in KINDS, kind
        with self._turn:
            self._seq += 1
            event = {"seq": self._seq, "time": time.time(), "attempt": self._attempt, "kind": kind, **data}
            if kind == "end":
                self._waiting.clear()  # the last word counts more than what led to it
            self._waiting.append(json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            try:
                while self._waiting:
                    self._write(self._waiting[0])
                    self._waiting.popleft()
                if kind != "step":
                    os.fsync(self._file.fileno())
            except OSError as error:
                if not is_disk_full(error):
                    raise
        return event

    def _write(self, line: bytes) -> None:
        rest = b"\n" + line if self._torn else line
        self._torn = True  # until the whole line is there
        while rest:
            rest = rest[self._file.write(rest) :]
        self._torn = False

    def close(self) -> None:
        self._file.close()


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole events from byte ``offset`` on, and the offset to go on from.

    A last line without its newline is left for the next call; a torn line in the middle (a writer that
    was killed) is skipped. A missing file reads as empty.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("kind") in KINDS and isinstance(event.get("seq"), int):
            events.append(event)
    return events, offset + end


def current_events(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events that still count: a resume from step N voids what came after N in earlier attempts."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] == "started":
            kept = [old for old in kept if old.get("step", 0) <= event["step"]]
        kept.append(event)
    return kept
