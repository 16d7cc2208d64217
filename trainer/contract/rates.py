"""Which learning rate is whose: of parts, and of the factors of a LoRA."""

from __future__ import annotations

from .config import TrainConfig
from .families import block_maps
from .placing import placing
from .settings.train import TrainSettings

OUTER_FACTORS = frozenset({"lora_B"})
"""The factor that begins at zero (kohya's lora_up); LoRA+ is about it."""


def loraplus_ratio(train: TrainSettings, *, text: bool) -> float:
    """How many times faster outer factors learn, of text encoders or of the denoiser; 1 without LoRA+.

    As kohya has it: a ratio of 0 is none, and that of the part goes before that of all.
    """
    own = train.loraplus_text_ratio if text else train.loraplus_denoiser_ratio
    return own or train.loraplus_ratio or 1.0


def rate_of(config: TrainConfig, part: str, factor: str) -> float:
    """The highest learning rate of the factors ("lora_A", "lora_B", …) of a part, before blocks' weights."""
    text = config.text_encoder_rates()
    rate = text.get(part, config.train.learning_rate)
    return rate * (loraplus_ratio(config.train, text=part in text) if factor in OUTER_FACTORS else 1.0)


def highest_rates(config: TrainConfig) -> dict[str, float]:
    """{whose: its highest learning rate}, for drawing; parts that have the same one are named together."""
    parts = {"LoRA": config.train.learning_rate} | {
        f"text encoder {number}": rate for number, rate in enumerate(config.text_encoder_rates().values(), 1)
    }
    names: dict[float, list[str]] = {}
    for part, rate in parts.items():
        names.setdefault(rate, []).append(part)
        ratio = loraplus_ratio(config.train, text=part != "LoRA")
        if ratio != 1:
            names.setdefault(rate * ratio, []).append(f"outer factors of {part}")
    return {" and ".join(which): rate for rate, which in names.items()}


def differs_by_block(config: TrainConfig) -> bool:
    """Whether blocks that learn have other learning rates than the rest."""
    for blocks in block_maps(config.model.family, config.model.base):
        try:
            weights = placing(config.adapter, blocks).weights
        except ValueError:  # it is for another base of the family
            continue
        if any(weight not in (None, 0, 1) for weight in weights):
            return True
    return False
