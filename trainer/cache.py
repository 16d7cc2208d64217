"""Latents and text embeddings, encoded once and kept on disk by content.

A key is the hash of everything that the encoded tensor depends on, so an edited photo, another crop or
another VAE is encoded anew, and only that. A file holds the hash of its own tensors, so a damaged one is
noticed and made again. Tensors are looked up by image id or caption text, never by
position: no picture can meet another one's caption.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataset_tools.augment import View, render_view, views_of
from dataset_tools.images import open_image

from .captions import Captions
from .concepts import PLAIN
from .contract.errors import RunError
from .contract.files import is_disk_full, staged
from .contract.plan import CAPTIONS_IN_MEMORY_GIB
from .contract.prompt import prompts_of
from .contract.settings.dataset import DatasetSettings
from .contract.whole import sha256_of
from .data import Progress, Stages, TrainImage
from .families.base import ModelFamily, TextEmbeds
from .masks import mask_at, mask_digest
from .prior import kept_captions


def _key(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


IN_MEMORY = int(CAPTIONS_IN_MEMORY_GIB * 2**30)
"""Bytes of encoded captions that are held in memory."""
NOT_KEPT = "the disk is full, so that what was encoded cannot be kept; the next start encodes it again"
DAMAGED = "some files of the cache were damaged; they are made again"


def _read(file: Path, warn: Callable[[str], None]) -> dict[str, Tensor] | None:
    """The tensors in a file of the cache; None where there is none, or a damaged one, which goes."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
            told = (opened.metadata() or {}).get("sha256", "")
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        told, tensors = "unreadable", {}
    # Files of earlier versions have no hash of their own.
    if not told or told == _digest(tensors):
        return tensors
    warn(DAMAGED)
    file.unlink(missing_ok=True)
    return None


