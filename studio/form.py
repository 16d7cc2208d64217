"""The form of a recipe: field records -> a page's inputs -> TrainConfig.

One input per setting, made from its record, with a line below it for what is wrong, what the linter says and
how it differs from the preset. It is HTML of our own (static/recipe.js fills and reads it): as components of
Gradio, 150 settings take seconds to open, and every key costs a walk over all of them.

Numbers are text boxes: a number box of the browser throws away what it cannot read, knows no numbers
beyond 2**53 and shows 1e-4 as 0.0001. What is typed stays, and the sentence beside it says what to do.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from trainer.contract.config import TrainConfig, go_with_family
from trainer.contract.errors import ConfigError
from trainer.contract.families import CATALOGUE
from trainer.contract.fields import RECORDS, SECTIONS, Record, flatten, nest, parse
from trainer.contract.lint import Finding

SECTION_TITLES = {
    "model": "Model",
    "dataset": "Photos",
    "captions": "Captions",
    "adapter": "LoRA",
    "train": "Training",
    "loss": "Loss",
    "noise": "Noise",
    "prior": "Prior preservation",
    "validation": "Validation",
    "samples": "Sample images",
    "checkpoints": "Checkpoints",
    "storage": "Storage",
    "output": "Result",
    "machine": "Machine",
    "notify": "Webhooks",
}

MAX_COLUMNS = 4
"""Fields side by side on a wide screen (static/forms.css has the grid)."""

WIDE = {"model.base", "adapter.block_ranks", "adapter.block_alphas", "adapter.block_weights"}
"""Settings whose text needs a whole row."""
UNSET = {"train.epochs": "by steps", "machine.price_per_hour": "none", "machine.budget": "none"}
"""What stands in an empty box that is not filled automatically."""

Maker = Callable[[Record, str], str]
"""(record, attributes of its input) -> the HTML of that input."""


# Values to what inputs show, and back ----------------------------------------------------------------


def number_text(value: float) -> str:
    """The shortest text that reads back as the same number; small ones as 1e-4."""
    if isinstance(value, int):
        return str(value)
    if 0 < abs(value) < 1e-3:
        return f"{Decimal(repr(value)).normalize():e}"
    return repr(value).removesuffix(".0")


def shown(record: Record, value: Any) -> Any:
    """What the input of a setting shows for a value."""
    if record.kind == "switch":
        return bool(value)
    if record.kind == "lines":
        return "\n".join(value)
    if value is None:
        return ""
    return number_text(value) if record.kind in ("integer", "number") else value


def typed(record: Record, raw: Any) -> Any:
    """What was typed into an input, as a value for :func:`trainer.contract.fields.parse`.

    Texts that are no numbers stay texts: parse has the sentence for them.
    """
    if record.kind == "lines":
        return [line.strip() for line in (raw or "").splitlines() if line.strip()]
    if record.kind in ("integer", "number"):
        text = "" if raw is None else str(raw).strip()
        return None if record.optional and not text else text
    return ("" if raw is None else raw) if record.kind == "text" else raw


def read(raw: Mapping[str, Any], config: TrainConfig | None = None) -> TrainConfig:
    """What inputs show, by dotted name -> TrainConfig; settings without one are taken from ``config``.

    Raises ConfigError, whose ``problems`` name the settings to put the sentences beside.
    """
    values = flatten(config or TrainConfig())
    values.update({path: typed(RECORDS[path], value) for path, value in raw.items()})
    return parse(nest(values))


def read_what_is_right(raw: Mapping[str, Any], config: TrainConfig) -> tuple[TrainConfig, dict[str, str]]:
    """Like :func:`read`, but wrong settings keep their value of ``config``: (recipe, sentences)."""
    return _what_is_right({path: typed(RECORDS[path], value) for path, value in raw.items()}, config)


def _what_is_right(values: Mapping[str, Any], config: TrainConfig) -> tuple[TrainConfig, dict[str, str]]:
    """:func:`with_values` of the right ones. One whose old value is not right either gets its default."""
    before = flatten(config)
    after = {**before, **values}
    problems: dict[str, str] = {}
    while True:
        try:
            return parse(nest(after)), problems
        except ConfigError as error:
            for path, sentence in error.problems.items():
                if path not in RECORDS or (path in problems and after[path] == RECORDS[path].default):
                    raise
                after[path] = RECORDS[path].default if path in problems else before[path]
                problems.setdefault(path, sentence)


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The recipe with some settings, by dotted name, replaced. Raises ConfigError."""
    return parse(nest({**flatten(config), **values}))


