"""Validation images: the base's own diffusers pipeline around the denoiser that is being trained."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from .adapters import assistant_off
from .assemble import Model
from .cache import Texts
from .contract.config import SampleSettings
from .contract.files import staged
from .data import derived_seed
from .families.base import ModelFamily


def draw(
    family: ModelFamily,
    model: Model,
    texts: Texts,
    settings: SampleSettings,
    prompt: str,
    *,
    number: int = 0,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """One picture of ``prompt`` by the model as it stands; ``size`` is (width, height) in pixels.

    The starting noise depends on ``settings.seed`` and ``number`` alone, so that pictures of different
    steps can be compared. The global random state is left as it was.
    """
    multiple = family.row.size_multiple
    width, height = size or (settings.width or family.resolution, settings.height or family.resolution)
    pipeline = family.pipeline(model.denoiser, settings.tiling)
    pipeline.set_progress_bar_config(disable=True)
    seed = derived_seed(settings.seed, number)
    with torch.random.fork_rng(), torch.no_grad(), model.drawing(), assistant_off(model.denoiser):
        positive, negative = texts.embeds([prompt, settings.negative])
        result = pipeline(
            **family.pipeline_inputs(positive, negative),
            **family.guidance(settings.guidance),
            width=width // multiple * multiple,
            height=height // multiple * multiple,
            num_inference_steps=settings.steps,
            generator=torch.Generator().manual_seed(seed),
        )
    image: Image.Image = result.images[0]
    return image


def save_sample(image: Image.Image, path: Path) -> None:
    """A lossless .webp that appears whole; no metadata."""
    with staged(path) as temporary:
        image.save(temporary, format="WEBP", lossless=True)
