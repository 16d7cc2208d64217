"""OFT (Qiu et al. 2023): the outputs of a layer are turned in blocks; nothing is stretched.

On the side of the outputs, as kohya and LyCORIS have it and their readers expect. PEFT's turns the inputs,
which no such file can say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..contract.settings.adapter import AdapterSettings
from .weights import turn


class OftLayer(nn.Module, BaseTunerLayer):
    """A frozen layer and the rotation of its outputs; ``oft_blocks`` is (out / size, size, size)."""

    adapter_layer_names = ("oft_blocks",)
    other_param_names = ()

    def __init__(
        self, base: nn.Module, size: int, adapter: str, block_dropout: float, module_dropout: float
    ) -> None:
        super().__init__()
        self.base_layer = base
        self._adapter, self._active_adapter = adapter, [adapter]
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.block_dropout, self.module_dropout = block_dropout, module_dropout
        weight: Any = base.weight
        channels = base.out_channels if isinstance(base, nn.Conv2d) else base.out_features
        blocks = torch.zeros(int(channels) // size, size, size, device=weight.device)  # type: ignore[arg-type]
        self.oft_blocks = nn.ParameterDict({adapter: nn.Parameter(blocks)})

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *more, **named)
        if self._disable_adapters:
            return y
        with torch.autocast(y.device.type, enabled=False):
            turns = turn(self.oft_blocks[self._adapter].float())
            if self.training and self.block_dropout:
                turns = turns * (torch.rand(len(turns), 1, 1, device=y.device) >= self.block_dropout)
            if self.training and self.module_dropout:
                turns = turns * (torch.rand(()) >= self.module_dropout).item()
        bias: Any = self.base_layer.bias
        channel = 1 if isinstance(self.base_layer, nn.Conv2d) else -1
        outputs = y.movedim(channel, -1)
        plain = outputs if bias is None else outputs - bias.to(y.dtype)
        blocks = plain.unflatten(-1, turns.shape[:2])
        # R y = y + (R - I) y: a rotation that is nearly none would be none in half precision.
        turned = outputs + torch.einsum("knm,...kn->...km", turns.to(y.dtype), blocks).flatten(-2)
        return turned.movedim(-1, channel)


def block_size(channels: int, wanted: int) -> int:
    """The largest size of blocks, up to the wanted one, that ``channels`` can be divided into."""
    return next(size for size in range(min(wanted, channels), 0, -1) if channels % size == 0)


def add_oft(module: nn.Module, sizes: Mapping[str, int], settings: AdapterSettings, adapter: str) -> None:
    """Put a rotation on each of the named modules; ``sizes`` are the wanted sizes of its blocks."""
    module.requires_grad_(False)
    for name, wanted in sizes.items():
        base: Any = module.get_submodule(name)
        channels = base.out_channels if isinstance(base, nn.Conv2d) else base.out_features
        layer = OftLayer(
            base, block_size(channels, wanted), adapter, settings.rank_dropout, settings.module_dropout
        )
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer)
