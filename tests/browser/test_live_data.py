"""The live half of the page against real run folders: folding events, chart, viewer, failure card, login."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from dataset_tools.ingest import ingest
from studio.projects import Project, Workspace
from trainer.contract.events import EventLog, current_events
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder, Status

from ..pictures import draw_picture
from .conftest import CHROMIUM, Console, StudioProcess

NASTY = '<img src=x onerror="window.hacked = true">'
PROMPTS = ["a photo of zwx blob", f"{NASTY} zwx blob"]
FILLED = {
    "photos": "#photos-grid .tile",
    "captions": "#captions-panel textarea",
    "recipe": "#recipe-form[data-project]",
    "train": "#tab-train .failure",
    "results": "#tab-results .matrix, #tab-results .card",
}
"""What is on a page once its script has filled it."""


def past_run(project: Project, state: str, steps: int, **status: Any) -> RunFolder:
    """A run as the trainer leaves it: events, samples at 0 and every 100 steps, a status."""
    run = RunFolder(project.workspace.runs / f"20260101-000000-{project.id[:20]}-00")
    own = {"dataset": {"path": f"../../projects/{project.id}"}, "samples": {"prompts": PROMPTS}}
    run.create(parse(merge(to_tables(project.config()), own)))
    log = EventLog(run.events, 1)
    log.append("started", step=0, total=1000)
    rng = random.Random(0)
    for step in range(steps + 1):
        if step:
            loss = 0.1 + rng.random() / (10 + step / 20)
            log.append("step", step=step, loss=loss, lr=1e-4 * (1 - step / 2000), grad_norm=1.0, seconds=0.1)
        if step % 100 == 0:
            for prompt, text in enumerate(PROMPTS):
                file = run.sample(step, prompt)
                Image.new("RGB", (64, 64), (step * 255 // max(steps, 1), 80, 120 * prompt)).save(file)
                log.append("sample", step=step, prompt=prompt, text=text, file=file.name)
    log.append("end", state=state, step=steps, message=status.get("message", ""), cause="", evidence="")
    log.close()
    run.write_status(
        Status.model_validate({"state": state, "step": steps, "total": 1000, "attempt": 1, **status})
    )
    run.log.write_text("loading\nstep 1\nMemoryError: that was too much\n")
    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioProcess]:
    """A studio whose first project has a failed run, and whose second has a finished one."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    home = tmp_path_factory.mktemp("live")
    workspace = Workspace(home / "workspace")
    photo = draw_picture(home / "photo.png", 1)
    for name in ("Failed", f"Finished {NASTY}", "Full", "Stopped"):
        project = workspace.create_project(name)
        ingest([photo], project.root)
        project.set_trigger("zwx blob")
    failed, finished, full, stopped = sorted(workspace.list_projects(), key=lambda each: each.id)
    past_run(
        failed,
        "failed",
        300,
        cause="host_oom",
        message=f"The computer ran out of memory {NASTY}.",
        evidence=f"MemoryError: {NASTY}",
        mirror=f"Not stored: {NASTY}.",
    )
    costs = {"cost": 5.02, "cost_per_1000": 12.5, "budget": 5.0, "currency": "€"}
    past_run(stopped, "stopped", 400, message="The budget of €5.00 is used up (€5.02).", **costs)
    past_run(full, "stopped", 250, cause="disk_full", message="The disk is full; everything is saved.")
    past_run(finished, "finished", 900).result(finished.config()).write_bytes(b"weights")
    process = StudioProcess(workspace.root)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def page(context: BrowserContext, console: Console) -> Page:
    return console.watch(context.new_page())


@pytest.fixture(scope="module")
def train_page(browser: Browser, server: StudioProcess) -> Iterator[Page]:
    """The Train page of the failed run, for what has to do with its scripts alone."""
    console = Console()
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = console.watch(context.new_page())
    open_page(page, server, "failed", "train")
    yield page
    context.close()
    assert not console.problems


def open_page(page: Page, server: StudioProcess, project: str, step: str) -> None:
    page.goto(f"{server.url}/?project={project}&step={step}")
    page.wait_for_function("() => document.body.classList.contains('booted') && studio.live.data.run")
    if step == "train":  # a panel's scripts are loaded by themselves, and the last may come after the shell
        page.wait_for_function("() => studio.LossChart && studio.SampleMatrix")


def random_history(rng: random.Random) -> list[dict[str, Any]]:
    """Events of a run that is stopped, killed and resumed from random checkpoints."""
    events: list[dict[str, Any]] = []
    step = 0

    def add(kind: str, **data: Any) -> None:
        events.append({"seq": len(events) + 1, "time": 0.0, "kind": kind, **data})

    for attempt in range(1, rng.randint(2, 6)):
        step = rng.randint(0, step)
        add("started", attempt=attempt, step=step, total=100)
        for step in range(step + 1, step + rng.randint(2, 30)):  # noqa: B020 (goes on from the resume)
            add("step", attempt=attempt, step=step, loss=rng.random(), lr=1e-4)
            if rng.random() < 0.2:
                add("sample", attempt=attempt, step=step, prompt=0, text="p", file=f"s{step:06d}_p00.webp")
            if rng.random() < 0.2:
                add("validation", attempt=attempt, step=step, loss=step / 100, by_time=[], pictures=2)
            if rng.random() < 0.2:
                add("checkpoint", attempt=attempt, step=step, folder=f"step-{step:06d}")
    return events


