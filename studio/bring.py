"""Bring your recipe: files of other trainers, or of this program, as a report and a recipe to take or leave.

Nothing changes until somebody says so. What was read travels in the button that takes it, and what it
replaced in the button that puts it back: both are whole recipes, checked again when they arrive.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError, UserError
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.foreign.importing import among, is_own, read_foreign
from trainer.contract.foreign.reading import parse_toml, read_text
from trainer.contract.foreign.report import MEANING, Imported

from .projects import Project
from .recipes import changing, keep_draft

MAX_FILES = 10
ELSEWHERE = {"dataset": ("path", "subsets"), "validation": ("path",)}
"""Settings of another machine's folders, which a project of the studio has its own for."""
SHOWN_AT_ONCE = ("missing", "unknown", "converted", "default", "note")


@dataclass(frozen=True)
class Brought:
    """What was dropped. ``imported`` is None for a recipe of this program."""

    name: str
    tables: dict[str, dict[str, Any]]
    imported: Imported | None


def bring(files: Sequence[Path], draft: TrainConfig) -> Brought:
    """Read what was dropped: one recipe, and the files that it names. Raises UserError with one sentence.

    A recipe that names no base (sample prompts, a dataset file, a part of a recipe) changes ``draft`` where
    it says something; any other is a whole recipe.
    """
    if not files:
        raise UserError("Nothing was dropped; choose the recipe of another program.")
    if len(files) > MAX_FILES:
        raise UserError(f"These are {len(files)} files; drop one recipe and the files that it names.")
    if len(files) == 1 and files[0].suffix.lower() == ".toml":
        tables = parse_toml(read_text(files[0]), files[0].name)
        if is_own(tables):
            tables.pop("preset", None)
            return Brought(files[0].name, to_tables(parse(tables)), None)
    read: list[tuple[str, Imported]] = []
    problems: list[ConfigError] = []
    for file in files:
        try:
            read.append((file.name, read_foreign(file, among(files), (draft.model.family, draft.model.base))))
        except ConfigError as error:
            problems.append(error)
    if not read:
        raise problems[0]
    for _, each in read:
        if each.part:
            each.without_defaults()
    name, imported = max(read, key=lambda pair: (_names_a_base(pair[1]), len(pair[1].lines)))
    found = {section: dict(table) for section, table in imported.tables.items()}
    for section, names in ELSEWHERE.items():
        for one in names:
            found.get(section, {}).pop(one, None)
    if not _names_a_base(imported):
        found = merge(to_tables(draft), found)
    return Brought(name, to_tables(parse(found)), imported)


def _names_a_base(imported: Imported) -> bool:
    return "family" in imported.tables.get("model", {})


def sent(recipe: Any) -> Any:
    """The tables that a button sent. Raises UserError for what none of ours did."""
    try:
        return json.loads(recipe)
    except (TypeError, ValueError, RecursionError):
        raise UserError("This is no recipe; reload the page.") from None


def take(project: Project, tables: Any, preset: str) -> TrainConfig:
    """Make a whole recipe the draft; photos, and a trigger word that is already chosen, stay the project's.

    Raises ConfigError with a sentence for each setting that is wrong; the draft is then unchanged.
    """
    if not isinstance(tables, dict):
        raise UserError("This is no recipe; reload the page.")
    trigger = project.dataset().trigger
    own = {"dataset": {"path": str(project.root)} | ({"trigger": trigger} if trigger else {})}
    config = parse(merge(tables, own))
    with changing:
        keep_draft(project, config)
        project.set_preset(preset)
    return config


# What it looks like -----------------------------------------------------------------------------------


def take_button(
    label: str, tables: dict[str, Any], preset: str = "", kind: str = "btn", undo: bool = False
) -> str:
    """A button that makes ``tables`` the draft, read by static/recipe.js.

    They travel as a text: Gradio takes any table with a "path", such as [dataset], for a file of its own.
    """
    recipe = json.dumps(tables, ensure_ascii=False)
    told = {"recipe": recipe, "preset": preset, "undo": undo}
    message = html.escape(json.dumps(told, ensure_ascii=False), quote=True)
    return f'<button type="button" class="{kind}" data-recipe="{message}">{html.escape(label)}</button>'


def brought_html(brought: Brought) -> str:
    """The report, and the button that takes the recipe."""
    take_it = take_button("Use this recipe", brought.tables, kind="btn primary")
    leave = '<button type="button" class="btn quiet" data-recipe="">Leave it</button>'
    imported = brought.imported
    if imported is None:
        said = ["<p>A recipe of this program. Photos and trigger word of this project stay as they are.</p>"]
        title = brought.name
    else:
        title = f"{brought.name}: {imported.program}"
        said = [
            f"<p>{html.escape(imported.counts())}. Photos and trigger word of this project stay as they are; "
            "nothing is changed yet.</p>"
        ]
        for outcome, meaning in MEANING.items():
            lines = [line for line in imported.lines if line.outcome == outcome]
            if lines:
                rows = "".join(f"<li>{html.escape(str(line))}</li>" for line in lines)
                opened = " open" if outcome in SHOWN_AT_ONCE else ""
                said.append(
                    f'<details class="outcome {outcome}"{opened}><summary><b>{len(lines)} {outcome}</b> '
                    f"{html.escape(meaning)}</summary><ul>{rows}</ul></details>"
                )
    return (
        f'<section class="card brought" aria-label="Report" tabindex="-1"><h3>{html.escape(title)}</h3>'
        f'<div class="brought-do">{take_it}{leave}</div>{"".join(said)}</section>'
    )


def taken_html(before: TrainConfig, preset: str, undone: bool = False) -> str:
    """After a recipe was taken, or put back: the way back."""
    said = "The recipe is as it was before." if undone else "The recipe is this project's now."
    back = take_button("Redo" if undone else "Undo", to_tables(before), preset, "link", not undone)
    return f'<div class="notice good" role="status"><span>{said} {back}</span></div>'
