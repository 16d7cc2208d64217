"""What changes of many captions have replaced, so that they can be taken back: ``<project>/undo.json``.

A list of ``{"label", "captions": {image id: [before, after]}}``, the newest last. A change that takes long,
as when a model writes the captions, has a ``work`` beside them while it is not done: it grows with every
caption, and a second try of the same work finds there what the first one got done. Hold the project's lock
while changing it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract.files import read_json, write_json

UNDO_FILE = "undo.json"
UNDO_DEPTH = 20


def changes(root: Path) -> list[dict[str, Any]]:
    """All that can be taken back; nothing where the file is missing or damaged."""
    try:
        found = read_json(root / UNDO_FILE)
    except (FileNotFoundError, ValueError):
        return []
    return found if isinstance(found, list) else []


def keep(root: Path, stack: list[dict[str, Any]]) -> None:
    write_json(root / UNDO_FILE, stack[-UNDO_DEPTH:])


def remember(root: Path, label: str, changed: Mapping[str, tuple[str, str]], work: str = "") -> None:
    """Note {image id: (before, after)} before it is written. With ``work``, in that work's own change."""
    stack = changes(root)
    mine: dict[str, Any] | None
    mine = next((change for change in stack if work and change.get("work") == work), None)
    if mine is None:
        mine = {"label": label, "captions": {}}
        if work:
            mine["work"] = work
        stack.append(mine)
    for image_id, (before, after) in changed.items():
        first, _ = mine["captions"].get(image_id, (before, after))
        mine["captions"][image_id] = [first, after]
    keep(root, stack)


def got_done(root: Path, work: str) -> dict[str, str]:
    """{image id: caption} that an unfinished work has written."""
    return {
        image_id: after
        for change in changes(root)
        if change.get("work") == work
        for image_id, (_, after) in change["captions"].items()
    }


def finish(root: Path, work: str) -> None:
    """The work is done: the same asked for again begins anew."""
    stack = changes(root)
    mine = [change for change in stack if change.get("work") == work]
    for change in mine:
        del change["work"]
    if mine:
        keep(root, stack)
