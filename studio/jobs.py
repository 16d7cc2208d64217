"""Starts, watches and ends the background processes: one training at a time, and publishing.

A process is detached (its own session) and tells everything through its run folder, so it outlives the
studio; a new studio finds it again by the lock it holds. No page ever waits for a process.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout

from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError, UserError
from trainer.contract.files import read_json, seen_from, write_json
from trainer.contract.plan import Machine, estimate
from trainer.contract.runs import RunFolder, Status, launch_record, new_run_id

from .diagnosis import autopsy
from .projects import Project, Workspace

REPOSITORY = Path(__file__).resolve().parent.parent
REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
MIN_FREE_GIB = 0.5
GIB = 2**30
PUBLISH_GRACE_S = 15.0
"""Seconds that a publishing process may take until it holds its lock."""


class Supervisor:
    """The background jobs of one workspace.

    ``trainer`` and ``publisher`` are the commands that are run, without their arguments.
    """

    def __init__(
        self,
        workspace: Workspace,
        trainer: tuple[str, ...] = (sys.executable, "-m", "trainer"),
        publisher: tuple[str, ...] = (sys.executable, "-m", "studio.publish"),
    ) -> None:
        self.workspace = workspace
        self._trainer = trainer
        self._publisher = publisher
        self._starting = threading.Lock()
        # Asking whether a lock is held takes it for a moment: two threads must not meet in there.
        self._probing = threading.Lock()
        self._active: tuple[float, RunFolder | None] = (0.0, None)
        # Runs that have ended -> what their files looked like then (see _traces).
        self._ended: dict[str, tuple[int, ...]] = {}
        self._publishers: dict[str, subprocess.Popen[bytes]] = {}
        # Runs whose trainer is a child of ours and whose exit code is not noted yet.
        self._unreaped: set[str] = set()

    # Training -----------------------------------------------------------------------------------

    def start(self, project: Project, config: TrainConfig) -> RunFolder:
        """Freeze the recipe into a new run and train it. Raises RunError in one sentence."""
        with self._starting, self._one_at_a_time():
            if not project.dataset().enabled_images():
                what = "all its photos are left out" if project.dataset().images else "it has no photos"
                raise RunError(
                    f"{project.name} cannot be trained: {what}; add or enable some first.", "config"
                )
            check_disk(self.workspace, config)
            run = RunFolder(self.workspace.runs / new_run_id(config.output.name))
            # Relative to the run folder: the recipe tells no user names, and the workspace may move.
            dataset = config.dataset.model_copy(
                update={
                    "path": seen_from(run.path, project.root),
                    "trigger": project.dataset().trigger,
                    "subsets": tuple(
                        one.model_copy(update={"path": seen_from(run.path, project.folder(one.path))})
                        for one in config.dataset.subsets
                    ),
                }
            )
            sections: dict[str, Any] = {"dataset": dataset}
            for name in ("validation", "prior"):
                section = getattr(config, name)
                if section.path:
                    path = seen_from(run.path, project.folder(section.path))
                    sections[name] = section.model_copy(update={"path": path})
            try:
                run.create(config.model_copy(update=sections))
                self._launch(run, ["train", str(run.recipe), "--run-dir", str(run.path)])
            except (OSError, RunError) as error:
                shutil.rmtree(run.path, ignore_errors=True)  # nothing came of it
                if isinstance(error, RunError):
                    raise
                raise RunError(f"{run.path} cannot be written ({error.strerror}).", "disk_full") from error
            return run

    def resume(self, run: RunFolder) -> RunFolder:
        """Go on with a run that was stopped, failed or died. Raises RunError in one sentence."""
        with self._starting, self._one_at_a_time():
            if self.status(run).state == "finished":
                raise RunError(f"{run.id} is already finished; start a new training instead.", "config")
            check_disk(self.workspace, run.config())
            run.take_controls()  # a stop that the dead trainer never read must not end the new one
            self._launch(run, ["resume", str(run.path)])
            return run

    def stop(self, run: RunFolder) -> None:
        """Ask the trainer to finish its step, save everything and end."""
        self._send(run, "stop")

    def ask(self, run: RunFolder, verb: Literal["save", "sample"]) -> None:
        """Ask the trainer for a checkpoint or for validation images now."""
        self._send(run, verb)

    def _send(self, run: RunFolder, verb: Literal["stop", "save", "sample"]) -> None:
        if not self.is_running(run):
            raise RunError(f"{run.id} is not being trained now; there is nothing to {verb}.", "config")
        run.send(verb)

    def active(self) -> RunFolder | None:
        """The run that is being trained, whoever started it. The answer may be half a second old."""
        asked, run = self._active
        if time.monotonic() - asked > 0.5:
            run = next((run for run in self.workspace.list_runs() if self._goes_on(run)), None)
            self._active = (time.monotonic(), run)
        return run

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
        return self._lives(run, _launch_of(run))

    def _lives(self, run: RunFolder, launch: dict[str, Any]) -> bool:
        """Whether the process that was launched still runs, or has only just ended: how is known at once."""
        return run.id in self._unreaped or _process_lives(launch)

    def status(self, run: RunFolder) -> Status:
        """What a page shows of a run: the trainer's own word, ``starting`` until it gives one, or
        ``lost`` with a diagnosis when it died without one."""
        # Asked before anything is read: a process that is gone has written all it ever will.
        lives = self._lives(run, _launch_of(run))
        launch = _launch_of(run)
        with self._probing:
            status = run.read_status()
        silent = float(launch.get("time", 0.0)) > status.heartbeat  # not a word since this launch
        if lives and silent:
            return status.model_copy(
                update={
                    "state": "starting",
                    "stage": "",
                    "message": "",
                    "cause": "",
                    "evidence": "",
                    "attempt": launch.get("attempt", 1),
                }
            )
        if status.state == "lost" and lives:
            return run.raw_status()
        if status.state == "lost" or (launch and silent and not self.is_running(run)):
            return autopsy(status, run.log, int(launch.get("log_start", 0)), launch.get("exit_code"))
        return status

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Hold the workspace's start lock (several studios may share it). RunError when one trains."""
        path = self.workspace.root / ".start.lock"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=10)
        except Timeout:
            raise RunError("Another training is just starting; try again in a moment.", "config") from None
        except OSError as error:
            cause = "disk_full" if error.errno == errno.ENOSPC else "config"
            raise RunError(
                f"{path} cannot be locked ({error.strerror}), so no training can start; check the "
                "workspace's permissions and free space.",
                cause,
            ) from None
        try:
            self._active = (0.0, None)
            self._ended.clear()  # this once every lock is asked
            running = self.active()
            if running is not None:
                raise RunError(
                    f"{running.id} is being trained now; stop it first, or wait until it ends.", "config"
                )
            yield
        finally:
            lock.release()

    def _launch(self, run: RunFolder, arguments: list[str]) -> None:
        argv = [*self._trainer, *arguments]
        attempt = int(_launch_of(run).get("attempt", 0)) + 1
        log_start = run.log.stat().st_size if run.log.exists() else 0
        child = _spawn(argv, run.log, child_environment())
        try:
            started = psutil.Process(child.pid).create_time()
        except psutil.NoSuchProcess:
            started = time.time()
        record = launch_record(child.pid, started, argv, attempt)
        try:
            write_json(run.launch, {**record, "log_start": log_start})
        except OSError:
            child.kill()  # a trainer that nobody could find again
            child.wait()
            raise
        self._active = (0.0, None)
        self._unreaped.add(run.id)
        threading.Thread(target=self._reap, args=(child, run), daemon=True, name=f"reap {run.id}").start()

    def _reap(self, child: subprocess.Popen[bytes], run: RunFolder) -> None:
        """Wait for a trainer (no zombies) and note its exit code, which the log does not tell."""
        code = child.wait()
        launch = _launch_of(run)
        if launch.get("pid") == child.pid:
            with suppress(OSError):  # the run was deleted, or the disk is full: the code is only a hint
                write_json(run.launch, {**launch, "exit_code": code})
        self._unreaped.discard(run.id)
        self._active = (0.0, None)

    # Publishing ---------------------------------------------------------------------------------

    def publish(self, run: RunFolder, repo_id: str, private: bool, token: str | None = None) -> None:
        """Push the run's LoRA to the Hub in the background; :meth:`publish_status` tells how it goes.

        The token goes to that one process by its environment and is written nowhere.
        """
        repo_id = repo_id.strip()
        if not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
            raise UserError(
                f"{repo_id[:100]!r} is no name for a model on the Hub; write it as you/my-lora "
                "(letters, digits, dash, dot, underscore)."
            )
        if not run.result(run.config()).is_file():
            raise UserError(f"{run.id} has no finished LoRA yet; publish it when the training has ended.")
        with self._starting:
            if self.publish_status(run)["state"] == "running":
                raise UserError(f"{run.id} is being published already; wait until that has ended.")
            write_publish_status(run, state="running", repo_id=repo_id, private=private, message="Starting")
            argv = [*self._publisher, str(run.path), "--repo-id", repo_id]
            argv.append("--private" if private else "--public")
            environment = child_environment()
            if token and token.strip():
                environment["HF_TOKEN"] = token.strip()
            child = self._publishers[run.id] = _spawn(argv, run.path / "publish.log", environment)
        threading.Thread(target=self._reap_publisher, args=(child, run), daemon=True).start()

    def _reap_publisher(self, child: subprocess.Popen[bytes], run: RunFolder) -> None:
        code = child.wait()
        with self._starting:  # else the status of a next one, just begun, could be taken for this one's
            status = read_publish_status(run)
            if status["state"] == "running" and self._publishers.get(run.id) is child:
                message = (
                    f"Publishing ended unexpectedly (exit code {code}); publish.log in the run has details."
                )
                with suppress(OSError):
                    write_publish_status(run, **{**status, "state": "failed", "message": message})

    def publish_status(self, run: RunFolder) -> dict[str, Any]:
        """``{"state": none|running|done|failed, "repo_id", "private", "message", "url", "time"}``."""
        status = read_publish_status(run)
        if status["state"] != "running" or time.time() - status["time"] < PUBLISH_GRACE_S:
            return status
        with self._probing:
            lock = FileLock(publish_lock(run))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return status
            lock.release()
        status = read_publish_status(run)  # it may have ended between our two looks
        if status["state"] == "running":
            status = {**status, "state": "failed", "message": "Publishing was interrupted; publish it again."}
        return status


