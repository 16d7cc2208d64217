"""A disk that really fills up while a run trains: it makes room and goes on, or ends saved and says so."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from trainer.__main__ import main
from trainer.checkpoints import is_whole, list_checkpoints, step_of
from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.events import read_events
from trainer.contract.runs import RunFolder

from .helpers import Script, recipe, train_here, weights_hash

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 16 MiB; one checkpoint takes about 1."""
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(root)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    monkeypatch.setattr("trainer.contract.disk.MIN_FREE_GIB", -1.0)
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True)


class Filling(Script):
    """Fills the disk to the last byte once the run has reached ``step``."""

    def __init__(self, run: RunFolder, disk: Path, step: int) -> None:
        super().__init__(run, step=step)
        self._ballast = disk / "ballast"

    def stop(self) -> bool:
        if self._due() and not self._ballast.exists():
            with self._ballast.open("wb", buffering=0) as file:
                for size in (MIB, 4096, 1):
                    try:
                        while file.write(bytes(size)) == size:
                            pass
                    except OSError as error:
                        assert error.errno == errno.ENOSPC
        return False


def make(disk: Path, config: TrainConfig) -> RunFolder:
    run = RunFolder(disk / "runs" / "run")
    run.create(config)
    return run


def warnings(run: RunFolder) -> str:
    return "\n".join(event["text"] for event in read_events(run.events)[0] if event["kind"] == "warning")


def test_it_makes_room_by_rule_and_goes_on(disk: Path, tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    config = recipe(tiny_base, photos, checkpoints={"every": 1, "keep": 3}, samples={"every": 4, "steps": 1})
    run = make(disk, config)
    assert train_here(run, Filling(run, disk, 4))
    assert run.read_status().state == "finished" and run.result(config).exists()
    assert is_whole(run.checkpoint(8))
    told = warnings(run)
    assert "was removed to make room" in told and "drawing samples at step 4 failed" in told
    assert [event["step"] for event in read_events(run.events)[0] if event["kind"] == "step"] == [
        *range(1, 9)
    ]


def test_it_stops_saved_where_nothing_can_be_spared(
    disk: Path, tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    """As a stop does, with the cause. Where it goes on and cannot save anything at all it has failed: what
    starts stopped runs again would do so to no end."""
    config = recipe(tiny_base, photos, checkpoints={"every": 3, "keep": 1})
    run = make(disk, config)
    assert not train_here(run, Filling(run, disk, 4))
    status = run.read_status()
    assert (status.state, status.cause) == ("stopped", "disk_full")
    assert "everything up to step 3 is saved (step-000003)" in status.message and status.wants_help
    last = read_events(run.events)[0][-1]
    assert (last["kind"], last["cause"]) == ("end", "disk_full"), "it had kept room for its last word"
    assert [step_of(path) for path in list_checkpoints(run.checkpoints)] == [3]
    with pytest.raises(RunError, match="everything up to step 3 is saved"):
        train_here(run)
    assert (run.read_status().state, run.read_status().cause) == ("failed", "disk_full")
    (disk / "ballast").unlink()
    assert train_here(run)
    straight = make(tmp_path / "straight", config)
    assert train_here(straight)
    assert weights_hash(run, 8) == weights_hash(straight, 8)


def test_a_disk_too_small_for_the_plan_is_refused(
    disk: Path,
    tiny_base: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Headless too, before anything is loaded, with exit code 1 and the sentence as the last line."""
    monkeypatch.setattr("trainer.contract.disk.MIN_FREE_GIB", 0.5)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    monkeypatch.setattr("trainer.train.find_base", lambda *args: pytest.fail("the base was looked for"))
    run = make(disk, recipe(tiny_base, photos))
    assert main(["resume", str(run.path)]) == 1
    assert "free some space, or keep fewer checkpoints" in capsys.readouterr().err.splitlines()[-1]
    assert run.read_status().cause == "disk_full"


def test_a_full_disk_under_the_log_changes_no_exit_code(disk: Path) -> None:
    """What is said last is said to a file that can grow no more."""
    with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while ballast.write(bytes(4096)):
            pass
    code = "import sys; from trainer.steady import steady_output; steady_output(); "
    code += "print('x' * 9000); print('y' * 9000, file=sys.stderr); sys.exit(3)"
    with (disk / "trainer.log").open("ab") as log:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=log, stderr=log)
    assert done.returncode == 3 and (disk / "trainer.log").stat().st_size == 0
