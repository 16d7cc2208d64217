"""Findings about a project's pictures, computed in the background and remembered.

A check decodes every picture, which takes seconds for many large ones, so no request waits for more
than a moment: it gets the last findings, and the new ones at its next call.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

from dataset_tools.check import Finding, check_project
from dataset_tools.dataset import DATASET_FILE
from dataset_tools.sources import CAPTION_SUFFIXES
from trainer.contract.errors import UserError

PATIENCE_S = 1.0


@dataclass
class _Check:
    """What is known of one project. ``done`` is set while no check runs."""

    fingerprint: str = ""
    findings: list[Finding] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)


class Checker:
    """One check at a time per project. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checks: dict[Path, _Check] = {}

    def findings(self, root: Path) -> tuple[list[Finding], bool]:
        """(findings, whether newer ones are on their way)."""
        fingerprint = _fingerprint(root)
        with self._lock:
            check = self._checks.get(root)
            if check is None:
                check = self._checks[root] = _Check()
                check.done.set()
            if check.fingerprint != fingerprint and check.done.is_set():
                check.done.clear()
                threading.Thread(target=self._run, args=(root, check), daemon=True).start()
        check.done.wait(PATIENCE_S)
        return check.findings, not check.done.is_set() or check.fingerprint != fingerprint

    def _run(self, root: Path, check: _Check) -> None:
        fingerprint = _fingerprint(root)
        try:
            check.findings = check_project(root)
        except UserError as error:
            check.findings = [Finding("error", None, str(error), "")]
        finally:
            check.fingerprint = fingerprint
            check.done.set()


def _fingerprint(root: Path) -> str:
    """Changes with dataset.json and with every caption: both are replaced by renaming."""
    digest = hashlib.sha256()
    captions = (path for kind in CAPTION_SUFFIXES for path in (root / "images").glob(f"*{kind}"))
    paths = [root / DATASET_FILE, *sorted(captions)]
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        digest.update(f"{path.name} {stat.st_mtime_ns} {stat.st_size} {stat.st_ino}\n".encode())
    return digest.hexdigest()
