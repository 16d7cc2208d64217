"""One queue and one supervisor for every background job: train, sample, fetch, caption, crop, publish.

A process is detached (its own session) and tells everything through files, so it outlives the studio; a new
studio finds a training again by the lock it holds. No page ever waits for a process: pages put jobs into the
queue (here), and what follows happens by itself (:mod:`studio.dispatch`).
"""

from __future__ import annotations

import math
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

from dataset_tools.captioners import label_of
from trainer.contract.config import TrainConfig
from trainer.contract.disk import require_space
from trainer.contract.errors import RunError, UserError
from trainer.contract.fields import dump_recipe, merge, parse, to_tables
from trainer.contract.files import seen_from
from trainer.contract.prompt import prompts_of
from trainer.contract.redact import redact
from trainer.contract.runs import RunFolder, new_run_id
from trainer.contract.settings.storage import RUN
from trainer.contract.storage_facts import storage_problem
from trainer.contract.whole import list_checkpoints, step_of

from . import machine
from .dispatch import Dispatcher, last_line
from .projects import Project, Workspace
from .publication import (
    ASKS_TOKEN,
    checked_repo_id,
    is_published_now,
    read_publish_status,
    write_publish_status,
)
from .queue import Book, Job, Kind, Stop, in_words, new_job
from .stopping import NEXT, Patience

DOUBLE_S = 10.0
"""Within so many seconds the same recipe of the same project is a button that was pressed twice."""


