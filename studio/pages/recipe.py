"""The Recipe page: a preset, the settings with what the linter says beside them, and Start.

Every change is checked at once and kept as the project's draft, so a refresh or another tab finds it.
Buttons inside our own HTML (presets, fixes, "back to the preset") reach Python through one hub.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import Any, get_args

import gradio as gr

from studio.blocks import block_map_html
from studio.bring import bring as read_brought
from studio.bring import brought_html, sent, taken_html
from studio.bring import take as take_brought
from studio.context import Studio
from studio.curve import curve_svg
from studio.form import (
    Form,
    Merged,
    build_form,
    elsewhere_findings,
    finding_html,
    in_a_line,
    known_settings,
    known_text,
    merge_typed,
    put_in,
    set_attribute,
    settled_before,
)
from studio.machine import Gpu
from studio.projects import Project
from studio.recipes import (
    Verdict,
    about_base,
    changing,
    choose_card,
    choose_preset,
    draft,
    export_text,
    keep_draft,
    kohya_files,
    verdict,
    with_family,
)
from studio.rents import rents_html
from studio.theme import scripts
from trainer.contract.config import TrainConfig
from trainer.contract.errors import UserError
from trainer.contract.families import CATALOGUE, DEMO_BASE, known_base
from trainer.contract.fields import RECORDS, Record, flatten
from trainer.contract.foreign.importing import ENDINGS
from trainer.contract.hardware import CARDS, missing_gib, nearest_card
from trainer.contract.presets import Pace, Preset, load_presets

from . import Message, Page, project_of, served, shows_errors

HIDDEN = ("dataset.path", "dataset.trigger", "model.family")
"""Settings that this page does not ask for: they follow from the project and from the base model."""
MAX_OTHERS = 12
"""Projects that are offered as further concepts."""

PATIENCE = 20.0
"""Seconds after which a form that was to be replaced is taken to be in use still: the answer was lost."""


def base_widget(record: Record, options: dict[str, Any]) -> gr.Dropdown:
    """The catalogue's bases by name; anything else may be typed."""
    choices = [(base.label, base.id) for family in CATALOGUE.values() for base in family.bases]
    return gr.Dropdown(choices=choices, allow_custom_value=True, **options)


