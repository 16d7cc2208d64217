"""What browsers send, until it is taken in: a folder for each studio process in ``<workspace>/.uploads``.

Uploads are copies of people's photos with all their metadata, so none may be left behind. A lock tells
whose process still lives, as for runs; what nobody came for (a tab that was closed, a transfer that was
cut off) goes when it is old.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout

ABANDONED_S = 6 * 3600.0
"""Nothing of an upload is written for so long only when nobody waits for it: gigabytes on a slow line
arrive in hours, but photos that are through wait in here for the last one."""


class Uploads:
    """The folder of this process. Making one removes those of processes that are gone."""

    def __init__(self, root: Path) -> None:
        self._changing = threading.Lock()
        self._in_hand: Counter[Path] = Counter()
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):  # against another studio that starts now
            for path in root.iterdir():
                if path.name != ".lock" and not _is_held(path):
                    _remove(path)
            self.folder = root / token_hex(4)
            self.folder.mkdir()
            self._lock = FileLock(self.folder / ".lock")
            self._lock.acquire()

    @contextmanager
    def taken(self, files: Sequence[Path]) -> Iterator[None]:
        """While uploaded files are read; then they are removed, and with them what is abandoned.

        A file that was dropped in two tabs is one file here: it stays until both are through.
        """
        with self._changing:
            self._in_hand.update(files)
        try:
            yield
        finally:
            with self._changing:
                self._in_hand.subtract(files)
                self._in_hand = +self._in_hand
                for file in set(files) - set(self._in_hand):
                    with suppress(OSError):
                        file.unlink()
                        file.parent.rmdir()
                self._sweep()

    def _sweep(self) -> None:
        busy = {path for file in self._in_hand for path in (file, file.parent)}
        limit = time.time() - ABANDONED_S
        for path in self.folder.iterdir():
            if path.name != ".lock" and path not in busy and _last_change(path) < limit:
                _remove(path)


def _is_held(folder: Path) -> bool:
    """Whether a process that lives uses the folder."""
    if not (folder / ".lock").is_file():
        return False
    probe = FileLock(folder / ".lock")
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    probe.release()
    return False


def _last_change(path: Path) -> float:
    """Unix seconds; now for what is just being renamed."""
    try:
        return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
    except OSError:
        return time.time()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