class Supervisor(Dispatcher):
    """The background jobs of one workspace.

    ``trainer``, ``publisher`` and ``tools`` are the commands that are run, without their arguments; ``gpus``
    answers which GPUs there are to give out.
    """

    def __init__(
        self,
        workspace: Workspace,
        trainer: tuple[str, ...] = (sys.executable, "-m", "trainer"),
        publisher: tuple[str, ...] = (sys.executable, "-m", "studio.publish"),
        tools: tuple[str, ...] = (sys.executable, "-m", "dataset_tools"),
        patience: Patience = Patience(),  # noqa: B008 (frozen)
        gpus: Callable[[], Sequence[str]] = machine.gpus,
    ) -> None:
        commands: dict[Kind, tuple[str, ...]] = {"train": trainer, "sample": trainer, "fetch": trainer}
        super().__init__(
            workspace, commands | {"publish": publisher, "caption": tools, "crop": tools}, patience, gpus
        )

    # Putting jobs into the queue ----------------------------------------------------------------

    def start(self, project: Project, config: TrainConfig) -> RunFolder:
        """Freeze the recipe into a new run and train it, now or when its turn comes.

        Raises RunError in one sentence.
        """
        with self._changing() as book:
            if not project.dataset().enabled_images():
                what = "all its photos are left out" if project.dataset().images else "it has no photos"
                raise RunError(
                    f"{project.name} cannot be trained: {what}; add or enable some first.", "config"
                )
            require_space(self.workspace.root, config)
            run = RunFolder(self.workspace.runs / new_run_id(config.output.name))
            while run.path.exists():  # two of one second may be given one name
                run = RunFolder(self.workspace.runs / new_run_id(config.output.name))
            frozen = self._frozen(run, project, config)
            self._refuse_double(book, project, frozen)
            self._refuse_taken(frozen)
            job = new_job("train", project=project.id, run=run.id, detail=in_words(config))
            try:
                run.create(frozen)
                book.put(job)
            except (OSError, RunError) as error:
                shutil.rmtree(run.path, ignore_errors=True)  # nothing came of it
                if isinstance(error, RunError):
                    raise
                raise RunError(f"{run.path} cannot be written ({error.strerror}).", "disk_full") from error
        try:
            self._begin(job)
        except RunError:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
        return run

    def resume(self, run: RunFolder) -> RunFolder:
        """Go on with a run that was stopped, failed or died. Raises RunError in one sentence."""
        with self._changing() as book:
            job = self._enqueue(book, run)
        self._begin(job)
        return run

    def sample(
        self, run: RunFolder, prompts: Sequence[str], seed: int | None = None, step: int | None = None
    ) -> Job:
        """Draw a picture of each prompt with a run's newest weights or with those of a checkpoint, into its
        folder ``drawings``. Without a seed each picture gets one of its own, which the job keeps: tried again
        it draws the same. Raises UserError in one sentence."""
        if not prompts:
            raise UserError("There is nothing to draw; write a prompt.")
        config = parse(merge(to_tables(run.amended()), {"samples": {"prompts": list(prompts)}}))
        wanted = prompts_of(config.samples)
        if not any(step in (None, step_of(path)) for path in list_checkpoints(run.checkpoints)):
            which = "no checkpoint yet" if step is None else f"no checkpoint of step {step:,} any more"
            raise UserError(f"{run.id} has {which}; reload the page, or draw when one is saved.")
        seeds = [secrets.randbelow(2**32) if seed is None else seed for _ in wanted]
        lines = [
            line if prompt.seed is not None else f"{line} --d {own}"
            for line, prompt, own in zip(config.samples.prompts, wanted, seeds, strict=True)
        ]
        arguments = ["sample", str(run.path), *(f"--prompt={line}" for line in lines)]
        if step is not None:
            arguments.append(f"--step={step}")
        detail = wanted[0].text if len(lines) == 1 else f"{len(lines)} pictures"
        project = self.workspace.project_of(run)
        return self._add(
            new_job("sample", project=project, run=run.id, detail=detail[:80], arguments=tuple(arguments))
        )

    def fetch(self, url: str, endpoint: str = "") -> Job:
        """Bring a run from where it is stored, and let it go on here. Raises UserError in one sentence."""
        url, endpoint = url.strip().rstrip("/"), endpoint.strip()
        if not url:
            raise UserError(
                "The address is missing; type where the run is stored, such as s3://bucket/its-name."
            )
        if RUN in url:
            raise UserError(f"{RUN} stands for the name of a run; type the name in its place.")
        parse({"storage": {"url": url, "endpoint": endpoint}})
        if problem := storage_problem(url):
            raise UserError(f"{problem}.")
        with self._changing() as book:
            if any(job.kind == "fetch" and job.detail == url and not job.over for job in book.jobs):
                raise UserError(f"{url} is being fetched already; the queue says how far it is.")
            if taken := next((run for run in self.trained_now() if self._place_of(run) == url), None):
                raise UserError(f"{url} is the place of {taken.id}, which is being trained here now.")
            arguments = ["fetch", url, f"--into={self.workspace.runs}"]
            arguments += [f"--endpoint={endpoint}"] if endpoint else []
            job = book.put(new_job("fetch", detail=url, arguments=tuple(arguments)))
        self._begin(job)
        return job

    def fetched(self, job_id: str) -> dict[str, Any]:
        """How the fetching of a run goes: ``state`` of the job, ``message`` (the last that it said, while it
        runs), and once it is here ``project`` and whether it is ``finished``."""
        job = self.queue.look().job(job_id)
        if job is None:
            return {"state": "cancelled", "message": "It is no longer in the queue.", "project": ""}
        said = redact(job.message if job.over else last_line(self.log_of(job)))
        finished = bool(job.run) and self.status(self.run_of(job)).state == "finished"
        return {"state": job.state, "message": said, "project": job.project, "finished": finished}

    def tool(
        self,
        project: Project,
        kind: Literal["caption", "crop"],
        arguments: Sequence[str] = (),
        detail: str = "",
        verb: str = "",
    ) -> Job:
        """Run ``python -m dataset_tools VERB`` on a project; the verb is the kind, where it is not given."""
        command = (verb or kind, str(project.root), *arguments)
        return self._add(new_job(kind, project=project.id, detail=detail, arguments=command))

    def crop(self, project: Project) -> Job:
        """Choose the crops of all photos anew, for what the draft trains at; the job that does so already, if
        there is one."""
        detail = f"for {project.resolution()} px"
        drafted = (project.root / "recipe.toml").exists()
        arguments = ["--all", f"--models={self.workspace.models}"]
        arguments += [] if drafted else [f"--resolution={project.resolution()}"]
        for job in self.queue.look().jobs:
            mine = job.kind == "crop" and job.project == project.id
            # One that waits looks into the recipe when its turn comes.
            if mine and (job.state == "waiting" or (job.state == "running" and job.detail == detail)):
                return job
        return self.tool(project, "crop", arguments, detail)

    def caption(self, project: Project, verb: Literal["caption", "tag"], arguments: Sequence[str]) -> Job:
        """Have a model write captions; the job that does just that already, if there is one. ``arguments``
        are those of ``python -m dataset_tools VERB``, with --model. Raises UserError in one sentence."""
        model = next(text.partition("=")[2] for text in arguments if text.startswith("--model="))
        for job in self.queue.look().jobs:
            if job.project == project.id and not job.over and job.arguments[2:] == tuple(arguments):
                return job
        return self.tool(project, "caption", arguments, label_of(model), verb)

    def publish(
        self, run: RunFolder, repo_id: str, private: bool, token: str | None = None, ask: bool = False
    ) -> None:
        """Push the run's LoRA to the Hub in the background; :meth:`publish_status` tells how it goes.

        The token goes to that one process by its environment and is written nowhere. With ``ask`` it waits
        until one is typed.
        """
        token = (token or "").strip()
        repo_id = checked_repo_id(repo_id)
        if not run.result(run.config()).is_file():
            raise UserError(f"{run.id} has no finished LoRA yet; publish it when the training has ended.")
        arguments = (str(run.path), "--repo-id", repo_id, "--private" if private else "--public")
        project = self.workspace.project_of(run)
        with self._changing() as book:
            if self.publish_status(run)["state"] == "running":
                raise UserError(f"{run.id} is being published already; wait until that has ended.")
            if asks := book.of_run(run.id, "publish"):
                book.remove(asks.id)  # this is its answer
            write_publish_status(run, state="running", repo_id=repo_id, private=private, message="Starting")
            job = new_job("publish", project=project, run=run.id, detail=repo_id, arguments=arguments)
            if token or ask:
                job = job.but(typed_token=True, studio=self._me if token else None)
            if token:
                self._tokens[job.id] = token
            book.put(job)
        self._begin(job)

    def publish_status(self, run: RunFolder) -> dict[str, Any]:
        """``{"state": none|asks|running|done|failed, "repo_id", "private", "message", "url", "time"}``;
        ``asks``: for its token, which was typed into a studio that is gone."""
        status = read_publish_status(run)
        book = self.queue.look()
        if job := book.of_run(run.id, "publish"):
            if self.lacks_token(job):
                return {**status, "state": "asks", "message": ASKS_TOKEN}
            if job.state == "waiting":
                why = "the queue is paused" if book.paused else "other jobs are before it"
                return {**status, "message": f"It waits: {why}."}
            return status
        if status["state"] != "running":
            return status
        with self._probing:
            going = is_published_now(run)
        status = read_publish_status(run)  # it may have ended between our two looks
        if status["state"] == "running" and not going:
            status = {**status, "state": "failed", "message": "Publishing was interrupted; publish it again."}
        return status

    def _add(self, job: Job) -> Job:
        with self._changing() as book:
            book.put(job)
        self._begin(job)
        return job

    def _begin(self, job: Job) -> None:
        """Start a job that was just queued, if it is its turn. Raises RunError when it cannot be started."""
        self._strays_at = -math.inf  # a training from a command line may have begun this very moment
        self.tick()
        now = self.queue.look().job(job.id)
        if now and now.state == "failed" and not now.started:
            with self._changing() as book:
                book.remove(job.id)
            raise RunError(now.message, now.cause or "unknown")

    def _frozen(self, run: RunFolder, project: Project, config: TrainConfig) -> TrainConfig:
        """The recipe as the run keeps it. Its paths are relative to the run folder: it tells no user names,
        and the workspace may move."""
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
        return config.model_copy(update=sections)

    def _refuse_double(self, book: Book, project: Project, frozen: TrainConfig) -> None:
        """RunError for the very training that was queued a moment ago: a button pressed twice."""
        for job in book.jobs:
            age = time.time() - job.added
            if job.kind != "train" or job.over or job.project != project.id or not 0 <= age < DOUBLE_S:
                continue
            other = self.run_of(job)
            with suppress(OSError):
                if other.recipe.read_text(encoding="utf-8") == dump_recipe(other.own(frozen)):
                    raise RunError(
                        f"{project.name} was started with this very recipe {age:.0f} s ago; wait "
                        f"{DOUBLE_S - age:.0f} s and press again if you want it twice.",
                        "config",
                    )

    def _refuse_taken(self, frozen: TrainConfig) -> None:
        """RunError for a new run that is to be stored where another one is: of the same recipe, it would go
        on from what lies there."""
        url = frozen.storage.url
        if not url or RUN in url:
            return
        for other in self.workspace.list_runs():
            if self._place_of(other) == url:
                raise RunError(
                    f"{url} is the place of {other.id} already; add /{RUN} to storage.url, which stands for "
                    "the run's name.",
                    "config",
                )

    def _place_of(self, run: RunFolder) -> str:
        """Where a run is stored, "" where that is nowhere or cannot be read."""
        with suppress(UserError):
            return run.config().storage.url
        return ""

    # What a person does to the queue ------------------------------------------------------------

    def move(self, job_id: str, by: int) -> None:
        """Let a waiting job change places with the one before it (-1) or after it (+1)."""
        with self._changing() as book:
            book.move(job_id, by)

    def cancel(self, job_id: str) -> None:
        """Take a waiting job out of the queue; stop a running one."""
        with self._changing() as book:
            job = book.job(job_id)
            if job is None or job.over:
                return
            if job.state == "waiting":
                self._tokens.pop(job.id, None)
                book.put(job.but(state="cancelled", ended=time.time(), message="Taken out of the queue."))
            elif job.stop is None:
                if job.kind == "train":
                    self.run_of(job).send("stop")
                    book.put(job.but(stop=Stop(rung="asked", since=time.time())))
                else:
                    self._climb(book, job, "term")
        self.tick()

    def hurry(self, job_id: str) -> None:
        """Go to the next rung of the stop ladder now."""
        with self._changing() as book:
            job = book.job(job_id)
            if job and job.state == "running" and job.stop:
                self._climb(book, job, NEXT[job.stop.rung])

    def retry(self, job_id: str) -> None:
        """Queue a job that has ended once more: a training goes on where it was saved last."""
        job = self.queue.look().job(job_id)
        if job is None or not job.over:
            return
        if job.kind == "train":
            self.resume(self.workspace.run(job.run))
            return
        if job.kind == "publish":
            run, private = self.workspace.run(job.run), "--private" in job.arguments
            self.publish(run, job.detail, private, ask=job.typed_token)
        else:
            self._add(new_job(**job.model_dump(include={"kind", "project", "run", "detail", "arguments"})))
        self.remove(job_id)

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended. A run that never began goes with it; any other stays."""
        with self._changing() as book:
            job = book.job(job_id)
            if job and job.over:
                book.remove(job_id)
                self._forget(book, job)

    def clear(self) -> None:
        """Forget all that has ended."""
        with self._changing() as book:
            for job in book.ends():
                book.remove(job.id)
                self._forget(book, job)

    def pause(self, paused: bool) -> None:
        """Start nothing by itself, or go on doing so."""
        with self._changing() as book:
            book.paused = paused
            if not paused:
                book.notice = ""
        self.tick()

    # One run ------------------------------------------------------------------------------------

    def stop(self, run: RunFolder) -> None:
        """Ask the trainer to finish its step, save everything and end; a waiting run leaves the queue."""
        with self._changing() as book:
            job = book.of_run(run.id, "train")
            if job is None:
                if not self.is_running(run):
                    raise RunError(f"{run.id} is not being trained now; there is nothing to stop.", "config")
                job = self._adopt(book, run)
        self.cancel(job.id)

    def hurry_run(self, run: RunFolder) -> None:
        """:meth:`hurry` for the training of a run."""
        if job := self.queue.look().of_run(run.id, "train"):
            self.hurry(job.id)

    def ask(self, run: RunFolder, verb: Literal["save", "sample"]) -> None:
        """Ask the trainer for a checkpoint or for validation images now."""
        if not self.is_running(run):
            raise RunError(f"{run.id} is not being trained now; there is nothing to {verb}.", "config")
        run.send(verb)
