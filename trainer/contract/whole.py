"""Which checkpoints a folder holds, and whether they are whole: told without reading what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

MANIFEST = "MANIFEST.json"
"""{file: {"size", "sha256"}} of a checkpoint's other files."""


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is there as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(
            (folder / name).stat().st_size == entry["size"] and sha256_of(folder / name) == entry["sha256"]
            for name, entry in manifest.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """The step-… folders, oldest first, whole or not."""
    found = [path for path in folder.glob("step-*") if path.is_dir()]
    return sorted((path for path in found if path.name.removeprefix("step-").isdigit()), key=step_of)


def newest_whole(folder: Path, on_damaged: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; each newer damaged one is told of."""
    for path in reversed(list_checkpoints(folder)):
        if is_whole(path):
            return path
        on_damaged(f"the checkpoint {path.name} is damaged; the one before it is used")
    return None
