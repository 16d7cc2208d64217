"""A power cut at any instant: what a program had not yet made durable may be gone.

The program runs in a fork that ends, as a kill does, right before one of its operations on files. What was
not fsynced by then is lost as file systems lose it: of a file the second half of what is new, of a folder the
changes since it was last fsynced, from one of them on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPERATIONS = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync")


class PowerCut:
    """Ends this process before operation number ``at``; of unsaved changes to folders ``kept`` survive."""

    def __init__(self, root: Path, at: int, kept: int | None) -> None:
        self._root, self._at, self._kept, self._count = root, at, kept, 0
        self._trash = Path(tempfile.mkdtemp(dir=root.parent))
        self._changes: list[tuple[Path, Callable[[], None]]] = []  # (folder, how to undo it)
        self._durable = {file.stat().st_ino: file.stat().st_size for file in self._files()}
        self._real = {name: getattr(os, name) for name in OPERATIONS}
        for name in OPERATIONS:
            setattr(os, name, self._watched(name))

    def _files(self) -> list[Path]:
        return [path for path in self._root.rglob("*") if path.is_file()]

    def _watched(self, name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, dir_fd: int | None = None, **more: Any) -> Any:
            if self._count == self._at:
                self._cut()
            self._count += 1
            first = arguments[0]
            if name == "fsync":
                self._settle(first)
                return self._real["fsync"](first)
            path = Path(os.fsdecode(first))
            if dir_fd is not None:
                path = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / path
            if self._root not in path.absolute().parents:
                return self._real[name](*arguments, **({"dir_fd": dir_fd} if dir_fd else {}), **more)
            return self._change(name, path, *arguments[1:], **more)

        return operation

    def _change(self, name: str, path: Path, *rest: Any, **more: Any) -> None:
        rename = self._real["rename"]
        if name in ("unlink", "remove"):
            kept = self._trash / str(len(list(self._trash.iterdir())))
            rename(path, kept)
            self._changes.append((path.parent, lambda: rename(kept, path)))
        elif name in ("rename", "replace"):
            target = Path(rest[0])
            before = self._trash / str(len(list(self._trash.iterdir())))
            existed = target.is_file()
            if existed:
                rename(target, before)
            rename(path, target)

            def undo() -> None:
                rename(target, path)
                if existed:
                    rename(before, target)

            self._changes.append((target.parent, undo))
        elif name == "mkdir":
            self._real["mkdir"](path, *rest, **more)
            self._changes.append((path.parent, lambda: shutil.rmtree(path)))
        else:
            self._real["rmdir"](path)
            self._changes.append((path.parent, lambda: self._real["mkdir"](path)))

    def _settle(self, descriptor: int) -> None:
        """What was fsynced survives."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self._changes = [(folder, undo) for folder, undo in self._changes if folder != path]
        else:
            self._durable[path.stat().st_ino] = path.stat().st_size

    def _cut(self) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        lost = [] if self._kept is None else self._changes[self._kept :]
        for _, undo in reversed(lost):
            undo()
        for file in self._files():
            facts = file.stat()
            safe = self._durable.get(facts.st_ino, 0)
            if facts.st_size > safe:
                os.truncate(file, safe + (facts.st_size - safe) // 2)
        shutil.rmtree(self._trash)
        os._exit(9)


def cut_at(at: int, root: Path, work: Callable[[], None], kept: int | None = None) -> bool:
    """Whether the power went while ``work`` was at it; False where it has fewer operations than ``at``.

    ``kept``: so many of the changes to folders that are not durable survive; None for all of them.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            PowerCut(root, at, kept)
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), f"the work failed at operation {at}"
    return code == 9
