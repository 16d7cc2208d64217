"""The LoRA on the modules that are trained: PEFT layers in, a plain {name: weights} out.

Names begin with the part that a module is in: ``unet.down_blocks…``, ``text_encoder.encoder.layers…``.
"""

from .layers import (
    ADAPTER,
    ASSISTANT,
    WarmStart,
    add_lora,
    lora_parameters,
    lora_weights,
    parameter_names,
    start_from,
)
from .switches import add_assistant, assistant_off, lora_off, trained_off
from .weights import LoraWeights

__all__ = [
    "ADAPTER",
    "ASSISTANT",
    "LoraWeights",
    "WarmStart",
    "add_assistant",
    "add_lora",
    "assistant_off",
    "lora_off",
    "lora_parameters",
    "lora_weights",
    "parameter_names",
    "start_from",
    "trained_off",
]
