"""Whether two recipes are of one run, when they may lie on different machines."""

from __future__ import annotations

from pathlib import PurePath

from .amend import SECTIONS
from .config import TrainConfig
from .fields import flatten

FOLDERS = ("dataset.path", "validation.path", "prior.path")
"""Where photos lie, as the paths of subsets do. Which they are is told by the frozen dataset."""
FILES = ("model.base", "model.vae", "model.assistant", "adapter.start_from")
"""A file by its name, wherever it lies."""


def differing(one: TrainConfig, other: TrainConfig) -> list[str]:
    """The settings in which two recipes differ, where things lie aside."""
    first, second = (
        flatten(config)
        | {"dataset.subsets": [row.model_copy(update={"path": "-"}) for row in config.dataset.subsets]}
        for config in (one, other)
    )
    told = [name for name in first if name not in FOLDERS and name.partition(".")[0] not in SECTIONS]
    return [
        name
        for name in told
        if first[name] != second[name] and not (name in FILES and _same_file(first[name], second[name]))
    ]


def _same_file(one: str, other: str) -> bool:
    """Of two places, one of them a path from the root."""
    paths = PurePath(one), PurePath(other)
    return any(path.is_absolute() for path in paths) and paths[0].name == paths[1].name
