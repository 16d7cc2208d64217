"""Files that appear whole or not at all: write beside, fsync, rename."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; rename it over ``path`` when the block ends well.

    The temporary keeps the suffix of ``path`` (encoders choose the format by it) and is removed
    when the block raises, so a full disk leaves neither half a file nor rubbish.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (a no-op on systems that cannot open folders)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """A folder, with those that it lies in, that a power cut does not take away again with all its files."""
    if not folder.is_dir():
        if folder.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        if folder.parent != folder:  # as of a drive that is not there
            make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_bytes(path: Path, data: bytes) -> None:
    with staged(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def replace_json(path: Path, value: Any) -> None:
    """Like :func:`write_json` but without fsync: for files rewritten every second, where only
    "never half a file" matters and durability does not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_TEMPORARY = re.compile(r"\..+\.tmp(\.\w+)?")


def sweep(folder: Path, older_s: float = 3600.0) -> None:
    """Remove what processes that were killed left of files they had begun, anywhere below ``folder``. Younger
    ones may be somebody's who is just writing."""
    for file in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(file.name) and file.is_file():
            try:
                if time.time() - file.stat().st_mtime > older_s:
                    file.unlink()
            except OSError:
                continue  # gone, or not ours to remove


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room to write; safetensors says so in words alone."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "os error 28" in str(error) or "No space left on device" in str(error)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def seen_from(here: Path, folder: Path) -> str:
    """``folder`` as a path relative to ``here``, which holds wherever both are moved together."""
    try:
        return Path(os.path.relpath(folder, here)).as_posix()
    except ValueError:  # on another drive
        return folder.as_posix()
