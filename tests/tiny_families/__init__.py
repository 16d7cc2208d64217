"""One file per family, as in ``trainer/families``: the family small, with random weights, and at full size.

Each module has

- ``build(folder, seed=0)``: writes a diffusers folder with random weights, 64 px native, a few MB at most;
  embeddings and modulations must not be zero, or pictures could not tell models apart;
- ``TARGETS``: {base id: {``adapter.targets``: number of modules}} that a LoRA gets at full size;
- ``READ_BY_DIFFUSERS``: the export formats that diffusers' ``load_lora_weights`` reads for this family;
- ``TOLD_BY`` (optional): arguments of ``build``, for a model with all that the names in files are told by;
- ``PROMPT_INPUTS`` (optional): more arguments of the pipeline's call with a prompt; None leaves one out;
- ``encode(vae, pixels)`` (optional): what the VAE itself gives, where that is not a plain posterior's mode;
- ``drawn(family, latents)`` (optional): what the pipeline gives as "latent", as it takes latents;
- ``original(folder)``: the tensors of ``build``'s model as one checkpoint in the original code's layout, or
  None where there is no such file.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from trainer.contract.families import CATALOGUE
from trainer.families.base import family_class

KEYS = tuple(CATALOGUE)


def tiny(family: str) -> Any:
    """The module of a family."""
    return importlib.import_module(f".{family}", __package__)


def full_size(family: str) -> dict[str, nn.Module]:
    """{catalogue base id: its denoiser as published, on the meta device}."""
    cls = family_class(family)
    return {base: cls.without_weights(config) for base, config in cls.published.items()}