def test_the_page_keeps_the_events_that_still_count(train_page: Page) -> None:
    """The script folds a stream of events to what trainer.contract.events says is current."""
    for seed in range(20):
        events = random_history(random.Random(seed))
        shown = train_page.evaluate(
            """events => {
                const data = studio.live.fresh("run");
                for (const event of events) studio.live.fold(data, event);
                return {
                    steps: data.series.step, loss: data.series.loss,
                    samples: [...data.samples.values()].map((sample) => sample.step),
                    checkpoints: data.checkpoints.map((checkpoint) => checkpoint.step),
                    validations: data.validation.map((measured) => measured.step),
                };
            }""",
            events,
        )
        current = current_events(events)
        steps = [event for event in current if event["kind"] == "step"]
        assert shown["steps"] == [event["step"] for event in steps]
        assert shown["loss"] == [event["loss"] for event in steps]
        for kind in ("sample", "checkpoint", "validation"):
            expected = {event["step"] for event in current if event["kind"] == kind}
            assert set(shown[f"{kind}s"]) == expected
        assert len(set(shown["validations"])) == len(shown["validations"])

    marked = train_page.evaluate(
        """prompts => {
            const data = studio.live.fresh("run"), matrix = new studio.SampleMatrix();
            for (const [prompt, text] of prompts.entries()) {
                const event = { attempt: 1, step: 5, prompt, text, file: "a.webp", seq: prompt };
                studio.live.fold(data, { ...event, kind: "sample" });
                studio.live.fold(data, { ...event, kind: "measured", trigger: text.startsWith("zwx") });
            }
            matrix.update(data);
            const cells = [...matrix.element.querySelectorAll("tbody th")];
            return cells.map((cell) => cell.querySelector("small")?.textContent ?? "");
        }""",
        ["zwx cat", "a house"],
    )
    assert marked == ["", "control"], "prompts without the trigger are marked"


def test_a_flood_of_output_does_not_fill_the_page(train_page: Page) -> None:
    kept = train_page.evaluate(
        """() => {
            const data = studio.live.fresh("flood");
            const fold = (text) => studio.live.foldLog(data, text);
            for (let i = 0; i < 100; i += 1) fold("x".repeat(64 * 1024)); // no line ever ends
            const tail = data.logTail.length;
            fold("\\n");
            for (let i = 0; i < 200; i += 1) fold("line\\n".repeat(100));
            const longest = Math.max(...data.log.map((line) => line.length));
            return { tail, longest, lines: data.log.length, last: data.log.at(-1) };
        }"""
    )
    assert kept["tail"] < 5000 and kept["longest"] < 5000 and kept["last"] == "line"
    assert kept["lines"] == 4000


def test_a_zoomed_chart_stays_put_while_the_run_goes_on(train_page: Page) -> None:
    train_page.evaluate(
        """() => {
            const data = studio.live.fresh("long");
            window.grow = (count) => {
                for (let i = 0; i < count; i += 1) {
                    const step = data.series.step.length + 1;
                    const loss = 0.1 + 0.01 * Math.sin(step);
                    studio.live.fold(data, { kind: "step", attempt: 1, step, loss, lr: 1e-4 });
                }
                window.chart.update(data);
            };
            window.chart = new studio.LossChart();
            document.querySelector("#studio-train").prepend(window.chart.element);
            window.grow(10000);
        }"""
    )
    train_page.wait_for_function("() => window.chart.view")
    canvas = train_page.locator(".chart-canvas").first
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"], box["y"] + 100
    train_page.mouse.move(x + 300, y)
    train_page.mouse.down()
    train_page.mouse.move(x + 500, y + 20, steps=6)
    train_page.mouse.up()
    train_page.wait_for_function("() => window.chart.zoom")
    zoom = train_page.evaluate("[window.chart.x.start, window.chart.x.end]")
    assert 1000 < zoom[0] < zoom[1] < 9000
    spent = train_page.evaluate(
        "() => { const t = performance.now(); window.grow(50); return performance.now() - t; }"
    )
    assert spent < 250, "one update of 10,000 points must not be felt"
    assert train_page.evaluate("[window.chart.x.start, window.chart.x.end]") == zoom
    train_page.get_by_role("button", name="Show all").first.click()
    assert train_page.evaluate("window.chart.x.end") > 10_000


