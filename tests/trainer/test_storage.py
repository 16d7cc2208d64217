"""What is stored of a run, what comes back, and what does not: on another disk."""

from __future__ import annotations

import errno
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import alongside
from trainer.contract.amend import amend
from trainer.contract.errors import ConfigError, RunError
from trainer.contract.whole import MANIFEST, is_whole
from trainer.remote import Differs, Remote, Sent, in_words
from trainer.requests import Requests
from trainer.stored import begin, catch_up

from .stored_run import Machine, Told, close, rows_of, sha256, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("trainer.storage.LOOK_S", 0.05)
    monkeypatch.setattr("trainer.storage.FIRST_PAUSE_S", 0.1)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_another_disk_and_photos_that_stay_here(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk/{{run}}", photos=False)
    machine.draw()
    machine.save(500)
    machine.flush()
    there = tmp_path / "disk" / "first"
    assert not (there / "pictures").exists() and is_whole(there / "checkpoints" / "step-000500")
    run = begin(f"file://{there}", "", tmp_path / "two", tmp_path)
    catch_up(run)  # the photos are where the recipe says
    assert not run.pictures.exists() and rows_of(run)[0]["file"] == "images/0.png"
    shutil.rmtree(machine.photos)
    run = begin(f"file://{there}", "", tmp_path / "three", tmp_path)
    with pytest.raises(RunError, match="4 of the run's 4 photos and masks are neither in file://"):
        catch_up(run)


def test_what_was_changed_of_a_run_comes_along(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk")
    machine.save(500)
    machine.flush()
    amend(machine.run, ["machine.price_per_hour=1", "machine.budget=30"])
    machine.flush()
    run = begin(f"file://{tmp_path}/disk", "", tmp_path / "two", tmp_path)
    assert run.config().machine.budget == 30


def test_one_that_is_damaged_here_gets_no_manifest_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk")
    machine.save(400)
    file = machine.save(500) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    machine.flush()
    checkpoints = tmp_path / "disk" / "checkpoints"
    assert machine.told.warnings == ["step-000500 is damaged on this machine; it is not stored"]
    assert not (checkpoints / "step-000500" / MANIFEST).exists()
    assert is_whole(checkpoints / "step-000400")


def answered(code: int) -> Exception:
    error = OSError("no such repository")
    error.response = SimpleNamespace(status_code=code)  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError("The specified bucket does not exist"), "does not exist (The spec"),
        (OSError(errno.ENOSPC, "No space left on device"), "is full; free some space there"),
        (answered(404), "does not exist (no such repository); create it"),
        (answered(403), "refuses the credentials (no such repository); set HF_TOKEN"),
        (PermissionError("Forbidden"), "refuses the credentials (Forbidden); set HF_TOKEN"),
        (ConnectionError("at https://hub/x?token=hf_secret"), "cannot be reached (at https://hub/x)"),
        (Differs("a did not arrive as it was sent"), "does not keep what is sent to it (a did"),
    ],
)
def test_what_may_be_wrong_in_words(error: Exception, sentence: str) -> None:
    assert sentence in in_words(error, "hf://me/lora")


