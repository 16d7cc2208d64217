"""The supervisor, with a stand-in trainer that keeps the run folder's promises."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from subprocess import Popen

import psutil
import pytest
from running import wait_for

from studio.diagnosis import REMEDIES, explain
from studio.jobs import Supervisor
from studio.queue import Stop
from trainer.contract.errors import RunError, UserError
from trainer.contract.events import read_events
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.files import read_json, write_json
from trainer.contract.runs import CAUSES, RunFolder, Status


def state_of(jobs: Supervisor, run: RunFolder) -> str:
    return jobs.status(run).state


def test_start_freezes_the_recipe_and_trains_to_the_end(supervise, project) -> None:
    jobs = supervise(steps=20)
    run = jobs.start(project, project.config())
    assert state_of(jobs, run) in ("starting", "training")
    wait_for(lambda: state_of(jobs, run) == "finished")
    frozen = run.config()
    assert (run.path / frozen.dataset.path).resolve() == project.root
    assert not os.path.isabs(frozen.dataset.path) and frozen.dataset.trigger == "zwx blob"
    assert project.runs() == [run]
    launch = wait_for(lambda: "exit_code" in read_json(run.launch) and read_json(run.launch))
    assert launch["attempt"] == 1 and launch["exit_code"] == 0
    assert wait_for(lambda: jobs.active() is None)
    assert explain(jobs.status(run)) is None


def test_trainer_is_detached_and_leaves_no_zombie(supervise, project, monkeypatch) -> None:
    jobs = supervise(steps=500)
    monkeypatch.setattr("studio.processes.subprocess.Popen", Popen)  # a fork has its parent's numbers open
    run = jobs.start(project, project.config())
    pid = read_json(run.launch)["pid"]
    assert os.getsid(pid) == pid != os.getsid(0)
    assert psutil.Process(pid).num_fds() < 20
    jobs.stop(run)
    wait_for(lambda: not psutil.pid_exists(pid))


def test_password_is_kept_from_the_trainer_and_the_token_is_given(supervise, project, monkeypatch) -> None:
    monkeypatch.setenv("STUDIO_PASSWORD", "secret")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    jobs = supervise(steps=1)
    run = jobs.start(project, project.config())
    wait_for(lambda: state_of(jobs, run) == "finished")
    assert "stand-in train True False" in run.log.read_text()
    written = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert b"hf_aaaa" not in written


def test_a_button_pressed_twice_starts_one_training(supervise, project) -> None:
    jobs = supervise("slow-start", steps=500)
    run = jobs.start(project, project.config())
    for _ in range(2):  # before it holds its lock, and after
        with pytest.raises(RunError, match=r"^Blob was started with this very recipe \d s ago; wait"):
            jobs.start(project, project.config())
        with pytest.raises(RunError, match="being trained now"):
            jobs.resume(run)
        wait_for(run.alive)
    assert len(project.runs()) == 1


def test_two_runs_are_never_stored_in_one_place(supervise, project, tmp_path) -> None:
    jobs = supervise(steps=1)
    jobs.pause(True)

    def stored_at(url: str):
        return parse(merge(to_tables(project.config()), {"storage": {"url": url}}))

    own = stored_at(f"file://{tmp_path}/stored/{{run}}")
    run = jobs.start(project, own)
    assert run.config().storage.url.endswith(f"/{run.id}")
    with pytest.raises(RunError, match="started with this very recipe"):
        jobs.start(project, own)
    one = stored_at(f"file://{tmp_path}/one")
    first = jobs.start(project, one)
    jobs.cancel(jobs.queue.look().of_run(first.id, "train").id)
    with pytest.raises(RunError, match=rf"/one is the place of {first.id} already; add /{{run}} to"):
        jobs.start(project, one)
    assert len(project.runs()) == 2


def test_a_new_studio_finds_the_run_again_and_stops_it(supervise, project) -> None:
    run = supervise(steps=5000).start(project, project.config())
    wait_for(run.alive)
    later = supervise()
    assert later.active() == run
    wait_for(lambda: later.status(run).state == "training")
    with pytest.raises(RunError, match="being trained now"):
        later.resume(run)
    later.stop(run)
    wait_for(lambda: state_of(later, run) == "stopped")
    wait_for(lambda: later.active() is None)


def test_trainer_outlives_the_process_that_started_it(supervise, project, workspace) -> None:
    argv = supervise(steps=5000)._trainer
    code = (
        "import sys; from pathlib import Path; from studio.jobs import Supervisor;"
        "from studio.projects import Workspace; w = Workspace(Path(sys.argv[1])); p = w.project(sys.argv[2]);"
        "print(Supervisor(w, trainer=tuple(sys.argv[3:])).start(p, p.config()).id)"
    )
    command = [sys.executable, "-c", code, str(workspace.root), project.id, *argv]
    run_id = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    run = workspace.run(run_id)
    jobs = supervise()
    wait_for(lambda: jobs.status(run).step > 3)
    jobs.stop(run)
    wait_for(lambda: state_of(jobs, run) == "stopped")


def test_stop_then_resume_goes_on(supervise, project) -> None:
    jobs = supervise(steps=60)
    run = jobs.start(project, project.config())
    wait_for(lambda: jobs.status(run).step >= 5)
    jobs.stop(run)
    wait_for(lambda: state_of(jobs, run) == "stopped")
    stopped_at = jobs.status(run).step
    wait_for(lambda: not jobs.is_running(run))
    run.send("stop")  # a stop that nobody read must not end the resumed run
    jobs.resume(run)
    assert state_of(jobs, run) in ("starting", "training"), "not the old 'stopped'"
    wait_for(lambda: state_of(jobs, run) == "finished")
    events, _ = read_events(run.events)
    assert [event["step"] for event in events if event["kind"] == "started"] == [0, stopped_at]
    assert read_json(run.launch)["attempt"] == 2
    wait_for(lambda: not jobs.is_running(run))
    with pytest.raises(RunError, match="already finished"):
        jobs.resume(run)


def test_an_ended_run_is_probed_again_only_when_somebody_goes_on_with_it(
    supervise, project, monkeypatch
) -> None:
    jobs = supervise(steps=3)
    run = jobs.start(project, project.config())
    wait_for(lambda: "exit_code" in read_json(run.launch))
    wait_for(lambda: jobs.active() is None)

    probes: list[str] = []
    alive = RunFolder.alive
    monkeypatch.setattr(RunFolder, "alive", lambda run: probes.append(run.id) or alive(run))

    def ask() -> RunFolder | None:
        jobs._active = (0.0, [])  # not the answer of half a second ago
        return jobs.active()

    ask(), probes.clear()
    assert [ask() for _ in range(5)] == [None] * 5 and probes == []
    held = run.hold()  # as `python -m trainer resume` does, without the studio
    assert ask() == run and probes
    held.release()
    assert ask() is None


def test_a_run_that_died_without_a_word_is_probed_each_time(supervise, project) -> None:
    jobs = supervise("kill9")
    run = jobs.start(project, project.config())
    wait_for(lambda: "exit_code" in read_json(run.launch))
    wait_for(lambda: jobs.active() is None)
    assert run.id not in jobs._ended


def test_a_clock_that_is_set_back_is_survived(supervise, project) -> None:
    """What is shown of a run does not wait until the clock has come again to where it was."""
    jobs = supervise(steps=100_000)
    run = jobs.start(project, project.config())
    wait_for(lambda: jobs.status(run).state == "training")
    later = {"time": time.time() + 3600}
    write_json(run.launch, read_json(run.launch) | later)
    assert state_of(jobs, run) == "training"
    jobs.stop(run)
    with jobs.queue.change() as book:
        (job,) = book.jobs
        book.put(job.but(stop=Stop(rung="asked", since=later["time"])))
    jobs.tick()
    (job,) = jobs.queue.look().jobs
    assert job.over or job.stop.since <= time.time(), "the ladder counts from now on"
    wait_for(lambda: "exit_code" in read_json(run.launch))
    assert state_of(jobs, run) == "stopped"
    write_json(run.launch, read_json(run.launch) | {"time": run.raw_status().heartbeat + 1e-3})
    assert state_of(jobs, run) == "stopped", "and when it has come there"


def test_nothing_to_stop(supervise, project) -> None:
    jobs = supervise(steps=1)
    run = jobs.start(project, project.config())
    wait_for(lambda: state_of(jobs, run) == "finished")
    wait_for(lambda: not jobs.is_running(run))
    with pytest.raises(RunError, match="nothing to stop"):
        jobs.stop(run)
    with pytest.raises(RunError, match="nothing to sample"):
        jobs.ask(run, "sample")


def test_flood_of_output_blocks_nothing(supervise, project) -> None:
    jobs = supervise("flood", steps=55)
    run = jobs.start(project, project.config())
    wait_for(lambda: state_of(jobs, run) == "finished", seconds=60)
    assert run.log.stat().st_size > 10_000_000


# Refusals ------------------------------------------------------------------------------------------


def test_empty_dataset_is_refused(supervise, workspace, project) -> None:
    jobs = supervise()
    empty = workspace.create_project("Nothing here")
    with pytest.raises(RunError, match="it has no photos"):
        jobs.start(empty, empty.config())
    for record in project.dataset().images:
        project.set_enabled(record.id, False)
    with pytest.raises(RunError, match="all its photos are left out"):
        jobs.start(project, project.config())
    assert workspace.list_runs() == []


def test_start_lock_that_cannot_be_taken_is_one_sentence(supervise, workspace, project) -> None:
    (workspace.root / ".start.lock").mkdir()
    with pytest.raises(RunError, match=r"\.start\.lock cannot be locked \(.*directory.*\), so no training"):
        supervise().start(project, project.config())
    assert workspace.list_runs() == []


def test_full_disk_is_refused(supervise, project, monkeypatch) -> None:
    class Full:
        free = 100 * 2**20

    monkeypatch.setattr("trainer.contract.disk.shutil.disk_usage", lambda path: Full)
    with pytest.raises(RunError, match=r"The disk has 0\.1 GiB free") as caught:
        supervise().start(project, project.config())
    assert caught.value.cause == "disk_full" and project.runs() == []


def test_trainer_that_cannot_be_started_is_one_sentence(workspace, project) -> None:
    with pytest.raises(RunError, match="cannot be started"):
        Supervisor(workspace, trainer=("/no/such/python",)).start(project, project.config())
    assert workspace.list_runs() == []


def test_disk_that_fills_up_at_the_start_leaves_no_run(supervise, workspace, project, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("studio.trainings.write_json", full)
    with pytest.raises(RunError, match="cannot be written"):
        supervise(steps=5000).start(project, project.config())
    assert workspace.list_runs() == [] and not list(workspace.runs.iterdir())


# Deaths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behave", "cause", "sentence", "evidence"),
    [
        ("kill9", "killed", "SIGKILL", "step 3"),
        ("gpu-oom", "gpu_oom", "ran out of memory", "CUDA out of memory"),
        ("exit1", "unknown", "exit code 1 at step 3", "ZeroDivisionError"),
        ("exit2", "config", "train.steps = 'many'", "whole number"),
    ],
)
def test_death_is_diagnosed(supervise, project, behave, cause, sentence, evidence) -> None:
    jobs = supervise(behave)
    run = jobs.start(project, project.config())
    started = time.monotonic()
    wait_for(lambda: state_of(jobs, run) == "lost")
    wait_for(lambda: "exit_code" in read_json(run.launch))
    assert time.monotonic() - started < 10
    found = explain(jobs.status(run))
    assert found is not None
    assert (found.cause, found.remedy) == (cause, REMEDIES[cause])
    assert sentence in found.sentence and evidence in found.evidence
    wait_for(lambda: jobs.active() is None)
    fine = supervise(steps=3)
    assert wait_for(lambda: state_of(fine, fine.start(project, project.config())))
    wait_for(lambda: fine.active() is None)


def test_death_of_a_resumed_run_is_not_shown_as_its_old_end(supervise, project) -> None:
    jobs = supervise(steps=200)
    run = jobs.start(project, project.config())
    wait_for(lambda: jobs.status(run).step >= 3)
    jobs.stop(run)
    wait_for(lambda: not jobs.is_running(run))
    assert state_of(jobs, run) == "stopped"
    broken = supervise("exit2")
    broken.resume(run)
    wait_for(lambda: not broken.is_running(run))
    wait_for(lambda: state_of(broken, run) == "lost")
    assert broken.status(run).cause == "config"


def test_old_output_is_no_evidence_for_a_new_death(supervise, project) -> None:
    first = supervise("gpu-oom")
    run = first.start(project, project.config())
    wait_for(lambda: first.status(run).cause == "gpu_oom")
    wait_for(lambda: "exit_code" in read_json(run.launch))
    second = supervise("exit2")
    second.resume(run)
    wait_for(lambda: second.status(run).cause == "config")


def test_recycled_pid_is_not_taken_for_the_trainer(supervise, project) -> None:
    jobs = supervise(steps=1)
    run = jobs.start(project, project.config())
    wait_for(lambda: "exit_code" in read_json(run.launch))
    launch = read_json(run.launch)
    launch.pop("exit_code")
    write_json(run.launch, {**launch, "pid": os.getpid()})
    assert not jobs.is_running(run) and state_of(jobs, run) == "finished"
    psutil.Process().status()  # nobody was signalled


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"pid": "x", "started": null}'])
def test_damaged_launch_file_is_survived(supervise, project, damage) -> None:
    jobs = supervise(steps=1)
    run = jobs.start(project, project.config())
    wait_for(lambda: "exit_code" in read_json(run.launch))
    wait_for(lambda: not jobs.is_running(run))
    run.launch.write_text(damage)
    assert state_of(jobs, run) == "finished" and not jobs.is_running(run)
    run.launch.unlink()


def test_every_cause_has_a_remedy() -> None:
    assert set(REMEDIES) == set(CAUSES)
    for cause in CAUSES:
        found = explain(Status(state="failed", cause=cause))
        assert found is not None and found.sentence and found.remedy


def test_evidence_is_redacted(supervise, project) -> None:
    jobs = supervise("exit1")
    run = jobs.start(project, project.config())
    wait_for(lambda: "exit_code" in read_json(run.launch))
    with run.log.open("a") as log:
        log.write("401 Client Error: https://me:pass@hub.example/x Bearer hf_abcdefghijklmnopqrst\n")
    found = wait_for(lambda: explain(jobs.status(run)))
    assert found.cause == "gated_model"
    assert "abcdef" not in found.evidence and "pass@" not in found.evidence


def test_killed_while_starting_is_told_at_once(supervise, project) -> None:
    jobs = supervise("slow-start")
    run = jobs.start(project, project.config())
    assert state_of(jobs, run) == "starting"
    os.kill(read_json(run.launch)["pid"], signal.SIGKILL)
    wait_for(lambda: state_of(jobs, run) == "lost", seconds=3)
    assert "before the first step" in jobs.status(run).message


# Publishing: what the supervisor itself refuses (tests/studio/test_publish.py has the rest) ------------


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a b", "a/", "/a", "a--b", "x" * 200, "a/..", "é/x"])
def test_impossible_repository_names_are_refused(supervise, project, name) -> None:
    jobs = supervise(steps=1)
    run = jobs.start(project, project.config())
    wait_for(lambda: state_of(jobs, run) == "finished")
    with pytest.raises(UserError, match="no name for a model on the Hub"):
        jobs.publish(run, name, True, "hf_x")
    assert jobs.publish_status(run)["state"] == "none"


def test_unfinished_run_is_not_published(supervise, project) -> None:
    jobs = supervise(steps=5000)
    run = jobs.start(project, project.config())
    with pytest.raises(UserError, match="no finished LoRA yet"):
        jobs.publish(run, "me/x", True, "hf_x")


def test_publishing_process_that_dies_is_told(supervise, project, workspace) -> None:
    jobs = supervise(steps=1)
    run = jobs.start(project, project.config())
    wait_for(lambda: state_of(jobs, run) == "finished" and not jobs.queue.look().running())
    jobs.close()  # two of one process are taken for the same studio
    dying = Supervisor(workspace, publisher=(sys.executable, "-c", "import os; os._exit(7)"))
    dying.publish(run, "me/x", True, "hf_x")
    wait_for(lambda: dying.publish_status(run)["state"] == "failed")
    assert "exit code 7" in dying.publish_status(run)["message"]
    wait_for(lambda: not dying.queue.look().running())
    write_json(run.path / "publish.json", {"state": "running", "time": time.time() - 60, "repo_id": "me/x"})
    assert "interrupted" in supervise().publish_status(run)["message"]
    assert json.loads((run.path / "publish.json").read_text())["state"] == "running"


def test_recipe_with_other_settings_reaches_the_run(supervise, project) -> None:
    changed = parse(merge(to_tables(project.config()), {"train": {"steps": 7}, "output": {"name": "Cat_v1"}}))
    run = supervise(steps=1).start(project, changed)
    assert run.config().train.steps == 7 and "cat-v1" in run.id
