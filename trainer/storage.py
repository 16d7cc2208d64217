"""The copy of a run in its storage, kept up by one thread beside the training.

The thread looks at the run's folder about once a second and sends what is not there yet, the most urgent
first: the newest checkpoint, the finished LoRA, photos, samples, then what goes on growing. The loop knows
nothing of it and never waits. There is no queue that could grow: what has to be sent is whatever the folder
holds and the storage does not, so that after a night without a network the newest checkpoint goes first, and
what has been rotated away meanwhile not at all.

A checkpoint is opened before its first byte is sent, and stays so: rotation may take its name away, not its
bytes. Each file must be what the manifest says, here and as the storage shows it; the manifest is sent last.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from .contract.config import TrainConfig
from .contract.errors import RunError, UserError
from .contract.events import current_events, read_events
from .contract.files import read_json
from .contract.retention import best_first, staying
from .contract.runs import RunFolder
from .contract.whole import MANIFEST, list_checkpoints, step_of
from .data import photo_folder
from .remote import BUGS, Abandoned, Listed, Remote, in_words, is_missing, is_refusal
from .report import Reporter
from .stored import CARD, FOLDERS, RECIPE, Stored, is_small, picture_files, require_same, sha256_in

LOOK_S = 1.0
"""Between two looks at the run's folder."""
NEWS_S, HUB_NEWS_S = 20.0, 300.0
"""Between two uploads of events and status by themselves; on the Hub each is a commit."""
NEWS_BYTES_PER_S = 100_000
"""What they may take of the line, at most."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""After the first error, and at most; in between it doubles, with up to half of it by chance."""
PATIENCE_S = 60.0
"""How long a storage that cannot be reached is waited for once the training has ended."""


class NotOurs(UserError):
    """Nothing may be written here any more."""


