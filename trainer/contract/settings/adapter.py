"""[adapter]: the LoRA."""

from __future__ import annotations

from typing import Literal

from .section import Section, setting


class AdapterSettings(Section):
    """The LoRA itself: how big it is and where it sits."""

    rank: int = setting(16, label="Rank", basic=True, ge=1, le=1024)
    """Inner size of the LoRA. More rank holds more detail, makes a bigger file and overfits sooner."""
    alpha: float = setting(16.0, label="Alpha", basic=True, gt=0, le=4096)
    """The LoRA's effect is scaled by alpha / rank. alpha = rank (scale 1) is the convention of
    ai-toolkit, SimpleTuner and diffusers; kohya's default is alpha 1, where learning rates are higher."""
    targets: Literal["attention", "transformer", "transformer+conv"] = setting("transformer", label="Targets")
    """Which layers are adapted: the attention projections only, every linear layer of the transformer
    blocks (what kohya calls LoRA), or those and the convolutions of the residual blocks (LoCon)."""
    dropout: float = setting(0.0, label="Dropout", ge=0, lt=1)
    """Share of the LoRA's inputs that are zeroed at each step; a little fights overfitting on few photos."""
    precision: Literal["fp32", "bf16"] = setting("fp32", label="LoRA precision")
    """Number format of the LoRA while it trains. bf16 halves it, its gradients and the optimizer's state,
    but rounds small updates away; it pays at very high ranks only."""
    start_from: str = setting("", label="Start from", max_length=500)
    """A finished LoRA (.safetensors, of kohya, diffusers or ComfyUI) to go on from instead of a fresh one.
    Where its rank differs it is changed to this one by SVD."""
