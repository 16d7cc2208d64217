"""What people do while an answer is still out: click, type, drop, go elsewhere, open a second tab."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from dataset_tools.ingest import ingest
from studio.projects import Workspace

from ..pictures import draw_picture
from .conftest import CHROMIUM, Console, StudioProcess, wait_until

PATIENT = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioProcess]:
    """A studio with two projects of one picture each."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    home = tmp_path_factory.mktemp("impatience")
    workspace = Workspace(home / "workspace")
    for seed, name in enumerate(("Luna", "Milo")):
        ingest([draw_picture(home / f"{name}.png", seed)], workspace.create_project(name).root)
    process = StudioProcess(workspace.root)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def page(context: BrowserContext, console: Console) -> Page:
    return console.watch(context.new_page())


def open_page(page: Page, server: StudioProcess, step: str, project: str = "luna") -> None:
    page.goto(f"{server.url}/?project={project}&step={step}")
    expect(page.locator("body.booted")).to_have_count(1, timeout=PATIENT)
    if step == "recipe":
        expect_recipe(page, project)


def expect_recipe(page: Page, project: str) -> None:
    """The form has been filled with the project's recipe, and can be typed into."""
    form = page.locator("#recipe-form")
    expect(form).to_have_attribute("data-project", project, timeout=PATIENT)
    expect(form).to_have_js_property("inert", False, timeout=PATIENT)
    expect(page.locator("#recipe-page")).to_have_js_property("inert", False, timeout=PATIENT)


class Held:
    """Requests that wait until they are let go."""

    def __init__(self, page: Page, address: str) -> None:
        self._page = page
        self._waiting: list[Route] | None = []
        page.route(address, lambda route: self._hold(route))

    def _hold(self, route: Route) -> None:
        if self._waiting is None:
            route.continue_()
        else:
            self._waiting.append(route)

    def wait(self) -> None:
        wait_until(lambda: self._page.wait_for_timeout(50) or self._waiting)

    def release(self) -> None:
        waiting, self._waiting = self._waiting or [], None
        for route in waiting:
            route.continue_()


EVENTS = "**/gradio_api/run/predict**"
ASKED = "**/gradio_api/component_server**"


@pytest.mark.parametrize(
    ("scheme", "chosen", "ground"),
    [
        ("light", "", "rgb(245, 245, 241)"),
        ("dark", "", "rgb(18, 20, 17)"),
        ("light", "dark", "rgb(18, 20, 17)"),
        ("dark", "light", "rgb(245, 245, 241)"),
    ],
)
def test_a_placeholder_stands_in_until_the_page_is_there(
    browser: Browser, server: StudioProcess, console: Console, scheme: str, chosen: str, ground: str
) -> None:
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
    if chosen:
        context.add_init_script(f"localStorage.setItem('studio-theme', '{chosen}')")
    page = console.watch(context.new_page())
    gradio = Held(page, "**/assets/*.js")
    page.goto(server.url, wait_until="commit")
    placeholder = page.locator("#loading")
    expect(placeholder).to_contain_text("Loading…")
    expect(placeholder).to_have_css("background-color", ground)
    expect(placeholder.get_by_text("longer than usual")).to_be_hidden()
    if (scheme, chosen) == ("light", ""):  # it goes alike in all of them
        gradio.release()
        expect(placeholder).to_have_count(0, timeout=PATIENT)
        expect(page.locator("body.booted header.head")).to_be_visible()
    context.close()


def test_a_step_that_is_clicked_before_the_page_has_started_is_opened(
    page: Page, server: StudioProcess
) -> None:
    start = Held(page, EVENTS)
    page.goto(f"{server.url}/?project=luna&step=photos")
    start.wait()
    button = page.get_by_role("navigation", name="Steps").get_by_role("button", name=re.compile("Recipe"))
    button.dispatch_event("click")
    expect(button).to_have_attribute("aria-current", "step")
    start.release()
    expect(page).to_have_url(re.compile("project=luna&step=recipe"), timeout=PATIENT)
    expect_recipe(page, "luna")
    expect(page.locator("#recipe-train-steps input")).to_be_visible()


def test_nothing_can_be_typed_that_a_preset_would_overwrite(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "recipe")
    steps = page.locator("#recipe-train-steps input")
    steps.fill("77")
    expect(page.locator("#recipe-summary")).to_contain_text("77 steps")
    answer = Held(page, ASKED)
    page.locator('[data-preset="sdxl-style"]').first.click()
    answer.wait()
    expect(page.locator("#recipe-form")).to_have_js_property("inert", True)
    steps.evaluate("box => box.focus()")
    page.keyboard.type("5")
    expect(steps).to_have_value("77")
    answer.release()
    expect(page.locator("#recipe-form")).to_have_js_property("inert", False)
    expect(steps).not_to_have_value("77")
    steps.fill("88")
    expect(page.locator("#recipe-summary")).to_contain_text("88 steps")
    expect(steps).to_have_value("88")
    open_page(page, server, "recipe")
    expect(steps).to_have_value("88")