def test_the_loss_on_held_out_photos_is_a_second_line(train_page: Page) -> None:
    train_page.evaluate(
        """() => {
            const data = studio.live.fresh("held");
            window.chart = new studio.LossChart();
            document.querySelector("#studio-train").prepend(window.chart.element);
            window.fold = (event) => {
                studio.live.fold(data, { attempt: 1, ...event });
                window.chart.update(data);
            };
            for (let step = 1; step <= 20; step += 1)
                window.fold({ kind: "step", step, loss: 0.1, lr: 1e-4 });
        }"""
    )
    train_page.wait_for_function("() => window.chart.view")
    key = train_page.locator(".chart").first.locator(".key", has_text="held-out photos")
    expect(key).to_be_hidden()
    train_page.evaluate(
        """() => { for (const [step, loss] of [[0, 0.9], [10, 0.3], [10, 0.3], [20, 0.7]])
            window.fold({ kind: "validation", step, loss, by_time: [loss], pictures: 2 }); }"""
    )
    expect(key).to_be_visible()
    drawn = train_page.evaluate("window.chart.sources.validation.data")
    assert drawn == {"x": [0, 10, 20], "y": [0.9, 0.3, 0.7]}
    assert train_page.evaluate("window.chart.y.end") > 0.9, "it is in sight"
    expect(train_page.locator(".chart-readout").first).to_contain_text("held-out photos 0.700 (step 20)")


def test_a_failure_says_why_and_what_to_do(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "failed", "train")
    card = page.locator(".failure")
    expect(card).to_contain_text("The computer ran out of memory")
    expect(card.locator(".evidence")).to_contain_text("MemoryError")
    expect(page.locator("#train-stored")).to_contain_text("Not stored")
    expect(card).to_contain_text("What helps")
    expect(card.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator("#train-resume")).to_be_visible()
    expect(page.locator("#train-stop")).to_be_hidden()
    page.get_by_role("heading", name="Log", exact=True).click()
    expect(page.locator(".log-lines .loud")).to_contain_text("MemoryError")
    assert page.evaluate("window.hacked") is None
    open_page(page, server, "full", "train")  # it stopped, saved, though nobody had asked it to
    expect(card).to_contain_text("The disk is full")
    expect(card).to_contain_text("no old checkpoints that could go")


def test_samples_open_large_and_follow_the_arrows(page: Page, server: StudioProcess) -> None:
    finished = "finished-img-src-x-onerror-window-hacked-true"
    open_page(page, server, finished, "results")
    expect(page.locator(".matrix tbody tr")).to_have_count(2)
    expect(page.locator(".matrix tbody th").nth(1)).to_have_text(PROMPTS[1])
    page.locator(".matrix td button").first.click()
    viewer = page.locator("dialog.viewer")
    expect(viewer.locator("figcaption").last).to_have_text("before training")
    for key, caption in (("ArrowRight", "step 100"), ("ArrowRight", "step 200"), ("ArrowLeft", "step 100")):
        page.keyboard.press(key)
        expect(viewer.locator("figcaption").last).to_have_text(caption)
    page.keyboard.press("ArrowDown")
    expect(viewer.locator(".viewer-words")).to_have_text(PROMPTS[1])
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    assert page.evaluate("window.hacked") is None


def test_nothing_scrolls_sideways_on_a_telephone(page: Page, server: StudioProcess) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    open_page(page, server, "failed", "photos")
    for step in ("photos", "captions", "recipe", "train", "results"):
        page.evaluate("step => studio.go(step)", step)
        expect(page.locator(f"#tab-{step}")).to_be_visible()
        expect(page.locator(FILLED[step]).first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, step
        wide = page.evaluate(
            """() => {
                const overflow = (element) => getComputedStyle(element).overflowX;
                const scrolls = (element) =>
                    element && (/auto|scroll/.test(overflow(element)) || scrolls(element.parentElement));
                return [...document.querySelectorAll("main *")]
                    .filter((element) => element.getBoundingClientRect().right > 381)
                    .filter((element) => !scrolls(element.parentElement))
                    .map((element) => `${element.tagName}.${element.className}`).slice(0, 5);
            }"""
        )
        assert wide == [], step


def test_behind_a_password_the_page_comes_after_the_login(
    studio: Callable[..., StudioProcess], context: BrowserContext
) -> None:
    server = studio(password="correct horse battery")
    page = context.new_page()
    page.goto(f"{server.url}/?step=train")
    expect(page.get_by_role("heading", name="LoRA Studio")).to_be_visible()
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_placeholder("Name it")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Password")).to_be_visible()


def test_the_chosen_theme_survives_a_reload(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "failed", "train")
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(page.locator("body.dark")).to_have_count(1)
    page.reload()
    expect(page.locator("body.dark.booted")).to_have_count(1)


def test_costs_are_shown_and_a_used_up_budget_is_raised(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "stopped", "train")
    expect(page.locator(".figures")).to_contain_text("Cost€5.02 €12.50 per 1,000 steps")
    card = page.locator(".card.budget")
    expect(card).to_contain_text("The run has cost €5.02.")
    expect(page.locator("#train-budget")).to_have_value("10.00")
    page.locator("#train-budget").fill("many")
    page.locator("#budget-resume").click()
    expect(page.get_by_text("machine.budget = 'many' is not allowed").first).to_be_visible()
