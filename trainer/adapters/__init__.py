"""The LoRA on the modules that are trained, of whatever kind: layers in, a plain {name: weights} out.

Names begin with the part that a module is in: ``unet.down_blocks…``, ``text_encoder.encoder.layers…``.
"""

from .dropout import nested_rank, use_rank
from .layers import (
    ADAPTER,
    ASSISTANT,
    START,
    adaptable,
    add_lora,
    kept_tensors,
    lora_parameters,
    lora_weights,
    parameter_names,
    read_weights,
)
from .norms import change_norm, limit_norms
from .starts import WarmStart, begin_from_base, start_from
from .switches import LoraOff, TrainedOff, add_assistant, assistant_off
from .weights import AdapterWeights, LohaWeights, LokrWeights, LoraWeights, OftWeights

__all__ = [
    "ADAPTER",
    "ASSISTANT",
    "START",
    "AdapterWeights",
    "LohaWeights",
    "LokrWeights",
    "LoraOff",
    "LoraWeights",
    "OftWeights",
    "TrainedOff",
    "WarmStart",
    "adaptable",
    "add_assistant",
    "add_lora",
    "assistant_off",
    "begin_from_base",
    "change_norm",
    "kept_tensors",
    "limit_norms",
    "lora_parameters",
    "lora_weights",
    "nested_rank",
    "parameter_names",
    "read_weights",
    "start_from",
    "use_rank",
]
