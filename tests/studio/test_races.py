"""Several who want the same at once: a studio and a terminal, two studios over one workspace; and a token
that went with the studio into which it was typed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil
import pytest
from running import make_run, wait_for

from studio.board import board, going
from studio.jobs import Supervisor
from studio.processes import group_lives
from studio.projects import Project, Workspace
from studio.publication import ASKS_TOKEN, read_publish_status
from studio.queue import Job, Stop
from studio.stopping import Patience
from trainer.contract.errors import UserError
from trainer.contract.events import read_events
from trainer.contract.files import read_json
from trainer.contract.runs import RunFolder, Status

TOKEN = "hf_" + "Typed0nce" * 4
SAYS_TOKEN = (sys.executable, "-c", "import os; print('token', os.environ.get('HF_TOKEN', 'none')[:8])")


def trainers_of(run: RunFolder) -> int:
    """How many trainers ever had the run."""
    return sum(event["kind"] == "started" for event in read_events(run.events)[0])


def at_once(*calls: Callable[[], object]) -> list[str]:
    """What each of them said against it, "" for one that went through."""
    barrier, said = threading.Barrier(len(calls)), [""] * len(calls)

    def run(place: int) -> None:
        barrier.wait()
        try:
            calls[place]()
        except UserError as error:
            said[place] = str(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def terminal(jobs: Supervisor, run: RunFolder) -> subprocess.Popen[bytes]:
    command = [*jobs._trainer, "resume", str(run.path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


# A studio and a terminal ---------------------------------------------------------------------------


def test_the_terminal_is_quicker(supervise, project: Project, workspace: Workspace) -> None:
    jobs = supervise("gate", patience=Patience(0.2, 0.2, 0.2))
    run = make_run(workspace, project)
    jobs.resume(run)
    wait_for(lambda: "stand-in" in run.log.read_text())
    process = terminal(supervise(steps=100_000), run)  # our trainer is about to take the lock
    try:
        wait_for(run.alive)
        (run.path / "gate").touch()
        wait_for(lambda: not run.launch.exists())
        jobs.tick()
        (job,) = jobs.queue.look().jobs
        assert job.state == "running" and job.detail == "a trainer started elsewhere was quicker, and has it"
        assert "is already being trained; stop it first" in run.log.read_text()
        wait_for(lambda: jobs.status(run).state == "training")

        # It is asked to stop, as nothing more can be done to it; nobody says that it would be killed.
        with jobs.queue.change() as book:  # as if it did not listen
            book.put(job.but(stop=Stop(rung="asked", since=0.0)))
        jobs.tick()
        assert jobs.queue.look().job(job.id).stop.rung == "asked" and process.poll() is None
        assert "started outside of the studio" in going(jobs)[job.id]["stop"]["text"]
        run.send("stop")
        assert process.wait(20) == 3
        wait_for(lambda: jobs.tick() or jobs.queue.look().job(job.id).state == "stopped")
        assert trainers_of(run) == 1 and jobs.status(run).state == "stopped"
    finally:
        process.kill()


def test_the_studio_is_quicker(supervise, project: Project, workspace: Workspace) -> None:
    jobs = supervise(steps=100_000)
    run = make_run(workspace, project)
    process = terminal(supervise("gate"), run)
    try:
        jobs.resume(run)
        wait_for(run.alive)
        (run.path / "gate").touch()
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 2
        assert f"error: the run {run.id} is already being trained; stop it first" in said.decode()
        wait_for(lambda: jobs.status(run).state == "training")
        assert trainers_of(run) == 1 and not jobs.is_foreign(run)
        jobs.stop(run)
        wait_for(lambda: jobs.status(run).state == "stopped")
    finally:
        process.kill()


def test_a_run_that_a_terminal_goes_on_with_is_not_taken_for_the_studios(
    supervise, project: Project, workspace: Workspace
) -> None:
    """It has a launch.json, of the attempt before."""
    jobs = supervise(steps=100_000)
    run = make_run(workspace, project)
    jobs.resume(run)
    wait_for(lambda: jobs.status(run).step)
    jobs.stop(run)
    wait_for(lambda: "exit_code" in read_json(run.launch))
    wait_for(lambda: not jobs.is_running(run))
    process = terminal(jobs, run)
    try:
        wait_for(run.alive)
        assert jobs.is_foreign(run) and not jobs._force(run, hard=True)
        assert process.poll() is None and "forced" not in read_json(run.launch)
    finally:
        process.kill()
        process.wait()


# Two studios ---------------------------------------------------------------------------------------


def test_start_is_pressed_in_two_studios(supervise, project: Project) -> None:
    one, two = supervise(steps=100_000), supervise(steps=100_000)
    said = at_once(*(lambda jobs=jobs: jobs.start(project, project.config()) for jobs in (one, two)))
    first, second = sorted(said)
    assert first == "" and second.startswith("Blob was started with this very recipe 0 s ago; wait")
    (run,) = project.runs()
    wait_for(lambda: one.status(run).state == "training")
    assert two.status(run).state == "training" and trainers_of(run) == 1
    assert [job.run for job in two.queue.look().running()] == [run.id]
    two.stop(run)
    wait_for(lambda: one.status(run).state == "stopped")


def test_resume_is_pressed_in_two_studios(supervise, project: Project, workspace: Workspace) -> None:
    run = make_run(workspace, project)
    run.write_status(Status(state="stopped", step=10, total=99, attempt=1))
    one, two = supervise(steps=100_000), supervise(steps=100_000)
    said = sorted(at_once(lambda: one.resume(run), lambda: two.resume(run)))
    # The second finds it either trained or about to be.
    late = (f"{run.id} is being trained now; stop it first", f"{run.id} waits for its turn already")
    assert said[0] == "" and said[1].startswith(late)
    wait_for(lambda: two.status(run).step > 10)
    assert trainers_of(run) == 1 and read_json(run.launch)["attempt"] == 2
    one.stop(run)
    wait_for(lambda: one.status(run).state == "stopped")


def test_the_queue_starts_each_training_once(supervise, project: Project, workspace: Workspace) -> None:
    one, two = supervise(steps=3), supervise(steps=3)
    one.pause(True)
    runs = [make_run(workspace, project, f"20260101-000000-a-0{number}") for number in range(3)]
    for run in runs:
        one.resume(run)
    one.watch(), two.watch()
    at_once(lambda: one.pause(False), lambda: two.pause(False))
    wait_for(lambda: [job.state for job in one.queue.look().jobs] == ["finished"] * 3)
    assert [trainers_of(run) for run in runs] == [1, 1, 1]


def test_a_lock_that_another_studio_looks_at_is_not_held(
    workspace: Workspace, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.contract.runs.PROBE_S", 5.0)  # however slow this machine is
    run = make_run(workspace, project)
    taken = threading.Event()

    def look() -> None:
        """As a probe does, for a moment."""
        with run.hold():
            taken.set()
            time.sleep(0.1)

    threading.Thread(target=look).start()
    assert taken.wait(10) and not run.alive()


def test_how_a_tool_ended_is_said_by_the_studio_that_saw_it(workspace: Workspace, project: Project) -> None:
    code = "import time; print('No face model.', flush=True); time.sleep(1.0); exit(1)"
    jobs = Supervisor(workspace, tools=(sys.executable, "-c", code))
    job = jobs.tool(project, "crop")
    watcher = "import sys; from pathlib import Path; from studio.jobs import Supervisor;" + (
        "from studio.projects import Workspace; jobs = Supervisor(Workspace(Path(sys.argv[1])), gpus=tuple);"
        "print('ready', flush=True)\nwhile True: jobs.tick()"
    )
    other = subprocess.Popen([sys.executable, "-c", watcher, str(workspace.root)], stdout=subprocess.PIPE)
    try:
        ended = wait_for(lambda: (j := jobs.queue.look().job(job.id)).over and j)
        assert (ended.state, ended.message) == ("failed", "No face model.")
    finally:
        other.kill()
        other.wait()


# A token that was typed ----------------------------------------------------------------------------


@pytest.fixture
def finished(workspace: Workspace, project: Project) -> RunFolder:
    run = make_run(workspace, project)
    run.write_status(Status(state="finished", step=9, total=9, attempt=1))
    run.result(run.config()).write_bytes(b"weights")
    return run


def publishing(jobs: Supervisor, run: RunFolder) -> Job:
    job = jobs.queue.look().of_run(run.id, "publish")
    assert job
    return job


def after_a_restart(jobs: Supervisor, run: RunFolder) -> Supervisor:
    """Another studio, when the one that ``jobs`` stands for has ended."""
    with jobs.queue.change() as book:
        book.put(publishing(jobs, run).but(studio=(2**22 + 1, 1.0)))
    return Supervisor(jobs.workspace, publisher=SAYS_TOKEN, gpus=tuple)


def test_a_publishing_that_waited_over_a_restart_asks_for_its_token(
    workspace: Workspace, finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another_account")
    jobs = Supervisor(workspace, publisher=SAYS_TOKEN, gpus=tuple)
    jobs.pause(True)
    jobs.publish(finished, "me/cat", True, TOKEN)
    assert jobs.publish_status(finished)["message"] == "It waits: the queue is paused."
    with pytest.raises(UserError, match="being published already"):
        jobs.publish(finished, "me/cat", True, TOKEN)
    later = after_a_restart(jobs, finished)
    later.pause(False)
    later.tick()
    assert publishing(later, finished).state == "waiting", "never with the token of somebody else"
    status = later.publish_status(finished)
    assert (status["state"], status["message"], status["repo_id"]) == ("asks", ASKS_TOKEN, "me/cat")
    assert board(later)[1]["jobs"][0]["message"] == ASKS_TOKEN

    later.publish(finished, "me/kitten", False, TOKEN)
    wait_for(lambda: "token hf_Typed" in (finished.path / "publish.log").read_text())
    (job,) = later.queue.look().jobs
    assert job.detail == "me/kitten" and "--public" in job.arguments
    everything = [path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in data for data in everything)
    wait_for(lambda: read_publish_status(finished)["state"] == "failed")  # that publisher tells nothing


def test_the_studio_that_has_the_token_publishes_and_the_other_lets_it(
    workspace: Workspace, finished: RunFolder
) -> None:
    jobs = Supervisor(workspace, publisher=SAYS_TOKEN, gpus=tuple)
    jobs.pause(True)
    jobs.publish(finished, "me/cat", True, TOKEN)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with jobs.queue.change() as book:
            holder = (sleeper.pid, psutil.Process(sleeper.pid).create_time())
            book.put(publishing(jobs, finished).but(studio=holder))
        other = Supervisor(workspace, publisher=SAYS_TOKEN, gpus=tuple)
        other.pause(False)
        assert other.publish_status(finished)["state"] == "running" and not other._may_start(
            other.queue.look()
        )
    finally:
        sleeper.kill()
        sleeper.wait()
    assert other.publish_status(finished)["state"] == "asks"


def test_try_again_asks_for_the_token_too(workspace: Workspace, finished: RunFolder) -> None:
    jobs = Supervisor(workspace, publisher=SAYS_TOKEN, gpus=tuple)
    jobs.publish(finished, "me/cat", True, TOKEN)
    job = jobs.queue.look().jobs[0]
    wait_for(lambda: jobs.queue.look().job(job.id).state == "failed")
    jobs.retry(job.id)
    assert jobs.publish_status(finished)["state"] == "asks"
    jobs.cancel(publishing(jobs, finished).id)
    assert jobs.publish_status(finished)["state"] == "failed"


def test_nobody_is_left_of_a_process_that_is_none() -> None:
    assert not group_lives(None, None) and not group_lives("x", 1.0)
