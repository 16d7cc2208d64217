"""A forked program is a process like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .forks import Program, run

SHOWS = """
import os, signal, sys, time
print(os.getpid(), os.getsid(0), os.getcwd(), os.environ["SHOWN"], sys.argv[1:], __name__, flush=True)
print("an error", file=sys.stderr)
if sys.argv[1] == "wait":
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="programs are not forked there")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shows.py").write_text(SHOWS)
    monkeypatch.setenv("SHOWN", "by its environment")
    return tmp_path


def test_it_is_what_python_would_have_started(folder: Path) -> None:
    real = [sys.executable, "-m", "shows", "7", "x y"]
    python = subprocess.run(real, cwd=folder, capture_output=True, text=True)
    forked = run("shows", "7", "x y", cwd=folder)
    assert (forked.returncode, forked.stderr) == (python.returncode, python.stderr) == (7, "an error\n")
    ours, theirs = (done.stdout.split(" ", 2) for done in (forked, python))
    assert ours[2] == theirs[2] and ours[0] != theirs[0]


def test_it_can_be_found_stopped_and_killed(folder: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with Program(
            "shows", "wait", cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as one:
            assert one.stdout and one.stdout.readline().split()[:2] == [str(one.pid)] * 2
            assert one.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                one.wait(0.1)
            os.killpg(one.pid, number)
            assert one.wait(20) == -number


def test_what_was_read_on_import_cannot_be_changed(folder: Path) -> None:
    with pytest.raises(ValueError, match="HF_HOME has been read already"):
        run("shows", "0", cwd=folder, env={**os.environ, "HF_HOME": "elsewhere"})
