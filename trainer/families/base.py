"""What the trainer asks of a model family.

A family is one file, ``trainer/families/<key>.py``, with one class ``Family`` that has these members;
``sdxl.py`` is the documented example to copy. Conventions everywhere:

- pixels are float, RGB, (B, 3, H, W), in [-1, 1];
- latents are float32, (B, C, h, w), scaled and shifted the way the denoiser wants them;
- ``t_B`` runs from 0 (clean) to 1 (noise); a family that counts otherwise converts in ``predict``;
- the text conditioning of ONE caption is a dict of tensors without a batch dimension; it is cached on
  disk, so it holds everything that the text encoders say and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from diffusers.utils import logging as _diffusers
from torch import Tensor, nn
from transformers.utils import logging as _transformers

from ..contract import families as catalogue
from ..noise import Noise
from ..quantize import Quantization
from ..source import BaseModel

TextEmbeds = dict[str, Tensor]

# Loading a pipeline draws a bar per part; the run's own stages tell more.
_diffusers.disable_progress_bar()
_transformers.disable_progress_bar()


@dataclass(frozen=True)
class Geometry:
    """Where a training picture comes from, in pixels: what SDXL calls micro-conditioning.

    ``original`` (height, width) is the picture's size at the training scale, or its true size where it
    had to be enlarged; ``crop`` (top, left) the corner of the crop at the training scale; ``target``
    (height, width) the bucket.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def whole(cls, height: int, width: int) -> Geometry:
        """An uncropped picture: what samplers assume."""
        return cls((height, width), (0, 0), (height, width))


@dataclass(frozen=True)
class Native:
    """Where a diffusers module lies in an architecture's original code.

    Original code often has one layer where diffusers has several: ``rows`` are the first and last + 1
    output rows that are this module's, of ``total``; None where the layers are the same. ``swapped``: the
    halves of its output are the other way round there, (shift, scale) for diffusers' (scale, shift).
    """

    name: str
    rows: tuple[int, int] | None = None
    total: int = 0
    swapped: bool = False


