"""[samples]: pictures drawn while training."""

from __future__ import annotations

from pydantic import field_validator

from .section import Section, setting


class SampleSettings(Section):
    """Validation images drawn while training."""

    prompts: tuple[str, ...] = setting((), label="Prompts", basic=True, max_length=16)
    """One picture is drawn of each, always from the same noise, before the first step and then
    regularly. Leave the trigger out of one of them to see what the LoRA does to everything else."""
    negative: str = setting("", label="Negative prompt", max_length=2000)
    """What the pictures should not show; used by guidance."""
    every: int = setting(250, label="Every", unit="steps", basic=True, ge=0, le=1_000_000)
    """Steps between drawings; 0 draws only before the first and after the last step."""
    steps: int = setting(25, label="Sampling steps", ge=1, le=200)
    """Denoising steps of a drawing."""
    guidance: float = setting(5.0, label="Guidance", ge=1, le=30)
    """Classifier-free guidance scale; 1 switches it off."""
    seed: int = setting(42, label="Seed", ge=0, le=2**63 - 1)
    """Fixes the noise that each prompt starts from."""
    width: int | None = setting(None, label="Width", unit="px", ge=64, le=4096)
    """Width of the drawings; empty means the training resolution."""
    height: int | None = setting(None, label="Height", unit="px", ge=64, le=4096)
    """Height of the drawings; empty means the training resolution."""
    tiling: bool = setting(False, label="Decode in tiles")
    """Let the VAE decode in tiles: a fraction of the memory, at a risk of faint seams."""

    @field_validator("prompts")
    @classmethod
    def _each_prompt_says_something(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("one of the prompts is empty; remove it or write something")
        if any(len(prompt) > 2000 for prompt in prompts):
            raise ValueError("one of the prompts is longer than 2000 characters; shorten it")
        return tuple(prompt.strip() for prompt in prompts)
