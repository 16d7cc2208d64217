"""The queue: what waits, what runs, what has ended; in its order, over restarts, and up the stop ladder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from running import wait_for

from studio.jobs import Supervisor
from studio.projects import Project
from studio.queue import ENDS_KEPT, Job, Queue, new_job
from studio.stopping import Patience, saved_step
from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.files import read_json, write_json
from trainer.contract.runs import RunFolder

SHORT = Patience(asked_s=0.3, term_s=0.3, kill_s=0.3)


def config_of(project: Project, seed: int) -> TrainConfig:
    """The draft with another seed: two trainings of one recipe would be a button pressed twice."""
    return parse(merge(to_tables(project.config()), {"train": {"seed": seed}}))


def start(jobs: Supervisor, project: Project, count: int) -> list[RunFolder]:
    return [jobs.start(project, config_of(project, seed)) for seed in range(count)]


def job_of(jobs: Supervisor, run: RunFolder) -> Job:
    return next(job for job in jobs.queue.look().jobs if job.run == run.id and job.kind == "train")


def states(jobs: Supervisor, runs: list[RunFolder]) -> list[str]:
    return [job_of(jobs, run).state for run in runs]


# Order ---------------------------------------------------------------------------------------------


def test_a_second_start_is_queued_frozen_at_once_and_begins_by_itself(supervise, project) -> None:
    jobs = supervise(steps=25)
    first, second = start(jobs, project, 2)
    assert second.config().train.seed == 1 and not second.launch.exists()
    status = jobs.status(second)
    assert status.state == "queued" and status.message.startswith("Next in line")
    wait_for(lambda: jobs.status(second).state == "finished")
    ended, begun = job_of(jobs, first), wait_for(lambda: (j := job_of(jobs, second)).over and j)
    assert (ended.state, begun.state) == ("finished", "finished")
    assert ended.ended <= begun.started


def test_reorder_cancel_and_queue_again(supervise, project) -> None:
    jobs = supervise(steps=100_000)
    running, a, b, c = start(jobs, project, 4)
    jobs.move(job_of(jobs, c).id, -1)
    jobs.move(job_of(jobs, c).id, -1)
    jobs.move(job_of(jobs, c).id, -1)  # it is the first that waits already
    jobs.move(job_of(jobs, running).id, +1)  # and what runs is not moved
    order = [job.run for job in jobs.queue.look().waiting()]
    assert order == [c.id, a.id, b.id]
    assert [jobs.status(run).message.split(":")[0] for run in (a, b)] == [
        "Number 2 in line",
        "Number 3 in line",
    ]

    jobs.cancel(job_of(jobs, c).id)
    assert jobs.status(c).state == "stopped" and "out of the queue" in jobs.status(c).message
    with pytest.raises(RunError, match="waits for its turn already"):
        jobs.resume(a)
    jobs.retry(job_of(jobs, c).id)
    assert [job.run for job in jobs.queue.look().waiting()] == [a.id, b.id, c.id]
    jobs.stop(b)  # the button of the run does the same
    jobs.remove(job_of(jobs, b).id)
    assert not b.path.exists(), "nothing was ever made of it"
    assert jobs.queue.look().of_run(b.id, "train") is None

    jobs.cancel(job_of(jobs, running).id)
    wait_for(lambda: states(jobs, [running, a]) == ["stopped", "running"])
    jobs.remove(job_of(jobs, running).id)
    assert running.path.exists(), "what has begun is kept"


def test_a_paused_queue_starts_nothing(supervise, project) -> None:
    jobs = supervise(steps=100_000)
    jobs.pause(True)
    (run,) = start(jobs, project, 1)
    assert jobs.status(run).state == "queued" and "paused" in jobs.status(run).message
    assert jobs.active() is None
    jobs.pause(False)
    wait_for(lambda: jobs.status(run).state == "training")


def test_the_queue_goes_on_after_a_death(supervise, project) -> None:
    jobs = supervise("gpu-oom")
    runs = start(jobs, project, 2)
    wait_for(lambda: states(jobs, runs) == ["failed", "failed"])
    assert [job_of(jobs, run).cause for run in runs] == ["gpu_oom", "gpu_oom"]
    assert "ran out of memory" in job_of(jobs, runs[0]).message


def test_when_one_after_the_other_fails_at_once_the_others_wait(supervise, project) -> None:
    jobs = supervise("exit2")
    runs = start(jobs, project, 5)
    wait_for(lambda: states(jobs, runs) == ["failed"] * 3 + ["waiting"] * 2)
    book = jobs.queue.look()
    assert book.paused and "3 trainings in a row failed" in book.notice
    jobs.pause(False)  # a person has looked; one more that fails is one too many again
    wait_for(lambda: states(jobs, runs) == ["failed"] * 4 + ["waiting"])
    assert jobs.queue.look().paused


def test_what_cannot_be_started_is_no_hindrance(supervise, project) -> None:
    jobs = supervise(steps=30)
    first, broken, last = start(jobs, project, 3)
    broken.recipe.write_text("[train]\nsteps = 'many'\n")
    wait_for(lambda: states(jobs, [first, broken, last]) == ["finished", "failed", "finished"])
    assert jobs.status(broken).state == "failed" and "train.steps" in jobs.status(broken).message


def test_old_ends_are_forgotten(supervise, project) -> None:
    jobs = supervise(steps=1)
    with jobs.queue.change() as book:
        for number in range(ENDS_KEPT + 5):
            book.put(new_job("sample").but(state="finished", ended=float(number)))
    (run,) = start(jobs, project, 1)
    wait_for(lambda: states(jobs, [run]) == ["finished"])
    jobs.tick()
    left = jobs.queue.look().ends()
    assert len(left) == ENDS_KEPT and left[0].run == run.id and left[-1].ended == 6.0


# Side by side --------------------------------------------------------------------------------------


def test_each_gpu_trains_one(supervise, project) -> None:
    jobs = supervise(steps=100_000, gpus=lambda: ("0", "GPU-5"))
    runs = start(jobs, project, 3)
    wait_for(lambda: all("devices" in run.log.read_text() for run in runs[:2]))
    assert [run.log.read_text().split("devices ")[1].split()[0] for run in runs[:2]] == ["0", "GPU-5"]
    assert states(jobs, runs) == ["running", "running", "waiting"]
    assert {run.id for run in jobs.trained_now()} == {run.id for run in runs[:2]}
    jobs.stop(runs[1])
    wait_for(lambda: states(jobs, runs) == ["running", "stopped", "running"])
    assert job_of(jobs, runs[2]).devices == ("GPU-5",)
    jobs.stop(runs[0]), jobs.stop(runs[2])


def test_a_training_on_several_gpus_waits_until_they_are_free(supervise, project) -> None:
    jobs = supervise(steps=100_000, gpus=lambda: ("0", "1", "2"))
    tables = to_tables(project.config())
    runs = [
        jobs.start(project, parse(merge(tables, {"machine": {"gpus": gpus}, "train": {"batch_size": 4}})))
        for gpus in (1, 2, 0)
    ]
    single, double, whole = runs
    wait_for(lambda: all("devices" in run.log.read_text() for run in runs[:2]))
    assert [job_of(jobs, run).devices for run in runs] == [("0",), ("1", "2"), ()]
    assert double.log.read_text().split("devices ")[1].split()[0] == "1,2"
    jobs.stop(single)
    wait_for(lambda: states(jobs, runs) == ["stopped", "running", "waiting"])
    jobs.stop(double)
    wait_for(lambda: states(jobs, runs) == ["stopped", "stopped", "running"])
    assert job_of(jobs, whole).devices == ("0", "1", "2")
    jobs.stop(whole)


def test_drawing_waits_for_the_gpu_and_tools_do_not(supervise, project) -> None:
    jobs = supervise(steps=100_000, tools=(sys.executable, "-c", "print('done')"))
    (run,) = start(jobs, project, 1)
    wait_for(lambda: saved_step(run))
    drawing = jobs.sample(run, ["-zwx blob", "another --d 8"], seed=3)
    captions = jobs.caption(project, "tag", ["--model=wd-vit-v3"])
    tool = jobs.tool(project, "crop")
    assert jobs.queue.look().job(drawing.id).state == "waiting"
    wait_for(lambda: jobs.queue.look().job(tool.id).state == "finished", seconds=60)
    for waits in (drawing, captions):
        assert jobs.queue.look().job(waits.id).state == "waiting"
    jobs.stop(run)
    wait_for(lambda: jobs.queue.look().job(drawing.id).state == "finished")
    assert read_json(run.path / "drawings.json") == [["-zwx blob --d 3", "another --d 8"], None, ""]


def test_a_tool_that_fails_says_why_and_is_tried_again(workspace, project) -> None:
    fails = (sys.executable, "-c", "print('first'); print('The face model cannot be had.'); exit(1)")
    jobs = Supervisor(workspace, tools=fails)
    job = jobs.tool(project, "crop")
    ended = wait_for(lambda: (j := jobs.queue.look().job(job.id)).over and j)
    assert (ended.state, ended.message) == ("failed", "The face model cannot be had.")
    assert jobs.log_of(job).exists()
    jobs.retry(job.id)
    assert jobs.queue.look().job(job.id) is None and not jobs.log_of(job).exists()
    wait_for(lambda: [j.state for j in jobs.queue.look().jobs] == ["failed"])


def test_a_running_tool_is_stopped(workspace, project) -> None:
    jobs = Supervisor(workspace, tools=(sys.executable, "-c", "import time; time.sleep(600)"))
    job = jobs.tool(project, "crop")
    pid = jobs.queue.look().job(job.id).pid
    jobs.cancel(job.id)
    wait_for(lambda: jobs.queue.look().job(job.id).state == "stopped")
    wait_for(lambda: not psutil.pid_exists(pid))


# The file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"jobs": [{"id": 1}, {"id": "x", "kind": "dance"}]}'])
def test_a_damaged_queue_is_told_and_nothing_is_lost(supervise, project, damage) -> None:
    jobs = supervise(steps=100_000)
    running, *waiting = start(jobs, project, 3)
    wait_for(running.alive)
    jobs.queue.path.write_text(damage)
    later = supervise(steps=100_000)
    later.tick()
    book = later.queue.look()
    assert [job.run for job in book.running()] == [running.id]
    assert [job.run for job in book.waiting()] == [run.id for run in waiting]
    assert book.paused and "queue.json.damaged" in book.notice
    assert (later.workspace.root / "queue.json.damaged").read_text() == damage
    later.pause(False)
    assert later.queue.look().notice == ""
    later.stop(running)
    wait_for(lambda: states(later, waiting) == ["running", "waiting"])


def test_one_damaged_entry_costs_no_other(workspace, project) -> None:
    queue = Queue(workspace.root)
    with queue.change() as book:
        kept = book.put(new_job("crop", project=project.id))
    raw = json.loads(queue.path.read_text())
    write_json(queue.path, {**raw, "jobs": [*raw["jobs"], {"id": "b", "kind": "dance"}]})
    with Queue(workspace.root).change() as book:
        assert book.jobs == [kept]
    assert "dance" in (workspace.root / "queue.json.damaged").read_text()


def test_two_studios_lose_none_of_each_others_jobs(workspace) -> None:
    def add(queue: Queue) -> None:
        for _ in range(20):
            with queue.change() as book:
                book.put(new_job("crop"))

    threads = [threading.Thread(target=add, args=(Queue(workspace.root),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Queue(workspace.root).look().jobs) == 60


def test_the_token_is_in_no_file(workspace, project, supervise) -> None:
    jobs = supervise(steps=1)
    (run,) = start(jobs, project, 1)
    wait_for(lambda: states(jobs, [run]) == ["finished"])
    asks = "import os; print('token', len(os.environ['HF_TOKEN']))"
    Supervisor(workspace, publisher=(sys.executable, "-c", asks)).publish(run, "me/x", True, "hf_" + "q" * 30)
    wait_for(lambda: "token 33" in (run.path / "publish.log").read_text())
    written = [path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()]
    assert not any(b"hf_qqq" in data for data in written)


# Restarts ------------------------------------------------------------------------------------------


def test_a_studio_that_was_killed_goes_on_where_it_was(supervise, project, studio_process) -> None:
    jobs = supervise(steps=150)
    jobs.pause(True)
    first, second = start(jobs, project, 2)
    with jobs.queue.change() as book:
        book.paused = False
    studio = studio_process(jobs._trainer)  # another than ours starts them
    wait_for(lambda: jobs.status(first).step > 3, seconds=60)
    studio.kill()
    studio.wait()
    assert jobs.is_running(first) and states(jobs, [first, second]) == ["running", "waiting"]
    studio_process(jobs._trainer)
    wait_for(lambda: states(jobs, [first, second]) == ["finished", "finished"], seconds=60)
    launched = [read_json(run.launch) for run in (first, second)]
    assert launched[0]["attempt"] == 1 and "exit_code" not in launched[0], "nobody was there to see it"
    assert read_json(second.launch)["time"] >= first.result(first.config()).stat().st_mtime


def test_a_training_from_a_command_line_is_found_and_waited_for(supervise, project) -> None:
    jobs = supervise(steps=100_000)
    jobs.pause(True)
    foreign, waiting = start(jobs, project, 2)
    with jobs.queue.change() as book:
        book.jobs, book.paused = [job for job in book.jobs if job.run != foreign.id], False
    process = subprocess.Popen(
        [*jobs._trainer, "resume", str(foreign.path)], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(foreign.alive)
        jobs._strays_at, jobs._active = float("-inf"), (float("-inf"), [])  # looked a moment ago
        jobs.tick()
        assert states(jobs, [foreign, waiting]) == ["running", "waiting"]
        jobs.stop(foreign)
        assert process.wait(20) == 3
        wait_for(lambda: jobs.tick() or states(jobs, [foreign, waiting]) == ["stopped", "running"])
    finally:
        process.kill()


# The stop ladder -----------------------------------------------------------------------------------


def all_gone(run: RunFolder) -> bool:
    """Whether neither the trainer nor its child lives (a zombie waits for its parent, and does nothing)."""
    for pid in (read_json(run.launch)["pid"], read_json(run.path / "child.json")):
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def test_a_deaf_trainer_and_its_child_are_killed_and_the_queue_goes_on(supervise, project) -> None:
    jobs = supervise("deaf", steps=100_000, patience=SHORT)
    first, second = start(jobs, project, 2)
    wait_for(lambda: jobs.status(first).step >= 12)
    jobs.watch()
    jobs.stop(first)
    wait_for(lambda: states(jobs, [first, second]) == ["stopped", "running"])
    wait_for(lambda: all_gone(first))
    status = jobs.status(first)
    assert status.state == "stopped" and "by force" in status.message
    saved = max(int(folder.name[5:]) for folder in first.checkpoints.iterdir())
    assert f"Resume goes on from step {saved}" in status.message
    wait_for(lambda: jobs.status(second).step >= 1)
    jobs.stop(second)
    wait_for(lambda: states(jobs, [second]) == ["stopped"])


def test_a_trainer_that_hears_only_signals_saves_and_ends(supervise, project) -> None:
    jobs = supervise("hears-term", steps=100_000, patience=Patience(asked_s=0.3, term_s=60))
    (run,) = start(jobs, project, 1)
    wait_for(lambda: jobs.status(run).step >= 1)
    jobs.watch()
    jobs.stop(run)
    wait_for(lambda: states(jobs, [run]) == ["stopped"])
    assert run.raw_status().state == "stopped", "in its own word"


def test_stop_now_goes_to_the_next_rung(supervise, project) -> None:
    jobs = supervise("deaf", steps=100_000)
    (run,) = start(jobs, project, 1)
    wait_for(lambda: jobs.status(run).step >= 1)
    jobs.hurry(job_of(jobs, run).id)
    assert job_of(jobs, run).stop is None, "nobody has asked it to stop yet"
    rungs = []
    jobs.stop(run)
    for _ in range(3):
        jobs.tick()
        rungs.append(job_of(jobs, run).stop.rung)
        jobs.hurry(job_of(jobs, run).id)
    assert rungs == ["asked", "term", "kill"]
    wait_for(lambda: states(jobs, [run]) == ["stopped"])


def test_the_ladder_goes_on_in_the_next_studio(supervise, project, studio_process) -> None:
    jobs = supervise("deaf", steps=100_000)  # a minute of patience, and no thread that climbs
    (run,) = start(jobs, project, 1)
    wait_for(lambda: jobs.status(run).step >= 1)
    jobs.stop(run)
    asked = job_of(jobs, run).stop
    studio_process(jobs._trainer)
    wait_for(lambda: not run.alive(), seconds=60)
    wait_for(lambda: states(jobs, [run]) == ["stopped"], seconds=60)
    assert asked.rung == "asked"
    wait_for(lambda: all_gone(run))


def test_what_a_kill_would_cost_is_said(workspace, project) -> None:
    from studio.stopping import at_stake

    run = RunFolder(workspace.runs / "a")
    assert at_stake(run, 0) == "nothing would be lost"
    assert at_stake(run, 1) == "1 step would be lost"
    for step, whole in ((10, True), (20, False)):
        run.checkpoint(step).mkdir(parents=True)
        if whole:
            (run.checkpoint(step) / "MANIFEST.json").write_text("{}")
    assert at_stake(run, 1234) == "1,224 steps since the checkpoint of step 10 would be lost"


def test_patience_is_longer_for_slow_steps_and_while_it_saves() -> None:
    from studio.queue import Stop
    from trainer.contract.runs import Status

    patience = Patience()
    asked, term = Stop(rung="asked", since=100.0), Stop(rung="term", since=100.0)
    assert patience.left(asked, Status(), 110.0) == 50.0
    assert patience.left(asked, Status(steps_per_s=0.02), 110.0) == 140.0
    stored = Status(state="stopped", heartbeat=105.0)
    assert patience.left(asked, stored, 110.0) == 650.0, "it is saved, and uploads"
    assert patience.left(asked, stored.model_copy(update={"heartbeat": 90.0}), 110.0) == 50.0
    assert patience.left(term, Status(state="training"), 110.0) == 25.0
    assert patience.left(term, Status(state="training"), 110.0, grace_s=120.0) == 115.0
    assert patience.left(term, Status(state="saving"), 110.0) == 290.0


def test_nobody_else_is_signalled(tmp_path: Path) -> None:
    from studio.processes import end_group

    assert not end_group(os.getpid(), 1.0, hard=True), "a recycled pid: this process began later"
    assert not end_group(None, None, hard=True) and not end_group("x", 1.0, hard=True)


def test_two_runs_of_one_second_get_two_names(supervise, project, monkeypatch) -> None:
    names = iter(["20260101-000000-a-00", "20260101-000000-a-00", "20260101-000000-a-01"])
    monkeypatch.setattr("studio.jobs.new_run_id", lambda name: next(names))
    jobs = supervise()
    jobs.pause(True)
    assert [run.id[-2:] for run in start(jobs, project, 2)] == ["00", "01"]
