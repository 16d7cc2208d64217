"""What happens to the queue by itself: the next job starts, the end of one is noted, stops go on.

No page has to be open for it: :meth:`Dispatcher.tick` is called twice a second by a thread of the studio, and
whenever a process ends.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dataset_tools.captioning import went_well
from trainer.contract.disk import require_space
from trainer.contract.drawings import list_drawings
from trainer.contract.errors import RunError, UserError
from trainer.contract.runs import RunFolder

from .fetched import house
from .processes import child_environment, end_group, lives, spawn, started_at
from .projects import Workspace
from .publication import read_publish_status, write_publish_status
from .queue import Book, Job, JobState, Kind, Rung, Stop, in_words, new_job
from .stopping import GRACE_S, NEXT, Patience, saved_step
from .trainings import Trainings

TICK_S = 0.5
STRAYS_EVERY_S = 2.0
"""How often trainings are looked for that somebody else started."""
OTHERS_S = 5.0
"""So long is waited for another studio to note the end of a job that it started."""
ALL_FAIL = 3
"""So many trainings in a row that fail before their first step are no accident."""
CPU_AT_ONCE = 2
"""Jobs that run beside those on the GPU."""


class Dispatcher(Trainings):
    """Starts and ends the jobs of the queue. ``commands`` by kind, without their arguments; ``gpus`` answers
    which GPUs there are to give out."""

    def __init__(
        self,
        workspace: Workspace,
        commands: dict[Kind, tuple[str, ...]],
        patience: Patience,
        gpus: Callable[[], Sequence[str]],
    ) -> None:
        super().__init__(workspace, commands["train"])
        self.patience = patience
        self._commands = commands
        self._gpus = gpus
        self._codes: dict[str, int] = {}
        self._tokens: dict[str, str] = {}
        self._me = (os.getpid(), started_at(os.getpid()))
        self._gone: dict[str, float] = {}  # jobs whose end another studio has seen -> since when
        self._strays_at = -math.inf
        self._over = threading.Event()

    def watch(self) -> None:
        """Let a thread do what has to happen by itself, until :meth:`close`."""
        threading.Thread(target=self._watch, daemon=True, name="jobs").start()

    def close(self) -> None:
        """End the thread; the jobs go on."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(TICK_S):
            try:
                self.tick()
            except Exception:  # whatever it was, the jobs must go on being looked after
                traceback.print_exc()
                self._over.wait(10 * TICK_S)

    def tick(self) -> None:
        """Note what has ended, go up the stop ladders, start what may start. Raises RunError, OSError."""
        strays = self._strays()
        book = self.queue.look()
        if not (strays or book.running() or self._may_start(book) or not self.queue.is_whole()):
            return
        with self._changing() as book:
            if self.queue.damaged:
                self._find_waiting(book)
            for run in strays:
                if not book.of_run(run.id, "train"):
                    self._adopt(book, run)
            for job in book.running():
                if not self._job_lives(job):
                    if not self._is_anothers(job):
                        self._close(book, job)
                elif job.stop and job.stop.since > time.time():  # the clock was set back
                    book.put(job.but(stop=Stop(rung=job.stop.rung, since=time.time())))
                elif job.stop and not self.stop_left(job, job.stop):
                    self._climb(book, job, NEXT[job.stop.rung])
            while chosen := self._may_start(book):  # again, as one that failed makes room
                for job in chosen:
                    self._launch(book, job)
            for job in book.forget_old_ends():
                self._forget(book, job)

    def _strays(self) -> list[RunFolder]:
        """Runs that are trained although the queue does not know it: started from a command line, or by a
        studio that was killed before it had noted so."""
        if time.monotonic() - self._strays_at < STRAYS_EVERY_S:
            return []
        self._strays_at = time.monotonic()
        known = {job.run for job in self.queue.look().running() if job.kind == "train"}
        return [run for run in self.trained_now() if run.id not in known]

    def _adopt(self, book: Book, run: RunFolder) -> Job:
        job = book.of_run(run.id, "train") or new_job(
            "train", project=self.workspace.project_of(run), run=run.id, detail="found running"
        )
        return book.put(job.but(state="running", started=time.time()))

    def _find_waiting(self, book: Book) -> None:
        """After queue.json was damaged: what had not begun waits again."""
        self.queue.damaged = False
        runs = self.workspace.list_runs()
        for run in sorted(runs, key=lambda run: run.recipe.stat().st_mtime_ns):
            if not self._began(run) and not book.of_run(run.id, "train"):
                with suppress(UserError):
                    detail = in_words(run.config())
                    project = self.workspace.project_of(run)
                    book.put(new_job("train", project=project, run=run.id, detail=detail))

    def _forget(self, book: Book, job: Job) -> None:
        """Drop the log of a job that is its own, and what was made for a training that never began."""
        if job.kind not in ("train", "publish"):
            self.log_of(job).unlink(missing_ok=True)
        if job.kind != "train" or book.of_run(job.run, "train"):
            return
        run = self.run_of(job)
        if run.recipe.exists() and not self._began(run):
            shutil.rmtree(run.path, ignore_errors=True)

    def _job_lives(self, job: Job) -> bool:
        if job.kind == "train":
            return self.is_running(self.run_of(job))
        return job.id in self._unreaped or lives(job.pid, job.began)

    def _is_anothers(self, job: Job) -> bool:
        """Whether another studio has seen the end of a job's process, and says in a moment how it was."""
        if job.id in self._codes or job.studio in (None, self._me) or job.kind == "train":
            return False
        seen = self._gone.setdefault(job.id, time.monotonic())
        return time.monotonic() - seen < OTHERS_S and lives(*job.studio)

    def lacks_token(self, job: Job) -> bool:
        """Whether a job waits for a token that was typed for it and that no studio has any more."""
        if not job.typed_token or job.state != "waiting" or job.id in self._tokens:
            return False
        return job.studio in (None, self._me) or not lives(*job.studio)

    def stop_left(self, job: Job, stop: Stop) -> float:
        """Seconds until a job that was told to stop comes to the next rung, 0 when it is due."""
        if job.kind != "train":
            return self.patience.left(stop, None, time.time())
        run, grace_s = self.run_of(job), GRACE_S
        with suppress(UserError):
            grace_s = run.config().machine.grace_s
        return self.patience.left(stop, run.raw_status(), time.time(), grace_s)

    def _may_start(self, book: Book) -> list[Job]:
        """The waiting jobs whose turn it is, with the GPUs that they get. The order is kept: nobody passes
        one that waits for a GPU."""
        if book.paused:
            return []
        running = book.running()
        gpus, taken = tuple(self._gpus()), {device for job in running for device in job.devices}
        on_gpu = [job for job in running if job.on_gpu]
        beside = sum(not job.on_gpu for job in running)
        free = [device for device in gpus if device not in taken] if len(gpus) > 1 else []
        if any(not job.devices for job in on_gpu):
            free = []  # one that was found running may use any
        chosen: list[Job] = []
        blocked = False
        for job in book.waiting():
            if job.typed_token and job.id not in self._tokens:
                continue  # another studio has it, or a person has to type it again
            if not job.on_gpu:
                if beside < CPU_AT_ONCE:
                    beside += 1
                    chosen.append(job)
            elif not blocked and len(gpus) > 1:
                wants = self._gpus_wanted(job, len(gpus))
                blocked = len(free) < wants
                if not blocked:
                    chosen.append(job.but(devices=tuple(free[:wants])))
                    free = free[wants:]
            elif not blocked:
                blocked = True
                if not on_gpu:
                    chosen.append(job)
        return chosen

    def _gpus_wanted(self, job: Job, there: int) -> int:
        """How many GPUs of the machine a job takes; its trainer says so where that is fewer than it wants."""
        if job.kind != "train":
            return 1
        try:
            return min(self.run_of(job).config().machine.gpus or there, there)
        except UserError:
            return 1

    # Starting and ending a process --------------------------------------------------------------

    def _launch(self, book: Book, job: Job) -> None:
        """Start a job's process. What cannot be started has failed, with ``started`` 0."""
        try:
            if job.kind == "train":
                run = self.workspace.run(job.run)
                require_space(self.workspace.root, run.config(), run=run)
                self._train(run, job.devices)
                book.put(job.but(state="running", started=time.time()))
            else:
                pid, began = self._run_tool(job)
                known = {"pid": pid, "began": began, "studio": self._me}
                book.put(job.but(state="running", started=time.time(), **known))
        except UserError as error:
            cause = getattr(error, "cause", "config")
            book.put(job.but(state="failed", ended=time.time(), message=str(error), cause=cause))
        except OSError as error:
            what = f"{error.filename or job.run} cannot be written ({error.strerror})."
            book.put(job.but(state="failed", ended=time.time(), message=what, cause="disk_full"))

    def _run_tool(self, job: Job) -> tuple[int, float]:
        environment = child_environment(job.devices)
        if token := self._tokens.pop(job.id, ""):
            environment["HF_TOKEN"] = token
        child = spawn([*self._commands[job.kind], *job.arguments], self.log_of(job), environment)
        self._reap(child, job.id, lambda code: self._codes.__setitem__(job.id, code))
        return child.pid, started_at(child.pid)

    def log_of(self, job: Job) -> Path:
        """Where the output of a job goes."""
        if job.kind == "train":
            return self.run_of(job).log
        if job.kind == "publish":
            return self.workspace.runs / job.run / "publish.log"
        return self.workspace.root / "jobs" / f"{job.id}.log"

    def _close(self, book: Book, job: Job) -> None:
        """A job's process is gone: what came of it."""
        state: JobState
        if job.kind == "train":
            status = self.status(self.run_of(job))
            told: dict[str, JobState] = {"finished": "finished", "stopped": "stopped"}
            state, message = told.get(status.state, "failed"), status.message
            end = {"message": message, "cause": status.cause, "step": status.step}
            book.put(job.but(state=state, ended=time.time(), **end))
            self._pause_when_all_fail(book)
            return
        code, message = self._codes.pop(job.id, None), ""
        if code is None and job.kind == "sample":  # nobody saw how, but what it made is there
            done, wanted = self.drawn(job)
            code = int(done < wanted)
        last = last_line(self.log_of(job))
        if code is None and job.kind == "caption":
            code = int(not went_well(last))
        state = "finished" if not code else "failed"
        if job.kind == "publish":
            run = self.run_of(job)
            status_now = read_publish_status(run)
            others = [
                one for one in book.jobs if one.run == job.run and one.kind == "publish" and not one.over
            ]
            if status_now["state"] == "running" and others == [job]:
                how = f"exit code {code}" if code is not None else "nobody saw how"
                said = f"Publishing ended unexpectedly ({how}); publish.log in the run has details."
                status_now |= {"state": "failed", "message": said}
                with suppress(OSError):
                    write_publish_status(run, **status_now)
            state = "finished" if status_now["state"] == "done" else "failed"
            message = status_now["message"]
        elif job.kind == "fetch" and not job.stop:
            job = self._fetched(book, job, code)
            state, message = job.state, job.message
        elif state == "failed":
            message = last or f"It ended with exit code {code}."
        elif job.kind == "caption":
            message = last
        elif code is None:
            message = "It ended while no studio was running; its log has the outcome."
        if job.stop and (code is None or state == "failed"):
            state = "stopped"
        self._gone.pop(job.id, None)
        book.put(job.but(state=state, ended=time.time(), message=message))

    def _fetched(self, book: Book, job: Job, code: int | None) -> Job:
        """A stored run is here: it waits for its turn to go on, in the project that it belongs to."""
        last = last_line(self.log_of(job))
        if code:
            return job.but(state="failed", message=last or f"It ended with exit code {code}.")
        try:
            run = self.workspace.run(Path(last).name)
            job = job.but(run=run.id, project=house(self.workspace, run).id)
        except UserError as error:  # where nobody saw how it ended, it did not come to its last word
            message = "It ended while no studio was running; fetch it again." if code is None else str(error)
            return job.but(state="failed", message=message)
        if self.status(run).state == "finished":
            return job.but(
                state="finished", message=f"{run.id} is finished: its LoRA is on the Results page."
            )
        try:
            message = f"{run.id} is here and {self._enqueue(book, run).detail}."
        except RunError as error:
            message = str(error)
        return job.but(state="finished", message=message)

    def _enqueue(self, book: Book, run: RunFolder) -> Job:
        """Let a run that has begun wait for its turn to go on. Raises RunError in one sentence."""
        waits = book.of_run(run.id, "train")
        if waits and waits.state == "waiting":
            raise RunError(f"{run.id} waits for its turn already.", "config")
        if self.is_running(run):
            raise RunError(f"{run.id} is being trained now; stop it first, or wait until it ends.", "config")
        if self.status(run).state == "finished":
            raise RunError(f"{run.id} is already finished; start a new training instead.", "config")
        require_space(self.workspace.root, run.config(), run=run)
        saved = saved_step(run)
        detail = f"goes on from step {saved:,}" if saved else in_words(run.config())
        project = self.workspace.project_of(run)
        book.jobs = [job for job in book.jobs if job.run != run.id or job.kind != "train"]
        return book.put(new_job("train", project=project, run=run.id, detail=detail))

    def drawn(self, job: Job) -> tuple[int, int]:
        """How many pictures a job has drawn, and how many it is to draw; zeros for one that draws none."""
        wanted = sum(argument.startswith("--prompt=") for argument in job.arguments)
        done = sum(one.time >= job.started for one in list_drawings(self.run_of(job))) if wanted else 0
        return min(done, wanted), wanted

    def _pause_when_all_fail(self, book: Book) -> None:
        """Where one training after the other fails at once, something else is broken: the others wait."""
        last = [job for job in book.ends() if job.kind == "train"][:ALL_FAIL]
        at_once = all(job.state == "failed" and not job.step for job in last)
        if len(last) == ALL_FAIL and at_once and any(job.on_gpu for job in book.waiting()):
            book.paused = True
            book.notice = (
                f"{ALL_FAIL} trainings in a row failed before their first step. The queue is paused, "
                "so that the others do not fail as well."
            )

    def _climb(self, book: Book, job: Job, rung: Rung) -> None:
        """Go up to a rung of the stop ladder and do what it says."""
        if job.kind != "train":
            end_group(job.pid, job.began, hard=rung == "kill")
        elif not self._force(self.run_of(job), hard=rung == "kill"):
            rung = "asked"  # started from a command line: it can be asked, and nothing more
        book.put(job.but(stop=Stop(rung=rung, since=time.time())))

    def _was_beaten(self, run: RunFolder) -> None:
        with suppress(UserError), self._changing() as book:
            if job := book.of_run(run.id, "train"):
                book.put(job.but(detail="a trainer started elsewhere was quicker, and has it"))

    def _somebody_ended(self) -> None:
        with suppress(UserError, OSError):  # the next tick tries again
            self.tick()

    @contextmanager
    def _changing(self) -> Iterator[Book]:
        """The queue to be changed, and every lock asked anew. Raises RunError where it cannot be kept."""
        try:
            with self.queue.change() as book:
                self._active = (0.0, [])
                yield book
        except OSError as error:
            cause = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "config"
            file = error.filename or self.queue.path
            raise RunError(f"{file} cannot be written ({error.strerror}).", cause) from error


def last_line(log: Path) -> str:
    """The last thing that a job said, "" where it said nothing."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
    text = last.removeprefix("error: ")
    plain = text == last or "://" in text.split(" ")[0]  # an address keeps its letters
    return text if plain else text[:1].upper() + text[1:]
