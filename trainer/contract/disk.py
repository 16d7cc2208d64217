"""Room on the disk: asked for before a training starts, by the studio and by the trainer itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .config import TrainConfig
from .errors import RunError
from .plan import GIB, Machine, estimate
from .runs import RunFolder

MIN_FREE_GIB = 0.5
"""To be left beside what the plan needs: other programs write too."""


def require_space(home: Path, config: TrainConfig, *, images: int = 0, run: RunFolder | None = None) -> None:
    """Refuse to start what the disks cannot hold: the run in ``home``, and a base model yet to be downloaded.

    ``images``: how many pictures, where they are counted. ``run``: one that goes on; what it has written is
    not needed once more. Raises RunError(disk_full).
    """
    plan = estimate(config, Machine("this computer", None), images=images)
    needed = plan.disk_gib
    if run and run.checkpoints.is_dir():
        written = [file for folder in (run.checkpoints, run.samples) for file in folder.rglob("*")]
        needed -= sum(_size(file) for file in written) / GIB
        if written and images:
            needed -= plan.breakdown["encoded"]
    _require(home, max(needed, 0.0) + MIN_FREE_GIB, "this training", "keep fewer checkpoints")
    cache = hub_cache()
    if plan.download_gib and not (cache / f"models--{config.model.base.replace('/', '--')}").exists():
        _require(cache, plan.download_gib, "the base model's download", "set HF_HOME to a larger disk")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _require(folder: Path, need_gib: float, what: str, remedy: str) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    if free < need_gib:
        raise RunError(
            f"The disk has {free:.1f} GiB free and {what} needs about {need_gib:.1f} GiB; free some space, "
            f"or {remedy}.",
            "disk_full",
        )


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads (asked of the environment: importing it takes a second)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
