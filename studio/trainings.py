"""What is known of trainings: which ones live, how each goes, and starting the trainer of one.

Whether a trainer lives is told by the lock that it holds; what it does, by its run folder. launch.json, which
the studio writes, says which process it is.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from trainer.contract.files import read_json, write_json
from trainer.contract.runs import RunFolder, Status, launch_record

from .diagnosis import autopsy
from .processes import child_environment, end_group, group_lives, lives, spawn, started_at
from .projects import Workspace
from .queue import Job, Queue
from .stopping import saved_step


class Trainings:
    """The trainings of one workspace. ``trainer`` is the command, without its arguments."""

    def __init__(self, workspace: Workspace, trainer: tuple[str, ...]) -> None:
        self.workspace = workspace
        self.queue = Queue(workspace.root)
        self._trainer = trainer
        # Asking whether a lock is held takes it for a moment: two threads must not meet in there.
        self._probing = threading.Lock()
        self._active: tuple[float, list[RunFolder]] = (0.0, [])
        # Runs that have ended -> what their files looked like then (see _traces).
        self._ended: dict[str, tuple[int, ...]] = {}
        # Children of ours whose exit code is not noted yet: ids of runs that are trained, and of other jobs.
        self._unreaped: set[str] = set()

    def run_of(self, job: Job) -> RunFolder:
        """The folder of the run that a job is about; it may be gone."""
        return RunFolder(self.workspace.runs / job.run)

    def active(self) -> RunFolder | None:
        """The run that is being trained, whoever started it. The answer may be half a second old."""
        return next(iter(self.trained_now()), None)

    def trained_now(self) -> list[RunFolder]:
        """All runs that are being trained; several where there are several GPUs."""
        asked, runs = self._active
        if time.monotonic() - asked > 0.5:
            runs = [run for run in self.workspace.list_runs() if self._goes_on(run)]
            self._active = (time.monotonic(), runs)
        return runs

    def _goes_on(self, run: RunFolder) -> bool:
        """:meth:`is_running`, asked of a run that has ended only when somebody has touched it since."""
        if self._ended.get(run.id) == _traces(run):
            return False
        running = self.is_running(run)
        if not running and run.raw_status().terminal:
            self._ended[run.id] = _traces(run)
        return running

    def is_running(self, run: RunFolder) -> bool:
        """Whether a trainer holds the run's lock, or was launched and has yet to take it."""
        with self._probing:
            if run.alive():
                return True
        return self._lives(run, launch_of(run))

    def is_foreign(self, run: RunFolder) -> bool:
        """Whether no studio has started the trainer of a run that is being trained: it can be asked to end,
        and nothing more."""
        launch = launch_of(run)
        ours = run.id in self._unreaped or group_lives(launch.get("pid"), launch.get("started"))
        return not ours

    def _lives(self, run: RunFolder, launch: dict[str, Any]) -> bool:
        """Whether the process that was launched still runs, or has only just ended: how is known at once."""
        return run.id in self._unreaped or _process_lives(launch)

    def status(self, run: RunFolder) -> Status:
        """What a page shows of a run: the trainer's own word, ``queued`` while it waits for its turn,
        ``starting`` until the trainer says something, or ``lost`` with a diagnosis when it died without."""
        # Asked before anything is read: a process that is gone has written all it ever will.
        alive = self._lives(run, launch_of(run))
        launch = launch_of(run)
        with self._probing:
            status = run.read_status()
        quiet = {"stage": "", "message": "", "cause": "", "evidence": ""}
        silent = _is_silent(launch, status)
        if alive and silent:
            attempt = launch.get("attempt", 1)
            return status.model_copy(update=quiet | {"state": "starting", "attempt": attempt})
        if status.state == "lost" and alive:
            return run.raw_status()
        job = self.queue.look().of_run(run.id, "train")
        if job and job.stop and not status.terminal:
            return status.model_copy(update={"state": "stopping"})
        if job and not alive and job.state == "waiting":
            return status.model_copy(update=quiet | {"state": "queued", "message": self._turn_of(job)})
        if status.state == "lost" or (launch and silent and not self.is_running(run)):
            status = autopsy(status, run.log, int(launch.get("log_start", 0)), launch.get("exit_code"))
            if forced := launch.get("forced"):
                return status.model_copy(update=quiet | {"state": "stopped", "message": forced})
        elif status.state == "queued" and job is None and not self._began(run):
            return status.model_copy(update=self._why_not_begun(run))
        return status

    def _why_not_begun(self, run: RunFolder) -> dict[str, str]:
        """State, message and cause of a run that no trainer ever had to do with, and that does not wait."""
        ends = (job for job in self.queue.look().ends() if job.run == run.id and job.kind == "train")
        if (end := next(ends, None)) and end.state == "failed":
            return {"state": "failed", "message": end.message, "cause": end.cause}
        return {"state": "stopped", "message": "Taken out of the queue before it began."}

    def _began(self, run: RunFolder) -> bool:
        """Whether a trainer ever had to do with the run."""
        return any(path.exists() for path in (run.launch, run.status, run.events, run.lock))

    def _turn_of(self, waiting: Job) -> str:
        """How long a training has to wait, in words."""
        book = self.queue.look()
        if book.paused:
            return "It waits: the queue is paused."
        order = [job.id for job in book.waiting() if job.on_gpu]
        before = order.index(waiting.id) if waiting.id in order else 0
        words = "Next in line" if not before else f"Number {before + 1} in line"
        if self.run_of(waiting).dataset.exists():
            return f"{words}: it goes on by itself."
        return f"{words}: it begins by itself. Photos and captions are taken as they are then."

    # Processes ----------------------------------------------------------------------------------

    def _train(self, run: RunFolder, devices: Sequence[str]) -> None:
        if self.is_running(run):
            return  # somebody else was quicker
        launch = launch_of(run)
        begun = self._began(run)
        verb = ["resume", str(run.path)] if begun else ["train", str(run.recipe), "--run-dir", str(run.path)]
        run.take_controls()  # a stop that a dead trainer never read must not end the new one
        argv = [*self._trainer, *verb]
        log_start, heartbeat = run.log.stat().st_size if run.log.exists() else 0, run.raw_status().heartbeat
        child = spawn(argv, run.log, child_environment(devices))
        attempt = max(int(launch.get("attempt", 0)), run.raw_status().attempt) + 1
        record = launch_record(child.pid, started_at(child.pid), argv, attempt)
        try:
            write_json(run.launch, {**record, "log_start": log_start, "heartbeat": heartbeat})
        except OSError:
            child.kill()  # a trainer that nobody could find again
            child.wait()
            raise
        self._active = (0.0, [])
        self._reap(child, run.id, lambda code: self._note_exit(run, child.pid, code))

    def _note_exit(self, run: RunFolder, pid: int, code: int) -> None:
        """The exit code of a trainer, which the log does not tell."""
        launch = launch_of(run)
        if launch.get("pid") == pid:
            # Not by what it left behind itself: processes that torchrun started may outlive it.
            beaten = code > 0 and not group_lives(pid, launch.get("started"))
            with self._probing:
                beaten = beaten and run.alive()
            with suppress(OSError):  # the run was deleted, or the disk is full: the code is only a hint
                if beaten:  # another trainer had the lock first: it is that one's run, and none of ours
                    run.launch.unlink()
                else:
                    write_json(run.launch, {**launch, "exit_code": code})
            if beaten:
                self._was_beaten(run)
        self._active = (0.0, [])

    def _was_beaten(self, run: RunFolder) -> None:
        """Called when a trainer that we started found the run in the hands of another."""

    def _force(self, run: RunFolder, hard: bool) -> bool:
        """Tell the trainer's whole group to end, or kill it; False where it is no process of ours."""
        launch = launch_of(run)
        if self.is_foreign(run):
            return False
        step, saved = run.raw_status().step, saved_step(run)
        where = f"goes on from step {saved:,}" if saved else "begins anew, as nothing was saved"
        forced = f"Ended by force at step {step:,}, as it did not stop by itself. Resume {where}."
        with suppress(OSError):
            write_json(run.launch, {**launch, "forced": forced})
        end_group(launch.get("pid"), launch.get("started"), hard)
        return True

    def _reap(self, child: subprocess.Popen[bytes], key: str, note: Callable[[int], None]) -> None:
        """Wait for a child in a thread (no zombies), note its exit code."""
        self._unreaped.add(key)

        def wait() -> None:
            note(child.wait())
            self._unreaped.discard(key)
            self._somebody_ended()

        threading.Thread(target=wait, daemon=True, name=f"reap {key}").start()

    def _somebody_ended(self) -> None:
        """Called in a thread of its own when a child has ended and its exit code is noted."""


def launch_of(run: RunFolder) -> dict[str, Any]:
    """launch.json, {} where there is none or it is damaged."""
    try:
        launch = read_json(run.launch)
    except (FileNotFoundError, ValueError):
        return {}
    return launch if isinstance(launch, dict) else {}


def _is_silent(launch: dict[str, Any], status: Status) -> bool:
    """Whether a trainer has not said a word since it was launched; also where the clock was set back."""
    launched = float(launch.get("time", 0.0))
    if launched > time.time() or launch.get("exit_code") in (0, 3):  # these codes come after a last word
        return status.heartbeat == launch.get("heartbeat")
    return launched > status.heartbeat


def _traces(run: RunFolder) -> tuple[int, ...]:
    """Differs as soon as somebody goes on with the run: the trainer touches its lock when it takes it."""
    traces = []
    for path in (run.launch, run.lock, run.status):
        try:
            traces.append(path.stat().st_mtime_ns)
        except OSError:
            traces.append(0)
    return tuple(traces)


def _process_lives(launch: dict[str, Any]) -> bool:
    """Whether the very process that launch.json names still runs (a recycled pid does not count)."""
    return "exit_code" not in launch and lives(launch.get("pid"), launch.get("started"))
