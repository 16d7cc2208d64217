"""Helpers of the studio's tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image, ImageDraw

from studio.projects import Project, Workspace
from trainer.contract.config import TrainConfig
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.files import read_json
from trainer.contract.runs import RunFolder

PASSWORD = "correct horse battery"


def draw_photo(path: Path, colour: str, size: tuple[int, int] = (200, 150)) -> Path:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((60, 40, 140, 110), fill=colour)
    image.save(path)
    return path


def end_trainer(run: RunFolder) -> None:
    """Kill the process that launch.json names and its children, if it is ours and still there."""
    try:
        launch = read_json(run.launch)
        process = psutil.Process(launch["pid"])
        if abs(process.create_time() - launch["started"]) < 1.0:
            for one in (*process.children(), process):
                one.kill()
    except (FileNotFoundError, psutil.Error):
        pass


def wait_for(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s")


class Running:
    """A studio that answers on a loopback port."""

    def __init__(self, app: Any, port: int, stop: Callable[[], None]) -> None:
        self.app = app
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.stop = stop

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **options)


def make_run(workspace: Workspace, project: Project, name: str = "20260101-000000-a-00") -> RunFolder:
    run = RunFolder(workspace.runs / name)
    path = f"../../projects/{project.id}"
    run.create(parse(merge(to_tables(TrainConfig()), {"dataset": {"path": path}})))
    return run


def logged_in(studio: Running) -> httpx.Client:
    client = studio.client()
    assert client.post("/login", data={"password": PASSWORD}).status_code == 303
    return client


def functions_of(build: Callable[[Any], None], studio: Any) -> dict[str, Any]:
    """The handlers by name of a page built in Blocks of its own."""
    import gradio as gr

    with gr.Blocks() as blocks:
        build(studio)
    return {function.fn.__name__: function for function in blocks.fns.values() if function.fn is not None}