def put_in(config: TrainConfig, values: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, str]]:
    """Like :func:`with_values`, and {setting: why} of what a family among the values cannot have."""
    try:
        return with_values(config, values), {}
    except ConfigError:
        others = {path: value for path, value in values.items() if path != "model.family"}
        family = values.get("model.family")
        if family not in CATALOGUE or family == config.model.family:
            raise
        return go_with_family(with_values(config, others), family)


@dataclass(frozen=True)
class Merged:
    """A form's values put into the draft on disk.

    ``known`` is what the form and the disk agreed on last, for the next merge; ``elsewhere`` has the
    settings that somebody else changed since, and that the form still shows as they were; ``settled`` those
    that the family that was chosen cannot have, with the reason: the form still shows them as they were.
    """

    config: TrainConfig
    problems: dict[str, str]
    known: dict[str, Any]
    elsewhere: dict[str, Any]
    settled: dict[str, str] = field(default_factory=dict)


def merge_typed(raw: Mapping[str, Any], known: Mapping[str, Any], disk: TrainConfig) -> Merged:
    """Write into ``disk`` only what was typed since ``known``: another tab may have changed the rest."""
    before = with_values(disk, known)
    typed_in, problems = read_what_is_right(raw, before)
    settled: dict[str, str] = {}
    family = raw.get("model.family", before.model.family)
    if problems and family != before.model.family:
        # What the chosen family cannot have was not typed just now, and need not be put right by hand.
        others = {path: value for path, value in raw.items() if path != "model.family"}
        right, wrong = read_what_is_right(others, before)
        with suppress(ConfigError):
            typed_in, settled = go_with_family(right, family)
            problems = wrong
    was, now, there = flatten(before), flatten(typed_in), flatten(disk)
    mine = {path: now[path] for path in raw if now[path] != was[path]}
    try:
        config, more = put_in(disk, mine)
        settled |= more
    except ConfigError:  # right by itself, but not beside what the other tab changed
        config, more = _what_is_right(mine, disk)
        problems = {**problems, **more}
        mine = {path: value for path, value in mine.items() if path not in problems}
    kept = flatten(config)
    mine |= {path: kept[path] for path in settled}
    elsewhere = {path: there[path] for path in raw if there[path] != was[path] and path not in mine}
    return Merged(config, problems, {**was, **mine}, elsewhere, settled)