def test_the_newest_that_is_whole_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "disk"
    machine = Machine(tmp_path / "one", f"file://{there}", keep=9)
    for step in (100, 200, 300, 400, 500):
        machine.save(step)
    machine.flush()
    checkpoints = there / "checkpoints"
    truncated = checkpoints / "step-000500" / "adapter.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    changed = checkpoints / "step-000400" / "optimizer.safetensors"
    changed.write_bytes(bytes(2000))
    (checkpoints / "step-000300" / MANIFEST).write_text('{"adapter.safetensors": {"size": 1000, "sha')
    (checkpoints / "step-000200" / MANIFEST).write_text('{"../../recipe.toml": {"size": 1, "sha256": ""}}')
    run = begin(f"file://{there}", "", tmp_path / "two", tmp_path)
    catch_up(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000100"]
    said = capsys.readouterr().err
    for step, reason in (
        (500, "adapter.safetensors has 999 bytes instead of 1000"),
        (400, "optimizer.safetensors holds other bytes than it should"),
        (300, "its manifest cannot be read"),
        (200, "its manifest names '../../recipe.toml'"),
    ):
        assert f"step-000{step} is damaged ({reason}); the one before it is used" in said
    assert "step 100 was brought from" in said
    # Going on from there, the damaged ones are written anew, and what is whole is never pushed out by them.
    again = Machine.__new__(Machine)
    again.run, again.told = run, Told()
    again.save(200)
    again.save(500)
    again.flush()
    assert {path.name for path in checkpoints.iterdir() if is_whole(path)} == {
        *("step-000100", "step-000200", "step-000500")
    }


def test_the_newest_of_here_and_there_goes_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk")
    machine.save(500)
    machine.flush()
    own = sha256(machine.save(600) / "adapter.safetensors")
    catch_up(machine.run)
    assert sorted(path.name for path in machine.run.checkpoints.iterdir()) == ["step-000500", "step-000600"]
    assert sha256(machine.run.checkpoint(600) / "adapter.safetensors") == own
    machine.flush()
    shutil.rmtree(machine.run.checkpoint(600))
    catch_up(machine.run)
    assert sha256(machine.run.checkpoint(600) / "adapter.safetensors") == own


def test_what_was_starred_here_stays_when_a_newer_checkpoint_comes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk", keep=9)
    machine.save(100)
    machine.save(200)
    machine.flush()
    elsewhere = begin(f"file://{tmp_path}/disk", "", tmp_path / "two", tmp_path)
    catch_up(elsewhere)
    elsewhere.star(200)
    again = Machine.__new__(Machine)
    again.run, again.told = elsewhere, Told()
    again.save(300)
    again.flush()
    machine.run.star(100)  # after this machine's last upload
    catch_up(machine.run)
    assert machine.run.checkpoint(300).is_dir() and machine.run.starred() == {100, 200}
    machine.run.star(100, on=False)
    catch_up(machine.run)
    assert machine.run.starred() == {200}, "with nothing newer there, this machine knows best"

    again.save(400)
    again.flush()
    machine.run.stars.write_text("{damaged")
    catch_up(machine.run)
    assert machine.run.checkpoint(400).is_dir() and machine.run.stars.read_text() == "{damaged"
    assert "stars were not brought" in capsys.readouterr().err


def test_only_the_newest_stay_there_and_what_is_starred(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk", keep=2)
    (machine.run.path / "starred.json").write_text("[100]")
    mirror = machine.mirror()
    for step in (100, 200, 300, 400):
        assert mirror.wait_for(machine.save(step), time.monotonic() + 120)
    halves = tmp_path / "disk" / "checkpoints" / "step-000250"
    close(mirror)
    assert sorted(path.name for path in halves.parent.iterdir()) == [
        *("step-000100", "step-000300", "step-000400")
    ]
    halves.mkdir()  # what a machine left that died while it sent it
    (halves / "adapter.safetensors").write_bytes(b"half")
    machine.save(500)
    machine.flush()
    assert sorted(path.name for path in halves.parent.iterdir()) == [
        *("step-000100", "step-000400", "step-000500")
    ]


def test_the_newest_goes_first_after_a_night_without_a_network(tmp_path: Path) -> None:
    """And of those that are rotated away there none is sent at all."""
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk", keep=2)
    for step in (100, 200, 300):
        machine.save(step)
    order = []
    send = Remote.send

    def noted(self: Remote, source: Any, name: str, wanted: Any = lambda: True) -> Sent:
        order.append(name)
        return send(self, source, name, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remote, "send", noted)
        machine.flush()
    manifests = [name for name in order if name.endswith(MANIFEST)]
    assert manifests == [f"checkpoints/step-000300/{MANIFEST}", f"checkpoints/step-000200/{MANIFEST}"]
    assert not any("step-000100" in name for name in order)
    first = order.index(manifests[0])
    assert {"checkpoints/step-000300/adapter.safetensors", "events.jsonl"} <= set(order[:first])


def test_a_place_that_holds_another_run(tmp_path: Path) -> None:
    Machine(tmp_path / "one", f"file://{tmp_path}/disk").flush()
    other = Machine(tmp_path / "two", f"file://{tmp_path}/disk")
    recipe = other.run.recipe
    recipe.write_text(recipe.read_text().replace("seed = 42", "seed = 43"))
    before = (tmp_path / "disk" / "recipe.toml").read_bytes()
    with pytest.raises(ConfigError, match=r"holds another run, whose recipe differs in train\.seed"):
        catch_up(other.run)
    other.save(500)
    other.flush()
    assert "holds another run" in other.told.warnings[0]
    assert (tmp_path / "disk" / "recipe.toml").read_bytes() == before
    assert not (tmp_path / "disk" / "checkpoints").exists()


def test_a_machine_that_was_thought_dead_writes_no_more(tmp_path: Path) -> None:
    one = Machine(tmp_path / "one", f"file://{tmp_path}/disk")
    one.save(100)
    mirror = one.mirror()
    assert mirror.wait_for(one.run.checkpoint(100), time.monotonic() + 120)
    two = Machine(tmp_path / "two", f"file://{tmp_path}/disk")
    two.flush()
    one.save(200)
    until(lambda: one.told.warnings)
    close(mirror)
    assert "another machine goes on with this run" in one.told.warnings[0]
    assert not (tmp_path / "disk" / "checkpoints" / "step-000200").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("gs://bucket/run", "pip install gcsfs first"),
        ("nonsense://bucket/run", "nonsense"),
    ],
)
def test_a_library_that_is_not_there(url: str, sentence: str) -> None:
    with pytest.raises(RunError, match=sentence) as caught:
        Remote(url)
    assert caught.value.cause == "config"


