"""``python -m trainer plan``: what a training would take here, with torch alone of the large libraries."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .contract.config import TrainConfig
from .contract.pace import seconds_per_step
from .contract.plan import Machine, estimate
from .contract.runs import list_runs
from .contract.steps import Folder
from .memory import GIB, pick_device


def this_machine() -> Machine:
    """The device that a training here would run on."""
    device = pick_device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Machine(properties.name, properties.total_memory / GIB, torch.cuda.device_count())
    return Machine("CPU", None)


def print_plan(config: TrainConfig, folders: Sequence[Folder], as_json: bool) -> int:
    machine = this_machine()
    home = Path(os.environ.get("STUDIO_WORKSPACE", "workspace"))
    pace = seconds_per_step(config, machine.name, list_runs(home / "runs"))
    plan = estimate(config, machine, folders=folders, seconds_per_step=pace)
    print(json.dumps(plan.as_dict(), ensure_ascii=False, indent=1) if as_json else plan.as_text())
    return 0