# The publishing process and the studio share these three.


def publish_lock(run: RunFolder) -> Path:
    return run.path / "publish.lock"


def write_publish_status(run: RunFolder, **status: Any) -> None:
    write_json(run.path / "publish.json", {**status, "time": time.time()})


def read_publish_status(run: RunFolder) -> dict[str, Any]:
    empty = {"state": "none", "repo_id": "", "private": True, "message": "", "url": "", "time": 0.0}
    try:
        return {**empty, **read_json(run.path / "publish.json")}
    except (FileNotFoundError, ValueError, TypeError):
        return empty


# Processes ----------------------------------------------------------------------------------------


def child_environment() -> dict[str, str]:
    """The environment of a background process: ours, without the studio's password."""
    environment = {key: value for key, value in os.environ.items() if key != "STUDIO_PASSWORD"}
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _spawn(argv: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a detached process whose output goes to a file (never a pipe, which would fill up)."""
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise RunError(f"{argv[0]} cannot be started ({error.strerror}).", "unknown") from error


def _launch_of(run: RunFolder) -> dict[str, Any]:
    """launch.json, {} where there is none or it is damaged."""
    try:
        launch = read_json(run.launch)
    except (FileNotFoundError, ValueError):
        return {}
    return launch if isinstance(launch, dict) else {}


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
    pid, started = launch.get("pid"), launch.get("started")
    if not isinstance(pid, int) or not isinstance(started, (int, float)) or "exit_code" in launch:
        return False
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def check_disk(workspace: Workspace, config: TrainConfig) -> None:
    """Refuse to start what the disks cannot hold: the run, and a base model yet to be downloaded.

    Raises RunError.
    """
    plan = estimate(config, Machine("this computer", None))
    _check_free(workspace.root, plan.disk_gib + MIN_FREE_GIB, "this training", "keep fewer checkpoints")
    cache = hub_cache()
    if plan.download_gib and not (cache / f"models--{config.model.base.replace('/', '--')}").exists():
        _check_free(cache, plan.download_gib, "the base model's download", "set HF_HOME to a larger disk")


def _check_free(folder: Path, need_gib: float, what: str, remedy: str) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    if free < need_gib:
        raise RunError(
            f"The disk has {free:.1f} GiB free and {what} needs about {need_gib:.1f} GiB; free some space, "
            f"or {remedy}.",
            "disk_full",
        )


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads (asked of the environment: importing it takes a second)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
