"""Webhooks: what is told, how it is signed, and what happens when nobody listens. All on loopback."""

from __future__ import annotations

import getpass
import hashlib
import json
import time
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer.alongside as beside
from trainer import webhooks
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.fields import parse
from trainer.contract.files import read_json, write_bytes, write_json
from trainer.contract.runs import RunFolder
from trainer.messages import File, Message, Narrator, request_of, signed
from trainer.report import Reporter
from trainer.restart import Restart
from trainer.webhooks import Webhooks, open_webhooks

from ..conftest import ROOT
from .helpers import Script, recipe, train_here
from .stand_in import Answer, Asked, stand_in

SECRET = "a secret of ours"
ALL = ["started", "checkpoint", "sample", "finished", "stopped", "failed"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "FIRST_PAUSE_S", 0.02)
    monkeypatch.delenv(webhooks.ADDRESS, raising=False)
    monkeypatch.delenv(webhooks.SECRET, raising=False)


def told(**settings: Any) -> TrainConfig:
    return parse({"notify": {"events": ALL, **settings}, "output": {"name": "my-cat"}})


def an_event(kind: str, seq: int = 1, **data: Any) -> dict[str, Any]:
    return {"kind": kind, "seq": seq, "time": 1_700_000_000.25 + seq, "attempt": 1, **data}


def started(total: int = 100, step: int = 0) -> dict[str, Any]:
    return an_event("started", 1, step=step, total=total)


def ended(state: str = "finished", message: str = "Finished.", cause: str = "") -> dict[str, Any]:
    return an_event("end", 99, state=state, step=100, message=message, cause=cause, evidence="")


def deliver(
    config: TrainConfig,
    run: RunFolder,
    address: str,
    events: list[dict[str, Any]],
    *,
    secret: str = "",
    uploads: webhooks.Uploads | None = None,
    seconds: float = 10.0,
) -> list[str]:
    """Hear the events and close; the warnings."""
    warnings: list[str] = []
    hooks = Webhooks(run, config, address, secret, warnings.append, uploads)
    for event in events:
        hooks.hear(event)
    hooks.close(time.monotonic() + seconds)
    return warnings


def verified(asked: Asked, secret: str) -> bool:
    """By the very lines that docs/rented-gpus.md shows."""
    page = (ROOT / "docs" / "rented-gpus.md").read_text(encoding="utf-8")
    shown: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], shown)
    genuine: bool = shown["genuine"](asked.headers, asked.body, secret)
    return genuine


def test_a_training_tells_what_happens(tmp_path: Path, tiny_base: Path, photos: Path) -> None:
    """A whole run: each event once, in order, with the files as they are on disk; nothing of the machine."""
    with stand_in(lambda asked: Answer(204)) as server:
        config = recipe(
            tiny_base,
            photos,
            train={"steps": 4},
            samples={"prompts": ["zwx", "a zwx"], "every": 0},
            checkpoints={"every": 2},
            notify={"webhook": f"{server.url}/hook", "events": ALL},
        )
        run = RunFolder(tmp_path / "runs" / "20260131-my-cat")
        run.create(config)
        assert train_here(run)
    bodies = [json.loads(asked.body) for asked in server.asked]
    assert [body["event"] for body in bodies] == [
        *("started", "sample", "checkpoint", "checkpoint", "sample", "finished")
    ]
    assert [body["step"] for body in bodies] == [0, 0, 2, 4, 4, 4]
    assert {body["total"] for body in bodies} == {4} and len({body["id"] for body in bodies}) == 6
    assert {(body["run"], body["name"]) for body in bodies} == {("20260131-my-cat", "lora")}
    assert [file["name"] for file in bodies[1]["files"]] == [
        *("samples/s000000_p00.webp", "samples/s000000_p01.webp")
    ]
    for body in bodies[3:]:  # of those before, some have been rotated away
        assert body["files"]
        for file in body["files"]:
            content = (run.path / file["name"]).read_bytes()
            assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert {file["name"] for file in bodies[3]["files"]} >= {"checkpoints/step-000004/adapter.safetensors"}
    assert [file["name"] for file in bodies[5]["files"]] == ["lora.safetensors"]
    everything = b"".join(asked.body for asked in server.asked).decode()
    assert str(tmp_path) not in everything and str(Path.home()) not in everything
    assert "webhook-signature" not in server.asked[0].headers  # no secret, no signature