def test_what_is_typed_while_answers_are_out_goes_where_it_was_typed(
    page: Page, server: StudioProcess
) -> None:
    """Also what was typed last before one went to another project."""
    open_page(page, server, "recipe", "luna")
    steps, rank = page.locator("#recipe-train-steps input"), page.locator("#recipe-adapter-rank input")
    answer = Held(page, ASKED)
    steps.fill("61")
    answer.wait()
    steps.fill("612")
    rank.fill("3")
    page.get_by_label("Project", exact=True).select_option("milo")
    expect(page).to_have_url(re.compile("project=milo"))
    expect(page.locator("#recipe-page")).to_have_js_property("inert", True)
    answer.release()
    expect_recipe(page, "milo")
    expect(rank).not_to_have_value("3")
    kept = [Workspace(server.workspace).project(name).config() for name in ("luna", "milo")]
    assert (kept[0].train.steps, kept[0].adapter.rank) == (612, 3)
    assert (kept[1].train.steps, kept[1].adapter.rank) != (612, 3)


def test_a_recipe_that_does_not_come_leaves_nothing_to_type_into(page: Page, server: StudioProcess) -> None:
    """What is typed would be the other project's. It is asked for again."""
    open_page(page, server, "recipe", "luna")
    page.route(ASKED, lambda route: route.abort())
    page.get_by_label("Project", exact=True).select_option("milo")
    expect(page.locator(".toasts")).to_contain_text("The studio did not answer")
    expect(page.locator("#recipe-page")).to_have_js_property("inert", True)
    page.unroute(ASKED)
    expect_recipe(page, "milo")


def test_an_answer_that_is_lost_loses_nothing_that_was_typed(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "recipe", "luna")
    page.route(ASKED, lambda route: route.abort())
    page.locator("#recipe-train-steps input").fill("614")
    expect(page.locator(".toasts .toast")).to_have_count(1)
    page.locator("#recipe-train-steps input").fill("6145")
    page.wait_for_timeout(200)
    expect(page.locator(".toasts .toast")).to_have_count(1)
    page.unroute(ASKED)
    expect(page.locator("#recipe-summary")).to_contain_text("6145 steps")
    assert Workspace(server.workspace).project("luna").config().train.steps == 6145


def test_what_is_wrong_yet_is_there_after_a_look_elsewhere(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "recipe", "luna")
    number = page.locator("#recipe-train-steps input")
    number.fill("12x")
    steps = page.get_by_role("navigation", name="Steps")
    for step in ("Captions", "Recipe"):
        steps.get_by_role("button", name=re.compile(f"^{step}")).click()
    expect_recipe(page, "luna")
    expect(number).to_have_value("12x")
    expect(page.locator("#recipe-train-steps-note")).to_contain_text("'12x' is not allowed")


def test_a_second_press_of_start_is_none(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "recipe", "luna")
    start, launches = page.locator("#recipe-start"), []

    def keep_launches(route: Route) -> None:
        if '"launch"' in (route.request.post_data or ""):
            launches.append(route)
        else:
            route.continue_()

    page.route(ASKED, keep_launches)
    start.click()
    wait_until(lambda: page.wait_for_timeout(50) or launches)
    expect(start).to_be_disabled()
    start.evaluate("button => { button.disabled = false; button.click(); }")
    launches[0].fulfill(json={"answer": "<p>Not now.</p>"})
    expect(page.locator("#recipe-answer")).to_have_text("Not now.")
    expect(start).to_be_enabled()
    assert len(launches) == 1


def test_keys_go_through_the_known_bases_without_choosing_each(page: Page, server: StudioProcess) -> None:
    project = Workspace(server.workspace).create_project("Keys")
    open_page(page, server, "recipe", project.id)
    bases, box = page.get_by_label("Known bases"), page.get_by_label("Base model", exact=True)
    before = box.input_value()
    bases.focus()
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    assert (box.input_value(), project.config().model.base) == (before, before)
    chosen = bases.input_value()
    assert chosen != before
    page.keyboard.press("Tab")
    expect(box).to_have_value(chosen)
    expect(box).to_be_focused()
    expect(page.locator("#recipe-model-base-note")).to_contain_text("are downloaded once")
    assert project.config().model.base == chosen


