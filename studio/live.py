"""GET /studio/live: what is new in a run since the page last asked.

A page sends back the offsets it was given and gets only what was appended since, so a poll costs the
server and the line as much as happened in that second, in any number of tabs.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Query

from trainer.contract.errors import UserError
from trainer.contract.events import current_events, read_events
from trainer.contract.redact import redact
from trainer.contract.runs import RunFolder

from .board import board, going
from .context import Studio
from .diagnosis import explain
from .machine import Gpu, disk_free_gib

LOG_BYTES = 64 * 1024
MAX_POINTS = 2000


def live_routes(studio: Studio) -> APIRouter:
    router = APIRouter(prefix="/studio")
    gpu = Gpu()

    @router.get("/live")
    def live(
        project: str = Query("", max_length=100),
        run: str = Query("", max_length=100),
        offset: int = Query(0, ge=0),
        log: int = Query(0, ge=0),
        queue: str = Query("", max_length=20),
    ) -> dict[str, Any]:
        """News of ``run``; without one, of the project's active or newest run.

        ``run`` is the id that the answer is about, ``latest`` the one the project would show by itself:
        a page that follows the newest changes over when they differ. ``reset`` says that offsets did not
        fit (another run, or a shorter file), so that the events and the log are from the start. ``queue``
        is None while its tag is still the one that the page has.
        """
        latest = _latest(studio, project)
        active = latest if latest in studio.jobs.trained_now() else studio.jobs.active()
        shown = _run(studio, run) or latest
        tag, jobs = board(studio.jobs)
        answer: dict[str, Any] = {
            "run": shown.id if shown else None,
            "latest": latest.id if latest else None,
            "active": _summary(studio, active),
            "gpu": gpu.state(),
            "disk_free_gib": disk_free_gib(studio.workspace.root),
            "queue_tag": tag,
            "queue": None if tag == queue else jobs,
            "going": going(studio.jobs),
        }
        if shown is None:
            empty: dict[str, Any] = {"events": [], "log": "", "status": None, "result": None, "attempt": 0}
            return answer | empty | {"offset": 0, "log_offset": 0, "reset": bool(offset or log)}
        sizes = [path.stat().st_size if path.exists() else 0 for path in (shown.events, shown.log)]
        reset = (
            bool(run and shown.id != run) or offset > sizes[0] or log > sizes[1] or (not run and offset > 0)
        )
        if reset:
            offset = log = 0
        alive = studio.jobs.is_running(shown)
        status = studio.jobs.status(shown)
        diagnosis = explain(status)
        events, new_offset = read_events(shown.events, offset)
        if offset == 0:
            events = current_events(events)
        text, log_offset = read_log(shown, log, ended=not alive)
        return answer | {
            "attempt": status.attempt,
            "status": {
                **status.model_dump(),
                "evidence": redact(status.evidence),
                "mirror": redact(status.mirror),
                "alive": alive,
                "remedy": diagnosis.remedy if diagnosis else "",
            },
            "offset": new_offset,
            "events": thinned(events),
            "log": text,
            "log_offset": log_offset,
            "result": result_name(shown),
            "reset": reset,
        }

    return router


def _run(studio: Studio, run_id: str) -> RunFolder | None:
    try:
        return studio.workspace.run(run_id) if run_id else None
    except UserError:
        return None  # deleted meanwhile: the page is moved on to the latest


def _latest(studio: Studio, project_id: str) -> RunFolder | None:
    """The project's active run, else its newest."""
    runs = [*studio.jobs.trained_now(), *studio.workspace.list_runs()]
    return next((run for run in runs if studio.workspace.project_of(run) == project_id), None)


def _summary(studio: Studio, run: RunFolder | None) -> dict[str, Any] | None:
    """The run bar's line of the run that is being trained, of whatever project."""
    if run is None:
        return None
    status = studio.jobs.status(run)
    job = studio.jobs.queue.look().of_run(run.id, "train")
    stop = going(studio.jobs)[job.id]["stop"] if job and job.state == "running" else None
    wanted = {"state", "stage", "step", "total", "eta_s", "loss"}
    return {
        "run": run.id,
        "project": studio.workspace.project_of(run),
        "stop": stop,
        **status.model_dump(include=wanted),
    }


def result_name(run: RunFolder) -> str | None:
    """File name of the finished LoRA, None while there is none."""
    try:
        result = run.result(run.config())
    except UserError:
        return None
    return result.name if result.is_file() else None


def thinned(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MAX_POINTS step events, evenly chosen, the last one among them; every other event stays."""
    steps = [event for event in events if event["kind"] == "step"]
    if len(steps) <= MAX_POINTS:
        return events
    stride = len(steps) / MAX_POINTS
    kept = {id(steps[int((number + 1) * stride) - 1]) for number in range(MAX_POINTS)}
    return [event for event in events if event["kind"] != "step" or id(event) in kept]


def read_log(run: RunFolder, offset: int, ended: bool = False) -> tuple[str, int]:
    """(new whole lines, redacted; the offset to go on from). At most the last 64 kB.

    Only whole lines are given out, as a secret cut in two would pass the redaction; of a run that has
    ended also the last one, which may lack its newline.
    """
    try:
        with run.log.open("rb") as file:
            size = file.seek(0, 2)
            start = max(offset, size - LOG_BYTES)
            file.seek(start)
            data = file.read(LOG_BYTES)
    except FileNotFoundError:
        return "", 0
    if start > offset:  # begun in the middle of a line
        first = re.search(rb"[\r\n]", data)
        cut = first.end() if first else len(data)
        start, data = start + cut, data[cut:]
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if ended or (end == 0 and len(data) == LOG_BYTES):
        end = len(data)
    return redact(data[:end].decode("utf-8", "replace")), start + end