def test_a_signature_is_of_the_time_and_the_body(tmp_path: Path) -> None:
    with stand_in(lambda asked: Answer()) as server:
        assert not deliver(told(), RunFolder(tmp_path), server.url, [started()], secret=SECRET)
    asked = server.asked[0]
    assert verified(asked, SECRET) and not verified(asked, "another")
    assert not verified(Asked("POST", "/", asked.headers, asked.body + b" "), SECRET)
    later = {**asked.headers, "webhook-timestamp": str(int(asked.headers["webhook-timestamp"]) + 1)}
    assert not verified(Asked("POST", "/", later, asked.body), SECRET)
    assert SECRET.encode() not in asked.body and SECRET not in str(asked.headers)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The test vector of the specification's reference libraries."""
    headers = signed(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("code", [429, 500, 503])
def test_it_is_tried_again_until_it_is_taken(tmp_path: Path, code: int) -> None:
    answers = iter([Answer(code), Answer(code), Answer(200)])
    with stand_in(lambda asked: next(answers)) as server:
        assert not deliver(told(), RunFolder(tmp_path), server.url, [started()], secret=SECRET)
    assert len(server.asked) == 3 and len({asked.body for asked in server.asked}) == 1
    assert len({asked.headers["webhook-id"] for asked in server.asked}) == 1
    assert all(verified(asked, SECRET) for asked in server.asked)


def test_retry_after_is_heeded(tmp_path: Path) -> None:
    times: list[float] = []

    def answer(asked: Asked) -> Answer:
        times.append(time.monotonic())
        return Answer(429, headers={"Retry-After": "1"}) if len(times) == 1 else Answer()

    run = RunFolder(tmp_path)
    with stand_in(answer) as server:
        hooks = Webhooks(run, told(), server.url, "", print)
        hooks.hear(started())
        end = time.monotonic() + 10
        while len(times) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        hooks.close(time.monotonic() + 5)
    assert len(times) == 2 and times[1] - times[0] >= 0.95
    assert webhooks._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert webhooks._retry_after("nonsense") == 0 and webhooks._retry_after("99999") == 300


@pytest.mark.parametrize("code", [301, 400, 401, 404, 410])
def test_a_refusal_is_said_once_and_not_tried_again(tmp_path: Path, code: int) -> None:
    def answer(asked: Asked) -> Answer:
        return Answer(code, headers={"Location": "/other"})

    with stand_in(answer) as server:
        address = f"{server.url}/secret-part"
        warnings = deliver(told(), RunFolder(tmp_path), address, [started(), ended()])
    assert [asked.path for asked in server.asked] == ["/secret-part"] * 2  # one each, and no redirect
    assert len(set(warnings)) == 1 and f"answers {code}" in warnings[0]
    assert "secret-part" not in warnings[0]


def test_nobody_listening_costs_a_step_nothing(tmp_path: Path) -> None:
    """Thousands of events are heard at once although nothing can be sent; the queue stays short."""
    with stand_in(lambda asked: Answer()) as server:
        nowhere = server.url
    warnings: list[str] = []
    hooks = Webhooks(RunFolder(tmp_path), told(), nowhere, "", warnings.append)
    hooks.hear(started(5000))
    for step in range(5000):
        hooks.hear(an_event("checkpoint", step + 2, step=step, folder="step-000001"))
    assert len(hooks._queue) <= webhooks.WAITING
    before = time.monotonic()
    hooks.close(before + 0.3)
    assert any("oldest messages" in text for text in warnings)
    assert any("in time" in text for text in warnings)


def test_the_last_messages_are_sent_when_it_comes_back(tmp_path: Path) -> None:
    away = {"now": True}
    with stand_in(lambda asked: Answer(503 if away["now"] else 200)) as server:
        hooks = Webhooks(RunFolder(tmp_path), told(), server.url, "", print)
        hooks.hear(started())
        hooks.hear(ended())
        while not server.asked:
            time.sleep(0.01)
        away["now"] = False
        hooks.close(time.monotonic() + 10)
    assert [json.loads(asked.body)["event"] for asked in server.asked][-2:] == ["started", "finished"]


def test_a_run_that_begins_again_does_not_wait_and_the_next_process_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens when memory runs out, and somebody does later."""
    monkeypatch.setattr(beside, "MESSAGES_S", 10_000.0)
    monkeypatch.setattr(beside, "MESSAGES_BETWEEN_S", 0.1)
    with stand_in(lambda asked: Answer()) as server:
        nowhere = server.url
    run = RunFolder(tmp_path)
    with pytest.raises(Restart):
        begun(run, told(webhook=nowhere), Restart("less"))
    (kept,) = read_json(run.unsent)
    assert kept["event"] == "started" and nowhere not in run.unsent.read_text()
    with stand_in(lambda asked: Answer()) as server:
        begun(run, told(webhook=server.url))
    bodies = [json.loads(asked.body) for asked in server.asked]
    assert [body["event"] for body in bodies] == ["started", "started"]
    assert bodies[0]["id"] == kept["id"] != bodies[1]["id"]
    assert not run.unsent.exists()
    write_bytes(run.unsent, b"[{")  # damaged: of no use to anybody
    with stand_in(lambda asked: Answer()) as server:
        begun(run, told(webhook=server.url))
    assert len(server.asked) == 1


def begun(run: RunFolder, config: TrainConfig, error: Exception | None = None) -> None:
    report = Reporter(run, 1, 10, torch.device("cpu"))
    with beside.alongside(run, config, report, Script(run)):
        report.started(0, 10, None)
        report.pause("")
        if error:
            raise error


class Store:
    """Stands in for the mirror: files are there after some time."""

    def __init__(self, run: RunFolder, after_s: float) -> None:
        self._run, self._at = run, time.monotonic() + after_s

    def wait_for(self, path: Path, deadline: float) -> bool:
        time.sleep(max(0.0, min(self._at, deadline) - time.monotonic()))
        return time.monotonic() >= self._at

    def signed_url(self, path: Path) -> str | None:
        if time.monotonic() < self._at:
            return None
        return f"https://store.example/{path.relative_to(self._run.path).as_posix()}?signature=x"


@pytest.mark.parametrize(("after_s", "patience_s", "addressed"), [(0.3, 5.0, True), (60.0, 0.2, False)])
def test_a_checkpoint_is_told_once_it_is_uploaded_or_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_s: float, patience_s: float, addressed: bool
) -> None:
    monkeypatch.setattr(webhooks, "UPLOAD_S", patience_s)
    run = RunFolder(tmp_path)
    folder = run.checkpoint(50)
    write_bytes(folder / "adapter.safetensors", b"abc")
    write_json(folder / "MANIFEST.json", {"adapter.safetensors": {"size": 3, "sha256": "ab"}})
    saved = an_event("checkpoint", 2, step=50, folder=folder.name)
    with stand_in(lambda asked: Answer()) as server:
        warnings: list[str] = []
        hooks = Webhooks(run, told(), server.url, "", warnings.append, Store(run, after_s))
        hooks.hear(started())
        hooks.hear(saved)
        end = time.monotonic() + 10
        while len(server.asked) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        hooks.close(time.monotonic() + 5)
    (file,) = json.loads(server.asked[1].body)["files"]
    assert file["name"] == "checkpoints/step-000050/adapter.safetensors"
    assert ("url" in file) is addressed and not warnings


def test_nothing_of_the_machine_or_of_a_secret_is_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "the folder of Max")
    text = (
        f"{run.path}/recipe.toml and {Path.home()}/photos/cat.png cannot be read by hf_abcdefghij1234; "
        r"C:\Users\max\cat.png, file:///home/max/dog.png, (/srv/max/x.png); token=abcdef123 "
        "but https://huggingface.co/some/model and 3/4 of it stay"
    )
    with stand_in(lambda asked: Answer()) as server:
        deliver(told(), run, server.url, [ended("failed", text, "model_missing")])
    body = json.loads(server.asked[0].body)
    message = body["message"]
    assert (body["event"], body["cause"]) == ("failed", "model_missing")
    for gone in (str(tmp_path), "Max", str(Path.home()), "/home", "max", "abcdefghij", "abcdef123", "/srv"):
        assert gone not in message
    assert getpass.getuser() not in message
    assert "https://huggingface.co/some/model and 3/4 of it stay" in message and "cat.png" in message


def files() -> list[File]:
    address = "https://store.example/" + "x" * 900
    return [File(f"samples/{number}.webp", 10, "ab", address) for number in range(4)]


def message(event: str = "sample", text: str = "2 samples <drawn> & kept @everyone") -> Message:
    return Message(event, 50, 100, text, 1_700_000_000.0, "msg_1")


def test_discord_and_slack_and_ntfy_get_what_they_read() -> None:
    discord = json.loads(request_of("discord", "run", "my-cat", message(), files()).body)
    assert set(discord) == {"content", "allowed_mentions"} and discord["allowed_mentions"] == {"parse": []}
    assert discord["content"].startswith("**my-cat** · 2 samples") and len(discord["content"]) <= 2000
    assert discord["content"].count("https://store.example") == 2  # as many as there is room for
    slack = json.loads(request_of("slack", "run", "my-cat", message(), files()).body)
    assert set(slack) == {"text"} and "&lt;drawn&gt; &amp; kept" in slack["text"]
    assert slack["text"].count("|samples/") == 4
    ntfy = request_of("ntfy", "run", "my-cat", message("failed"), files())
    assert ntfy.body.decode() == message().text
    assert (ntfy.headers["Title"], ntfy.headers["Priority"]) == ("my-cat", "high")
    assert ntfy.headers["Click"] == files()[0].url


def test_discord_gets_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "PICTURES_BYTES", 100)
    run = RunFolder(tmp_path)
    drawn = {"s000050_p00.webp": b"RIFF\r\n--x", "s000050_p01.webp": b"y" * 101, "s000050_p02.webp": b"RIFF2"}
    heard = [started()]
    for number, (name, data) in enumerate(drawn.items()):
        write_bytes(run.samples / name, data)
        heard.append(an_event("sample", number + 2, step=50, prompt=number, text="x", file=name))
    with stand_in(lambda asked: Answer(204)) as server:
        config = told(format="discord", events=["sample"])
        assert not deliver(config, run, server.url, [*heard, an_event("weights", 9, step=50)])
    (asked,) = server.asked
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    parts = BytesParser(policy=HTTP).parsebytes(head + asked.body).get_payload()
    found = {part.get_param("name", header="content-disposition"): part for part in parts}
    assert set(found) == {"payload_json", "files[0]", "files[1]"}  # one is too large
    assert json.loads(found["payload_json"].get_content())["content"].startswith("**my-cat** · 3 samples")
    attached = [found[f"files[{n}]"] for n in (0, 1)]
    assert [part.get_filename() for part in attached] == ["s000050_p00.webp", "s000050_p02.webp"]
    assert [part.get_content() for part in attached] == [b"RIFF\r\n--x", b"RIFF2"]


def test_a_format_can_be_chosen(tmp_path: Path) -> None:
    with stand_in(lambda asked: Answer()) as server:
        deliver(told(format="slack"), RunFolder(tmp_path), server.url, [started()])
    assert json.loads(server.asked[0].body) == {"text": "*my-cat* · Training has started: 100 steps."}


def test_only_what_is_wanted_is_told(tmp_path: Path) -> None:
    narrator = Narrator(RunFolder(tmp_path), parse({"notify": {"events": ["checkpoint", "stopped"]}}))
    heard = [
        started(),
        an_event("sample", 2, step=10, prompt=0, text="x", file="a.webp"),
        an_event("checkpoint", 3, step=10, folder="step-000010"),
        an_event("step", 4, step=11),
        ended("stopped", "Stopped and saved at step 11."),
    ]
    assert [one.event for event in heard for one in narrator.hear(event)] == ["checkpoint", "stopped"]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    narrator = Narrator(RunFolder(Path("run")), told())
    (one,) = narrator.hear(started(1000, 250))
    assert one.text == "Training goes on from step 250 of 1,000."


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://example.com", "begins with https://"),
        ("https:///x", "begins with https://"),
        ("https://example.com:x/", "begins with https://"),
        ("https://discord.com/api/webhooks/1/abcdef", "STUDIO_WEBHOOK"),
        ("https://hooks.slack.com/services/T/B/X", "STUDIO_WEBHOOK"),
        ("https://max:word@example.com/", "STUDIO_WEBHOOK"),
        ("https://example.com/?token=abcdefgh", "STUDIO_WEBHOOK"),
    ],
)
def test_an_address_that_is_a_secret_stays_out_of_the_recipe(address: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"notify": {"webhook": address}})
    sentence = caught.value.problems["notify.webhook"]
    assert words in sentence and "abcdef" not in sentence and "max" not in sentence


def test_an_unknown_event_is_named() -> None:
    with pytest.raises(ConfigError, match="'epoch' is nothing that is told; give some of started"):
        parse({"notify": {"events": ["epoch"]}})


@pytest.mark.parametrize(
    ("environment", "opens", "warning"),
    [
        ({}, False, ""),
        ({"STUDIO_WEBHOOK": "https://discord.com/api/webhooks/1/abcdef"}, True, ""),
        ({"STUDIO_WEBHOOK": "discord.com/api"}, False, "STUDIO_WEBHOOK: an address begins with"),
        (
            {"STUDIO_WEBHOOK": "https://example.com", "STUDIO_WEBHOOK_SECRET": "whsec_?"},
            False,
            "is no base64",
        ),
    ],
)
def test_the_environment_has_the_address(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    opens: bool,
    warning: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    hooks = open_webhooks(RunFolder(tmp_path), told(), warnings.append)
    assert (hooks is not None) is opens
    if hooks:
        assert hooks._service == "discord"
        hooks.close(time.monotonic() + 10)
    assert bool(warnings) is bool(warning) and all(warning in text for text in warnings)


def test_a_thread_that_meets_the_unexpected_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real: Callable[..., Any] = webhooks.request_of

    def broken(*arguments: Any) -> Any:
        calls.append("")
        if len(calls) == 1:
            raise RuntimeError("bug")
        return real(*arguments)

    monkeypatch.setattr(webhooks, "request_of", broken)
    with stand_in(lambda asked: Answer()) as server:
        warnings = deliver(told(), RunFolder(tmp_path), server.url, [started(), ended()])
    assert [json.loads(asked.body)["event"] for asked in server.asked] == ["finished"]
    assert "RuntimeError" in warnings[0]