def test_a_number_that_no_script_can_hold_is_put_in_whole(page: Page, server: StudioProcess) -> None:
    project = Workspace(server.workspace).create_project("Seeds")
    open_page(page, server, "recipe", project.id)
    config = project.config()
    seeded = {"train": config.train.model_copy(update={"seed": 2**53 + 1})}
    project.save_config(config.model_copy(update=seeded))
    page.locator('#recipe-advanced [data-fold]:has(b:text-is("Training"))').click()
    page.locator("#recipe-train-steps input").fill("5")
    page.get_by_role("button", name="Show it here").click()
    expect(page.locator("#recipe-train-seed input")).to_have_value(str(2**53 + 1))
    assert project.config().train.seed == 2**53 + 1


def test_what_is_typed_without_a_connection_is_kept_once_it_is_back(
    page: Page, context: BrowserContext, server: StudioProcess
) -> None:
    open_page(page, server, "recipe", "luna")
    context.set_offline(True)
    expect(page.locator(".machine .offline")).to_contain_text("Reconnecting")
    page.locator("#recipe-train-steps input").fill("613")
    expect(page.locator(".toasts")).to_contain_text("The studio did not answer")
    context.set_offline(False)
    expect(page.locator("#recipe-summary")).to_contain_text("613 steps")
    assert Workspace(server.workspace).project("luna").config().train.steps == 613


def test_two_tabs_keep_each_others_changes(
    page: Page, context: BrowserContext, console: Console, server: StudioProcess
) -> None:
    other = console.watch(context.new_page())
    for tab in (page, other):
        open_page(tab, server, "recipe", "milo")
    page.locator("#recipe-train-steps input").fill("66")
    expect(page.locator("#recipe-summary")).to_contain_text("66 steps")
    other.locator("#recipe-train-batch-size input").fill("3")
    note = other.locator("#recipe-train-steps-note")
    expect(note).to_contain_text("Changed in another tab to 66.")
    note.get_by_role("button", name="Show it here").click()
    expect(other.locator("#recipe-train-steps input")).to_have_value("66")
    expect(note).not_to_contain_text("another tab")
    page.locator("#recipe-start").click()
    expect(page.locator("#recipe-answer")).to_contain_text("Another tab changed Batch size")
    expect(page.locator("#recipe-train-batch-size input")).to_have_value("3")
    expect(page.locator("#recipe-train-steps input")).to_have_value("66")


def test_a_damaged_recipe_is_told_on_its_page(page: Page, server: StudioProcess) -> None:
    project = Workspace(server.workspace).create_project("Damaged")
    (project.root / "recipe.toml").write_text("steps = = 3", encoding="utf-8")
    open_page(page, server, "recipe", project.id)
    notice = page.locator("#recipe-presets").get_by_role("alert")
    expect(notice).to_contain_text("could not be read, so it is kept as recipe.toml.damaged")
    assert (project.root / "recipe.toml.damaged").read_text(encoding="utf-8") == "steps = = 3"
    expect(page.get_by_role("navigation", name="Steps")).not_to_contain_text("Cannot be read")
    page.locator("#recipe-train-steps input").fill("55")
    expect(notice).to_have_count(0)


def test_broken_files_are_named_beside_the_good_ones(
    page: Page, server: StudioProcess, tmp_path: Path
) -> None:
    project = Workspace(server.workspace).create_project("Mixed")
    open_page(page, server, "photos", project.id)
    good = [draw_picture(tmp_path / f"good-{number}.png", 10 + number) for number in range(2)]
    truncated = draw_picture(tmp_path / "cut-off.png", 20)
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    letter = tmp_path / "letter.jpg"
    letter.write_text("Dear Luna, this is no picture.")
    page.set_input_files("#photos-drop input[type=file]", [*good, truncated, letter])
    report = page.locator("#photos-grid .said .notice")
    expect(report).to_contain_text("2 added · 2 skipped", timeout=60_000)
    for name in ("cut-off.png", "letter.jpg"):
        expect(report.get_by_role("listitem").filter(has_text=name)).to_be_in_viewport()
    expect(page.locator("#photos-grid .tile")).to_have_count(2)
    expect(page.locator("#photos-grid .tile .badge").first).to_have_text(re.compile(r"\d+ × \d+"))
    wait_until(lambda: not list((server.workspace / ".uploads").rglob("*.png")))


