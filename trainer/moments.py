"""The states of bitsandbytes' optimizers (Dettmers et al. 2021), put back from a checkpoint.

They are copied into the memory that the optimizer lays out for them, so that what was paged is paged again.
The checkpoint may be of an optimizer that kept 32 bits where this one keeps 8: a run that ran out of memory
goes on with a smaller one (:mod:`trainer.contract.ladder`). The way back is there, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NAMES = {"exp_avg": "state1", "exp_avg_sq": "state2"}
"""What torch's AdamW calls its moments, and bitsandbytes."""
BLOCK = 256
"""Numbers that share a scale."""


def is_ours(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of bitsandbytes'."""
    return hasattr(optimizer, "init_state") and hasattr(optimizer, "get_state_buffer")


def put_back(optimizer: Any, states: Mapping[int, Mapping[str, Any]]) -> None:
    """Give the optimizer the states of its parameters, by their number; of those that never had a gradient
    there is none."""
    number = 0
    for g, group in enumerate(optimizer.param_groups):
        for p, parameter in enumerate(group["params"]):
            if theirs := states.get(number):
                optimizer.init_state(group, parameter, g, p)
                _fill(
                    optimizer.state[parameter],
                    {_NAMES.get(name, name): value for name, value in theirs.items()},
                )
            number += 1


def _fill(state: dict[str, Any], theirs: Mapping[str, Any]) -> None:
    state["step"] = int(theirs["step"])
    for name, place in state.items():
        value = theirs.get(name)
        if not (isinstance(place, Tensor) and isinstance(value, Tensor)):
            continue
        if place.dtype != torch.uint8 and value.dtype == torch.uint8:
            value = _dense(theirs, name)
        elif place.dtype == torch.uint8 and value.dtype != torch.uint8:
            from bitsandbytes.functional import quantize_blockwise

            number, moment = name.removeprefix("state"), value.to(place.device, torch.float32).contiguous()
            value, scales = quantize_blockwise(moment, code=state[f"qmap{number}"], blocksize=BLOCK)
            state[f"absmax{number}"].copy_(scales.absmax)
        place.copy_(value)


def as_torch(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter as torch's AdamW keeps it."""
    if "state1" not in state:
        return dict(state)
    step = torch.tensor(float(state["step"]))
    moments = {ours: _dense(state, theirs) for ours, theirs in _NAMES.items() if theirs in state}
    return {"step": step, **moments}


def _dense(state: Mapping[str, Any], name: str) -> Tensor:
    """A moment in 32 bits."""
    moment: Tensor = state[name]
    if moment.dtype != torch.uint8:
        return moment
    from bitsandbytes.functional import dequantize_blockwise

    number = name.removeprefix("state")
    scales, code = state[f"absmax{number}"], state[f"qmap{number}"]
    return dequantize_blockwise(moment, absmax=scales, code=code, blocksize=BLOCK)