class Mirror:
    """Keeps the storage of ``run`` up to its folder, from :meth:`start` until :meth:`close`."""

    def __init__(self, run: RunFolder, config: TrainConfig, report: Reporter) -> None:
        self._run, self._settings, self._report = run, config.storage, report
        self._checkpoints, self._unlearn = config.checkpoints, config.train.unlearn
        self._result = run.result(config).name
        self._root = photo_folder(run, config)
        self._remote: Remote | None = None
        self._writer = secrets.token_hex(8)
        self._there: dict[str, Listed] = {}
        self._sent: dict[str, tuple[int, ...]] = {}  # name -> the stamp of the file that was sent
        self._parts: dict[str, str] = {}  # files of checkpoints that are there -> SHA-256
        self._whole: set[int] = set()  # steps of checkpoints that are there
        self._passed: set[str] = set()  # what cannot be sent, and that was said
        self._decided: tuple[object, set[int]] = (None, set())
        self._pictures: dict[str, Path] | None = None  # to be sent; None until they are chosen
        self._news_at = 0.0
        self._failures = 0
        self._text = ""
        self._closing, self._given_up, self._over = threading.Event(), threading.Event(), threading.Event()
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)

    def start(self) -> Mirror:
        self._thread.start()
        return self

    def close(self, until: Callable[[], float]) -> None:
        """Send what is left until the moment (of time.monotonic) that ``until`` says; tell what was not."""
        self._closing.set()
        began, shown = time.monotonic(), self._text
        with suppress(KeyboardInterrupt):  # whoever has no patience has the run saved here
            while self._thread.is_alive() and time.monotonic() < until():
                if self._failures and time.monotonic() > began + PATIENCE_S:
                    break
                self._thread.join(0.1)
                if shown != self._text and self._thread.is_alive():
                    shown = self._text
                    self._show()
                    self._report.say(shown)
        self._given_up.set()
        if not self._over.is_set():
            steps = tuple(self._whole)
            newest = (
                f"the newest checkpoint there is of step {max(steps):,}"
                if steps
                else "no checkpoint is there"
            )
            self._report.say(f"warning: not everything is stored at {self._settings.url}; {newest}")
        self._show()

    def _show(self) -> None:
        """In the status, where the reporter has said its last word."""
        with suppress(OSError):
            self._run.write_status(self._run.raw_status().model_copy(update={"mirror": self._text}))

    def abandon(self) -> None:
        """Send nothing more; another process goes on."""
        self._given_up.set()
        self._closing.set()
        self._thread.join(1.0)

    def wait_for(self, path: Path, deadline: float) -> bool:
        """Whether a file or a checkpoint's folder of the run is stored, waiting for it until ``deadline`` (of
        time.monotonic) at most."""
        with self._moved:
            while not self._has(path):
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    return False
                self._moved.wait(min(left, 1.0))
        return True

    def signed_url(self, path: Path) -> str | None:
        """An address that opens a stored file without a login, for some days; None where there is none."""
        return self._remote.signed_url(self._name(path)) if self._remote and self._has(path) else None

    def _has(self, path: Path) -> bool:
        name = self._name(path)
        is_checkpoint = name.startswith("checkpoints/step-")
        return step_of(Path(name.split("/")[1])) in self._whole if is_checkpoint else name in self._sent

    def _name(self, path: Path) -> str:
        """Of a file of the run, as it is called in the storage."""
        return (path.relative_to(self._run.path) if path.is_absolute() else path).as_posix()

    # The thread -------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._given_up.is_set():
            closing = self._closing.is_set()  # asked before the look: what comes after it is another round's
            try:
                self._round(closing)
            except (Abandoned, NotOurs) as end:
                if isinstance(end, NotOurs):
                    self._say(f"Not stored: {end}.", f"{end}; from here on nothing of this run is stored")
                return
            except Exception as error:
                if isinstance(error, BUGS):
                    traceback.print_exc()
                self._failed(error)
                if closing and (is_refusal(error) or is_missing(error)):
                    return
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._failures - 1))
                self._closing.wait(pause * random.uniform(0.5, 1.0)) if not closing else time.sleep(0.5)
                continue
            self._succeeded()
            if closing:
                self._over.set()
                return
            self._closing.wait(LOOK_S)

    def _round(self, closing: bool) -> None:
        """Everything that is new. After each piece it is looked again: something may be more urgent now."""
        remote = self._remote or self._meet()
        while job := next(self._jobs(remote, closing), None):
            job()
            with self._moved:
                self._moved.notify_all()
            if self._given_up.is_set():
                raise Abandoned
        newest = (
            f"up to step {max(self._whole):,}"
            if self._whole
            else "but for a checkpoint, the first is to come"
        )
        self._text = f"Stored {newest}."

    def _meet(self) -> Remote:
        """The first contact: whose place it is, and what is there already."""
        remote = Remote(self._settings.url, self._settings.endpoint)
        if stored := Stored.look(remote):
            try:
                require_same(stored, self._run.config())
            except UserError as error:
                raise NotOurs(str(error)) from None
        self._there = remote.list(*FOLDERS)
        card = {"version": 1, "run": self._run.id, "writer": self._writer}
        self._send_bytes(remote, CARD, json.dumps(card).encode())
        recipe = self._run.recipe.read_bytes()
        if stored is None or stored.recipe != recipe:  # a larger budget, say, which has to come along
            self._send_bytes(remote, RECIPE, recipe)
        for step in stored.steps() if stored else ():
            if self._is_same(remote, step):
                self._whole.add(step)
        self._remote = remote
        return remote

    def _is_same(self, remote: Remote, step: int) -> bool:
        """Whether a stored checkpoint is the one in the run's folder; of others it is not known whether they
        can be read, so they are sent again when the training comes to them."""
        folder = self._run.checkpoint(step)
        try:
            manifest = (folder / MANIFEST).read_bytes()
        except OSError:
            return False
        if remote.read(f"checkpoints/{folder.name}/{MANIFEST}") != manifest:
            return False
        sizes = {name: entry["size"] for name, entry in json.loads(manifest).items()}
        listed = {name: self._there.get(f"checkpoints/{folder.name}/{name}") for name in sizes}
        return all(entry is not None and entry.size == sizes[name] for name, entry in listed.items())

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        sentence = in_words(error, self._settings.url)
        self._text = f"Not stored: {sentence}."
        if self._failures == 1:
            step = self._report.status.step
            self._say(self._text, f"{sentence}. The training goes on, and it is tried again (step {step:,})")

    def _succeeded(self) -> None:
        if self._failures:
            step = self._report.status.step
            self._failures = 0
            self._report.warning(f"the storage has caught up again at step {step:,}")
        self._report.mirror = self._text

    def _say(self, text: str, warning: str) -> None:
        self._text = self._report.mirror = text
        self._report.warning(warning)

    # What is to be sent, the most urgent first --------------------------------------------------------

    def _jobs(self, remote: Remote, closing: bool) -> Iterator[Callable[[], None]]:
        if self._is_new(self._run.dataset):
            yield partial(self._send_file, remote, self._run.dataset)
        here = {step_of(path): path for path in list_checkpoints(self._run.checkpoints) if _is_there(path)}
        for step in sorted(self._wanted_of(here.keys()), reverse=True):
            if here[step].name not in self._passed:
                yield partial(self._send_checkpoint, remote, here[step])
        result = self._run.path / self._result
        if self._is_new(result):
            yield partial(self._send_file, remote, result)
        for name, path in self._pictures_to_send().items():
            yield partial(self._send_picture, remote, name, path)
        for path in (*sorted(self._run.samples.glob("[!.]*")), *sorted(self._run.path.glob("*.json"))):
            if (path.parent == self._run.samples or is_small(path.name)) and self._is_new(path):
                yield partial(self._send_file, remote, path)
        pause = HUB_NEWS_S if remote.protocol == "hf" else NEWS_S
        with suppress(OSError):
            pause += self._run.events.stat().st_size / NEWS_BYTES_PER_S  # a long diary is sent less often
        due = closing or time.monotonic() - self._news_at > pause
        if due and (self._is_new(self._run.events) or self._is_new(self._run.status)):
            yield partial(self._send_news, remote)

    def _wanted_of(self, here: Collection[int]) -> set[int]:
        """Of the checkpoints that are here, those that are to be sent."""
        known = frozenset(here), frozenset(self._whole)
        if self._decided[0] != known:
            self._decided = known, {*self._staying({*here, *self._whole})} & {*here} - self._whole
        return self._decided[1]

    def _staying(self, steps: Collection[int]) -> Collection[int]:
        """Of these steps, those whose checkpoints are to be there."""
        rules = self._checkpoints.model_copy(update={"keep": self._settings.keep})
        try:
            starred = self._run.starred()
        except RunError:  # not known which are; the trainer says so
            return steps
        events = current_events(read_events(self._run.events)[0]) if rules.keep_best else []
        best = best_first(events, unlearn=self._unlearn)
        return staying(steps, rules, starred=starred, best=best)

    def _pictures_to_send(self) -> dict[str, Path]:
        """{name: file} of the photos and masks that are not there yet; which they are is frozen."""
        if self._pictures is None and self._settings.photos and self._run.dataset.exists():
            rows = read_json(self._run.dataset)["images"]
            files = {name: path for row in rows for name, path in picture_files(row, self._root).items()}
            self._pictures = {name: path for name, path in files.items() if name not in self._there}
        return self._pictures or {}

    def _is_new(self, path: Path) -> bool:
        """Whether a file is there that was not sent as it is now. Samples never change."""
        stamp, name = _stamp(path), self._name(path)
        if stamp is None or self._sent.get(name) == stamp:
            return False
        there = self._there.get(name)
        if name not in self._sent and path.parent == self._run.samples and there and there.size == stamp[1]:
            self._sent[name] = stamp
            return False
        return True

    # Sending ----------------------------------------------------------------------------------------

    def _send_bytes(self, remote: Remote, name: str, data: bytes) -> None:
        remote.send(io.BytesIO(data), name, self._wanted)

    def _wanted(self) -> bool:
        return not self._given_up.is_set()

    def _send_file(self, remote: Remote, path: Path) -> None:
        stamp = _stamp(path)
        with suppress(FileNotFoundError), path.open("rb") as file:
            remote.send(file, self._name(path), self._wanted)
            self._sent[self._name(path)] = stamp or ()

    def _send_picture(self, remote: Remote, name: str, path: Path) -> None:
        """A photo that is not what the run froze would pass for it on another machine."""
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() == sha256_in(name):
            self._send_bytes(remote, name, data)
        else:
            self._report.warning(f"{path.name} was changed or removed after the start; it is not stored")
        assert self._pictures
        del self._pictures[name]

    def _send_news(self, remote: Remote) -> None:
        """What grows or changes: as it is now, without a last line that is being written."""
        for path in (self._run.events, self._run.status):
            stamp = _stamp(path)
            with suppress(FileNotFoundError):
                data = path.read_bytes()
                if path == self._run.events:
                    data = data[: data.rfind(b"\n") + 1]
                self._send_bytes(remote, self._name(path), data)
                self._sent[self._name(path)] = stamp or ()
        self._news_at = time.monotonic()

    def _send_checkpoint(self, remote: Remote, folder: Path) -> None:
        self._require_writer(remote)
        name = f"checkpoints/{folder.name}"
        self._text = f"Storing {folder.name}."
        with ExitStack() as opened:
            try:
                manifest = (folder / MANIFEST).read_bytes()
                entries: dict[str, Any] = json.loads(manifest)
                files = {file: opened.enter_context((folder / file).open("rb")) for file in entries}
            except FileNotFoundError:
                return  # rotated away before we came to it
            if f"{name}/{MANIFEST}" in self._there:
                remote.remove(f"{name}/{MANIFEST}")
                del self._there[f"{name}/{MANIFEST}"]
            for file, stream in files.items():
                wanted = entries[file]["sha256"]
                if self._parts.get(f"{name}/{file}") == wanted:
                    continue
                if remote.send(stream, f"{name}/{file}", self._wanted).sha256 != wanted:
                    self._passed.add(folder.name)
                    self._report.warning(f"{folder.name} is damaged on this machine; it is not stored")
                    return
                self._parts[f"{name}/{file}"] = wanted
        self._send_news(remote)  # a checkpoint's own past comes with it
        self._send_bytes(remote, f"{name}/{MANIFEST}", manifest)
        self._whole.add(step_of(folder))
        self._rotate(remote)

    def _require_writer(self, remote: Remote) -> None:
        """Raise NotOurs where a new machine goes on with the run while this one is still alive."""
        card = json.loads(remote.read(CARD) or b"{}")
        if card.get("writer", self._writer) != self._writer:
            raise NotOurs(f"another machine goes on with this run at {self._settings.url}")

    def _rotate(self, remote: Remote) -> None:
        """Checkpoints that need not be there any more go, with their manifest first; so do halves that were
        left, and those of another attempt that were not looked into, once enough are known to be good."""
        newest, known = max(self._whole), {**self._there, **self._parts}
        folders = {name.split("/")[1] for name in known if name.startswith("checkpoints/step-")}
        for folder in folders | {self._run.checkpoint(step).name for step in self._whole}:
            step, manifest = step_of(Path(folder)), f"checkpoints/{folder}/{MANIFEST}"
            if step in self._whole:
                stays = step in self._staying(self._whole)
            elif manifest in self._there:
                enough = len(self._whole) >= self._settings.keep
                stays = step > newest or not enough or step in self._staying(self._whole | {step})
            else:
                stays = step > newest or _is_there(self._run.checkpoint(step))
            if stays:
                continue
            names = [name for name in known if name.startswith(f"checkpoints/{folder}/")]
            for name in (manifest, *(name for name in names if name != manifest)):
                remote.remove(name)
                self._there.pop(name, None)
                self._parts.pop(name, None)
            self._whole.discard(step)


def _is_there(checkpoint: Path) -> bool:
    return (checkpoint / MANIFEST).exists()


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
