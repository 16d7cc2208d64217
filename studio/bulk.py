"""Bulk changes to a project's captions: shown before they are made, and undone afterwards.

What a change replaced is kept (:mod:`dataset_tools.undo`), so that Undo works after a refresh, in another tab
and after a restart; captions that a model wrote are taken back in the same way. Undo puts back only what
still reads as the change left it: a caption that was edited since keeps the edit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataset_tools import undo as undoing
from dataset_tools.captions import (
    add_prefix,
    add_suffix,
    apply_captions,
    find_replace,
    insert_trigger,
    remove_tag,
)
from dataset_tools.dataset import project_lock
from trainer.contract.errors import UserError

from .projects import Project, writing

PREVIEWS = 6
MAX_TEXT = 2000


@dataclass(frozen=True)
class Change:
    """A bulk change: what it is called, and the new text of every caption that it changes."""

    label: str
    captions: dict[str, str]


def plan_change(project: Project, message: Mapping[str, Any]) -> Change:
    """The change that a form describes; ``kind`` is prefix, suffix, replace, trigger or remove (a tag).

    Raises UserError for one that cannot be made.
    """
    captions = project.captions()

    def text(name: str) -> str:
        value = str(message.get(name) or "")
        if len(value) > MAX_TEXT:
            raise UserError(f"The text has {len(value)} characters; use at most {MAX_TEXT}.")
        return value

    match message.get("kind"):
        case "prefix":
            words = text("text")
            return Change(
                f"“{words.strip()}” put before", add_prefix(captions, words) if words.strip() else {}
            )
        case "suffix":
            words = text("text")
            return Change(
                f"“{words.strip()}” put after", add_suffix(captions, words) if words.strip() else {}
            )
        case "replace":
            find, replace = text("find"), text("replace")
            options = {name: bool(message.get(name)) for name in ("regex", "ignore_case", "whole_words")}
            what = f"replaced by “{replace}”" if replace else "removed"
            return Change(f"“{find}” {what}", find_replace(captions, find, replace, **options))
        case "trigger":
            trigger = project.dataset().trigger
            if not trigger:
                raise UserError("There is no trigger word yet; type one above first.")
            # An empty caption lacks nothing: the trigger word stands in for it.
            written = {key: caption for key, caption in captions.items() if caption}
            return Change(f"“{trigger}” inserted", insert_trigger(written, trigger))
        case "remove":
            tag = text("text")
            return Change(f"“{tag}” removed", remove_tag(captions, tag))
        case other:
            raise UserError(f"There is no bulk change {str(other)[:40]!r}; reload the page.")


def preview(project: Project, message: Mapping[str, Any]) -> dict[str, Any]:
    """``{"label", "count", "changes": the first few [{"id", "name", "before", "after"}]}``."""
    change = plan_change(project, message)
    names = {record.id: record.original_name for record in project.dataset().images}
    before = project.captions()
    first = [
        {"id": key, "name": names.get(key, key), "before": before.get(key, ""), "after": text}
        for key, text in list(change.captions.items())[:PREVIEWS]
    ]
    return {"label": change.label, "count": len(change.captions), "changes": first}


def apply_change(project: Project, message: Mapping[str, Any]) -> dict[str, Any]:
    """Make the change and remember what it replaced: ``{"label", "count"}``."""
    with writing(project.root), project_lock(project.root):
        change = plan_change(project, message)
        if not change.captions:
            raise UserError("No caption would change; the texts already are as asked.")
        before = project.captions()
        changed = {key: (before[key], text) for key, text in change.captions.items()}
        undoing.remember(project.root, change.label, changed)
        # After that: on a full disk nothing changes that could not be taken back.
        apply_captions(project.root, project.dataset(), change.captions)
    return {"label": change.label, "count": len(change.captions)}


def undo(project: Project) -> dict[str, Any]:
    """Take the last change back: ``{"label", "count", "kept": captions edited since, which stay}``."""
    with writing(project.root), project_lock(project.root):
        stack = undoing.changes(project.root)
        if not stack:
            raise UserError("There is nothing to undo.")
        last = stack.pop()
        now = project.captions()
        back = {
            key: before for key, (before, after) in last["captions"].items() if now.get(key) == after.strip()
        }
        apply_captions(project.root, project.dataset(), back)
        undoing.keep(project.root, stack)
    return {"label": last["label"], "count": len(back), "kept": len(last["captions"]) - len(back)}


def last_change(project: Project) -> str:
    """What Undo would take back, "" where there is nothing."""
    stack = undoing.changes(project.root)
    return str(stack[-1]["label"]) if stack else ""