def _write(file: Path, tensors: dict[str, Tensor], warn: Callable[[str], None]) -> bool:
    """Whether the tensors are kept: on a full disk they are not, which costs time alone."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with staged(file) as temporary:
            save_file(whole, temporary, metadata={"sha256": _digest(whole)})
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        warn(NOT_KEPT)
        return False
    return True


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pixels_of(root: Path, image: TrainImage, view: View = PLAIN) -> Tensor:
    """The training crop of a picture, or a view of it: (3, H, W) in [-1, 1]. Raises ImageError."""
    assert image.bucket and image.crop
    opened = open_image(image.path(root), name=image.original_name)
    rendered = render_view(opened.image, image.crop, image.bucket, view)
    return torch.from_numpy(np.asarray(rendered, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _views(image: TrainImage, settings: DatasetSettings) -> tuple[View, ...]:
    return (PLAIN,) if image.held_out else views_of(image, settings, image.own.flips(settings))


def _view_key(image: TrainImage, view: View) -> tuple[object, ...]:
    """What the pixels of a view depend on beside those of the file."""
    return (image.crop, image.bucket, view.flip) + ((view.variant,) if view.variant else ())


class LatentCache:
    """(image id, view) -> latents (C, h, w) and mask (1, h, w), float32, on the CPU."""

    def __init__(self, folder: Path, family: ModelFamily, warn: Callable[[str], None]) -> None:
        self._folder, self._masks_folder = folder / "latents", folder / "masks"
        self._family, self._warn = family, warn
        self._latents: dict[tuple[str, View], Tensor] = {}
        self._masks: dict[tuple[str, View], Tensor] = {}

    def fill(
        self, root: Path, images: Sequence[TrainImage], settings: DatasetSettings, progress: Progress
    ) -> None:
        """Encode every view that the recipe can show and that is not on disk. Interrupt it at any time: what
        was encoded stays."""
        encoder = self._family.image_encoder_id()
        looks = [(image, view) for image in images for view in _views(image, settings)]
        contents = {image.id: self._content(root, image) for image in images}
        for number, (image, view) in enumerate(looks):
            key = _key(contents[image.id], *_view_key(image, view), encoder)
            file = self._folder / key[:2] / f"{key}.safetensors"
            cached = _read(file, self._warn)
            if cached is None:
                pixels_BCHW = pixels_of(root, image, view)[None]
                latents = self._family.encode_images(pixels_BCHW)[0]
                if not bool(latents.isfinite().all()):
                    raise RunError(
                        f"the VAE turns {image.original_name} into infinite numbers; "
                        "set model.precision to bf16 or fp32, or use model.vae",
                        "nan",
                    )
                cached = {"latents": latents}
                _write(file, cached, self._warn)
            self._latents[image.id, view] = cached["latents"]
            if image.mask:
                self._masks[image.id, view] = self._mask(root, image, view)
            progress(number + 1, len(looks))

    def _content(self, root: Path, image: TrainImage) -> str:
        """SHA-256 of a picture as it is now; a project has that of the day on which it was added."""
        try:
            sha256 = sha256_of(image.path(root))
        except FileNotFoundError:
            return image.sha256  # what was encoded of it serves, where there is such
        if sha256 != image.sha256:
            self._warn(f"{image.original_name} was changed after it was added; it is used as it is now")
        return sha256

    def _mask(self, root: Path, image: TrainImage, view: View) -> Tensor:
        """Made once for a mask file's content, crop and size of latents; apart from the latents, which need
        not be encoded anew for another mask."""
        height, width = self._latents[image.id, view].shape[-2:]
        sha256, size = mask_digest(root, image), (height, width)
        if sha256 != image.mask_sha256:
            self._warn(f"the mask of {image.original_name} was changed; it is used as it is now")
        alpha = image.mask == image.file
        key = _key(sha256, alpha, (image.width, image.height), *_view_key(image, view), size)
        file = self._masks_folder / key[:2] / f"{key}.safetensors"
        cached = _read(file, self._warn)
        if cached is None:
            cached = {"mask": mask_at(root, image, view, size)}
            _write(file, cached, self._warn)
        if not bool(cached["mask"].any()):
            self._warn(f"the mask of {image.original_name} is black all over its crop; choose another crop")
        return cached["mask"]

    def get(self, image_id: str, view: View = PLAIN) -> Tensor:
        return self._latents[image_id, view]

    def mask(self, image_id: str, view: View = PLAIN) -> Tensor:
        """Ones for a picture without a mask, (1, h, w)."""
        mask = self._masks.get((image_id, view))
        return torch.ones_like(self._latents[image_id, view][:1]) if mask is None else mask


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

    They lie on disk; of those used last at most IN_MEMORY bytes stay in memory. Not for text encoders that
    are trained: what they say changes at every step (:class:`LiveTexts`).
    """

    def __init__(self, folder: Path, family: ModelFamily, warn: Callable[[str], None]) -> None:
        self._folder, self._family, self._warn = folder / "text", family, warn
        self._files: dict[str, Path] = {}
        self._embeds: OrderedDict[str, TextEmbeds] = OrderedDict()
        self._unkept: dict[str, TextEmbeds] = {}  # for which the disk had no room
        self._bytes = 0

    def fill(self, captions: Iterable[str], progress: Progress) -> None:
        encoder = self._family.text_encoder_id()
        wanted = sorted({"", *captions})
        for number, caption in enumerate(wanted):
            if caption not in self._files:
                key = _key(caption, encoder)
                file = self._folder / key[:2] / f"{key}.safetensors"
                cached = _read(file, self._warn)
                if cached is None:
                    cached = self._family.encode_captions([caption])[0]
                    if not all(bool(tensor.isfinite().all()) for tensor in cached.values()):
                        what = f"“{caption[:60]}”" if caption else "the empty caption"
                        raise RunError(
                            f"the text encoders turn {what} into infinite numbers; "
                            "set model.precision to bf16 or fp32",
                            "nan",
                        )
                    if not _write(file, cached, self._warn):
                        self._unkept[caption] = cached
                self._files[caption] = file
                self._keep(caption, cached)
            progress(number + 1, len(wanted))

    def embeds(self, captions: Sequence[str]) -> list[TextEmbeds]:
        return [self._embeds_of(caption) for caption in captions]

    def _embeds_of(self, caption: str) -> TextEmbeds:
        if caption in self._unkept:
            return self._unkept[caption]
        cached = self._embeds.get(caption)
        if cached is None:
            file = self._files[caption]
            cached = _read(file, self._warn)
            if cached is None:  # the encoders are gone
                raise RunError(f"{file} was damaged or removed while training; resume to make it again")
            self._keep(caption, cached)
        self._embeds.move_to_end(caption)
        return cached

    def _keep(self, caption: str, embeds: TextEmbeds) -> None:
        self._embeds[caption] = embeds
        self._bytes += _bytes(embeds)
        while self._bytes > IN_MEMORY and len(self._embeds) > 1:
            self._bytes -= _bytes(self._embeds.popitem(last=False)[1])


def _bytes(embeds: TextEmbeds) -> int:
    return sum(tensor.nbytes for tensor in embeds.values())


def encode_captions(
    captions: Captions,
    folder: Path,
    family: ModelFamily,
    warn: Callable[[str], None],
    preparing: Stages,
) -> Texts:
    """Every caption and prompt encoded, and the encoders let go; unless they are trained themselves."""
    config = captions.config
    live = bool(config.text_encoder_rates())
    shown = (captions.some() if live else captions.all()) | captions.of_held_out()
    texts = sorted({text for _, text in shown})
    if cut := set(family.cut_captions(texts)):
        long = {image_id for image_id, text in shown if text in cut}
        many = "1 caption is" if len(long) == 1 else f"{len(long)} captions are"
        first = next(image.original_name for image in captions.images if image.id in long)
        warn(
            f"{many} longer than the {family.tokens} tokens that {family.row.label} reads, such as that of "
            f"{first}; what comes after is not learnt"
        )
    if live:
        family.free_encoders(keep_text=True)
        return LiveTexts(family)
    cache = TextCache(folder, family, warn)
    kept: list[str] = []
    if config.prior.method == "output":
        triggers = {image.id: image.trigger for image in captions.images}
        kept = [one for id, text in shown for one in kept_captions(config.prior, text, triggers[id])]
    prompts = [text for one in prompts_of(config.samples) for text in (one.text, one.negative)]
    cache.fill(texts + kept + prompts, preparing("captions", "Encoding captions"))
    family.free_encoders()
    return cache
