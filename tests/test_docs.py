"""Pages that are generated are current."""

from __future__ import annotations

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
