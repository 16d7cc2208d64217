"""What a person at a terminal sees."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from trainer.contract.runs import RunFolder
from trainer.report import Reporter


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_bar_is_drawn_even_where_the_width_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, terminal = os.openpty()  # 0 columns, as fresh ones are
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        report = Reporter(RunFolder(tmp_path), 1, 2, torch.device("cpu"))
        report.started(0, 2, None)
        report.step(1, 0.5, 0.5, 1e-4, 1.0, 0.1)
        report.say("saved something")
        report.end("stopped", "enough")
    drawn = b""
    with suppress(OSError):  # the end of what a closed terminal has shown
        while more := os.read(screen, 65536):
            drawn += more
    os.close(screen)
    shown = drawn.decode()
    assert "| 1/2 [" in shown and "loss=0.5000" in shown
    assert "saved something" in shown and "step 1/2" not in shown
