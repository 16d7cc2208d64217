"""[train]: the optimisation."""

from __future__ import annotations

from typing import Literal

from .section import Section, setting


class TrainSettings(Section):
    """The optimisation."""

    steps: int = setting(1000, label="Steps", basic=True, ge=1, le=1_000_000)
    """How many times the LoRA is updated. One step looks at batch size × accumulation pictures."""
    batch_size: int = setting(1, label="Batch size", basic=True, ge=1, le=256)
    """Pictures per forward pass. Larger is steadier and needs more memory."""
    gradient_accumulation: int = setting(1, label="Gradient accumulation", ge=1, le=256)
    """Forward passes per step: the effect of a batch this many times larger, at no extra memory."""
    learning_rate: float = setting(1e-4, label="Learning rate", basic=True, gt=0, le=1)
    """How far each step moves the LoRA. 1e-4 suits alpha = rank on full-size models; the small
    demo model wants about 1e-3."""
    text_encoder_lr: float = setting(0.0, label="Text encoder learning rate", ge=0, le=1)
    """Learning rate of a LoRA on the (first) text encoder; 0 leaves it alone. Usual is a half to a tenth
    of the learning rate. Captions are then encoded anew at every step, which costs time and memory."""
    text_encoder_2_lr: float = setting(0.0, label="Second text encoder's", ge=0, le=1)
    """The same for the second text encoder (SDXL); 0 leaves it alone."""
    scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = setting(
        "cosine", label="Scheduler", basic=True
    )
    """How the learning rate moves over the run, after the warm-up."""
    restarts: int = setting(3, label="Restarts", ge=1, le=100)
    """Number of cosine cycles of "cosine_with_restarts"; the other schedulers ignore it."""
    warmup: float = setting(0.1, label="Warm-up", ge=0, le=0.9)
    """Share of the steps over which the learning rate climbs from zero; 0.1 is 10 %."""
    optimizer: Literal["adamw", "adafactor"] = setting("adamw", label="Optimizer")
    """AdamW is the usual choice; Adafactor keeps almost no state and saves memory at high ranks."""
    weight_decay: float = setting(0.01, label="Weight decay", ge=0, le=1)
    """Pull of the LoRA's weights towards zero, decoupled from the gradient."""
    max_grad_norm: float = setting(1.0, label="Gradient clipping", ge=0, le=1000)
    """Longest gradient (global norm) that is applied as it is; longer ones are shortened;
    0 switches it off."""
    gradient_checkpointing: Literal["auto", "on", "off"] = setting("auto", label="Gradient checkpointing")
    """Recompute activations instead of storing them: far less memory, about a third slower.
    "auto" is on with a GPU and off on a CPU."""
    seed: int = setting(42, label="Seed", ge=0, le=2**63 - 1)
    """Fixes noise, timesteps, order and the LoRA's start: the same recipe gives the same LoRA."""
