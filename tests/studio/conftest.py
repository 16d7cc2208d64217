"""Fixtures of the studio's tests: a workspace with drawn photos, and a studio on a real loopback socket."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import Running, draw_photo, end_trainer, wait_for

from studio.auth import SCRYPT
from studio.context import Studio
from studio.jobs import Supervisor
from studio.processes import REPOSITORY
from studio.projects import Project, Workspace
from tests.forks import ForkedAside
from trainer.contract.errors import UserError

STAND_IN = (sys.executable, "-m", "tests.studio.stand_in_trainer")
STUDIO = (
    "import sys, time; from pathlib import Path; from studio.jobs import Supervisor;"
    "from studio.projects import Workspace; from studio.stopping import Patience;"
    "jobs = Supervisor(Workspace(Path(sys.argv[1])), trainer=tuple(sys.argv[2:]), gpus=tuple,"
    " patience=Patience(1.0, 1.0, 1.0)); jobs.watch(); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that cost 1 ms instead of 100; the tests that start app.py have the real cost."""
    monkeypatch.setitem(SCRYPT, "n", 2**8)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def project(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Three pictures with crops, two captions, a trigger; faces are not looked for."""
    from dataset_tools.crop import crop_project
    from dataset_tools.ingest import ingest

    monkeypatch.setattr("dataset_tools.crop.ensure_face_model", lambda *_, **__: None)
    made = workspace.create_project("Blob")
    photos = [draw_photo(tmp_path / f"{colour}.png", colour) for colour in ("red", "green", "blue")]
    for name in ("red", "green"):
        (tmp_path / f"{name}.txt").write_text(f"a {name} blob")
    ingest([*photos, tmp_path / "red.txt", tmp_path / "green.txt"], made.root)
    made.set_trigger("zwx blob")
    crop_project(made.root, made.buckets(), models_dir=None)
    return made


@pytest.fixture
def studio(workspace: Workspace) -> Studio:
    return Studio(workspace, Supervisor(workspace))


@pytest.fixture
def luna(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Four pictures, three with captions; faces are not looked for."""
    monkeypatch.setattr("dataset_tools.crop.ensure_face_model", lambda *_, **__: None)
    made = studio.workspace.create_project("Luna")
    source = tmp_path / "photos"
    source.mkdir()
    for index, caption in enumerate(["a cat, sofa", "zwx cat, garden", "a category, sofa", ""]):
        Image.new("RGB", (200 + 20 * index, 200), (50 * index, 90, 90)).save(source / f"{index}.png")
        if caption:
            (source / f"{index}.txt").write_text(caption, encoding="utf-8")
    made.add(sorted(source.iterdir()))
    made.set_trigger("zwx cat")
    return made


@pytest.fixture
def supervise(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Supervisor]]:
    """Supervisors whose trainer is a fork of the stand-in; what they started and still lives is ended."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr("studio.processes.subprocess.Popen", ForkedAside)

    made: list[Supervisor] = []

    def make(behave: str = "train", steps: int = 40, **options: Any) -> Supervisor:
        argv = (*STAND_IN, "--behave", behave, "--steps", str(steps))
        made.append(Supervisor(workspace, trainer=argv, **{"gpus": tuple, **options}))
        return made[-1]

    yield make
    for jobs in made:
        jobs.close()
    with suppress(UserError):  # a test that broke the workspace's lock
        Supervisor(workspace).pause(True)  # what ends now must not let the next one begin
    for run in workspace.list_runs():
        end_trainer(run)


@pytest.fixture
def studio_process(workspace, supervise) -> Iterator[object]:
    """``studio_process(argv)``: the supervisor in a process of its own, which may be killed."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(trainer: tuple[str, ...]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", STUDIO, str(workspace.root), *trainer]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def serve(workspace: Workspace) -> Iterator[Callable[..., Running]]:
    """``serve(password=…)`` starts the real server around a page of one text box."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    import uvicorn

    from studio.auth import Limiter, Sessions
    from studio.context import Studio
    from studio.listen import bind
    from studio.server import create_app

    started: list[Callable[[], None]] = []

    def start(
        password: str | None = None,
        jobs: Supervisor | None = None,
        limiter: Limiter | None = None,
        public: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> Running:
        with gr.Blocks(analytics_enabled=False) as page:
            box = gr.Textbox("hello")
            gr.File()
            gr.Button().click(lambda text: text.upper(), box, box, api_name="shout")
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        sessions = Sessions(workspace.root / "sessions.json", password, clock) if password else None
        studio = Studio(workspace, jobs or Supervisor(workspace), public, has_password=bool(password))
        app = create_app(studio, page, sessions=sessions, port=port, limiter=limiter)
        config = uvicorn.Config(app, log_level="error", proxy_headers=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: server.started)

        def stop() -> None:
            server.should_exit = True
            thread.join(10)

        started.append(stop)
        return Running(app, port, stop)

    yield start
    for stop in started:
        stop()