class ModelFamily(Protocol):
    """One architecture, bound to one base model.

    Attributes:
        row: the family's row in the catalogue.
        device: where it computes.
        noise: the process that the base was trained under, known once constructed.
        resolution: native side of this base in pixels.
        tokens: how many tokens of a caption this base reads.
        patch: side of the square of latents that is one token of the denoiser (1: each is its own).
        denoiser_part: the denoiser's name in diffusers' pipelines and LoRA files, "unet" or "transformer".
        targets: ``adapter.targets`` -> regular expression that full-matches the module names of the
            denoiser that get a LoRA.
        trainable_text: names of the text encoders that can get a LoRA of their own, in kohya's order.
        text_targets: the regular expression for these.
        clip_names: what ComfyUI calls each text encoder that a LoRA's file may be for: those, and some that
            other programs train.
        published: what the configurations of the denoisers of bases by Hub id say beside diffusers' defaults.
        respelt: stretches of ``kohya_name`` -> how kohya's scripts spell them, where ComfyUI does otherwise.
    """

    row: ClassVar[catalogue.Family]
    device: torch.device
    noise: Noise
    resolution: int
    tokens: int
    patch: ClassVar[int]
    denoiser_part: ClassVar[str]
    targets: ClassVar[dict[str, str]]
    trainable_text: ClassVar[tuple[str, ...]]
    text_targets: ClassVar[str]
    clip_names: ClassVar[dict[str, str]]
    published: ClassVar[dict[str, dict[str, Any]]]
    respelt: ClassVar[dict[str, str]]

    def __init__(
        self,
        base: BaseModel,
        device: torch.device,
        dtype: torch.dtype,
        quantized: Quantization = "none",
        quantized_text: Quantization = "none",
    ) -> None:
        """WHEN: first. Reads configuration files only; nothing heavy.

        IN: ``dtype`` is the number format of the frozen base; ``quantized`` and ``quantized_text`` those
        of the linear layers in the denoiser and in the text encoders.
        Raises RunError(model_missing) when a needed part is not there.
        """
        ...

    @classmethod
    def for_names(cls, denoiser_config: Mapping[str, Any]) -> Self:
        """WHEN: a file is converted. OUT: a family without a base, good for names of modules alone:
        ``native``, ``kohya_name``, ``is_read``, and ``metadata`` as far as the configuration tells."""
        ...

    @classmethod
    def without_weights(cls, denoiser_config: Mapping[str, Any]) -> nn.Module:
        """OUT: the denoiser of a configuration on the meta device; it costs nothing."""
        ...

    def image_encoder_id(self) -> str:
        """WHEN: before caching. OUT: a fingerprint of the VAE, part of the latents' cache keys."""
        ...

    def weights_id(self) -> str:
        """WHEN: before training. OUT: a fingerprint of the denoiser's weights as they are on disk."""
        ...

    def denoiser_id(self) -> str:
        """WHEN: before the baseline is drawn. OUT: a fingerprint of the frozen denoiser and its schedule."""
        ...

    def text_encoder_id(self) -> str:
        """WHEN: before caching. OUT: a fingerprint of tokenizers, encoders and how they are used."""
        ...

    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        """WHEN: caching, when a latent is not cached. Loads the VAE at the first call.

        IN: pixels on any device. OUT: latents on the CPU.
        """
        ...

    def encode_captions(self, captions: Sequence[str]) -> list[TextEmbeds]:
        """WHEN: caching, when a caption is not cached. Loads the text encoders at the first call.

        OUT: one TextEmbeds per caption, on the CPU. The empty caption is encoded the way the base
        expects its unconditional input.
        """
        ...

    def cut_captions(self, captions: Sequence[str]) -> list[str]:
        """WHEN: before captions are encoded. OUT: each of them that is longer than ``tokens``."""
        ...

    def text_encoders(self) -> dict[str, nn.Module]:
        """WHEN: text encoders are trained too. OUT: those in ``trainable_text``, on the device, frozen."""
        ...

    def embed_captions(self, captions: Sequence[str]) -> list[TextEmbeds]:
        """WHEN: every step, if text encoders are trained. OUT: as ``encode_captions``, on the device and
        with gradients."""
        ...

    def free_encoders(self, keep_text: bool = False) -> None:
        """WHEN: after caching. Drops the text encoders, moves the VAE off the device."""
        ...

    def load_denoiser(self, in_ram: bool = False) -> nn.Module:
        """WHEN: after caching. OUT: the denoiser, frozen, in ``dtype``, on the device or ``in_ram``."""
        ...

    def is_read(self, module: str) -> bool:
        """WHEN: going on from a LoRA. OUT: whether anything reads the output of this module of the denoiser;
        where nothing does, a LoRA has no effect, though other programs put one there."""
        ...

    def predict(
        self,
        denoiser: nn.Module,
        noisy_BCHW: Tensor,
        t_B: Tensor,
        embeds: Sequence[TextEmbeds],
        geometry: Sequence[Geometry],
    ) -> Tensor:
        """WHEN: every step. OUT: the prediction (B, C, h, w) that ``noise.target`` is compared with."""
        ...

    def decode(self, vae: Any, latents_BCHW: Tensor) -> Tensor:
        """The way back from ``encode_images``: pixels (B, 3, H, W), in [-1, 1]."""
        ...

    def to_pipeline(self, latents_BCHW: Tensor) -> Tensor:
        """Latents in the shape that the pipeline's ``latents`` argument has (packed, with a time axis)."""
        ...

    def pipeline(self, denoiser: nn.Module, tiled: bool = False) -> Any:
        """WHEN: drawing samples. OUT: a diffusers pipeline around the denoiser being trained, without
        text encoders; its scheduler is the base's own. ``tiled``: the VAE decodes in tiles."""
        ...

    def draw_with(self, pipeline: Any, sampler: str) -> None:
        """WHEN: drawing samples. Gives the pipeline another sampler than the base's own ("auto")."""
        ...

    def pipeline_inputs(self, positive: TextEmbeds, negative: TextEmbeds) -> dict[str, Any]:
        """WHEN: drawing samples. OUT: the keyword arguments that give the pipeline its conditioning."""
        ...

    def guidance(self, scale: float) -> dict[str, Any]:
        """WHEN: drawing samples. OUT: what the pipeline's call takes for classifier-free guidance of
        ``scale`` (negative + scale · (positive - negative)); 1 switches it off."""
        ...

    def kohya_name(self, part: str, module: str) -> str:
        """WHEN: export. IN: the denoiser's or a text encoder's part name, and a dotted module name in it.
        OUT: its key stem in kohya's files."""
        ...

    def native(self, module: str) -> Native:
        """WHEN: export. OUT: where the denoiser's module lies in the architecture's original code, which
        is what ComfyUI's key names are made of."""
        ...

    def metadata(self) -> dict[str, str]:
        """WHEN: export. OUT: the safetensors metadata that names the architecture to loaders."""
        ...


def load_family(
    key: str,
    base: BaseModel,
    device: torch.device,
    dtype: torch.dtype,
    quantized: Quantization = "none",
    quantized_text: Quantization = "none",
) -> ModelFamily:
    """The family ``key`` of the catalogue, bound to ``base``."""
    family: ModelFamily = family_class(key)(base, device, dtype, quantized, quantized_text)
    return family


def family_class(key: str) -> Any:
    """The class of the family ``key``, not yet bound to a base."""
    return importlib.import_module(f".{key}", __package__).Family
