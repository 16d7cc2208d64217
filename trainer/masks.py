"""Masked loss: how much each place of a photo counts.

A mask is 1 where the photo is learnt and 0 where it is not, (1, h, w) at the latents' size. The setting
``loss.mask`` says what is made of it, see :func:`mask_weights`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dataset_tools.augment import View, render_place
from dataset_tools.masks import load_mask

from .concepts import TrainImage
from .contract.lint_masks import masks_in_words
from .contract.settings.loss import LossSettings, MaskMode


def mask_weights(mask_B1HW: Tensor, mode: MaskMode, floor: float, masks_N1HW: Tensor | None = None) -> Tensor:
    """The factor (B, 1, h, w) on the loss of every place, before the mean over a sample.

    With m = max(mask, floor): "kohya" is m, so that a small mask makes a small loss (and step);
    "normalised" m / mean(m) of each sample (OneTrainer's), "batch" m / mean(m) of the whole batch
    (ai-toolkit's), whose masks are ``masks_N1HW`` where these are only some. Where a mean is 0 so are the
    weights.
    """
    m_B1HW = mask_B1HW.clamp_min(floor)
    if mode == "normalised":
        mean = m_B1HW.mean(dim=(1, 2, 3), keepdim=True)
    elif mode == "batch":
        mean = m_B1HW.mean() if masks_N1HW is None else masks_N1HW.clamp_min(floor).mean()
    else:
        return m_B1HW
    return torch.where(mean > 0, m_B1HW / mean.clamp_min(1e-12), m_B1HW)


def mask_at(root: Path, image: TrainImage, view: View, size: tuple[int, int]) -> Tensor:
    """The mask of a picture, (1, h, w) in [0, 1] for latents of ``size`` (h, w): cropped, turned,
    resized and mirrored like it, then the mean over the area of each latent. Raises ImageError."""
    assert image.bucket and image.crop
    mask = load_mask(root / image.folder, image, image.mask)
    rendered = render_place(mask.convert("RGB"), image.crop, image.bucket, view)
    mask_1HW = torch.from_numpy(np.asarray(rendered, dtype=np.float32)).permute(2, 0, 1)[:1] / 255
    return F.adaptive_avg_pool2d(mask_1HW[None], size)[0]


def mask_digest(root: Path, image: TrainImage) -> str:
    """SHA-256 of the file that a picture's mask is in."""
    return hashlib.sha256((root / image.folder / image.mask).read_bytes()).hexdigest()


def with_masks(
    images: Sequence[TrainImage], settings: LossSettings, root: Path, notify: Callable[[str], None]
) -> tuple[TrainImage, ...]:
    """The pictures as a run freezes them: with their masks where the recipe uses them, without otherwise.

    ``notify`` is told what is not as one may think. Raises ImageError for a mask that cannot be used.
    """
    photos = [image for image in images if not image.regularisation]
    masked = sum(bool(image.mask) for image in photos)
    if sentence := masks_in_words(settings.mask, masked, len(photos)):
        notify(sentence)
    if settings.mask == "off":
        return tuple(image.model_copy(update={"mask": ""}) for image in images)
    for image in images:
        if image.mask:
            load_mask(root / image.folder, image, image.mask)
    return tuple(
        image.model_copy(update={"mask_sha256": mask_digest(root, image)}) if image.mask else image
        for image in images
    )
