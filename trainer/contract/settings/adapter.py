"""[adapter]: the LoRA."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator

from .section import Section, setting


class AdapterSettings(Section):
    """The LoRA itself: what kind it is, how big and where it sits."""

    type: Literal["lora", "loha", "lokr", "oft", "dylora"] = setting("lora", label="Kind")
    """lora is what every program reads. loha (two products, multiplied) and lokr (a Kronecker product, very
    small files) are LyCORIS's; oft only turns what layers say, which keeps more of the base; dylora is a LoRA
    that can be cut to any lower rank when it is finished."""
    rank: int = setting(16, label="Rank", basic=True, ge=1, le=1024)
    """Inner size of the LoRA. More rank holds more detail, makes a bigger file and overfits sooner. For loha
    4 to 8 is much; for oft it is the size of the blocks that are turned."""
    alpha: float = setting(16.0, label="Alpha", basic=True, gt=0, le=4096)
    """The LoRA's effect is scaled by alpha / rank. alpha = rank (scale 1) is the convention of
    ai-toolkit, SimpleTuner and diffusers; kohya's default is alpha 1, where learning rates are higher."""
    targets: Literal["attention", "transformer", "transformer+conv"] = setting("transformer", label="Targets")
    """Which layers are adapted: the attention projections only, every linear layer of the transformer
    blocks (what kohya calls LoRA), or those and the convolutions of the residual blocks (LoCon)."""
    target_regex: str = setting("", label="Targets by name", max_length=2000)
    """Instead of a preset: a regular expression, and every linear layer and convolution of the denoiser is
    adapted whose dotted name it is found in (attn2, or blocks\\.(7|20)\\.attn); empty uses the preset."""
    conv_rank: int | None = setting(None, label="Rank of convolutions", ge=1, le=1024)
    """Rank of 3×3 convolutions, where they are adapted; a half to a quarter of the rank is usual. Empty is
    as the rank."""
    conv_alpha: float | None = setting(None, label="Alpha of convolutions", gt=0, le=4096)
    """Alpha of 3×3 convolutions; empty is as alpha."""
    block_ranks: str = setting("", label="Ranks by block", max_length=2000)
    """A rank for each block, 0 leaves it out. SDXL has 23 values, SD 1.5 has 25, in kohya's order; other
    families number their blocks, so that "0-9: 8, 10-18: 16, else: 0" does. Empty is the rank everywhere."""
    block_alphas: str = setting("", label="Alphas by block", max_length=2000)
    """An alpha for each block, written like the ranks; empty is alpha everywhere."""
    block_weights: str = setting("", label="Learning rates by block", max_length=2000)
    """A factor on the learning rate for each block, 0 leaves it out. Written like the ranks, or as kohya's
    three lists "down / mid / up" (9, 3 and 9 values in SDXL, 12, 1 and 12 in SD 1.5), each of which can be
    one of the words sine, cosine, linear, reverse_linear and zeros, with +0.25 to lift it."""
    lokr_factor: int = setting(-1, label="LoKr factor", ge=-1, le=1024)
    """Side of the small matrix of a lokr, at most: 4 to 16 makes bigger files that hold more, -1 the smallest
    file. A rank of half a layer's width or more makes the large matrix whole."""
    dylora_unit: int = setting(1, label="DyLoRA unit", ge=1, le=1024)
    """The ranks that a dylora is trained at are multiples of this, up to the rank: 4 at rank 16 trains 4, 8,
    12 and 16, each of which can be exported."""
    dora: bool = setting(False, label="DoRA")
    """Learn how large each input of a layer counts apart from the change itself (Liu et al. 2024). Nearer to
    a full training at low ranks, and a third slower. Read by ComfyUI, Forge and A1111, not by diffusers."""
    rslora: bool = setting(False, label="rsLoRA")
    """Scale by alpha / √rank instead of alpha / rank, so that high ranks learn as fast as low ones
    (Kalajdzievski 2023). The file says it in a way that every program reads."""
    init: Literal["default", "gaussian", "pissa", "olora"] = setting("default", label="Start")
    """How the LoRA begins. pissa takes the base's largest directions (Meng et al. 2024), olora an orthogonal
    basis (Büyükakyüz 2024): both learn faster, and their file has twice the rank, so that it works on the
    unchanged base. gaussian is the start of diffusers' scripts."""
    dropout: float = setting(0.0, label="Dropout", ge=0, lt=1)
    """Share of the LoRA's inputs that are zeroed at each step; a little fights overfitting on few photos."""
    rank_dropout: float = setting(0.0, label="Rank dropout", ge=0, lt=1)
    """Share of the ranks that are left out of a step, for each picture anew; in a loha or lokr of the
    outputs, in an oft of the blocks. 0.1 to 0.3 where it is used."""
    module_dropout: float = setting(0.0, label="Module dropout", ge=0, lt=1)
    """Chance of each adapted layer to be left out of a step. 0.1 to 0.3 where it is used."""
    max_norm: float = setting(0.0, label="Max norm", ge=0, le=1000)
    """After every step, a layer's change whose norm is above this is scaled down to it (kohya's
    scale_weight_norms). 1 is usual against burnt pictures; 0 switches it off."""
    precision: Literal["fp32", "bf16"] = setting("fp32", label="LoRA precision")
    """Number format of the LoRA while it trains. bf16 halves it, its gradients and the optimizer's state,
    but rounds small updates away; it pays at very high ranks only."""
    start_from: str = setting("", label="Start from", max_length=500)
    """A finished LoRA (.safetensors, of kohya, diffusers or ComfyUI) to go on from instead of a fresh one.
    Where its rank differs it is changed to this one by SVD."""

    @field_validator("target_regex")
    @classmethod
    def _regex_can_be_read(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"{text!r} is no regular expression ({error}); correct or empty it") from None
        return text

    @property
    def plain(self) -> bool:
        """Whether it is a LoRA of two matrices, whatever it was trained by."""
        return self.type in ("lora", "dylora")

    @property
    def in_diffusers(self) -> bool:
        """Whether diffusers' ``load_lora_weights`` reads all of it (docs/export.md has the kinds)."""
        return self.plain and not self.dora