def test_the_run_s_own_folder_is_no_other_place(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/one/runs/first/copy")
    with pytest.raises(ConfigError, match="is the run's own folder"):
        catch_up(machine.run)


def test_what_else_lies_in_a_place_is_left_alone(tmp_path: Path) -> None:
    """It may be the root of a bucket or of a disk, and large."""
    disk = tmp_path / "disk"
    (disk / "films").mkdir(parents=True)
    (disk / "films" / "cat.mkv").write_bytes(b"film")
    (disk / "films" / "cat.mkv").chmod(0)
    machine = Machine(tmp_path / "one", f"file://{disk}")
    machine.save(500)
    machine.flush()
    assert machine.told.warnings == []
    listed = Remote(f"file://{disk}").list("checkpoints")
    assert "films/cat.mkv" not in listed and f"checkpoints/step-000500/{MANIFEST}" in listed
    assert (disk / "films" / "cat.mkv").exists()


@pytest.mark.parametrize(("in_s", "heard"), [(2.0, True), (60.0, False)])
def test_uploads_end_with_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_s: float, heard: bool
) -> None:
    """Where the machine goes they may take what is left of its time; where it stays, as long as it takes."""
    machine = Machine(tmp_path / "one", f"file://{tmp_path}/disk")
    machine.save(500)
    send, requests = Remote.send, Requests()

    def slowly(self: Remote, source: Any, name: str, wanted: Any) -> Sent:
        time.sleep(0.5)
        return send(self, source, name, wanted)

    monkeypatch.setattr(Remote, "send", slowly)
    began = time.monotonic()
    with alongside._mirrored(machine.mirror(start=False), requests, 20.0):
        if heard:
            requests.machine_goes("The machine goes.", in_s)
    stored = machine.run.raw_status().mirror == "Stored up to step 500."
    assert (
        stored != heard and (tmp_path / "disk" / "checkpoints" / "step-000500" / MANIFEST).exists() != heard
    )
    if heard:
        assert time.monotonic() - began < in_s
        assert "not everything is stored" in machine.told.lines[-1]
