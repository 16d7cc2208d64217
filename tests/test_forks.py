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
    with pytest.raises(ValueError, match="OMP_NUM_THREADS has been read already"):
        run("shows", "0", cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "2"})


def test_where_the_hub_is_can_be_changed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "import huggingface_hub as hub\n"
        "from diffusers.utils.constants import HF_HOME\n"
        "from huggingface_hub import constants\n"
        "from huggingface_hub.utils._cache_manager import HF_HUB_CACHE\n"
        "print(hub.HfApi().endpoint, hub.hf_api.api.endpoint)\n"
        "print(HF_HOME, HF_HUB_CACHE, constants.HF_HUB_OFFLINE)"
    )
    own = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/elsewhere", "HF_HUB_OFFLINE": "0"}
    done = run("asks", cwd=tmp_path, env={**os.environ, **own})
    assert done.stdout.split() == [*["http://127.0.0.1:9"] * 2, "/elsewhere", "/elsewhere/hub", "False"]
