"""A base that is split over the processes: each holds a part of every block's weights, and fetches the rest
of a block when its turn comes (torch's ``fully_shard``, FSDP2).

The adapters are left out. They are whole in every process, like all that is trained; only what is frozen, and
large, is split. So nothing else has to know of it, but that a pass of the denoiser needs all processes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from .adapters.dora import dense_weight
from .adapters.layers import trained_layers


@torch.no_grad()
def split_weights(
    denoiser: nn.Module, base: Collection[nn.Parameter], world: int, device: torch.device
) -> None:
    """Split the parameters ``base`` of a denoiser, which is in RAM with its adapters on, over ``world``
    processes, and move the rest to ``device``. ‖W‖ of each adapted layer is left in its ``base_norm``."""
    for layer in trained_layers(denoiser).values():
        layer.base_norm = float(dense_weight(layer).norm())
    frozen = {id(parameter) for parameter in base}
    whole = {parameter for parameter in denoiser.parameters() if id(parameter) not in frozen}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    mesh = init_device_mesh(device.type, (world,))
    for blocks in denoiser.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(denoiser, mesh=mesh, ignored_params=whole)
    for module in denoiser.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def placed(value: Any, device: torch.device) -> Any:
    """Arguments of a pass with their tensors on ``device``."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, dict):
        return {name: placed(one, device) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(placed(one, device) for one in value)
    return value
