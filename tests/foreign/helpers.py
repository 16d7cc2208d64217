"""Reading a text as if it were a file of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.contract.config import TrainConfig
from trainer.contract.fields import parse
from trainer.contract.foreign.importing import read_foreign
from trainer.contract.foreign.report import Imported, Line

HERE = Path(__file__).parent


def read(folder: Path, name: str, text: str) -> tuple[TrainConfig, Imported]:
    """(the recipe, the report) of a file with this text."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    imported = read_foreign(file)
    return parse(imported.tables), imported


def line(imported: Imported, option: str) -> Line:
    """The first line on an option, or on one of our settings."""
    found = [each for each in imported.lines if option in (each.option, each.setting)]
    assert found, f"no line on {option}: {[each.option for each in imported.lines]}"
    return found[0]


def said(imported: Imported) -> str:
    return "\n".join(f"{each.outcome} {each}" for each in imported.lines)


def leaves(data: Any, prefix: str = "") -> list[str]:
    """Dotted names of the options of a nested file, lists of tables by their place."""
    if isinstance(data, dict):
        return [
            name
            for key, value in data.items()
            for name in leaves(value, f"{prefix}.{key}" if prefix else key)
        ]
    if isinstance(data, list) and any(isinstance(row, dict) for row in data):
        return [name for row in data for name in leaves(row, prefix)]
    return [prefix]