def test_photos_and_their_report_stay_with_the_project_they_were_dropped_into(
    page: Page, server: StudioProcess, tmp_path: Path
) -> None:
    open_page(page, server, "photos", "luna")
    expect(page.locator("#photos-grid .tile")).to_have_count(1)
    upload = Held(page, "**/gradio_api/upload**")
    dropped = draw_picture(tmp_path / "dropped.png", 30)
    page.set_input_files("#photos-drop input[type=file]", [dropped])
    upload.wait()
    projects = page.get_by_label("Project", exact=True)
    projects.select_option("milo")
    expect(page).to_have_url(re.compile("project=milo"))
    upload.release()
    expect(page.locator(".toasts")).to_contain_text("Luna: 1 added", timeout=60_000)
    expect(page.locator("#photos-grid .tile")).to_have_count(1)
    expect(page.locator("#photos-grid .said")).to_be_hidden()
    projects.select_option("luna")
    expect(page.locator("#photos-grid .said")).to_contain_text("1 added")
    expect(page.locator("#photos-grid .tile")).to_have_count(2)
    projects.select_option("milo")
    expect(page.locator("#photos-grid .said")).to_be_hidden()
    projects.select_option("luna")
    expect(page.locator("#photos-grid .said")).to_be_hidden()  # it was seen


def test_the_first_photos_make_a_project(
    studio: Callable[..., StudioProcess], page: Page, tmp_path: Path
) -> None:
    server = studio()
    page.goto(server.url)
    expect(page.get_by_placeholder(re.compile("Name it"))).to_be_visible()
    letter = tmp_path / "letter.jpg"
    letter.write_text("Dear Luna")
    page.set_input_files("#photos-drop input[type=file]", [draw_picture(tmp_path / "cat.png", 40), letter])
    expect(page).to_have_url(re.compile("project=my-photos"), timeout=60_000)
    expect(page.locator("#photos-grid .said .notice")).to_contain_text("1 added · 1 skipped")
    expect(page.locator("#photos-grid .tile")).to_have_count(1)


def test_a_setting_is_found_and_folded_away(page: Page, server: StudioProcess) -> None:
    open_page(page, server, "recipe", "milo")
    advanced, dropout = page.locator("#recipe-advanced"), page.locator("#recipe-adapter-dropout input")
    section = advanced.locator('[data-fold]:has(b:text-is("LoRA"))')
    expect(dropout).to_be_hidden()
    search = advanced.get_by_role("searchbox", name="Find a setting")
    search.fill("DROPOUT zeroed")  # words of its name and of its help
    expect(dropout).to_be_visible()
    expect(advanced.locator(".form-field:visible")).to_have_count(1)
    dropout.fill("0.05")
    expect(page.locator("#recipe-adapter-dropout-note")).to_contain_text("↺ 0")
    search.fill("zzz")
    expect(advanced).to_contain_text("No setting has this in its name or help.")
    search.fill("steps")
    advanced.get_by_role("button", name="Steps", exact=True).click()
    expect(page.locator("#recipe-train-steps input")).to_be_focused()
    search.fill("")
    expect(dropout).to_be_hidden()
    advanced.get_by_role("button", name="Changed").click()
    expect(dropout).to_be_visible()
    advanced.get_by_role("button", name="Changed").click()
    section.click()
    expect(section).to_have_attribute("aria-expanded", "true")
    expect(dropout).to_have_value("0.05")
    section.click()
    expect(dropout).to_be_hidden()
    expect(page.locator('[data-preset="flux-subject"]')).to_be_hidden()
    page.get_by_role("button", name="Other base models").click()
    expect(page.locator('[data-preset="flux-subject"]')).to_be_visible()


def test_a_base_settles_what_its_family_cannot_have(page: Page, server: StudioProcess) -> None:
    """And it can start, though the setting was never seen."""
    project = Workspace(server.workspace).create_project("Settled")
    open_page(page, server, "recipe", project.id)
    page.locator('#recipe-advanced [data-fold]:has(b:text-is("Training"))').click()
    rate = page.locator("#recipe-train-text-encoder-lr input")
    rate.fill("0.002")
    expect(page.locator("#recipe-train-text-encoder-lr-note")).to_contain_text("↺ 0.001")
    bases = page.get_by_label("Known bases")
    base = page.get_by_label("Base model", exact=True)
    bases.select_option(label="FLUX.1 dev")
    expect(base).to_have_value("black-forest-labs/FLUX.1-dev")
    expect(rate).to_have_value("0")
    note = page.locator("#recipe-model-base-note")
    expect(note).to_contain_text("Text encoder learning rate was set to 0: FLUX.1 can train no text encoder.")
    expect(note.get_by_role("link", name="Read and accept them")).to_be_visible()
    page.locator("#recipe-train-seed input").fill("5")
    expect(page.locator("#recipe-train-seed-note")).to_contain_text("↺ 42")
    expect(note).to_contain_text("FLUX.1 can train no text encoder.")
    bases.select_option(label="Another base")
    expect(base).to_be_focused()
    base.fill("someone/else")
    base.press("Enter")
    expect(note).to_contain_text("Trained as FLUX.1.")
    expect(bases).to_have_value("")
