"""Webhooks: messages of a run to an address of the user's, sent by a thread of their own.

A step never waits for them: the loop's events are put in a queue that is bounded, and everything that can
take time (hashes, uploads that a message waits for, answers, back-off) is the thread's.

What could not be sent before the process ended lies in the run's folder, and the next attempt sends it first.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import httpx2

from .checkpoints import MANIFEST
from .contract.addresses import address_problem, service_of, shown
from .contract.config import TrainConfig
from .contract.files import read_json, write_json
from .contract.runs import RunFolder
from .messages import File, Message, Narrator, request_of, signed, with_pictures

ADDRESS, SECRET = "STUDIO_WEBHOOK", "STUDIO_WEBHOOK_SECRET"
"""Environment variables: the address where the recipe has none, and what messages are signed with."""
WAITING = 200
"""Messages that wait at most; the oldest goes first."""
TIMEOUT_S = 10.0
PATIENCE_S = 600.0
"""How long a message is tried again and again before it is given up."""
UPLOAD_S = 120.0
"""How long a message waits for the upload of what it tells of; then it goes without addresses."""
MOST_PICTURES, PICTURES_BYTES = 10, 8 * 2**20
"""Attached to a message to Discord, which takes ten files and 10 MB; beyond that it has the text alone."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


class Uploads(Protocol):
    """What mirrors the run's folder elsewhere (:mod:`trainer.storage`)."""

    def wait_for(self, path: Path, deadline: float) -> bool:
        """Whether ``path`` is there, waiting until ``deadline`` (of time.monotonic)."""
        ...

    def signed_url(self, path: Path) -> str | None:
        """An address that opens it without a login, for some time; None where the store has no such."""
        ...


