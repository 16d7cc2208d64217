"""What a webhook is told: a run's events as messages, and messages as the requests that services expect.

Nothing here talks to anybody (:mod:`trainer.webhooks` does) and nothing secret is in a message: no token, no
absolute path, no name of a user or a machine.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contract.config import TrainConfig
from .contract.redact import redact, without_paths
from .contract.runs import RunFolder

DISCORD_LIMIT = 2000
"""Characters of a message, by Discord's reference of webhooks; Slack and ntfy take more."""


@dataclass(frozen=True)
class Message:
    """Something that happened. ``files`` are names within the run's folder; a folder stands for a checkpoint.

    ``time`` is Unix seconds; ``id`` stays the same however often it is sent.
    """

    event: str
    step: int
    total: int
    text: str
    time: float
    id: str
    files: tuple[str, ...] = ()
    cause: str = ""


@dataclass(frozen=True)
class File:
    """A file that a message tells of. ``url`` can be opened by whoever gets it, for some time."""

    name: str
    size: int
    sha256: str = ""
    url: str = ""

    def as_dict(self) -> dict[str, Any]:
        row = {"name": self.name, "size": self.size, "sha256": self.sha256, "url": self.url}
        return {key: value for key, value in row.items() if value != ""}


class Narrator:
    """Hears a run's events one by one and makes messages of those that are wanted."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self._run, self._config = run, config
        self._wanted = set(config.notify.events)
        self._total = 0
        self._result: tuple[str, ...] = ()
        self._drawn: list[str] = []

    def hear(self, event: dict[str, Any]) -> list[Message]:
        """The messages that are due now. Pictures of one step are told together, once the last is drawn."""
        kind = event["kind"]
        if kind == "sample":
            self._drawn.append(f"{self._run.samples.name}/{event['file']}")
            self._sampled = event
            return []
        messages = []
        if self._drawn and kind != "stage":
            count, files = len(self._drawn), tuple(self._drawn)
            self._drawn = []
            text = f"{count} sample{'s' if count > 1 else ''} drawn at {self._at(self._sampled['step'])}."
            messages.append(self._message("sample", self._sampled, text, files))
        if kind == "started":
            self._total = event["total"]
            begun = f"Training goes on from {self._at(event['step'])}."
            fresh = f"Training has started: {self._total:,} steps."
            messages.append(self._message("started", event, begun if event["step"] else fresh))
        elif kind == "checkpoint":
            text = f"Checkpoint saved at {self._at(event['step'])}."
            files = (f"{self._run.checkpoints.name}/{event['folder']}",)
            messages.append(self._message("checkpoint", event, text, files))
        elif kind == "saved":
            self._result = (event["file"],)
        elif kind == "end":
            cause = event["cause"]
            messages.append(self._message(event["state"], event, event["message"], self._result, cause))
        return [message for message in messages if message.event in self._wanted]

    def _at(self, step: int) -> str:
        return f"step {step:,} of {self._total:,}"

    def _message(
        self, event: str, heard: dict[str, Any], text: str, files: tuple[str, ...] = (), cause: str = ""
    ) -> Message:
        unique = f"{self._run.id} {heard['time']} {heard['seq']}"
        return Message(
            event=event,
            step=heard["step"],
            total=self._total,
            text=redact(without_paths(text, *_places(self._run, self._config))),
            time=heard["time"],
            id=f"msg_{hashlib.sha256(unique.encode()).hexdigest()[:24]}",
            files=files,
            cause=cause,
        )


def _places(run: RunFolder, config: TrainConfig) -> list[str]:
    """The folders and files that a run has to do with, which may have spaces in their names."""
    data = config.dataset
    named = [str(run.path), str(Path.home()), data.path, *(subset.path for subset in data.subsets)]
    named += [config.validation.path, config.prior.path, config.model.base, config.adapter.start_from]
    return [path for path in named if Path(path).is_absolute() and len(Path(path).parts) > 1]


@dataclass(frozen=True)
class Request:
    """What to POST."""

    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def request_of(service: str, run: str, name: str, message: Message, files: Sequence[File]) -> Request:
    """``message`` as ``service`` expects it: studio, discord, slack or ntfy. ``name`` is the LoRA's."""
    if service == "discord":
        content = _lines(f"**{name}** · {message.text}", files, "[{name}](<{url}>)", DISCORD_LIMIT)
        # Nobody is called by a message whose text has an @everyone in it.
        return _json({"content": content, "allowed_mentions": {"parse": []}})
    if service == "slack":
        head = f"*{name}* · {_slack(message.text)}"
        return _json({"text": _lines(head, files, "<{url}|{name}>", 20_000)})
    if service == "ntfy":
        headers = {"Title": name, "Content-Type": "text/plain; charset=utf-8"}
        if message.event == "failed":
            headers["Priority"] = "high"
        if link := next((file.url for file in files if file.url), ""):
            headers["Click"] = link
        return Request(message.text.encode(), headers)
    return _json(
        {
            "event": message.event,
            "run": run,
            "name": name,
            "step": message.step,
            "total": message.total,
            "message": message.text,
            **({"cause": message.cause} if message.cause else {}),
            "files": [file.as_dict() for file in files],
            "time": round(message.time, 3),
            "id": message.id,
        }
    )


def with_pictures(request: Request, pictures: Sequence[tuple[str, bytes]]) -> Request:
    """The request with (name, WebP) pictures attached, as Discord reads them: multipart, the JSON a part."""
    boundary = hashlib.sha256(request.body).hexdigest()[:32]
    parts = [('name="payload_json"', "application/json", request.body)]
    for number, (name, data) in enumerate(pictures):
        parts.append((f'name="files[{number}]"; filename="{name}"', "image/webp", data))
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {what}\r\nContent-Type: {kind}\r\n\r\n".encode()
        + data
        + b"\r\n"
        for what, kind, data in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return Request(body + f"--{boundary}--\r\n".encode(), headers)


def _json(value: dict[str, Any]) -> Request:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return Request(body, {"Content-Type": "application/json"})


def _lines(head: str, files: Sequence[File], link: str, limit: int) -> str:
    """A text with links to as many files as it has room for; signed addresses are long."""
    text = head if len(head) <= limit else head[: limit - 1] + "…"
    for file in files:
        line = "\n" + link.format(name=file.name, url=file.url)
        if file.url and len(text) + len(line) <= limit:
            text += line
    return text


def _slack(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def signed(secret: str, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that prove who sent ``body``, by Standard Webhooks 1.0 (github.com/standard-webhooks):
    HMAC-SHA256 of "id.timestamp.body". A secret that begins with whsec_ is base64, others are as they are.

    Raises ValueError for a whsec_ secret that is no base64.
    """
    key = base64.b64decode(secret[6:], validate=True) if secret.startswith("whsec_") else secret.encode()
    mac = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }
