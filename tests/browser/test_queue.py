"""The queue in a browser, with a trainer that trains nothing: order, cancel, the next start, a slow stop."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, expect

from dataset_tools.ingest import ingest
from studio.projects import Workspace
from trainer.contract.events import EventLog
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder, Status

from ..pictures import draw_picture
from ..trainer.stored_run import Machine
from .conftest import CHROMIUM, Console, StudioProcess

PATIENT = 60_000


class StandInStudio(StudioProcess):
    program = "tests.browser.stand_in_studio"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioProcess]:
    """A studio with three projects of one picture each, whose trainer goes on until it is told to stop."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    home = tmp_path_factory.mktemp("queue")
    workspace = Workspace(home / "workspace")
    for seed, name in enumerate(("Luna", "Milo", "Nala")):
        ingest([draw_picture(home / f"{name}.png", seed)], workspace.create_project(name).root)
    odin = workspace.create_project("Odin")
    ingest([draw_picture(home / "Odin.png", 3)], odin.root)
    run = RunFolder(workspace.runs / "20260101-000000-odin-00")
    settings = {"dataset": {"path": "../../projects/odin"}, "train": {"learning_rate": 1e-3}}
    run.create(parse(merge(to_tables(odin.config()), settings)))
    run.write_status(Status(state="failed", cause="nan", message="the loss became infinite", attempt=1))
    pia = workspace.create_project("Pia")
    ingest([draw_picture(home / "Pia.png", 4)], pia.root)
    run = RunFolder(workspace.runs / "20260101-000000-pia-00")
    run.create(parse(merge(to_tables(pia.config()), {"dataset": {"path": "../../projects/pia"}})))
    run.checkpoint(20).mkdir()
    (run.checkpoint(20) / "MANIFEST.json").write_text("{}")
    run.write_status(Status(state="stopped", step=20, total=40, attempt=1))
    elsewhere = Machine(home / "one", f"file://{home}/disk/first")
    elsewhere.draw()
    elsewhere.save(500)
    elsewhere.run.write_status(Status(state="finished", step=500, total=500, attempt=1))
    elsewhere.run.result(elsewhere.config).write_bytes(b"weights")
    elsewhere.run.events.unlink()
    events = EventLog(elsewhere.run.events, 1)
    events.append("end", state="finished", step=500, message="", cause="", evidence="")
    events.close()
    elsewhere.flush()
    shutil.rmtree(home / "one")
    process = StandInStudio(workspace.root, STAND_IN="--behave hears-term --steps 100000")
    process.start()
    yield process
    process.kill()
    process.end_trainings()


def test_pictures_are_drawn_and_a_stored_run_comes(
    server: StudioProcess, context: BrowserContext, console: Console
) -> None:
    page = console.watch(context.new_page())
    page.goto(f"{server.url}/?project=pia&step=results")
    page.locator("#draw-prompts").fill("zwx bird\na tree <b> --d 7", timeout=PATIENT)
    page.locator("#draw").click()
    drawn = page.locator(".drawings li")
    expect(drawn).to_have_text([re.compile("a tree <b>.*step 20.*seed 7"), re.compile("zwx bird")])
    page.wait_for_function("() => document.querySelector('.drawings img').naturalWidth === 64")
    drawn.first.get_by_role("button").click()
    page.get_by_role("button", name="Use prompt and seed").click()
    expect(page.locator("#draw-seed")).to_have_value("7")
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.set_viewport_size({"width": 1280, "height": 900})

    page.evaluate("studio.go('train')")
    expect(page.locator(".queue li.finished")).to_contain_text("Drawing · 2 pictures", timeout=PATIENT)
    page.locator("#go-on-stored").click()
    dialog, address = page.locator("dialog.stored"), page.locator("#stored-url")
    for url, sentence in (
        ("my-bucket/run", "is no URL"),
        (f"file://{server.workspace.parent}/nothing", "holds no run; check the address"),
    ):
        address.fill(url)
        page.locator("#stored-fetch").click()
        expect(dialog.locator(".notice.bad")).to_contain_text(sentence, timeout=PATIENT)
    address.fill(f"file://{server.workspace.parent}/disk/first")
    page.locator("#stored-fetch").click()
    expect(page.locator(".result h2")).to_have_text("lora.safetensors", timeout=PATIENT)
    assert (server.workspace / "projects" / "lora" / "images" / "p0.png").is_file()
    page.goto(f"{server.url}/?project=pia&step=train")
    page.locator("#queue-clear").click(timeout=PATIENT)
    expect(page.locator(".queue li")).to_have_count(0)


def test_two_are_queued_reordered_one_taken_out_and_the_other_begins(
    server: StudioProcess, context: BrowserContext, console: Console
) -> None:
    page = console.watch(context.new_page())
    for project in ("luna", "milo", "nala"):
        page.goto(f"{server.url}/?project={project}&step=train")
        start = page.locator("#train-start")
        expect(start).to_have_attribute("aria-disabled", "false", timeout=PATIENT)
        start.click()
        expect(page.locator("#train-stop")).to_be_visible(timeout=PATIENT)
    rows, waiting = page.locator(".queue li"), page.locator(".queue li.waiting")
    expect(rows).to_have_text([re.compile("Luna"), re.compile("1.*Milo"), re.compile("2.*Nala")])
    expect(page.locator(".train-head")).to_contain_text("Number 2 in line")
    expect(page.locator(".runbar")).to_contain_text("Luna")
    expect(page.locator(".runbar")).to_contain_text("2 waiting")

    page.get_by_role("button", name="Earlier: Nala").click()
    expect(waiting).to_have_text([re.compile("1.*Nala"), re.compile("2.*Milo")])
    expect(page.locator(".train-head")).to_contain_text("Next in line")
    page.get_by_role("button", name="Take out of the queue: Milo").click()
    expect(waiting).to_have_text([re.compile("Nala")])
    expect(page.locator(".queue li.cancelled")).to_contain_text("Milo")
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    page.set_viewport_size({"width": 1280, "height": 900})

    # What runs does not listen: the countdown is seen, and one need not wait for it.
    running = page.locator(".queue li.running")
    running.get_by_role("button", name="Stop").click()
    expect(running).to_contain_text(re.compile(r"saves and ends. If it has not in \d+ s"))
    expect(page.locator(".runbar")).to_contain_text(re.compile(r"\d+ s to save and end"))
    expect(running).to_contain_text("Luna")
    running.get_by_role("button", name="Stop now").click()
    expect(running).to_contain_text("Nala", timeout=PATIENT)
    expect(page.locator(".queue li.stopped")).to_contain_text("Luna")
    page.wait_for_function("() => studio.live.data.status?.state === 'training'", timeout=PATIENT)
    expect(page.locator(".train-head .pill")).to_have_text("Training")


def test_a_failure_card_shows_the_change_and_makes_it(
    server: StudioProcess, context: BrowserContext, console: Console
) -> None:
    page = console.watch(context.new_page())
    page.goto(f"{server.url}/?project=odin&step=train")
    expect(page.locator(".failure .changes")).to_have_text(
        re.compile("Learning rate.*1e-3.*5e-4"), timeout=PATIENT
    )
    page.locator("#failure-fix").click()
    expect(page.locator(".failure")).to_have_count(0, timeout=PATIENT)
    expect(page.locator(".queue li", has_text="Odin")).to_be_visible()
    run = RunFolder(server.workspace / "runs" / "20260101-000000-odin-00")
    assert run.amended().train.learning_rate == 5e-4