def known_settings(text: str) -> dict[str, Any]:
    """``Merged.known`` back from JSON. The browser had it: what is no setting is dropped."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    known = values if isinstance(values, dict) else {}
    return {path: known[path] for path in RECORDS if path in known}


def known_text(known: Mapping[str, Any], settled: Mapping[str, str]) -> str:
    """``Merged.known`` as JSON, with what was settled for the family, which stays said. The browser passes it
    on as it is: a script knows no whole numbers beyond 2**53."""
    return json.dumps({**known, "settled": settled})


def settled_before(text: str, config: TrainConfig) -> dict[str, str]:
    """What :func:`known_text` said was settled, as far as it still holds."""
    values = flatten(config)
    try:
        told = json.loads(text)
        if told["model.family"] != config.model.family:
            return {}
        rows = {str(path): str(why) for path, why in told["settled"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {
        path: why for path, why in rows.items() if path in RECORDS and values[path] == RECORDS[path].default
    }


def elsewhere_findings(elsewhere: Mapping[str, Any]) -> list[Finding]:
    """What stands beside settings that were changed in another tab: the value, and a button that shows it."""
    return [
        Finding(
            "warning",
            path,
            f"Changed in another tab to {_cut(in_a_line(RECORDS[path], value))}.",
            {path: value},
            "Show it here",
        )
        for path, value in elsewhere.items()
    ]


def raw_values(values: Any, paths: Collection[str]) -> dict[str, Any]:
    """What the inputs of ``paths`` show, as the browser sent it: texts, and for switches true or false."""
    if not isinstance(values, Mapping):
        return {}
    return {
        path: values[path] is True if RECORDS[path].kind == "switch" else str(values[path])
        for path in paths
        if path in values
    }


def filled(config: TrainConfig, paths: Iterable[str]) -> dict[str, Any]:
    """{setting: what its input shows}."""
    values = flatten(config)
    return {path: shown(RECORDS[path], values[path]) for path in paths}


# What stands below an input -------------------------------------------------------------------------


def annotated(
    config: TrainConfig,
    problems: Mapping[str, str],
    findings: Iterable[Finding],
    reference: TrainConfig | None,
) -> dict[str, str]:
    """{setting: the HTML below its input}: what is wrong, what the linter says, the way back to a preset."""
    usual = {path: value for path, value in _ways_back(config, reference).items() if path not in problems}
    by_field: dict[str, list[Finding]] = {}
    for finding in findings:
        # Of a setting that is wrong the linter saw what it was before, which nobody is looking at.
        if not (finding.rule and finding.field in problems):
            by_field.setdefault(finding.field, []).append(finding)
    return {
        path: note_html(record, problems.get(path), by_field.get(path, ()), usual.get(path, ...))
        for path, record in RECORDS.items()
    }


def _ways_back(config: TrainConfig, reference: TrainConfig | None) -> dict[str, Any]:
    """The preset's value of each setting that differs from it, where it goes with the others."""
    if reference is None:
        return {}
    values, back = flatten(config), {}
    for path, value in flatten(reference).items():
        if value != values[path]:
            with suppress(ConfigError):
                with_values(config, {path: value})
                back[path] = value
    return back


def note_html(record: Record, problem: str | None, findings: Iterable[Finding], usual: Any = ...) -> str:
    """What stands below an input. ``usual`` is the preset's value, ``...`` where nothing differs from it."""
    parts = []
    if problem:
        inside = f"{record.path}."  # of the tables that a setting lists
        sentence = problem.replace(inside, f"{record.label}: ", 1).replace(inside, "")
        sentence = sentence.replace(record.path, record.label, 1)
        parts.append(f'<p class="say error" role="alert">{html.escape(sentence)}</p>')
    parts += [finding_html(finding) for finding in findings]
    if usual is not ...:
        text = in_a_line(record, usual)
        short = _cut(text)
        parts.append(
            f'<button type="button" class="reset" {set_attribute({record.path: usual})} '
            f'aria-label="Set {html.escape(record.label)} back to {html.escape(text, quote=True)}" '
            f'title="Back to what the preset says">↺ {html.escape(short)}</button>'
        )
    return "".join(parts)


def in_a_line(record: Record, value: Any) -> str:
    if record.kind == "switch":
        return "on" if value else "off"
    return str(shown(record, value)).replace("\n", " · ") or "empty"


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def finding_html(finding: Finding) -> str:
    """A finding of the linter with its button."""
    button = ""
    if finding.fix:
        button = (
            f' <button type="button" class="fix" {set_attribute(finding.fix)}>'
            f"{html.escape(finding.fix_label)}</button>"
        )
    return f'<p class="say {finding.level}">{html.escape(finding.message)}{button}</p>'


def set_attribute(values: Mapping[str, Any]) -> str:
    """``data-set``: the settings that a button puts in, read by static/recipe.js."""
    return f'data-set="{html.escape(json.dumps(dict(values), ensure_ascii=False), quote=True)}"'


# The inputs -----------------------------------------------------------------------------------------


