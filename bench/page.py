"""Pages of docs/ that a bench writes a part of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def put_between(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    after = rest.partition(end)[2]
    page.write_text(before + start + "\n".join(lines) + "\n" + end + after, encoding="utf-8")
