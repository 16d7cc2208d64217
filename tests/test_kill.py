"""The kill test, short: a run that is killed a few times ends as the run in peace."""

from __future__ import annotations

from .conftest import ROOT
from .forks import run


def test_kills_cost_nothing_but_time() -> None:
    options = ("--kills", "2", "--runs", "1", "--seed", "6", "--steps", "7", "--damage", "0.5")
    done = run("bench.kill_test", *options, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "damaged checkpoints that a resume went on from | 0 |" in done.stdout
