"""A studio as a process of its own, and a Chromium that looks at it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from trainer.contract.files import read_json
from trainer.contract.runs import list_runs

from ..conftest import ROOT
from ..forks import Program, read_already

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
expect.set_options(timeout=20_000)
UPDATE_SCREENSHOTS = os.environ.get("UPDATE_SCREENSHOTS") == "1"
FAILED = pytest.StashKey[bool]()
SCREENSHOTS = ROOT / "docs" / "screenshots"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            # A Chromium on a busy machine may be slower than any limit; what is broken fails twice. What was
            # run again is counted in the summary.
            item.add_marker(pytest.mark.flaky(reruns=1))
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember for the fixtures below whether the test itself failed."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


class StudioProcess:
    """``python app.py`` on a port of its own; ``kill`` and ``start`` again to restart it.

    It and its trainers are forks that have all imports, unless their environment asks for new interpreters.
    """

    program = "app"

    def __init__(self, workspace: Path, *options: str, password: str = "", **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.workspace = workspace
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = options
        # No network: pip and urllib give up at once, and crops are chosen without the face model.
        self._environment = os.environ | {
            "PIP_NO_INDEX": "1",
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
            "no_proxy": "127.0.0.1",
            **environment,
        }
        if password:
            self._environment["STUDIO_PASSWORD"] = password
        self._process: subprocess.Popen[bytes] | None = None
        self.log = workspace.parent / "studio.log"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--workspace", str(self.workspace), *self._options]
        with self.log.open("ab") as output:
            streams: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": output,
                "stderr": subprocess.STDOUT,
            }
            if not read_already(self._environment):
                self._process = Program(
                    self.program, *arguments, sets_aside=True, cwd=ROOT, env=self._environment, **streams
                )
            else:
                command = [sys.executable, "-m", self.program, *arguments]
                self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, **streams)
        wait_until(self._answers, 120, lambda: self.log.read_text(errors="replace")[-3000:])

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/healthz", timeout=1, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """SIGKILL: the studio gets no chance to say goodbye. Trainings are processes of their own."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def end_trainings(self) -> None:
        """End the trainers that this studio started and that still live."""
        for run in list_runs(self.workspace / "runs"):
            try:
                launch = read_json(run.launch)
                process = psutil.Process(launch["pid"])
                if abs(process.create_time() - launch["started"]) < 1:
                    process.kill()
            except (FileNotFoundError, psutil.Error):
                continue


def wait_until(
    condition: Callable[[], object], seconds: float = 30, explain: Callable[[], str] = str
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {explain()}"
        time.sleep(0.1)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Callable[..., StudioProcess]]:
    """``studio(*options, password="", **environment)`` starts one; all are ended, and their trainings."""
    started: list[StudioProcess] = []

    def start(*options: str, password: str = "", **environment: str) -> StudioProcess:
        process = StudioProcess(tmp_path / "workspace", *options, password=password, **environment)
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.kill()
        process.end_trainings()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrowserContext]:
    """A fresh profile. When the test fails, what its pages showed is kept beside its other files."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, accept_downloads=True, reduced_motion="reduce"
    )
    context.set_default_timeout(30_000)
    yield context
    if request.node.stash.get(FAILED, False):
        for number, page in enumerate(context.pages):
            shot = tmp_path / f"failed-{number}.png"
            page.screenshot(path=shot)
            print(f"{page.url} looked like {shot}")
    context.close()


class Console:
    """What went wrong in a page: script errors, and answers of 400 and above."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def watch(self, page: Page) -> Page:
        page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        page.on("response", lambda answer: self._answer(answer.status, answer.url))
        return page

    def _answer(self, status: int, url: str) -> None:
        if status >= 400:
            self.problems.append(f"{status} {url}")


@pytest.fixture
def console() -> Iterator[Console]:
    watcher = Console()
    yield watcher
    assert not watcher.problems


@pytest.fixture
def picture() -> Callable[..., None]:
    """``picture(page, name)`` keeps a screenshot for the docs, only when UPDATE_SCREENSHOTS=1."""

    def take(page: Page, name: str, full_page: bool = False) -> None:
        if not UPDATE_SCREENSHOTS:
            return
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.evaluate("document.querySelector('.toasts')?.replaceChildren()")
        page.wait_for_function(
            "() => [...document.images].every((image) => image.complete || !image.checkVisibility())"
        )
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full_page)

    return take
