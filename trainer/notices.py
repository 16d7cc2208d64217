"""Notices of clouds that take spot machines away, asked for at their metadata addresses.

AWS: an interruption notice two minutes before, at spot/instance-action, read with a session token (IMDSv2).
Google: instance/preempted turns TRUE 30 seconds before. Azure: a scheduled event of the type Preempt, at
least 30 seconds before. They are asked every 5 seconds, as AWS advises.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2

METADATA = "http://169.254.169.254"
"""The same address in all three clouds; it cannot be reached from outside the machine."""
STAND_IN = "STUDIO_METADATA"
"""Environment variable: another address, on this machine alone, to try it out."""
EVERY_S, TIMEOUT_S = 5.0, 2.0

Cloud = Literal["aws", "gcp", "azure"]


@dataclass(frozen=True)
class Notice:
    """The machine is taken away, in ``in_s`` seconds where the cloud says so."""

    why: str
    in_s: float | None


class NotThere(Exception):
    """What answers is not this cloud's metadata service, or nothing answers."""


class Aws:
    def __init__(self, client: httpx2.Client) -> None:
        self._client, self._token = client, ""

    def ask(self) -> Notice | None:
        if not self._token:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
            answer = self._client.put("/latest/api/token", headers=headers)
            if answer.status_code != 200:
                raise NotThere
            self._token = answer.text
        headers = {"X-aws-ec2-metadata-token": self._token}
        answer = self._client.get("/latest/meta-data/spot/instance-action", headers=headers)
        if answer.status_code == 401:
            self._token = ""  # has run out; the next time asks for another
        if answer.status_code != 200:
            return None
        told = answer.json()
        left = _left(datetime.fromisoformat(str(told["time"]))) if told.get("time") else None
        return Notice(f"AWS takes this machine away ({told.get('action', 'terminate')}).", left)


class Gcp:
    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def ask(self) -> Notice | None:
        headers = {"Metadata-Flavor": "Google"}
        answer = self._client.get("/computeMetadata/v1/instance/preempted", headers=headers)
        if answer.status_code != 200 or answer.headers.get("Metadata-Flavor") != "Google":
            raise NotThere
        gone = answer.text.strip().upper() == "TRUE"
        # It may have turned just after it was asked the last time.
        return Notice("Google Cloud takes this machine away (preempted).", 30.0 - EVERY_S) if gone else None


class Azure:
    def __init__(self, client: httpx2.Client) -> None:
        self._client, self._name = client, ""

    def ask(self) -> Notice | None:
        headers = {"Metadata": "true"}
        query = {"api-version": "2020-07-01"}
        answer = self._client.get("/metadata/scheduledevents", params=query, headers=headers)
        if answer.status_code != 200:
            raise NotThere
        events: list[dict[str, Any]] = answer.json()["Events"]
        if not self._name:
            query = {"api-version": "2021-02-01", "format": "text"}
            named = self._client.get("/metadata/instance/compute/name", params=query, headers=headers)
            self._name = named.text.strip() if named.status_code == 200 else ""
        for event in events:
            # A scale set's machines see each other's events.
            ours = not self._name or self._name in (event.get("Resources") or [self._name])
            if event.get("EventType") == "Preempt" and ours:
                when = event.get("NotBefore")
                left = _left(parsedate_to_datetime(when)) if when else None
                return Notice("Azure takes this machine away (Preempt).", left)
        return None


CLOUDS: dict[str, type[Aws | Gcp | Azure]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}


def _left(when: datetime) -> float:
    """Seconds until a time, which is UTC where it does not say."""
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def metadata_address() -> str:
    """The clouds' own, or the one in the environment where that is on this machine."""
    address = os.environ.get(STAND_IN, "")
    with suppress(ValueError):
        if ipaddress.ip_address(urlsplit(address).hostname or "").is_loopback:
            return address
    return METADATA


class Notices:
    """Asks a cloud again and again in a thread, and tells the first notice.

    ``cloud`` auto finds out which one it is; where there is none, that is warned of once and the thread ends.
    """

    def __init__(
        self,
        cloud: str,
        on_notice: Callable[[Notice], None],
        warn: Callable[[str], None],
        every_s: float = EVERY_S,
    ) -> None:
        self._cloud, self._on_notice, self._warn, self._every_s = cloud, on_notice, warn, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notices", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()

    def _work(self) -> None:
        # No proxy: the address means this machine's own host, and a proxy's is another.
        with httpx2.Client(base_url=metadata_address(), timeout=TIMEOUT_S, trust_env=False) as client:
            cloud = self._found(client)
            while cloud and not self._over.wait(self._every_s):
                with suppress(httpx2.HTTPError, NotThere, ValueError, KeyError, TypeError):
                    if notice := cloud.ask():
                        self._on_notice(notice)
                        return

    def _found(self, client: httpx2.Client) -> Aws | Gcp | Azure | None:
        """The cloud that is to be asked; by ``auto`` the first whose service answers as it should."""
        names = list(CLOUDS) if self._cloud == "auto" else [self._cloud]
        for name in names:
            cloud = CLOUDS[name](client)
            with suppress(httpx2.HTTPError, NotThere, ValueError, KeyError, TypeError):
                if notice := cloud.ask():
                    self._on_notice(notice)
                    return None
                return cloud
        if self._cloud != "auto":  # its service may be late
            self._warn(f"the metadata service of {self._cloud} does not answer yet; it is asked on")
            return CLOUDS[self._cloud](client)
        self._warn("no cloud was found that gives notices; SIGTERM is heard all the same")
        return None
