"""Pages that are generated are current."""

from __future__ import annotations

from tests.conftest import ROOT
from tests.families_table import page


def test_families_page_is_current() -> None:
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert text == page(), "run: python -m tests.families_table > docs/families.md"
