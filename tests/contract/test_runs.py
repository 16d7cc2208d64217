"""The run folder and its event log, as processes that die at any moment leave them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.events import EventLog, current_events, read_events
from trainer.contract.files import staged, write_json, write_text
from trainer.contract.runs import RunFolder, Status, launch_record, list_runs, new_run_id, slug

# Events ---------------------------------------------------------------------------------------------


def test_events_are_read_by_offset(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == ([], 0)
    log = EventLog(path, attempt=1)
    log.append("started", step=0, total=2)
    first, offset = read_events(path)
    assert [event["kind"] for event in first] == ["started"]
    log.append("step", step=1, loss=0.5)
    log.close()
    second, end = read_events(path, offset)
    assert [(event["seq"], event["step"]) for event in second] == [(2, 1)]
    assert end == path.stat().st_size
    assert read_events(path, end) == ([], end)


def test_a_line_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = b'{"seq":1,"kind":"step","step":1}\n'
    path.write_bytes(whole + b'{"seq":2,"kind":"st')
    events, offset = read_events(path)
    assert [event["seq"] for event in events] == [1] and offset == len(whole)
    with path.open("ab") as file:
        file.write(b'ep","step":2}\n')
    assert [event["seq"] for event in read_events(path, offset)[0]] == [2]


def test_a_torn_line_does_not_swallow_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=1)
    log.append("step", step=1, loss=1.0)
    log.close()
    with path.open("ab") as file:  # the writer was killed here
        file.write('{"seq":2,"kind":"step","step":2,"text":"ü'.encode()[:-1])
    again = EventLog(path, attempt=2)
    again.append("started", step=1, total=9)
    again.close()
    events, offset = read_events(path)
    assert [(event["seq"], event["kind"], event["attempt"]) for event in events] == [
        (1, "step", 1),
        (2, "started", 2),
    ]
    assert offset == path.stat().st_size


@pytest.mark.parametrize(
    "line", [b"[1, 2]", b"null", b'{"kind": "step"}', b'{"seq": 1, "kind": "odd"}', b"\x00" * 9]
)
def test_lines_that_are_no_events_are_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b'\n{"seq": 7, "kind": "step", "step": 3}\n')
    assert [event["seq"] for event in read_events(path)[0]] == [7]


def test_an_event_is_strict_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", attempt=1)
    with pytest.raises(ValueError):
        log.append("step", step=1, loss=float("nan"))
    log.append("step", step=1, loss=None)
    log.close()
    assert [event["loss"] for event in read_events(tmp_path / "events.jsonl")[0]] == [None]


def test_a_resume_voids_what_came_after_its_step() -> None:
    def event(kind: str, step: int, attempt: int) -> dict[str, Any]:
        return {"kind": kind, "step": step, "attempt": attempt}

    events = [
        event("started", 0, 1),
        event("step", 1, 1),
        event("step", 2, 1),
        event("sample", 2, 1),
        event("step", 3, 1),
        event("started", 2, 2),
        event("step", 3, 2),
    ]
    kept = [(item["kind"], item["step"], item["attempt"]) for item in current_events(events)]
    assert kept == [
        ("started", 0, 1),
        ("step", 1, 1),
        ("step", 2, 1),
        ("sample", 2, 1),
        ("started", 2, 2),
        ("step", 3, 2),
    ]


# The folder -----------------------------------------------------------------------------------------


def test_a_run_is_frozen_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / new_run_id("My Cat"))
    config = TrainConfig()
    run.create(config)
    assert run.config() == config
    with pytest.raises(RunError, match="already holds a run"):
        run.create(config)
    with pytest.raises(RunError, match="holds no run"):
        RunFolder(tmp_path / "other").config()


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name in ("20260101-000000-a-00", "20260301-000000-c-00", "20260201-000000-b-00"):
        RunFolder(tmp_path / name).create(TrainConfig())
    (tmp_path / "not-a-run").mkdir()
    assert [run.id[16] for run in list_runs(tmp_path)] == ["c", "b", "a"]
    assert list_runs(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("My Cat!", "my-cat"), ("../../etc", "etc"), ("日本", "run"), ("a" * 80, "a" * 48), ("", "run")],
)
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected


HOLDER = """
import sys, time
from pathlib import Path
from trainer.contract.runs import RunFolder, Status
run = RunFolder(Path(sys.argv[1]))
lock = run.hold()
run.write_status(Status(state="training", step=7, total=9, heartbeat=time.time()))
print("held", flush=True)
time.sleep(60)
"""


def start_holder(run: RunFolder) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.skipif(os.name != "posix", reason="kills a process with SIGKILL")
def test_a_killed_trainer_is_lost_and_its_lock_is_free(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(TrainConfig())
    process = start_holder(run)
    try:
        assert run.alive()
        assert run.read_status().state == "training"
        with pytest.raises(RunError, match="already being trained"):
            run.hold()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert not run.alive()
        status = run.read_status()
        assert (status.state, status.cause, status.step) == ("lost", "killed", 7)
        assert "step 7" in status.message
        assert run.raw_status().state == "training", "lost is derived, never written"
        run.hold().release()
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_the_states_around_a_launch(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(TrainConfig())
    assert run.read_status().state == "queued"
    write_json(run.launch, launch_record(1, time.time(), ["python"], 1))
    assert run.read_status().state == "starting", "launched, lock not taken yet"
    record = launch_record(1, time.time(), ["python"], 1)
    write_json(run.launch, {**record, "time": time.time() - 60})
    assert run.read_status().state == "lost", "launched a minute ago and never took the lock"
    run.write_status(Status(state="finished", step=9, heartbeat=time.time()))
    assert run.read_status().state == "finished"


def test_a_damaged_status_reads_as_queued(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(TrainConfig())
    for content in ("", "{", "[]", '{"state": "odd"}'):
        run.status.write_text(content, encoding="utf-8")
        assert run.raw_status() == Status()


def test_controls_are_consumed_once_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.take_controls() == []
    run.create(TrainConfig())
    for verb in ("save", "sample", "stop"):
        run.send(verb)  # type: ignore[arg-type]
    write_text(run.control / "99999999999999999998-x.json", "{ torn")
    write_json(run.control / "99999999999999999999-x.json", {"verb": "format-the-disk"})
    assert run.take_controls() == ["save", "sample", "stop"]
    assert run.take_controls() == []
    assert list(run.control.iterdir()) == []


# Files ----------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="disk full"), staged(path) as temporary:
        temporary.write_text('{"a"')
        raise OSError("disk full")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
