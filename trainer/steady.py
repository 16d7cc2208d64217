"""Standard output that ends no training: where its disk is full, what is said is lost, and no more."""

from __future__ import annotations

import io
import sys
from typing import Any

from .contract.files import is_disk_full


class _Dropping(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not is_disk_full(error):
                raise
            return len(data)


def steady_output() -> None:
    """Make standard output and standard error of this process so, from here to the very end."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if isinstance(old, io.TextIOWrapper):
            raw = _Dropping(old.fileno(), "wb", closefd=False)
            text = io.TextIOWrapper(
                io.BufferedWriter(raw), old.encoding, old.errors, line_buffering=True, write_through=True
            )
            setattr(sys, name, text)