class Webhooks:
    """Hears the events of a run (:meth:`hear`) and tells them to ``address``, signed with ``secret``."""

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        address: str,
        secret: str,
        warn: Callable[[str], None],
        uploads: Uploads | None = None,
    ) -> None:
        self._run, self._name, self._address, self._warn = run, config.output.name, address, warn
        chosen = config.notify.format
        self._service = service_of(address) if chosen == "auto" else chosen
        self._uploads, self._narrator = uploads, Narrator(run, config)
        self._secret = secret
        self._queue = deque(_unsent(run))  # the one that is being sent stays at its head
        self._turn = threading.Condition()
        self._end: float | None = None  # by time.monotonic, once there is nothing more to hear
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)
        self._thread.start()

    def hear(self, event: dict[str, Any]) -> None:
        """Queue what is to be told of an event of the run. Takes microseconds."""
        for message in self._narrator.hear(event):
            with self._turn:
                if len(self._queue) >= WAITING:
                    del self._queue[1]
                    dropped = True
                else:
                    dropped = False
                self._queue.append(message)
                self._turn.notify()
            if dropped:
                self._warn(f"{self._shown} is too slow or away; the oldest messages to it are dropped")

    def close(self, deadline: float) -> None:
        """Nothing more will be heard: send until ``deadline`` (of time.monotonic), and keep the rest."""
        with self._turn:
            self._end = deadline
            self._turn.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._turn:
            unsent = [asdict(message) for message in self._queue]
        if unsent:
            with suppress(OSError):
                write_json(self._run.unsent, unsent)
            self._warn(f"{self._shown} did not take the last messages in time; a resumed run sends them")

    @property
    def _shown(self) -> str:
        return f"the webhook {shown(self._address)}"

    # The thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        with httpx2.Client(timeout=TIMEOUT_S) as client:
            while message := self._next():
                try:
                    if not self._deliver(client, message):
                        return
                except Exception as error:  # a thread that dies would take all later messages with it
                    self._warn(f"{self._shown} could not be told ({type(error).__name__})")
                with self._turn:
                    self._queue.popleft()

    def _next(self) -> Message | None:
        """The next message, None when there will be none."""
        with self._turn:
            while not self._queue:
                with suppress(OSError):
                    self._run.unsent.unlink(missing_ok=True)
                if self._end is not None:
                    return None
                self._turn.wait()
            return self._queue[0]

    def _left(self, until: float) -> float:
        """Seconds until ``until``, or until the end where that is sooner."""
        return min(until, self._end if self._end is not None else until) - time.monotonic()

    def _pause(self, seconds: float) -> None:
        """Wait; cut short when the end has come, so that what waits is tried once more at once."""
        with self._turn:
            if self._end is None:
                self._turn.wait_for(lambda: self._end is not None, seconds)
                return
        time.sleep(max(0.0, min(seconds, self._end - time.monotonic())))

    def _deliver(self, client: httpx2.Client, message: Message) -> bool:
        """Whether it need not be sent any more: it was taken, or never will be. False where the end came."""
        files = self._files(message)
        request = request_of(self._service, self._run.id, self._name, message, files)
        if self._service == "discord" and message.event == "sample":
            request = with_pictures(request, self._pictures(message))
        until = time.monotonic() + PATIENCE_S
        for pause in _pauses():
            headers = dict(request.headers)
            if self._secret and self._service == "studio":
                headers |= signed(self._secret, message.id, int(time.time()), request.body)
            asked = 0.0
            try:
                # Only the head of the answer is read: nobody knows how long the rest is.
                with client.stream("POST", self._address, content=request.body, headers=headers) as answer:
                    code = answer.status_code
                    asked = _retry_after(answer.headers.get("Retry-After", ""))
            except httpx2.TransportError as error:
                problem = f"cannot be reached ({type(error).__name__})"
            else:
                if 200 <= code < 300:
                    return True
                problem = f"answers {code}"
                if code != 429 and code < 500:
                    self._warn(f"{self._shown} {problem}; messages to it are lost, correct the address")
                    return True
            if self._left(until) <= 0:
                break
            self._pause(max(pause, asked))
        if time.monotonic() < until:
            return False
        self._warn(f"{self._shown} {problem}; messages are lost")
        return True

    def _pictures(self, message: Message) -> list[tuple[str, bytes]]:
        """What was drawn, as far as it is small enough; the first ones count."""
        found: list[tuple[str, bytes]] = []
        for name in message.files[:MOST_PICTURES]:
            with suppress(OSError):
                data = (self._run.path / name).read_bytes()
                if sum(len(other) for _, other in found) + len(data) <= PICTURES_BYTES:
                    found.append((name.rpartition("/")[2], data))
        return found

    # What a message tells of ------------------------------------------------------------------------

    def _files(self, message: Message) -> list[File]:
        paths = [self._run.path / name for name in message.files]
        if self._uploads:
            until = time.monotonic() + UPLOAD_S
            for path in paths:
                self._await(self._uploads, path, until)
        return [file for path in paths for file in self._described(path)]

    def _await(self, uploads: Uploads, path: Path, until: float) -> None:
        """Wait for an upload, in slices, as the end may come meanwhile."""
        while (left := self._left(until)) > 0:
            later = time.monotonic() + min(0.5, left)
            if uploads.wait_for(path, later) or time.monotonic() < later:
                return  # it is there, or never will be

    def _described(self, path: Path) -> Iterator[File]:
        """The files of a checkpoint by its manifest, or a file. Of what was rotated away, nothing."""
        rows: list[tuple[Path, int, str]] = []
        with suppress(OSError, ValueError, KeyError, TypeError):
            if path.is_dir():
                manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
                rows = [(path / name, row["size"], row["sha256"]) for name, row in manifest.items()]
            else:
                with path.open("rb") as stream:
                    rows = [(path, path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())]
        for file, size, sha256 in rows:
            url = (self._uploads.signed_url(file) if self._uploads else None) or ""
            yield File(file.relative_to(self._run.path).as_posix(), size, sha256, url)


def _unsent(run: RunFolder) -> list[Message]:
    """What the process before this one could not send."""
    with suppress(OSError, ValueError, TypeError):
        return [Message(**row | {"files": tuple(row["files"])}) for row in read_json(run.unsent)]
    return []


def _pauses() -> Iterator[float]:
    """Seconds to wait after each failure, with jitter, so that many runs do not come back at once."""
    pause = FIRST_PAUSE_S
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After header, which may be a date (RFC 9110); 0 for none, and at most 5 minutes."""
    seconds = 0.0
    with suppress(ValueError, TypeError):
        date = None if text.strip().isdigit() else parsedate_to_datetime(text)
        seconds = date.timestamp() - time.time() if date else float(text)
    return min(max(seconds, 0.0), 300.0)


def open_webhooks(
    run: RunFolder, config: TrainConfig, warn: Callable[[str], None], uploads: Uploads | None = None
) -> Webhooks | None:
    """The webhooks of a run, None where nobody wants to be told. The address is the recipe's, else that of
    the environment; what is wrong there is warned of, as a training is worth more than messages."""
    secret, told = os.environ.get(SECRET, ""), os.environ.get(ADDRESS, "").strip()
    address = config.notify.webhook or told
    if not address or not config.notify.events:
        return None
    if address == told and (problem := address_problem(address, secret=True)):
        warn(f"{ADDRESS}: {problem}")
        return None
    try:
        signed(secret, "", 0, b"")
    except ValueError:
        warn(f"{SECRET} begins with whsec_ and is no base64 after it; no messages are sent")
        return None
    return Webhooks(run, config, address, secret, warn, uploads)
