"""Checkpoints: all state of a training, whole or not at all.

A checkpoint is a folder ``step-000500/`` with ``adapter.safetensors``, ``optimizer.safetensors``,
``optimizer.json``, ``state.json`` and ``identity.json`` (what it belongs to), and ``average.safetensors``
where the weights are averaged. It is assembled under another name; MANIFEST.json, with the size and SHA-256
of every file, is written last, then the folder is renamed. A folder without a manifest that holds is not one.

At every instant, power loss included, the newest whole checkpoint is either the one before or the new one:
each file is fsynced before its name is, the manifest after all of them, the rename after the manifest, and
nothing is removed before the rename is on the disk.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .contract.files import read_json, staged, sync_folder, write_json
from .contract.whole import MANIFEST, is_whole, list_checkpoints, newest_whole, sha256_of, step_of
from .moments import as_torch, is_ours, put_back

__all__ = ["MANIFEST", "is_whole", "list_checkpoints", "newest_whole", "step_of"]  # looked for here

PEAK = "peak"
"""Of a parameter group: its highest learning rate. It is the recipe's, which may have been amended since."""
ADAPTER, AVERAGE, IDENTITY = "adapter.safetensors", "average.safetensors", "identity.json"


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


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Its state: tensors as ``<parameter number>.<name>`` in optimizer.safetensors; in optimizer.json what is
    no tensor, of parameters and of groups (Prodigy's and Schedule-Free's own counts and estimates)."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for number, parameter in enumerate(_parameters_of(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                # A copy: some states are shared between parameters, which safetensors refuses.
                tensors[f"{number}.{name}"] = value.detach().cpu().clone().contiguous()
            elif value is not None:
                plain[f"{number}.{name}"] = value
    groups = [
        {name: value for name, value in group.items() if _is_counted(value)}
        for group in optimizer.param_groups
    ]
    _save_tensors(tensors, folder / "optimizer.safetensors")
    write_json(folder / "optimizer.json", {"state": plain, "groups": groups})


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put it back into a fresh optimizer of the same parameters, bit for bit.

    Not by ``load_state_dict``, which casts every state to its parameter's number format. Checkpoints from
    before there was an optimizer.json have tensors alone. One that keeps fewer bits takes over what a larger
    one kept (:mod:`trainer.moments`).
    """
    tensors = load_file(folder / "optimizer.safetensors")
    file = folder / "optimizer.json"
    plain = read_json(file) if file.exists() else {"state": {}, "groups": []}
    states: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *plain["state"].items()]:
        number, name = key.split(".", 1)
        states.setdefault(int(number), {})[name] = value
    if is_ours(optimizer):
        put_back(optimizer, states)
    else:
        on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        parameters = _parameters_of(optimizer)
        for number, state in states.items():
            parameter = parameters[number]
            for name, value in as_torch(state).items():
                if isinstance(value, Tensor) and (name != "step" or on_device):
                    value = value.to(parameter.device)
                optimizer.state[parameter][name] = value
    for group, saved in zip(optimizer.param_groups, plain["groups"], strict=False):
        known = group.keys() if is_ours(optimizer) else saved.keys()
        # In the saved order, which is that of the file to be.
        group.update({name: value for name, value in saved.items() if name in known and name != PEAK})


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_counted(value: Any) -> bool:
    """Whether a group's value may have changed since it was built: numbers and switches do, options that are
    lists or infinite do not."""
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def save_checkpoint(
    folder: Path,
    state: TrainState,
    adapter: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    averages: dict[str, Tensor] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Write the checkpoint ``folder`` (…/step-000500). ``averages``: the weights to hand out, where they are
    others than the parameters (:mod:`trainer.averages`). ``identity``: see :mod:`trainer.identity`.

    Where a whole one of the same step is there it is kept: training is a function of the step, so it
    holds the same state.
    """
    if is_whole(folder):
        return
    staging, damaged = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.items()}
        _save_tensors(tensors, staging / ADAPTER)
        if averages:
            _save_tensors({**tensors, **averages}, staging / AVERAGE)
        save_optimizer(optimizer, staging)
        write_json(staging / "state.json", asdict(state))
        write_json(staging / IDENTITY, dict(identity or {}))
        files = sorted(file for file in staging.iterdir())
        write_json(
            staging / MANIFEST,
            {file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)} for file in files},
        )
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(damaged, ignore_errors=True)
        folder.rename(damaged)
    staging.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(damaged, ignore_errors=True)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with staged(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def load_checkpoint(folder: Path, adapter: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's weights and optimizer state back, bit for bit."""
    _put_back(adapter_tensors(folder, ADAPTER), adapter, folder)
    load_optimizer(optimizer, folder)
    return TrainState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))


def load_adapter(folder: Path, adapter: dict[str, Tensor]) -> None:
    """Put the weights that a checkpoint hands out back."""
    _put_back(adapter_tensors(folder), adapter, folder)


def _put_back(tensors: dict[str, Tensor], adapter: dict[str, Tensor], folder: Path) -> None:
    weights = {name: tensor for name, tensor in adapter.items() if not name.endswith(".alpha")}
    if {name for name in tensors if not name.endswith(".alpha")} != set(weights):
        raise ValueError(f"{folder} belongs to another adapter")
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(tensors[name])


_BEFORE_PARTS = ("down_blocks.", "mid_block.", "up_blocks.")


def adapter_tensors(folder: Path, file: str = "") -> dict[str, Tensor]:
    """A checkpoint's weights by parameter name: the average where it has one, unless ``file`` says which.

    Checkpoints from before text encoders could be trained name no part; theirs was always a U-Net.
    """
    tensors = load_file(folder / (file or (AVERAGE if (folder / AVERAGE).exists() else ADAPTER)))
    return {f"unet.{name}" if name.startswith(_BEFORE_PARTS) else name: t for name, t in tensors.items()}


def read_identity(folder: Path) -> dict[str, Any]:
    """What a checkpoint belongs to; {} for those from before they said so."""
    file = folder / IDENTITY
    return dict(read_json(file)) if file.exists() else {}


def remove_checkpoint(folder: Path) -> None:
    """The manifest goes first, so that a kill between two files leaves none that looks whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_rubbish(folder: Path) -> bool:
    """What crashes while saving left in a folder of checkpoints; whether there was any."""
    rubbish = list(folder.glob(".step-*.tmp"))
    for path in rubbish:
        shutil.rmtree(path, ignore_errors=True)
    return bool(rubbish)