def form_html(paths: Collection[str], own: Mapping[str, Maker] | None = None) -> str:
    """The inputs of settings: basic ones first, the others in sections that unfold.

    ``own`` makes those that are not the usual ones. The input of ``train.steps`` is in the element
    ``recipe-train-steps``, the line below it is ``recipe-train-steps-note``. What is folded is in the page
    all the same.
    """
    makers = own or {}

    def sections(basic: bool) -> str:
        parts = []
        for name, model in SECTIONS.items():
            records = [
                record
                for record in RECORDS.values()
                if record.section == name and record.basic == basic and record.path in paths
            ]
            if not records:
                continue
            wide = not basic or any(_is_wide(record) for record in records)
            columns = MAX_COLUMNS if wide else min(len(records), MAX_COLUMNS)
            title = html.escape(SECTION_TITLES.get(name, name.capitalize()))
            head = f"<h3>{title}</h3>" if basic else _fold_html(title, model.__doc__ or "")
            fields = "".join(_field_html(one, makers.get(one.path, input_html)) for one in records)
            kind = f"span-{columns}" if basic else "folded"
            parts.append(
                f'<section class="form-section {kind}">{head}<div class="form-grid">{fields}</div></section>'
            )
        return "".join(parts)

    return (
        f'<div class="form-sections">{sections(basic=True)}</div>'
        f'<div class="form-advanced" id="recipe-advanced">{_FIND}{sections(basic=False)}</div>'
    )


def input_html(record: Record, attributes: str) -> str:
    """The input of a record, by its kind."""
    if record.kind == "switch":
        return f'<input type="checkbox" {attributes}>'
    if record.kind == "choice":
        options = "".join(option_html(choice, choice.replace("_", " ")) for choice in record.choices)
        return f"<select {attributes}>{options}</select>"
    if record.kind == "lines":
        return f'<textarea rows="4" placeholder="one per line" {attributes}></textarea>'
    if record.kind == "text":
        return f'<input type="text" {attributes}>'
    mode = "decimal" if record.kind == "number" else "numeric"
    empty = UNSET.get(record.path, "automatic") if record.optional else ""
    return (
        f'<input type="text" inputmode="{mode}" autocorrect="off" spellcheck="false" '
        f'placeholder="{empty}" {attributes}>'
    )


def option_html(value: str, label: str) -> str:
    return f'<option value="{html.escape(value, quote=True)}">{html.escape(label)}</option>'


def _field_html(record: Record, make: Maker) -> str:
    element = f"recipe-{record.section}-{record.name.replace('_', '-')}"
    label = f"{record.label} ({record.unit})" if unit_is_news(record) else record.label
    asked = make(
        record,
        f'id="{element}-input" data-setting="{record.path}" autocomplete="off" '
        f'aria-describedby="{element}-help {element}-note"',
    )
    kind = " wide" if _is_wide(record) else " switch" if record.kind == "switch" else ""
    return (
        f'<div class="form-field{kind}"><div id="{element}">'
        f'<label for="{element}-input">{html.escape(label)}</label>{asked}'
        f'<p class="info-text" id="{element}-help">{html.escape(record.help)}</p></div>'
        f'<div class="form-note" id="{element}-note"></div></div>'
    )


_FIND = """<div class="find"><h3>Advanced</h3>
<label><input type="search" placeholder="Find a setting" aria-label="Find a setting"></label>
<button type="button" class="chip" data-changed aria-pressed="false">Changed</button>
<p class="found" role="status" hidden></p></div>"""


def _fold_html(title: str, doc: str) -> str:
    """The head of a section: what is in it, and a mark where something in it is changed or wrong."""
    line = " ".join(doc.split()).removeprefix(f"{title}: ")
    line = html.escape(line[:1].upper() + line[1:])
    return (
        f'<h3><button type="button" class="fold" data-fold aria-expanded="false"><b>{title}</b>'
        f"<small>{line}</small></button></h3>"
    )


def unit_is_news(record: Record) -> bool:
    """Whether a label does not say the unit itself ("Keep first tags")."""
    return bool(record.unit) and record.unit not in record.label.split()


def _is_wide(record: Record) -> bool:
    """Whether an input takes a whole row: lists and long names."""
    return record.kind == "lines" or record.path in WIDE
