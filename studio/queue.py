"""The queue: every background job of a workspace, in one file that outlives the studio.

``<workspace>/queue.json`` is replaced as a whole, under the workspace's lock, so that several studios may
share it. It says what waits in which order, what runs, and what has ended lately. How a training goes is
told by its run folder alone.
"""

from __future__ import annotations

import errno
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.files import read_json, write_json
from trainer.contract.length import length_in_words

Kind = Literal["train", "sample", "caption", "crop", "publish", "fetch"]
JobState = Literal["waiting", "running", "finished", "stopped", "failed", "cancelled"]
Rung = Literal["asked", "term", "kill"]

ON_GPU: tuple[Kind, ...] = ("train", "sample", "caption")
"""Kinds that take a GPU (on a machine without one: of which one runs at a time)."""
ENDS_KEPT = 20


class Stop(BaseModel):
    """A job was told to stop: on which rung of the ladder it is, and since when (Unix seconds)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rung: Rung
    since: float


class Job(BaseModel):
    """One background job.

    Attributes:
        project: id, "" where it belongs to none.
        run: id of the run that it trains, draws with or publishes; "" for jobs on photos.
        detail: a few words for people.
        arguments: what follows the command of its kind. Never a secret.
        devices: the GPUs it was given, () where there was nothing to choose.
        typed_token: it needs a token that was typed for it, which is kept nowhere.
        studio: pid and start of the studio that has its token or has started its process.
        pid, began: of its process; a training's are in its launch.json instead.
        step: how far a training got.
        cause: of a failed training, one of trainer.contract.runs.CAUSES.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    kind: Kind
    project: str = ""
    run: str = ""
    detail: str = ""
    arguments: tuple[str, ...] = ()
    state: JobState = "waiting"
    devices: tuple[str, ...] = ()
    typed_token: bool = False
    studio: tuple[int, float] | None = None
    added: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    pid: int | None = None
    began: float | None = None
    stop: Stop | None = None
    message: str = ""
    step: int = 0
    cause: str = ""

    def but(self, **changes: Any) -> Job:
        return self.model_copy(update=changes)

    @property
    def on_gpu(self) -> bool:
        return self.kind in ON_GPU

    @property
    def over(self) -> bool:
        return self.state not in ("waiting", "running")


def new_job(kind: Kind, **details: Any) -> Job:
    job_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    return Job(id=job_id, kind=kind, added=time.time(), **details)


def in_words(config: TrainConfig) -> str:
    """The detail of a training."""
    return f"{length_in_words(config.train)}, rank {config.adapter.rank}"


class Book(BaseModel):
    """What queue.json holds. ``jobs`` are in the order in which they were queued; those that wait start in
    that order. ``notice`` is a sentence for the page, "" if there is nothing to tell."""

    model_config = ConfigDict(extra="ignore")

    version: int = 1
    paused: bool = False
    notice: str = ""
    jobs: list[Job] = []

    def waiting(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "waiting"]

    def running(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "running"]

    def ends(self) -> list[Job]:
        """What has ended, the newest first."""
        return sorted((job for job in self.jobs if job.over), key=lambda job: job.ended, reverse=True)

    def job(self, job_id: str) -> Job | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    def of_run(self, run_id: str, *kinds: Kind) -> Job | None:
        """The job that waits or runs for a run."""
        return next(
            (job for job in self.jobs if job.run == run_id and not job.over and job.kind in kinds), None
        )

    def put(self, job: Job) -> Job:
        """Take a job in, or replace the one of its id."""
        for index, old in enumerate(self.jobs):
            if old.id == job.id:
                self.jobs[index] = job
                break
        else:
            self.jobs.append(job)
        return job

    def remove(self, job_id: str) -> None:
        self.jobs = [job for job in self.jobs if job.id != job_id]

    def move(self, job_id: str, by: int) -> None:
        """Let a waiting job change places with the one before it (-1) or after it (+1)."""
        order = [index for index, job in enumerate(self.jobs) if job.state == "waiting"]
        for place, index in enumerate(order):
            if self.jobs[index].id == job_id and 0 <= place + by < len(order):
                other = order[place + by]
                self.jobs[index], self.jobs[other] = self.jobs[other], self.jobs[index]
                break

    def forget_old_ends(self) -> list[Job]:
        """Drop the oldest ends; what was dropped."""
        old = self.ends()[ENDS_KEPT:]
        gone = {job.id for job in old}
        self.jobs = [job for job in self.jobs if job.id not in gone]
        return old


class Queue:
    """queue.json of one workspace."""

    def __init__(self, root: Path) -> None:
        self.path = root / "queue.json"
        self.damaged = False  # the file was set aside when it was last read: who waits is to be found again
        self._lock = FileLock(root / ".start.lock")
        self._mutex = threading.RLock()
        self._seen: tuple[tuple[int, int, int] | None, Book, bool] = (None, Book(), True)

    def look(self) -> Book:
        """The queue as it is, to be read only."""
        stamp = self._stamp()
        if stamp != self._seen[0]:
            self._seen = (stamp, *self._read())
        return self._seen[1]

    def is_whole(self) -> bool:
        """Whether all of the file can be read. If not, the next change sets it aside."""
        self.look()
        return self._seen[2]

    @contextmanager
    def change(self) -> Iterator[Book]:
        """The queue to be changed: nobody else does meanwhile, and it is kept when the block ends well.

        Raises RunError where the lock is not to be had, OSError where the file cannot be written.
        """
        with self._mutex, self._locked():
            book, whole = self._read()
            if not whole:
                self._set_aside(book)
                self.damaged = True
            before = book.model_dump_json()
            yield book
            if book.model_dump_json() != before or not whole:
                write_json(self.path, book.model_dump(mode="json"))
            self._seen = (self._stamp(), book, True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._lock.lock_file
        try:
            self._lock.acquire(timeout=10)
        except Timeout:
            sentence = "Another studio is busy with the queue; try again in a moment."
            raise RunError(sentence, "config") from None
        except OSError as error:
            cause = "disk_full" if error.errno == errno.ENOSPC else "config"
            raise RunError(
                f"{path} cannot be locked ({error.strerror}), so no training can start; check the "
                "workspace's permissions and free space.",
                cause,
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> tuple[Book, bool]:
        """(the queue, whether all of the file could be read). Jobs that cannot be read are left out."""
        try:
            raw = read_json(self.path)
        except FileNotFoundError:
            return Book(), True
        except (ValueError, OSError):
            return Book(paused=True), False
        if not isinstance(raw, dict) or not isinstance(raw.get("jobs"), list):
            return Book(paused=True), False
        jobs: list[Job] = []
        for entry in raw["jobs"]:
            try:
                jobs.append(Job.model_validate(entry))
            except ValidationError:
                continue
        notice = raw.get("notice")
        book = Book(
            paused=raw.get("paused") is True, notice=notice if isinstance(notice, str) else "", jobs=jobs
        )
        whole = len(jobs) == len(raw["jobs"])
        return (book if whole else book.model_copy(update={"paused": True})), whole

    def _set_aside(self, book: Book) -> None:
        """Keep a damaged file under another name, and say so."""
        for number in range(1, 10_000):
            kept = self.path.with_name(
                "queue.json.damaged" if number == 1 else f"queue.json.damaged-{number}"
            )
            if not kept.exists():
                break
        self.path.replace(kept)
        book.notice = (
            f"The list of jobs could not be read in full; it is kept as {kept.name}. The queue is paused: "
            "look at what waits, then let it go on."
        )
