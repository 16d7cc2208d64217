"""Notices of clouds, by stand-ins of their metadata services on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from trainer import notices
from trainer.notices import Notice, Notices, metadata_address

from .stand_in import Answer, Asked, StandIn, stand_in

SOON = timedelta(seconds=90)


class Aws:
    """IMDSv2: nothing without a token that was got by PUT."""

    gone, token, handed = False, "token-1", 0

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/latest/api/token":
            if asked.method != "PUT" or "x-aws-ec2-metadata-token-ttl-seconds" not in asked.headers:
                return Answer(400)
            self.handed += 1
            return Answer(200, self.token.encode())
        if asked.path != "/latest/meta-data/spot/instance-action":
            return Answer(404)
        if asked.headers.get("x-aws-ec2-metadata-token") != self.token:
            return Answer(401)
        when = (datetime.now(UTC) + SOON).strftime("%Y-%m-%dT%H:%M:%SZ")
        return (
            Answer(200, json.dumps({"action": "terminate", "time": when}).encode())
            if self.gone
            else Answer(404)
        )


class Gcp:
    gone = False

    def __call__(self, asked: Asked) -> Answer:
        if asked.path != "/computeMetadata/v1/instance/preempted":
            return Answer(404)
        if asked.headers.get("metadata-flavor") != "Google":
            return Answer(403)
        return Answer(200, b"TRUE" if self.gone else b"FALSE", {"Metadata-Flavor": "Google"})


class Azure:
    """A scale set of two: the other's end is not ours."""

    gone = False

    def __call__(self, asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        if asked.headers.get("metadata") != "true" or "api-version=" not in asked.path:
            return Answer(400)
        if path == "/metadata/instance/compute/name":
            return Answer(200, b"vm_1")
        if path != "/metadata/scheduledevents":
            return Answer(404)
        when = format_datetime(datetime.now(UTC) + SOON, usegmt=True)
        rows = [("Preempt", ["vm_0"]), ("Reboot", ["vm_1"])] + [("Preempt", ["vm_1"])] * self.gone
        events = [
            {"EventId": "1", "EventType": kind, "Resources": names, "NotBefore": when} for kind, names in rows
        ]
        return Answer(200, json.dumps({"DocumentIncarnation": 1, "Events": events}).encode())


def watch(cloud: str, every_s: float = 0.02) -> tuple[Notices, list[Notice], list[str], threading.Event]:
    heard: list[Notice] = []
    warnings: list[str] = []
    came = threading.Event()

    def on_notice(notice: Notice) -> None:
        heard.append(notice)
        came.set()

    return Notices(cloud, on_notice, warnings.append, every_s), heard, warnings, came


def asked_for(server: StandIn, count: int) -> None:
    end = time.monotonic() + 10
    while len(server.asked) < count and time.monotonic() < end:
        time.sleep(0.01)
    assert len(server.asked) >= count


@pytest.mark.parametrize(
    ("cloud", "there", "in_s"), [("aws", Aws, 90.0), ("gcp", Gcp, 25.0), ("azure", Azure, 90.0)]
)
@pytest.mark.parametrize("chosen", ["own", "auto"])
def test_a_notice_is_heard_once_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
    cloud: str,
    there: Callable[[], Aws | Gcp | Azure],
    in_s: float,
    chosen: str,
) -> None:
    service = there()
    with stand_in(service) as server:
        monkeypatch.setenv(notices.STAND_IN, server.url)
        asking, heard, warnings, came = watch(cloud if chosen == "own" else "auto")
        asked_for(server, 8)
        assert not heard
        service.gone = True
        assert came.wait(10)
        asking.close()
    assert len(heard) == 1 and "takes this machine away" in heard[0].why and not warnings
    assert heard[0].in_s is not None and in_s - 10 < heard[0].in_s <= in_s


def test_a_token_that_has_run_out_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Aws()
    with stand_in(service) as server:
        monkeypatch.setenv(notices.STAND_IN, server.url)
        asking, heard, _, came = watch("aws")
        asked_for(server, 4)
        service.token = "token-2"
        asked_for(server, len(server.asked) + 6)
        service.gone = True
        assert came.wait(10)
        asking.close()
    assert service.handed == 2 and len(heard) == 1


def test_without_a_cloud_that_is_said_and_nothing_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda asked: Answer(404)) as server:
        monkeypatch.setenv(notices.STAND_IN, server.url)
        asking, heard, warnings, _ = watch("auto")
        asking._thread.join(10)
    assert not asking._thread.is_alive() and not heard
    assert len(warnings) == 1 and "no cloud was found" in warnings[0]


def test_answers_that_make_no_sense_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Azure()

    def answer(asked: Asked) -> Answer:
        return Answer(200, b"<html>") if len(server.asked) in (3, 4) else service(asked)

    with stand_in(answer) as server:
        monkeypatch.setenv(notices.STAND_IN, server.url)
        asking, heard, _, came = watch("azure")
        asked_for(server, 6)
        service.gone = True
        assert came.wait(10)
        asking.close()
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("told", "used"),
    [
        ("http://127.0.0.1:8099", "http://127.0.0.1:8099"),
        ("http://example.com", notices.METADATA),
        ("http://10.0.0.1", notices.METADATA),
        ("", notices.METADATA),
    ],
)
def test_a_stand_in_is_on_this_machine(monkeypatch: pytest.MonkeyPatch, told: str, used: str) -> None:
    monkeypatch.setenv(notices.STAND_IN, told)
    assert metadata_address() == used
