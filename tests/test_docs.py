"""Pages that are generated are current."""

from __future__ import annotations

import ast
import re

from tests.conftest import ROOT
from tests.families_table import page
from trainer.contract.lint import RULES


def test_families_page_is_current() -> None:
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert text == page(), "run: python -m tests.families_table > docs/families.md"


def test_traps_name_rules_that_there_are() -> None:
    text = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {6}, "four columns"
    cells = [row[4].strip() for row in rows]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(cells) > 40 and len(named) > 60 and named <= set(RULES)


def test_every_technique_is_in_the_table_and_none_is_a_no_op() -> None:
    """Read from the source: to import the bench would load torch and diffusers."""
    tree = ast.parse((ROOT / "bench" / "techniques.py").read_text(encoding="utf-8"))
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "TECHNIQUES"
    )
    names = list(ast.literal_eval(ast.List([key for key in table.keys if key], ast.Load())))  # type: ignore[union-attr]
    text = (ROOT / "docs" / "techniques.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    measured = {row[1]: tuple(row[3:6]) for row in rows[1:]}
    assert list(measured) == names
    assert sum(figures == measured["plain"] for figures in measured.values()) == 1
