"""Samplers by name: diffusers' schedulers over a base's own schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import diffusers

_DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
_FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_flow_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True}),
}


def scheduler(name: str, schedule: Mapping[str, Any], process: Literal["flow", "diffusion"]) -> Any:
    """The diffusers scheduler of a sampler, with what the base says of its noise (``schedule`` is its
    scheduler_config.json). A base with zero terminal SNR has no finite first sigma for Karras' spacing."""
    kind, more = (_FLOW if process == "flow" else _DIFFUSION)[name]
    values = {**schedule, **more}
    if process == "flow" and "use_flow_sigmas" in more:
        values |= {"prediction_type": "flow_prediction", "flow_shift": float(schedule.get("shift", 1.0))}
    if schedule.get("rescale_betas_zero_snr"):
        values.pop("use_karras_sigmas", None)
    return getattr(diffusers, kind).from_config(values)