def build(studio: Studio, project_id: Any) -> Page:
    gpu = Gpu()
    presets = load_presets()
    with gr.Column(elem_id="recipe-page"):
        hub = gr.HTML(  # its value is what stands beside the settings, see `judged`
            "{}",
            html_template="",
            elem_id="recipe-hub",
            head=scripts("live.js", "frame.js", "recipe.js"),
            js_on_load="studio.panels.recipe(server, (message) => trigger('select', message), props, watch)",
            server_functions=served(studio, export, export_kohya),
        )
        cards = gr.HTML("", elem_id="recipe-presets", apply_default_css=False)
        report = gr.HTML("", elem_id="recipe-report", apply_default_css=False)
        with gr.Row(elem_id="recipe-columns"):
            with gr.Column(scale=7, min_width=320, elem_id="recipe-form"):
                form = build_form(hidden=HIDDEN, own={"model.base": base_widget})
            with gr.Column(scale=4, min_width=280, elem_id="recipe-side"):
                summary = gr.HTML("", elem_id="recipe-summary", apply_default_css=False)
                start = gr.Button("Start training", variant="primary", size="lg", elem_id="recipe-start")
                answer = gr.HTML("", elem_id="recipe-answer", apply_default_css=False)
                with gr.Row(elem_id="recipe-files"):
                    gr.HTML(
                        '<button type="button" class="btn quiet" data-export>Export recipe.toml</button>'
                        '<button type="button" class="btn quiet" data-export="kohya">For kohya</button>',
                        apply_default_css=False,
                    )
                bring = gr.File(
                    label="Bring your recipe",
                    show_label=False,
                    file_count="multiple",
                    file_types=[".toml", *ENDINGS],
                    elem_id="recipe-import",
                    height=120,
                )
        started = gr.Textbox(visible="hidden", elem_id="recipe-started")
        # Gradio puts an answer into the page piece by piece, and checks what it meets half-way. The first and
        # the last piece of a recipe are its project with a mark: they are alike when all of it is there.
        opening = gr.Textbox(visible="hidden", elem_id="recipe-opening")
        opened = gr.Textbox(visible="hidden", elem_id="recipe-opened")
        # The settings as form and disk agreed on them last: what differs from these was typed here.
        known = gr.Textbox(visible="hidden", elem_id="recipe-known")

    shown = [cards, summary, start, hub, known]
    outputs = [opening, *form.widgets, *shown, answer, report, opened]

    def judged(
        project: Project, merged: Merged, told: Mapping[str, str], ask: bool = False
    ) -> dict[Any, Any]:
        """Everything on the page but the widgets; ``told`` is what was settled for the family. With ``ask``
        recipe.js asks for widgets that have to be filled."""
        config, problems = merged.config, merged.problems
        judgement = verdict(project, config, presets, gpu.state())
        findings = [*elsewhere_findings(merged.elsewhere), *judgement.findings]
        notes = form.annotated(config, problems, findings, judgement.reference)
        base = form.fields["model.base"].note
        notes[base] = base_html(config) + settled_html(config, told) + notes[base]
        notes[form.fields["dataset.subsets"].note] += concepts_html(project, config)
        notes[form.fields["machine.price_per_hour"].note] += rents_html(config, gpu.state())
        notes[form.fields["adapter.block_weights"].note] += block_map_html(config)
        return {
            cards: presets_html(presets, judgement, project.damaged_recipe)
            + memory_html(merged.config, project.memory_gib, gpu.state()),
            summary: summary_html(config, judgement, problems, form),
            start: gr.update(interactive=not problems and not judgement.blockers),
            known: known_text(merged.known, told),
            hub: json.dumps({"notes": {note: said for note, said in notes.items() if said}, "ask": ask}),
        }

    def page_of(project: Project, config: TrainConfig) -> dict[Any, Any]:
        mark = f"{project.id} {token_hex(4)}"
        merged = Merged(config, {}, flatten(config), {})
        return {
            opening: mark,
            **form.filled(config),
            **judged(project, merged, {}),
            answer: "",
            report: "",
            opened: mark,
        }

    # Marks of forms that a preset or a file has just replaced, and when. What was typed into one of them
    # milliseconds before may come in later than that, and must not be written over it.
    replaced: dict[str, float] = {}

    def replace_form(mark: str, project: Project, config: TrainConfig) -> dict[Any, Any]:
        for old in [old for old, when in replaced.items() if monotonic() - when > PATIENCE]:
            del replaced[old]
        replaced[mark] = monotonic()
        return page_of(project, config)

    def is_whole(data: dict[Any, Any]) -> bool:
        mark = data[opened]
        there = bool(mark) and mark == data[opening]
        return there and monotonic() - replaced.get(mark, -PATIENCE) >= PATIENCE

    def take_in(data: dict[Any, Any]) -> tuple[Project, Merged, dict[str, str]]:
        """Keep what was typed as the draft; with them, what :func:`judged` is told."""
        if not is_whole(data):
            raise UserError("The recipe is just being opened; try again in a moment.")
        project = studio.workspace.project(data[opened].split()[0])
        with changing:
            told = project.damaged_recipe
            disk = draft(project, presets, gpu.state())
            merged = merge_typed(with_family(form.raw(data)), known_settings(data[known]), disk)
            if merged.config != disk:
                project.save_config(merged.config)
                if project.damaged_recipe == told:  # and not found damaged just now
                    project.set_damaged_recipe("")
        return project, merged, {**settled_before(data[known], merged.config), **merged.settled}

    @shows_errors
    def check(data: dict[Any, Any]) -> Any:
        """Something was typed: keep what is right, and say what is not."""
        if not is_whole(data):
            return gr.skip()
        project, merged, told = take_in(data)
        if not merged.settled:
            return judged(project, merged, told)
        # The form shows them as they were: until it has been filled it agrees with the disk on nothing new.
        return {**judged(project, merged, told, ask=True), known: data[known]}

    @shows_errors
    def press(data: dict[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        """A preset, or a button that puts settings in."""
        message = event._data or {}
        with changing:
            project, merged, told = take_in(data)
            if (recipe := message.get("recipe")) is not None:
                before = taken_html(merged.config, project.preset, bool(message.get("undo")))
                preset = str(message.get("preset", ""))
                known_preset = any(one.key == preset for one in presets)
                config = take_brought(project, sent(recipe), preset if known_preset else "")
                return {**replace_form(data[opened], project, config), report: before}
            if (memory_gib := message.get("card")) in (0, *CARDS):
                config = choose_card(project, merged.config, presets, int(memory_gib))
                return replace_form(data[opened], project, config)
            if key := message.get("preset"):
                config = choose_preset(project, merged.config, presets, str(key))
                return replace_form(data[opened], project, config)
            settable = {*form.fields, "model.family"}
            given = {path: value for path, value in (message.get("set") or {}).items() if path in settable}
            values = with_family(given)
            config, settled = put_in(merged.config, values)
            keep_draft(project, config)
        kept = flatten(config)
        asked = merged.settled if message.get("ask") else {}
        values = {path: kept[path] for path in {**values, **settled, **asked}}
        merged = Merged(
            config,
            {path: text for path, text in merged.problems.items() if path not in values},
            {**merged.known, **values},
            {path: value for path, value in merged.elsewhere.items() if path not in values},
        )
        told = {path: why for path, why in {**told, **settled}.items() if path not in given}
        return {**form.patched(values), **judged(project, merged, told)}

    def launch(data: dict[Any, Any]) -> dict[Any, Any]:
        """Start. What is in the way is said below the button, where one is looking."""
        try:
            project, merged, _ = take_in(data)
            if merged.problems:
                raise UserError("Correct the settings marked in red first.")
            if merged.elsewhere:
                page = page_of(project, merged.config)
                return {**page, answer: notice_html(other_tab(merged.elsewhere), "warn"), started: ""}
            run = studio.jobs.start(project, merged.config)
        except UserError as error:
            return {answer: notice_html(str(error), "bad"), started: ""}
        return {answer: "", started: run.id}

    @shows_errors
    def look(files: list[str], mark: str) -> dict[Any, Any]:
        """Something was dropped: what it says, and nothing is changed yet."""
        project = studio.workspace.project(mark.partition(" ")[0])
        paths = [Path(file) for file in files or ()]
        try:
            with studio.uploads.taken(paths):
                brought = read_brought(paths, draft(project, presets, gpu.state()))
        except UserError as error:
            return {report: notice_html(str(error), "bad"), bring: None}
        return {report: brought_html(brought), bring: None}

    def refresh(project: str) -> list[Any]:
        opened = studio.workspace.project(project)
        values = page_of(opened, draft(opened, presets, gpu.state()))
        return [values[component] for component in outputs]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    # Nothing can be typed while an answer is out that fills the form: it would overwrite what was typed.
    hold, release = "(...values) => studio.recipe.hold(values)", "() => studio.recipe.release()"
    inputs: set[Any] = form.inputs | {opening, opened, known}
    gr.on(
        form.changes,
        check,
        inputs,
        shown,
        trigger_mode="always_last",
        **quiet,
    )
    hub.select(press, inputs, outputs, **quiet).then(None, js=release)  # recipe.js holds it
    start.click(launch, inputs, [*outputs, started], js=hold, **quiet).then(
        None, started, None, js="(run) => { studio.recipe.release(); if (run) studio.go('train'); }"
    )
    bring.upload(look, [bring, opened], [report, bring], **quiet)
    return Page(outputs=outputs, refresh=refresh)


def export(studio: Studio, message: Message) -> dict[str, Any]:
    """The draft as a file that trains on this machine without the studio."""
    return {"files": {"recipe.toml": export_text(project_of(studio, message))}}


def export_kohya(studio: Studio, message: Message) -> dict[str, Any]:
    """The draft as files for kohya's scripts."""
    files, said = kohya_files(project_of(studio, message))
    return {"files": files, "said": said}


# What it looks like -----------------------------------------------------------------------------------


def notice_html(text: str, kind: str) -> str:
    return f'<div class="notice {kind}" role="alert">{html.escape(text)}</div>'


def other_tab(elsewhere: Iterable[str]) -> str:
    """Why a start was held back: what would be trained is not what the page showed."""
    names = ", ".join(RECORDS[path].label for path in elsewhere)
    return f"Another tab changed {names}; look at what is shown now, and start again."


def card_html(preset: Preset, chosen: Preset | None, other: bool = False) -> str:
    train, adapter = preset.values.get("train", {}), preset.values.get("adapter", {})
    length = f"{train['epochs']} epochs" if train.get("epochs") else f"{train.get('steps', '–')} steps"
    return (
        f'<button type="button" class="preset{" other" if other else ""}" '
        f'data-preset="{html.escape(preset.key, quote=True)}" aria-pressed="{pressed(preset == chosen)}">'
        f"<b>{html.escape(preset.title)}</b><span>{html.escape(preset.summary)}</span>"
        f"<small>rank {adapter.get('rank', '–')} · {length}</small></button>"
    )


def pressed(is_chosen: bool) -> str:
    return "true" if is_chosen else "false"


def presets_html(presets: list[Preset], judgement: Verdict, damaged: str = "") -> str:
    """A card for each goal, those of other bases and the guides' when asked for; a line on the chosen one and
    its other paces; before them, where a damaged recipe went."""
    usual = {DEMO_BASE, Counter(preset.base for preset in presets).most_common(1)[0][0]}
    cards, others = [], []
    chosen = judgement.preset
    for goal in [preset for preset in presets if preset.group == "goals" and preset.key == preset.goal]:
        other = goal.base not in usual
        shown = chosen if chosen and chosen.goal == goal.key else goal
        cards.append(card_html(shown, chosen, other))
        others += [CATALOGUE[goal.family].label] if other else []
    if others:
        families = [name for name in dict.fromkeys(others) if name != CATALOGUE[presets[0].family].label]
        cards.append(
            '<button type="button" class="preset more" data-more aria-expanded="false">'
            '<b class="others">Other base models</b><b class="fewer">Only the usual ones</b>'
            f"<span>{html.escape(', '.join(families[:4]))} and more.</span>"
            f"<small>{len(others)} presets</small></button>"
        )
    line = "Choose what comes closest; every setting can be changed afterwards."
    if chosen:
        line = f"{html.escape(chosen.source)} {html.escape(chosen.caveat)}"
        if judgement.changed:
            many = "setting is" if judgement.changed == 1 else "settings are"
            key = html.escape(chosen.key, quote=True)
            line += (
                f' <b class="changed">{judgement.changed} {many} changed.</b> '
                f'<button type="button" class="link" data-preset="{key}">Back to the preset</button>'
            )
    lost = damaged and notice_html(
        f"The recipe of this project could not be read, so it is kept as {damaged} in the project's folder "
        "and this one starts from the preset.",
        "warn",
    )
    guides = [preset for preset in presets if preset.group == "guides"]
    opened = " open" if chosen in guides else ""
    theirs = "".join(card_html(preset, chosen) for preset in guides)
    return (
        f'{lost}<div class="presets">{"".join(cards)}</div>{paces_html(presets, chosen)}'
        f'<details class="guides"{opened}><summary>From guides ({len(guides)})</summary>'
        f'<div class="presets">{theirs}</div></details><p class="preset-line">{line}</p>'
    )


def paces_html(presets: list[Preset], chosen: Preset | None) -> str:
    """The chosen goal's paces, where it has several."""
    paces = {preset.pace: preset for preset in presets if chosen and preset.goal == chosen.goal}
    if len(paces) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" class="chip" data-preset="{html.escape(paces[pace].key, quote=True)}" '
        f'aria-pressed="{pressed(paces[pace] == chosen)}">{pace.capitalize()}</button>'
        for pace in get_args(Pace)
        if pace in paces
    )
    return f'<p class="chips choices" role="group" aria-label="Pace"><span>Pace</span>{buttons}</p>'


def memory_html(config: TrainConfig, memory_gib: int, gpu: Mapping[str, Any] | None) -> str:
    """Cards that the recipe can be made to fit; this machine's is marked, the chosen one lets go again."""
    mine = nearest_card(gpu["total_gib"]) if gpu else 0
    buttons = "".join(
        f'<button type="button" class="chip" data-card="{0 if card == memory_gib else card}" '
        f'aria-pressed="{pressed(card == memory_gib)}">{card} GB{here}</button>'
        for card, here in ((card, " · this GPU" if card == mine else "") for card in CARDS)
    )
    said = ""
    if memory_gib:
        missing = missing_gib(config, memory_gib)
        said = f"Made to fit {memory_gib} GB: less memory, more time."
        if missing:
            said = (
                f"Even with all savings it does not fit {memory_gib} GB; take a smaller base, a lower "
                "resolution or a lower rank."
            )
        said = f'<span class="said{" bad" if missing else ""}" role="status">{said}</span>'
    return (
        '<p class="chips choices" role="group" aria-label="Graphics memory"><span>Graphics memory</span>'
        f"{buttons}{said}</p>"
    )


def settled_html(config: TrainConfig, settled: Mapping[str, str]) -> str:
    """What choosing the family changed: as little as it could, and said."""
    values = flatten(config)
    lines = [
        f"{RECORDS[path].label} was set to {in_a_line(RECORDS[path], values[path])}: {why}."
        for path, why in settled.items()
    ]
    return "".join(f'<p class="say hint" role="status">{html.escape(line)}</p>' for line in lines)


def concepts_html(project: Project, config: TrainConfig) -> str:
    """Below the list of further folders: buttons that add another project as a concept of its own."""
    lines = flatten(config)["dataset.subsets"]
    used = {project.root, *(project.folder(one.path) for one in config.dataset.subsets)}
    others = [one for one in project.workspace.list_projects() if one.root not in used]
    buttons = "".join(
        f' <button type="button" class="fix" '
        f"{set_attribute({'dataset.subsets': [*lines, f'../{one.id}']})}>{html.escape(one.name)}</button>"
        for one in others[:MAX_OTHERS]
    )
    return f'<p class="say">Add a project as a concept of its own:{buttons}</p>' if buttons else ""


def base_html(config: TrainConfig) -> str:
    """Below the base: what a download brings with it; for one that was typed, a choice of family."""
    model = config.model
    base = known_base(model.family, model.base)
    link = ""
    if base and base.id != DEMO_BASE:
        page = html.escape(f"https://huggingface.co/{base.id}", quote=True)
        link = f' <a href="{page}" target="_blank" rel="noopener">%s</a>'
    said = []
    for line in about_base(config):
        text = html.escape(line.text)
        if line.kind:
            text += link and link % "Read and accept them"
            said.append(f'<p class="notice {line.kind}"><span>{text}</span></p>')
        else:
            said.append(f'<p class="say">{text}{link and link % "Its page"}</p>')
            link = link if base and base.gated else ""
    if base is None:
        others = [
            f'<button type="button" class="fix" {set_attribute({"model.family": row.key})}>'
            f"{html.escape(row.label)}</button>"
            for row in CATALOGUE.values()
            if row.key != model.family
        ]
        said.append(f'<details class="say"><summary>Another family</summary>{" ".join(others)}</details>')
    return "".join(said)


def summary_html(config: TrainConfig, judgement: Verdict, problems: dict[str, str], form: Form) -> str:
    """The recipe in words, the learning-rate curve, the fit, and what concerns no widget of the page."""
    parts = ["<h3>In words</h3>", *(f"<p>{html.escape(line)}</p>" for line in judgement.words)]
    parts.append(curve_svg(judgement.whole))
    parts.append("<h3>On this machine</h3>")
    parts += [f'<p class="{line.kind}">{html.escape(line.text)}</p>' for line in judgement.machine]
    elsewhere = [one for one in judgement.findings if one.field not in form.fields]
    parts += [finding_html(one) for one in elsewhere]
    if problems:
        parts.append(notice_html("Correct the settings marked in red; then it can start.", "bad"))
    elif judgement.blockers:
        parts.append(notice_html(f"It cannot start yet: {judgement.blockers[0]}", "warn"))
    return f'<section class="card summary" aria-label="Summary">{"".join(parts)}</section>'
