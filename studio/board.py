"""The queue as the pages show it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Any

from trainer.contract.redact import redact

from .dispatch import last_line
from .jobs import Supervisor
from .publication import ASKS_TOKEN
from .queue import Job
from .stopping import told

ENDS_SHOWN = 8


def board(jobs: Supervisor) -> tuple[str, dict[str, Any]]:
    """(tag, {"paused", "notice", "jobs": [row, …]}): what runs, what waits in its order, what ended lately.

    The tag changes when the rest does. What changes all the time is :func:`going`'s.
    """
    book = jobs.queue.look()
    shown = [*book.running(), *book.waiting(), *book.ends()[:ENDS_SHOWN]]
    rows = [_row(job) for job in shown]
    for row, job in zip(rows, shown, strict=True):
        if jobs.lacks_token(job):
            row["message"] = ASKS_TOKEN
    answer = {"paused": book.paused, "notice": book.notice, "jobs": rows}
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:12], answer


def _row(job: Job) -> dict[str, Any]:
    row = job.model_dump(include={"id", "kind", "project", "run", "detail", "state", "cause"})
    row["message"] = redact(job.message)
    row["when"] = _clock(job.ended) if job.over else ""
    row["gpu"] = ", ".join(job.devices)
    return row


def _clock(seconds: float) -> str:
    at = time.localtime(seconds)
    return f"{at.tm_mday} {time.strftime('%b %H:%M', at)}"


def going(jobs: Supervisor) -> dict[str, dict[str, Any]]:
    """{job id: {"step", "total", "said", "stop"}} of what runs; ``said`` is the last line of a tool,
    which may begin with how far it is, ``stop`` is None or how far a stop has got."""
    answer: dict[str, dict[str, Any]] = {}
    for job in jobs.queue.look().running():
        run = jobs.run_of(job) if job.kind == "train" else None
        status = run.raw_status() if run else None
        stop = None
        if job.stop:
            foreign = run is not None and jobs.is_foreign(run)
            stop = told(job, run, status, jobs.stop_left(job, job.stop), foreign)
        said = "" if job.kind in ("train", "sample", "publish") else redact(last_line(jobs.log_of(job)))
        done, total = (status.step, status.total) if status else jobs.drawn(job)
        if counted := re.match(r"\[(\d+)/(\d+)\] ", said):
            done, total = int(counted[1]), int(counted[2])
        answer[job.id] = {"step": done, "total": total, "said": said, "stop": stop}
    return answer
