"""Latents and text embeddings, encoded once and kept on disk by content.

A key is the hash of everything that the encoded tensor depends on, so an edited photo, another crop or
another VAE is encoded anew, and only that. Tensors are looked up by image id or caption text, never by
position: no picture can meet another one's caption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataset_tools.crop import render_crop
from dataset_tools.images import open_image

from .contract.errors import RunError
from .contract.files import staged
from .data import Progress, TrainImage
from .families.base import ModelFamily, TextEmbeds


def _key(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _read(file: Path, warn: Callable[[str], None]) -> dict[str, Tensor] | None:
    if not file.exists():
        return None
    try:
        return load_file(file)
    except (SafetensorError, OSError):
        warn(f"the cache file {file.name} was damaged; it is made again")
        file.unlink(missing_ok=True)
        return None


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    with staged(file) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def pixels_of(root: Path, image: TrainImage, flip: bool = False) -> Tensor:
    """The training crop of a picture: (3, H, W) in [-1, 1]. Raises ImageError."""
    assert image.bucket and image.crop
    opened = open_image(root / image.file, name=image.original_name)
    pixels_HWC = np.asarray(render_crop(opened.image, image.crop, image.bucket), dtype=np.float32)
    pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1) / 127.5 - 1
    return pixels_CHW.flip(-1) if flip else pixels_CHW


class LatentCache:
    """(image id, flip) -> latents (C, h, w), float32, on the CPU."""

    def __init__(self, folder: Path, family: ModelFamily, warn: Callable[[str], None]) -> None:
        self._folder, self._family, self._warn = folder / "latents", family, warn
        self._latents: dict[tuple[str, bool], Tensor] = {}

    def fill(
        self, root: Path, images: Sequence[TrainImage], flips: Sequence[bool], progress: Progress
    ) -> None:
        """Encode what is not on disk. Interrupt it at any time: what was encoded stays."""
        encoder = self._family.image_encoder_id()
        total = len(images) * len(flips)
        for number, (image, flip) in enumerate((image, flip) for image in images for flip in flips):
            key = _key(image.sha256, image.crop, image.bucket, flip, encoder)
            file = self._folder / key[:2] / f"{key}.safetensors"
            cached = _read(file, self._warn)
            if cached is None:
                pixels_BCHW = pixels_of(root, image, flip)[None]
                latents = self._family.encode_images(pixels_BCHW)[0]
                if not bool(latents.isfinite().all()):
                    raise RunError(
                        f"the VAE turns {image.original_name} into infinite numbers; "
                        "set model.precision to bf16 or fp32, or use model.vae",
                        "nan",
                    )
                cached = {"latents": latents}
                if hashlib.sha256((root / image.file).read_bytes()).hexdigest() == image.sha256:
                    _write(file, cached)
                else:  # kept under this key, it would pass for the picture that it replaced
                    self._warn(
                        f"{image.original_name} was changed after it was added; it is used as it is now"
                    )
            self._latents[image.id, flip] = cached["latents"]
            progress(number + 1, total)

    def get(self, image_id: str, flip: bool = False) -> Tensor:
        return self._latents[image_id, flip]


class Texts(Protocol):
    """Captions -> what the denoiser sees of them."""

    def embeds(self, captions: Sequence[str]) -> list[TextEmbeds]: ...


class LiveTexts:
    """Captions encoded anew each time, with gradients: what text encoders that are trained need."""

    def __init__(self, family: ModelFamily) -> None:
        self._family = family

    def embeds(self, captions: Sequence[str]) -> list[TextEmbeds]:
        return self._family.embed_captions(captions)


class TextCache:
    """Captions encoded once. The empty one is always there: caption dropout and guidance need it.

    Not for text encoders that are trained: what they say changes at every step (:class:`LiveTexts`).
    """

    def __init__(self, folder: Path, family: ModelFamily, warn: Callable[[str], None]) -> None:
        self._folder, self._family, self._warn = folder / "text", family, warn
        self._embeds: dict[str, TextEmbeds] = {}

    def fill(self, captions: Iterable[str], progress: Progress) -> None:
        encoder = self._family.text_encoder_id()
        wanted = sorted({"", *captions})
        for number, caption in enumerate(wanted):
            if caption not in self._embeds:
                key = _key(caption, encoder)
                file = self._folder / key[:2] / f"{key}.safetensors"
                cached = _read(file, self._warn)
                if cached is None:
                    cached = self._family.encode_captions([caption])[0]
                    _write(file, cached)
                self._embeds[caption] = cached
            progress(number + 1, len(wanted))

    def embeds(self, captions: Sequence[str]) -> list[TextEmbeds]:
        return [self._embeds[caption] for caption in captions]
