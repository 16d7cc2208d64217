"""Checkpoints: all state of a training, whole or not at all.

A checkpoint is a folder ``step-000500/`` with ``adapter.safetensors``, ``optimizer.safetensors`` and
``state.json``. It is assembled under another name; MANIFEST.json, with the size and SHA-256 of every
file, is written last, then the folder is renamed. A folder without a manifest that holds is not one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .contract.files import staged, sync_folder, write_json

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class TrainState:
    """What the loop has to know to go on, besides weights and optimizer.

    ``step`` updates are done; ``loss`` is the running mean that the page shows; ``scaler`` is the state
    of the loss scaler, which only fp16 has. Order and randomness follow from the step (see
    :mod:`trainer.data`), so nothing else is needed.
    """

    step: int
    loss: float | None
    scaler: dict[str, Any] | None = None


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors: ``<parameter number>.<name>``."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    folder: Path,
    state: TrainState,
    adapter: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the checkpoint ``folder`` (…/step-000500).

    Where a whole one of the same step is there it is kept: training is a function of the step, so it
    holds the same state.
    """
    if is_whole(folder):
        return
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in adapter.items()}
        _save_tensors(tensors, staging / "adapter.safetensors")
        _save_tensors(_optimizer_tensors(optimizer), staging / "optimizer.safetensors")
        write_json(staging / "state.json", asdict(state))
        files = sorted(file for file in staging.iterdir())
        write_json(
            staging / MANIFEST,
            {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in files},
        )
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    sync_folder(folder.parent)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with staged(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is there as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(
            (folder / name).stat().st_size == entry["size"] and _sha256(folder / name) == entry["sha256"]
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


def load_checkpoint(folder: Path, adapter: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's weights and optimizer state back, bit for bit."""
    load_adapter(folder, adapter)
    _load_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


def load_adapter(folder: Path, adapter: dict[str, Tensor]) -> None:
    """Put a checkpoint's weights back."""
    tensors = adapter_tensors(folder)
    weights = {name: tensor for name, tensor in adapter.items() if not name.endswith(".alpha")}
    if {name for name in tensors if not name.endswith(".alpha")} != set(weights):
        raise ValueError(f"{folder} belongs to another adapter")
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(tensors[name])


_BEFORE_PARTS = ("down_blocks.", "mid_block.", "up_blocks.")


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights by parameter name.

    Checkpoints from before text encoders could be trained name no part; theirs was always a U-Net.
    """
    tensors = load_file(folder / "adapter.safetensors")
    return {f"unet.{name}" if name.startswith(_BEFORE_PARTS) else name: t for name, t in tensors.items()}


def rotate(newest: Path, keep: int) -> list[Path]:
    """Keep the checkpoint ``newest``, just saved, and the ``keep - 1`` before it; return what was removed.

    What crashes left goes too, and so do later checkpoints: training went on from before them because
    they were damaged, and they must not push out whole ones.
    """
    for rubbish in newest.parent.glob(".step-*.tmp"):
        shutil.rmtree(rubbish, ignore_errors=True)
    checkpoints = list_checkpoints(newest.parent)
    end = checkpoints.index(newest) + 1
    removed = checkpoints[: max(0, end - keep)] + checkpoints[end:]
    for path in removed:
        # The manifest goes first, so that a kill between two files leaves no checkpoint that looks whole.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    return removed
