"""The kill test, short: a run that is killed a few times ends as the run in peace."""

from __future__ import annotations

import subprocess
import sys

from .conftest import ROOT


def test_kills_cost_nothing_but_time() -> None:
    argv = [sys.executable, "-m", "bench.kill_test", "--kills", "2", "--runs", "1", "--seed", "6"]
    done = subprocess.run(
        [*argv, "--steps", "7", "--damage", "0.5"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "damaged checkpoints that a resume went on from | 0 |" in done.stdout
