"""The catalogue: one row per model family that can be trained.

Everything that pages, linter and planner need to know of a family without loading it. The code of a
family is ``trainer/families/<key>.py``; a test holds rows and files to the same set.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Base:
    """A base model that is offered by name. ``download_gib`` is what a first run fetches.

    ``params``, ``activation_gib`` and ``lora_params_per_rank`` are given where a base differs from its
    family.
    """

    id: str
    label: str
    licence: str
    resolution: int
    download_gib: float
    gated: bool = False
    note: str = ""
    params: tuple[float, float, float] | None = None
    activation_gib: tuple[float, float] | None = None
    lora_params_per_rank: dict[str, float] | None = None


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        resolution: native side in pixels where the base does not say otherwise.
        size_multiple: image sides must be multiples of this many pixels (VAE factor).
        token_limit: tokens of a caption that the text encoders see.
        params: millions of parameters of denoiser, text encoders and VAE, for the memory plan.
        lora_params_per_rank: thousands of LoRA parameters per unit of rank, by ``adapter.targets``.
        activation_gib: activations of one training sample at the native resolution in half precision,
            (stored, with gradient checkpointing).
        fp16_vae: Hub id of a VAE to use where the family's own overflows in fp16; empty if it does not.
    """

    key: str
    label: str
    bases: tuple[Base, ...]
    resolution: int
    size_multiple: int
    token_limit: int
    params: tuple[float, float, float]
    lora_params_per_rank: dict[str, float]
    activation_gib: tuple[float, float]
    fp16_vae: str = ""


DEMO_BASE = "demo"

SDXL = Family(
    key="sdxl",
    label="Stable Diffusion XL",
    bases=(
        Base(
            DEMO_BASE,
            "Demo (small, included)",
            "apache-2.0",
            128,
            0.0,
            note="Draws simple shapes and creatures at 128 px. Trains in a minute on any computer.",
            params=(5.84, 0.61, 3.02),
            activation_gib=(0.024, 0.006),
            lora_params_per_rank={"attention": 13.9, "transformer": 28.3, "transformer+conv": 65.2},
        ),
        Base(
            "stabilityai/stable-diffusion-xl-base-1.0",
            "Stable Diffusion XL 1.0",
            "openrail++",
            1024,
            6.9,
        ),
    ),
    resolution=1024,
    size_multiple=8,
    token_limit=77,
    params=(2567.5, 817.7, 83.7),
    lora_params_per_rank={"attention": 1451.5, "transformer": 2659.8, "transformer+conv": 3074.2},
    activation_gib=(7.7, 0.45),
    fp16_vae="madebyollin/sdxl-vae-fp16-fix",
)

CATALOGUE: dict[str, Family] = {family.key: family for family in (SDXL,)}


def known_base(family: str, base: str) -> Base | None:
    """The catalogue's row of a base id, or None for one that users bring themselves."""
    return next((row for row in CATALOGUE[family].bases if row.id == base), None)
