"""What a checkpoint belongs to: the settings that decide its weights, the pictures, and the base model.

A training that goes on under another recipe would be neither the one nor the other, so it is refused. What
changes no weight may change: samples, checkpoints, storage, where files lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .concepts import TrainImage
from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.fields import flatten
from .families.base import ModelFamily

SECTIONS = ("model", "dataset", "captions", "adapter", "train", "loss", "noise", "prior")
"""Those that decide what is learnt. What [validation] holds out is among the pictures."""
APART = {
    # where files lie, which differs between machines; what is in them is looked at instead
    *("model.base", "model.revision", "model.vae", "model.assistant", "adapter.start_from"),
    *("dataset.path", "dataset.subsets", "prior.path"),
    # how the same is computed
    *("model.precision", "train.gradient_checkpointing", "train.fused_backward", "train.ema_on_cpu"),
}


def identity_of(config: TrainConfig, images: Sequence[TrainImage], family: ModelFamily) -> dict[str, Any]:
    """As it is written into a checkpoint: {"settings": {name: value}, "pictures": hash, "base": hash}.

    ``config`` is the recipe as it is frozen in the run.
    """
    where = {"folder", "file", "original_name", "mask"}  # of photo and mask the hashes tell more
    rows = [image.model_dump(mode="json", exclude=where, exclude_none=True) for image in images]
    rows = [row | row.pop("own") for row in rows]  # as runs had it that began before folders had settings
    settings = {
        name: value
        for name, value in flatten(config).items()
        if name.partition(".")[0] in SECTIONS and name not in APART
    }
    return {
        "settings": json.loads(json.dumps(settings)),
        "pictures": hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest(),
        "base": family.weights_id(),
    }


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str) -> None:
    """Raise RunError(config) where a checkpoint belongs to another training than the one that begins now.

    Settings that one of the two does not know, being of another version, are passed over.
    """
    anew = "or start a new run (adapter.start_from goes on from a finished LoRA)"
    before, after = saved.get("settings", {}), now["settings"]
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            raise RunError(
                f"{name} is {after[name]!r} in the run's recipe, and {checkpoint} was trained with "
                f"{before[name]!r}; put it back, {anew}",
                "config",
            )
    for part, sentence in (
        ("pictures", "the run's dataset.json names other pictures, crops or captions than"),
        ("base", "the base model has other weights than at"),
    ):
        if saved.get(part, now[part]) != now[part]:
            raise RunError(f"{sentence} {checkpoint} was trained with; bring it back, {anew}", "config")
