"""[samples]: pictures drawn while training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ..prompt import split_prompt
from .section import Section, setting


class SampleSettings(Section):
    """Validation images drawn while training."""

    prompts: tuple[str, ...] = setting((), label="Prompts", basic=True, max_length=16)
    """One picture is drawn of each, always from the same noise, before the first step and then
    regularly. Leave the trigger out of one of them to see what the LoRA does to everything else. A prompt
    may have settings of its own: --n negative prompt, --w width, --h height, --s steps, --l guidance,
    --d seed, --ss sampler."""
    negative: str = setting("", label="Negative prompt", max_length=2000)
    """What the pictures should not show; used by guidance."""
    every: int = setting(250, label="Every", unit="steps", basic=True, ge=0, le=1_000_000)
    """Steps between drawings; 0 draws only before the first and after the last step."""
    every_epochs: int = setting(0, label="Every so many epochs", unit="epochs", ge=0, le=100_000)
    """The same in epochs; 0 means that the steps hold."""
    steps: int = setting(25, label="Sampling steps", ge=1, le=200)
    """Denoising steps of a drawing."""
    guidance: float = setting(5.0, label="Guidance", ge=1, le=30)
    """Classifier-free guidance scale; 1 switches it off."""
    sampler: Literal["auto", "euler", "euler_ancestral", "ddim", "dpm++_2m", "unipc", "heun"] = setting(
        "auto", label="Sampler"
    )
    """How noise is taken away. "auto" is the base's own; for models of rectified flow there are euler, heun,
    dpm++_2m and unipc."""
    seed: int = setting(42, label="Seed", ge=0, le=2**63 - 1)
    """Fixes the noise that each prompt starts from."""
    width: int | None = setting(None, label="Width", unit="px", ge=64, le=4096)
    """Width of the drawings; empty means the training resolution."""
    height: int | None = setting(None, label="Height", unit="px", ge=64, le=4096)
    """Height of the drawings; empty means the training resolution."""
    tiling: Literal["auto", "on", "off"] = setting("auto", label="Decode in tiles")
    """Let the VAE decode drawings in tiles of 512 px: a fraction of the memory, at a risk of faint seams.
    "auto" does where a whole drawing would take more memory than a training step."""

    @field_validator("tiling", mode="before")
    @classmethod
    def _as_it_was(cls, tiling: Any) -> Any:
        """Recipes of earlier versions say yes or no."""
        return {True: "on", False: "off"}.get(tiling, tiling) if isinstance(tiling, bool) else tiling

    @field_validator("prompts")
    @classmethod
    def _each_prompt_says_something(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in prompts:
            split_prompt(prompt)
        if any(len(prompt) > 2000 for prompt in prompts):
            raise ValueError("one of the prompts is longer than 2000 characters; shorten it")
        return tuple(prompt.strip() for prompt in prompts)
