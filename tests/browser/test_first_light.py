"""The whole path as a new user goes it: photos, captions, recipe, training, refresh, restart, LoRA.

With UPDATE_SCREENSHOTS=1 the last training is the demo's own, to its end, and every page's picture goes to
docs/screenshots/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect
from safetensors import safe_open

from trainer.contract.presets import PRESETS_DIR, load_preset

from ..conftest import ROOT
from ..studio.hub_server import Hub
from .conftest import UPDATE_SCREENSHOTS, Console, StudioProcess

TOKEN = "hf_" + "Canary7" * 5
DEMO_STEPS = load_preset(PRESETS_DIR / "demo.toml").values["train"]["steps"]


def go(page: Page, step: str) -> None:
    page.get_by_role("navigation", name="Steps").get_by_role("button", name=re.compile(f"^{step}")).click()
    expect(page).to_have_url(re.compile(f"step={step.lower()}"))
    if step == "Recipe":
        expect(page.locator("#recipe-form")).to_have_js_property("inert", False)


def fill_number(page: Page, setting: str, value: str) -> None:
    """Type into a setting of the recipe form and leave it."""
    box = page.locator(f"#recipe-{setting} input").first
    box.fill(value)
    box.blur()


def step_shown(page: Page) -> int:
    """The big number on the Train page."""
    return int(page.locator(".figure dd b").first.inner_text().replace(",", "").replace("–", "0"))


def wait_for_step(page: Page, least: int) -> None:
    page.wait_for_function(
        "least => Number(document.querySelector('.figure dd b')?.textContent.replace(/\\D/g, '')) >= least",
        arg=least,
        timeout=240_000,
    )


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(TOKEN)
    yield hub
    hub.close()


@pytest.mark.timeout(1800 if UPDATE_SCREENSHOTS else 900)
def test_from_photos_to_a_lora(
    studio: Callable[..., StudioProcess],
    context: BrowserContext,
    console: Console,
    picture: Callable[..., None],
    tmp_path: Path,
    hub: Hub,
) -> None:
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "", "HF_HUB_OFFLINE": "0"}
    # (studio.publish says so itself, before it imports the library; a fork has it imported.)
    server = studio(**own, HF_HUB_DISABLE_XET="1")
    page = console.watch(context.new_page())
    page.goto(server.url)

    # Photos: a project, twelve pictures with their captions, each with its crop and bucket.
    page.get_by_placeholder(re.compile("Name it")).fill("Luna the creature")
    page.get_by_role("button", name="Create project").click()
    expect(page).to_have_url(re.compile("project=luna-the-creature"))
    photos = sorted((ROOT / "demo" / "photos").glob("*.jpg"))[:12]
    page.set_input_files("#photos-drop input[type=file]", [*photos, *(p.with_suffix(".txt") for p in photos)])
    expect(page.locator("#photos-grid .tile")).to_have_count(12, timeout=60_000)
    expect(page.locator("#photos-grid .tile svg .frame:not(.under)")).to_have_count(12)
    expect(page.locator("#photos-grid .tile .badge").first).to_have_text(re.compile(r"\d+ × \d+"))
    if UPDATE_SCREENSHOTS:
        page.reload()  # what became of the upload is said once
        expect(page.locator("#photos-grid .tile")).to_have_count(12)
    picture(page, "photos", full_page=True)

    # Captions: the trigger, one by hand, all of them by a bulk change.
    go(page, "Captions")
    page.locator("#captions-trigger").fill("zwx creature")
    page.locator("#captions-trigger").blur()
    first = page.locator("#captions-panel textarea").first
    expect(first).to_have_value(re.compile("zwx creature"))
    written = first.input_value()
    first.fill(f"{written}, looking up")
    first.blur()
    page.get_by_text("Change many captions at once").click()
    page.get_by_role("button", name="Put before").click()
    page.get_by_label("Text to put before").fill("drawing: ")
    change = page.get_by_role("button", name=re.compile(r"^Change 12 captions"))
    expect(change).to_be_visible()
    picture(page, "captions")
    change.click()
    expect(first).to_have_value(re.compile(f"^drawing: ?{re.escape(written)}, looking up$"))

    # Recipe: a preset, then a run that is long enough to be looked at.
    go(page, "Recipe")
    for name in ("sdxl-style", "demo"):
        preset = page.locator(f'[data-preset="{name}"]').first
        preset.click()
        expect(preset).to_have_attribute("aria-pressed", "true")
    prompts = page.locator("#recipe-samples-prompts textarea")
    expect(prompts).to_have_value(re.compile("zwx creature"))
    picture(page, "recipe")
    prompts.fill("a photo of zwx creature\na blue star")
    prompts.blur()
    fill_number(page, "train-steps", "100000")
    fill_number(page, "train-batch-size", "1")
    fill_number(page, "samples-every", "10")
    page.locator('#recipe-advanced [data-fold]:has(b:text-is("Sample images"))').click()
    fill_number(page, "samples-steps", "2")
    expect(page.locator("#recipe-summary")).to_contain_text("100000 steps")
    page.locator("#recipe-start").click()

    # Train: live numbers, chart, and pictures with the baseline first.
    expect(page).to_have_url(re.compile("step=train"), timeout=240_000)
    wait_for_step(page, 1)
    expect(page.locator(".matrix thead th").nth(1)).to_have_text("before")
    expect(page.locator(".matrix tbody tr")).to_have_count(2)
    expect(page.locator(".matrix tbody td img").nth(1)).to_be_visible()
    wait_for_step(page, 12)
    expect(page.locator(".chart-canvas canvas").first).to_be_visible()
    expect(page.locator(".runbar")).to_contain_text("Luna the creature")
    assert re.match(r"\d+ % · Luna the creature", page.title())

    # A refresh, a second tab, and a telephone come back to the same place and the same run.
    page.reload()
    wait_for_step(page, 12)
    expect(page).to_have_url(re.compile("project=luna-the-creature.*step=train"))
    phone = console.watch(context.new_page())
    phone.set_viewport_size({"width": 380, "height": 800})
    phone.goto(page.url)
    wait_for_step(phone, 12)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 380

    # The studio dies and comes back; the run goes on and the open page finds it again by itself.
    phone.close()
    page.evaluate("window.untouched = true")
    before = step_shown(page)
    server.kill()
    expect(page.locator(".machine .offline")).to_have_text(re.compile("Reconnecting"))
    server.start()
    wait_for_step(page, before + 1)
    assert page.evaluate("window.untouched")

    # Stop saves; Resume goes on from there.
    page.locator("#train-stop").click()
    expect(page.locator("#train-resume")).to_be_visible(timeout=240_000)
    expect(page.locator(".runbar")).to_have_count(0)
    stopped_at = step_shown(page)
    assert stopped_at > before
    page.locator("#train-resume").click()
    wait_for_step(page, stopped_at + 1)
    expect(page.locator("dl.figures")).to_contain_text(f"resumed at step {stopped_at:,}")
    page.locator(".runbar").get_by_role("button", name="Stop").click()
    expect(page.locator("#train-resume")).to_be_visible(timeout=240_000)

    # A training to its end: the newest run takes over the page.
    go(page, "Recipe")
    if UPDATE_SCREENSHOTS:
        page.get_by_role("button", name="Back to the preset").click()
        expect(page.locator("#recipe-summary")).to_contain_text(f"{DEMO_STEPS} steps")
    else:
        fill_number(page, "train-steps", "5")
        expect(page.locator("#recipe-summary")).to_contain_text("5 steps show")
    page.locator("#recipe-start").click()
    if UPDATE_SCREENSHOTS:
        page.wait_for_function(
            "n => studio.live.data.status?.total === n && studio.live.data.status.step >= 0.7 * n",
            arg=DEMO_STEPS,
            timeout=1_200_000,
        )
        picture(page, "train", full_page=True)
        page.get_by_role("button", name="Switch between light and dark").click()
        page.set_viewport_size({"width": 380, "height": 800})
        picture(page, "train-phone")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_role("button", name="Switch between light and dark").click()
    expect(page.locator("#train-results")).to_be_visible(timeout=1_500_000 if UPDATE_SCREENSHOTS else 240_000)
    assert step_shown(page) == (DEMO_STEPS if UPDATE_SCREENSHOTS else 5)

    # Results: the file is downloaded and is a LoRA.
    page.locator("#train-results").click()
    expect(page.locator("#download")).to_be_visible()
    expect(page.locator(".results .matrix tbody td img").first).to_be_visible()
    picture(page, "results", full_page=True)
    with page.expect_download() as waiting:
        page.locator("#download").click()
    lora = waiting.value
    assert lora.suggested_filename == "luna-the-creature.safetensors"
    lora.save_as(tmp_path / lora.suggested_filename)
    with safe_open(tmp_path / lora.suggested_filename, framework="numpy") as file:
        names: list[Any] = list(file.keys())
        assert names and all(file.get_tensor(name).size for name in names)

    # Publish: the same file arrives at the Hub, and the page links to it.
    page.get_by_label("Repository").fill("luna-lora")
    page.get_by_label("Access token").fill(TOKEN)
    page.locator("#publish").click()
    published = page.get_by_role("region", name="Publish").get_by_role("link", name="Open it")
    expect(published).to_have_attribute("href", f"{hub.url}/ada/luna-lora", timeout=120_000)
    repository = hub.repositories["ada/luna-lora"]
    assert repository.private
    assert repository.files[lora.suggested_filename] == (tmp_path / lora.suggested_filename).read_bytes()
    assert "zwx creature" in repository.files["README.md"].decode()
    assert page.get_by_label("Access token").input_value() == ""
