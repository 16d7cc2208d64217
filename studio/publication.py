"""How the publishing of a run goes: publish.json and publish.lock in its folder.

The publishing process (:mod:`studio.publish`) and the studio share these; the process holds the lock.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainer.contract.errors import UserError
from trainer.contract.files import read_json, write_json
from trainer.contract.runs import RunFolder

ASKS_TOKEN = "It waits for its access token, which is kept nowhere: type it again on the Results page."
REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")


def checked_repo_id(text: str) -> str:
    """A name for a model on the Hub. Raises UserError."""
    repo_id = text.strip()
    if not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise UserError(
            f"{repo_id[:100]!r} is no name for a model on the Hub; write it as you/my-lora "
            "(letters, digits, dash, dot, underscore)."
        )
    return repo_id


def publish_lock(run: RunFolder) -> Path:
    return run.path / "publish.lock"


def is_published_now(run: RunFolder) -> bool:
    """Whether a publishing process holds the lock."""
    if not publish_lock(run).exists():
        return False
    lock = FileLock(publish_lock(run))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def write_publish_status(run: RunFolder, **status: Any) -> None:
    write_json(run.path / "publish.json", {**status, "time": time.time()})


def read_publish_status(run: RunFolder) -> dict[str, Any]:
    """``{"state": none|running|done|failed, "repo_id", "private", "message", "url", "time"}``."""
    empty = {"state": "none", "repo_id": "", "private": True, "message": "", "url": "", "time": 0.0}
    try:
        return {**empty, **read_json(run.path / "publish.json")}
    except (FileNotFoundError, ValueError, TypeError):
        return empty
