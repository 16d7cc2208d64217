"""Why a training ended badly, for the page: one sentence, the line that shows it, what to do.

The trainer classifies its own failures (``cause`` in status.json). A trainer that was killed leaves no
word; then the tail of trainer.log and the exit code are all there is, and this module reads them.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from trainer.contract.redact import redact
from trainer.contract.runs import CAUSES, Status

TAIL_BYTES = 64 * 1024

REMEDIES: dict[str, str] = {
    "gpu_oom": "Lower the resolution, the batch size or the rank, or choose a smaller base.",
    "host_oom": "Close other programs, or lower the batch size or the resolution, then resume.",
    "nan": "Halve the learning rate and resume from the last checkpoint.",
    "disk_full": "Free some space (old runs and checkpoints are the largest), then resume.",
    "gated_model": "Accept the model's licence on its Hub page and start the studio with HF_TOKEN set.",
    "model_missing": "Check the name of the base model and the network, or choose another base.",
    "bad_image": "Leave the picture that is named out, or add it again, then start anew.",
    "killed": "Resume goes on from the last checkpoint; if it happens again, lower the batch size.",
    "config": "Correct the setting that is named and start anew.",
    "unknown": "The log below has the details; resume goes on from the last checkpoint.",
}

# In order: what is looked for first is the more telling.
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "gpu_oom",
        re.compile(
            r"CUDA out of memory|CUDA error: out of memory|torch\.(cuda\.)?OutOfMemoryError|ALLOC_FAILED"
        ),
    ),
    ("disk_full", re.compile(r"No space left on device|Errno 28\b|Disk quota exceeded")),
    (
        "host_oom",
        re.compile(r"^MemoryError|DefaultCPUAllocator|Cannot allocate memory|Unable to allocate|Errno 12\b"),
    ),
    ("gated_model", re.compile(r"GatedRepoError|\b40[13] Client Error|access to .* is restricted")),
    (
        "model_missing",
        re.compile(r"RepositoryNotFoundError|EntryNotFoundError|\b404 Client Error|LocalEntryNotFound"),
    ),
)


@dataclass(frozen=True)
class Diagnosis:
    """``cause`` is one of :data:`trainer.contract.runs.CAUSES`; ``evidence`` is a line of the log."""

    cause: str
    sentence: str
    evidence: str
    remedy: str


def explain(status: Status) -> Diagnosis | None:
    """The diagnosis of a run that failed, was lost or had to stop; None for every other one."""
    if not status.wants_help:
        return None
    cause = status.cause if status.cause in CAUSES else "unknown"
    return Diagnosis(cause, status.message or CAUSES[cause], redact(status.evidence), REMEDIES[cause])


def autopsy(status: Status, log: Path, log_start: int, exit_code: int | None) -> Status:
    """The status of a trainer that is gone without a terminal event: ``lost``, with what is known.

    Args:
        status: what it last wrote.
        log: trainer.log; ``log_start`` is the byte where this attempt's output begins.
        exit_code: of the process, negative for a signal; None where nobody saw it end.
    """
    lines = _tail(log, log_start)
    at = f"at step {status.step}" if status.step else "before the first step"
    for cause, sign in _SIGNS:
        for line in reversed(lines):
            if sign.search(line):
                return _lost(status, cause, f"{CAUSES[cause]} The trainer died {at}.", line)
    last = lines[-1] if lines else ""
    if exit_code is not None and exit_code < 0:
        name = _signal_name(-exit_code)
        memory = ", as happens when the computer runs out of memory" if name == "SIGKILL" else ""
        return _lost(status, "killed", f"The trainer was killed from outside ({name}) {at}{memory}.", last)
    if exit_code == 2:
        return _lost(
            status, "config", f"The trainer refused the recipe: {last or 'it gave no reason.'}", last
        )
    if exit_code is not None and exit_code > 0:
        sentence = f"The trainer ended with exit code {exit_code} {at}."
        return _lost(status, "unknown", sentence, last)
    return _lost(
        status, "killed", f"The trainer died {at} without a word (it was killed, or power was lost).", last
    )


def _lost(status: Status, cause: str, sentence: str, evidence: str) -> Status:
    return status.model_copy(
        update={
            "state": "lost",
            "cause": cause,
            "message": redact(sentence),
            "evidence": redact(evidence)[:500],
        }
    )


def _tail(log: Path, start: int) -> list[str]:
    """The non-empty lines at the end of this attempt's log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start if start <= size else 0, size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
