"""Whether the disks can hold a training before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.plan import Machine, estimate

from .projects import Workspace

MIN_FREE_GIB = 0.5
GIB = 2**30


def check_disk(workspace: Workspace, config: TrainConfig) -> None:
    """Refuse to start what the disks cannot hold: the run, and a base model yet to be downloaded.

    Raises RunError.
    """
    plan = estimate(config, Machine("this computer", None))
    _check_free(workspace.root, plan.disk_gib + MIN_FREE_GIB, "this training", "keep fewer checkpoints")
    cache = hub_cache()
    if plan.download_gib and not (cache / f"models--{config.model.base.replace('/', '--')}").exists():
        _check_free(cache, plan.download_gib, "the base model's download", "set HF_HOME to a larger disk")


def _check_free(folder: Path, need_gib: float, what: str, remedy: str) -> None:
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
