"""The Recipe page: a preset, the settings with what the linter says beside them, and Start.

Every change is checked at once and kept as the project's draft, so a refresh or another tab finds it. It is
one panel (static/recipe.js), which asks the functions below one question at a time. What its inputs show goes
along with each; what differs from ``known``, where form and disk agreed last, was typed here.
"""

from __future__ import annotations

import functools
import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from studio.blocks import block_map_html
from studio.bring import bring as read_brought
from studio.bring import brought_html, sent, taken_html
from studio.bring import take as take_brought
from studio.context import Studio
from studio.curve import curve_svg
from studio.form import (
    Merged,
    annotated,
    elsewhere_findings,
    filled,
    finding_html,
    form_html,
    in_a_line,
    input_html,
    known_settings,
    known_text,
    merge_typed,
    option_html,
    put_in,
    raw_values,
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

from . import Message, project_of, served, text_of

HIDDEN = ("dataset.path", "dataset.trigger", "model.family")
"""Settings that this page does not ask for: they follow from the project and from the base model."""
ASKED = tuple(path for path in RECORDS if path not in HIDDEN)
MAX_OTHERS = 12
"""Projects that are offered as further concepts."""

presets_here = functools.cache(load_presets)
gpu = Gpu()


def build(studio: Studio) -> None:
    """What static/recipe.js fills, and the drop zone, whose files Gradio uploads."""
    with gr.Column(elem_id="recipe-page"):
        gr.HTML('<div id="recipe-presets"></div><div id="recipe-report"></div>', apply_default_css=False)
        with gr.Row(elem_id="recipe-columns"):
            with gr.Column(scale=7, min_width=320):
                form = form_html(ASKED, own={"model.base": base_html})
                gr.HTML(f'<div id="recipe-form" inert>{form}</div>', apply_default_css=False)
            with gr.Column(scale=4, min_width=280, elem_id="recipe-side"):
                gr.HTML(
                    SIDE,
                    apply_default_css=False,
                    head=scripts("live.js", "frame.js", "recipe.js"),
                    js_on_load="studio.panels.recipe(server)",
                    server_functions=served(studio, open_recipe, check, press, launch, export, export_kohya),
                )
                bring = gr.File(
                    label="Bring your recipe",
                    show_label=False,
                    file_count="multiple",
                    file_types=[".toml", *ENDINGS],
                    elem_id="recipe-import",
                    height=120,
                )
                brought = gr.Textbox(visible="hidden")

    def dropped(files: list[str] | None, project_id: str) -> tuple[None, str]:
        return None, look(studio, files or (), project_id)

    bring.upload(
        dropped,
        [bring, brought],
        [bring, brought],
        js="(files) => [files, studio.recipeDroppedInto()]",
        show_progress="hidden",
        api_visibility="private",
        queue=False,
    ).then(None, brought, None, js="(report) => studio.brought(report)")


SIDE = """<div id="recipe-summary"></div>
<button type="button" class="btn primary" id="recipe-start" disabled>Start training</button>
<div id="recipe-answer"></div>
<div id="recipe-files"><button type="button" class="btn quiet" data-export>Export recipe.toml</button>
<button type="button" class="btn quiet" data-export="kohya">For kohya</button></div>"""


def base_html(record: Record, attributes: str) -> str:
    """The catalogue's bases by name; anything else may be typed. The list puts its choice into the box."""
    groups = "".join(
        f'<optgroup label="{html.escape(family.label, quote=True)}">'
        + "".join(option_html(base.id, base.label) for base in family.bases)
        + "</optgroup>"
        for family in CATALOGUE.values()
    )
    return (
        '<div class="base"><select autocomplete="off" aria-label="Known bases" '
        'aria-describedby="recipe-model-base-note">'
        f"{option_html('', 'Another base')}{groups}</select>{input_html(record, attributes)}</div>"
    )


# Called by the panel ----------------------------------------------------------------------------------


def open_recipe(studio: Studio, message: Message) -> dict[str, Any]:
    """The whole page of a project."""
    project = project_of(studio, message)
    return _page(project, _draft(project))


def check(studio: Studio, message: Message) -> dict[str, Any]:
    """Something was typed: keep what is right, and say what is not. A ``fresh`` look at the page puts in what
    was changed elsewhere."""
    project, merged, told = _take_in(studio, message)
    values = flatten(merged.config)
    elsewhere = merged.elsewhere.keys() - merged.problems.keys() if message.get("fresh") else ()
    changed = {*merged.settled, *elsewhere}
    return _shown(project, merged, told, {path: values[path] for path in changed})


def look(studio: Studio, files: Sequence[str], project_id: str) -> str:
    """Something was dropped: what it says, as HTML, and nothing is changed yet."""
    paths = [Path(file) for file in files]
    try:
        project = studio.workspace.project(project_id)
        with studio.uploads.taken(paths):
            return brought_html(read_brought(paths, _draft(project)))
    except UserError as error:
        return notice_html(str(error), "bad")


def press(studio: Studio, message: Message) -> dict[str, Any]:
    """A preset, or a button that puts settings in."""
    with changing:
        project, merged, told = _take_in(studio, message)
        if (recipe := message.get("recipe")) is not None:
            before = taken_html(merged.config, project.preset, bool(message.get("undo")))
            preset = str(message.get("preset", ""))
            known_preset = any(one.key == preset for one in presets_here())
            config = take_brought(project, sent(recipe), preset if known_preset else "")
            return {**_page(project, config), "report": before}
        if (memory_gib := message.get("card")) in (0, *CARDS):
            return _page(project, choose_card(project, merged.config, presets_here(), int(memory_gib)))
        if key := message.get("preset"):
            return _page(project, choose_preset(project, merged.config, presets_here(), str(key)))
        given = _settings_in(text_of(message, "set"))
        values = with_family(given)
        config, settled = put_in(merged.config, values)
        keep_draft(project, config)
    kept = flatten(config)
    changed = {path: kept[path] for path in {**values, **settled, **merged.settled}}
    told = {path: why for path, why in {**told, **settled}.items() if path not in given}
    return _shown(project, replace(merged, config=config), told, changed)


def _settings_in(text: str) -> dict[str, Any]:
    """What :func:`studio.form.set_attribute` wrote into a button, which the browser passes on as it is."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    settable = {*ASKED, "model.family"}
    return (
        {path: value for path, value in values.items() if path in settable}
        if isinstance(values, dict)
        else {}
    )


def launch(studio: Studio, message: Message) -> dict[str, Any]:
    """Start. What is in the way is said below the button, where one is looking."""
    try:
        project, merged, _ = _take_in(studio, message)
        if merged.problems:
            raise UserError("Correct the settings marked in red first.")
        if merged.elsewhere:
            said = notice_html(other_tab(merged.elsewhere), "warn")
            return {**_page(project, merged.config), "answer": said}
        return {"run": studio.jobs.start(project, merged.config).id, "answer": ""}
    except UserError as error:
        return {"answer": notice_html(str(error), "bad")}


def export(studio: Studio, message: Message) -> dict[str, Any]:
    """The draft as a file that trains on this machine without the studio."""
    return {"files": {"recipe.toml": export_text(project_of(studio, message))}}


def export_kohya(studio: Studio, message: Message) -> dict[str, Any]:
    """The draft as files for kohya's scripts."""
    files, said = kohya_files(project_of(studio, message))
    return {"files": files, "said": said}


def _draft(project: Project) -> TrainConfig:
    return draft(project, presets_here(), gpu.state())


def _take_in(studio: Studio, message: Message) -> tuple[Project, Merged, dict[str, str]]:
    """Keep what was typed as the draft; with it, {setting: why} of what was settled for the family."""
    project = project_of(studio, message)
    known = text_of(message, "known")
    with changing:
        damaged = project.damaged_recipe
        disk = _draft(project)
        raw = with_family(raw_values(message.get("values"), ASKED))
        merged = merge_typed(raw, known_settings(known), disk)
        if merged.config != disk:
            project.save_config(merged.config)
            if project.damaged_recipe == damaged:  # and not found damaged just now
                project.set_damaged_recipe("")
    return project, merged, {**settled_before(known, merged.config), **merged.settled}


def _page(project: Project, config: TrainConfig) -> dict[str, Any]:
    """All of the page, with nothing that was only typed, or said before."""
    values = flatten(config)
    whole = _shown(project, Merged(config, {}, values, {}), {}, values)
    return {"answer": "", "report": "", **whole}


def _shown(
    project: Project, merged: Merged, told: Mapping[str, str], changed: Mapping[str, Any]
) -> dict[str, Any]:
    """What the panel shows from now on; ``changed`` settings are put into its inputs, and agreed on."""
    config = merged.config
    problems = {path: text for path, text in merged.problems.items() if path not in changed}
    elsewhere = {path: value for path, value in merged.elsewhere.items() if path not in changed}
    judgement = verdict(project, config, presets_here(), gpu.state())
    findings = [*elsewhere_findings(elsewhere), *judgement.findings]
    notes = annotated(config, problems, findings, judgement.reference)
    notes["model.base"] = about_base_html(config) + settled_html(config, told) + notes["model.base"]
    notes["dataset.subsets"] += concepts_html(project, config)
    notes["machine.price_per_hour"] += rents_html(config, gpu.state())
    notes["adapter.block_weights"] += block_map_html(config)
    return {
        "project": project.id,
        "values": filled(config, [path for path in changed if path in ASKED]),
        "known": known_text({**merged.known, **changed}, told),
        "notes": {path: said for path, said in notes.items() if said},
        "presets": presets_html(presets_here(), judgement, project.damaged_recipe)
        + memory_html(config, project.memory_gib, gpu.state()),
        "summary": summary_html(config, judgement, problems),
        "ready": not problems and not judgement.blockers,
    }


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


def about_base_html(config: TrainConfig) -> str:
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


def summary_html(config: TrainConfig, judgement: Verdict, problems: Mapping[str, str]) -> str:
    """The recipe in words, the learning-rate curve, the fit, and what concerns no setting of the page."""
    parts = ["<h3>In words</h3>", *(f"<p>{html.escape(line)}</p>" for line in judgement.words)]
    parts.append(curve_svg(judgement.whole))
    parts.append("<h3>On this machine</h3>")
    parts += [f'<p class="{line.kind}">{html.escape(line.text)}</p>' for line in judgement.machine]
    elsewhere = [one for one in judgement.findings if one.field not in ASKED]
    parts += [finding_html(one) for one in elsewhere]
    if problems:
        parts.append(notice_html("Correct the settings marked in red; then it can start.", "bad"))
    elif judgement.blockers:
        parts.append(notice_html(f"It cannot start yet: {judgement.blockers[0]}", "warn"))
    return f'<section class="card summary" aria-label="Summary">{"".join(parts)}</section>'
