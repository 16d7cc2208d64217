"""What families made of a diffusers pipeline's parts share, so that a file says only what is its own.

Loading one part at a time (folder, single file, separate VAE), fingerprints for the cache, latents of a
plain autoencoder, quantised bases, and getting encoders out of the way are here. ``base.py`` has the
protocol that the trainer sees; ``sdxl.py`` is the example of a family on top of this class.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..contract import families as catalogue
from ..contract.errors import RunError
from ..contract.headers import read_header
from ..contract.working import TILE
from ..hub import VARIANTS
from ..noise import Flow, Noise
from ..quantize import Quantization, quantize
from ..samplers import scheduler
from ..source import BaseModel, fingerprint, read_config
from ..timesteps import Times
from .base import Native, TextEmbeds

_VAE = "it is for another architecture; leave model.vae empty for the base's own"


class PipelineFamily:
    """A :class:`trainer.families.base.ModelFamily` over the parts of a diffusers pipeline.

    Class attributes, set by each family:
        row: its row in the catalogue.
        pipeline_class: draws the samples; its parts are given by name.
        denoiser_part, denoiser_class, vae_class: names and classes of these parts.
        text_classes: the text encoders, part -> class.
        tokenizer_classes: part -> class.
        trainable_text: the text encoders that can get a LoRA of their own.
        targets: ``adapter.targets`` -> regular expression over the denoiser's module names.
        text_targets: the same for text encoders.
        unread: regular expression for modules of the last transformer block, named from the block on, whose
            output nothing reads (the text's side of it): they get no LoRA.
        clip_names: what ComfyUI calls the text encoders that a LoRA's file may be for.
        published, respelt: see the protocol.
        patch: side of the square of latents that is one token of the denoiser.
    """

    row: ClassVar[catalogue.Family]
    pipeline_class: ClassVar[Any]
    denoiser_part: ClassVar[str] = "transformer"
    denoiser_class: ClassVar[Any]
    vae_class: ClassVar[Any] = AutoencoderKL
    text_classes: ClassVar[dict[str, Any]]
    tokenizer_classes: ClassVar[dict[str, Any]]
    trainable_text: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[dict[str, str]]
    unread: ClassVar[str] = ""
    text_targets: ClassVar[str] = ""
    clip_names: ClassVar[dict[str, str]] = {}
    published: ClassVar[dict[str, dict[str, Any]]]
    respelt: ClassVar[dict[str, str]] = {}
    patch: ClassVar[int] = 2

    noise: Noise
    resolution: int
    tokens: int

    def __init__(
        self,
        base: BaseModel,
        device: torch.device,
        dtype: torch.dtype,
        quantized: Quantization = "none",
        quantized_text: Quantization = "none",
    ) -> None:
        self.base, self.device, self.dtype = base, device, dtype
        self._quantized, self._quantized_text = quantized, quantized_text
        self.tokens = self.row.token_limit
        self._vae: Any = None
        self._text: Any = None  # a pipeline of tokenizers and text encoders
        self.index = base.read_json("model_index.json")
        self.denoiser_config = base.read_json(self.denoiser_part, "config.json")
        self.targets = self.targets_in(self.denoiser_config)  # type: ignore[misc]  # now this base's own
        self.vae_config = self._read_vae_config()
        self.schedule = base.read_json("scheduler", "scheduler_config.json")
        self.setup()
        for part in (self.denoiser_part, "vae", *self.text_classes):
            self._fingerprint(part)  # a damaged or missing file is found now, not after caching

    @classmethod
    def for_names(cls, denoiser_config: Mapping[str, Any]) -> Self:
        """A family without a base, which knows names of modules."""
        family = cls.__new__(cls)
        family.denoiser_config = dict(denoiser_config)
        return family

    @classmethod
    def without_weights(cls, denoiser_config: Mapping[str, Any]) -> nn.Module:
        """The denoiser of a configuration, on the meta device."""
        with torch.device("meta"):
            denoiser: nn.Module = cls.denoiser_class.from_config(dict(denoiser_config))
        return denoiser

    @classmethod
    def targets_in(cls, denoiser_config: Mapping[str, Any]) -> dict[str, str]:
        """``targets`` for a denoiser of this configuration: without what is ``unread`` in its last block."""
        if not cls.unread:
            return cls.targets
        unread = cls._unread_in(denoiser_config)
        return {name: rf"(?!{unread}$)({pattern})" for name, pattern in cls.targets.items()}

    @classmethod
    def _unread_in(cls, denoiser_config: Mapping[str, Any]) -> str:
        last = int(denoiser_config["num_layers"]) - 1
        return rf"transformer_blocks\.{last}\.({cls.unread})"

    def is_read(self, module: str) -> bool:
        """Whether anything reads the output of this module of the denoiser."""
        return not (self.unread and re.fullmatch(self._unread_in(self.denoiser_config), module))

    # What a family may say differently ------------------------------------------------------------

    def setup(self) -> None:
        """Set ``noise`` and ``resolution`` from the configurations that were just read."""
        raise RunError(f"the family {self.row.key} does not say how it is trained", "unknown")

    def embed(self, text: Any, captions: list[str]) -> list[TextEmbeds]:
        """Captions by ``text``, a pipeline of tokenizers and text encoders; gradients may flow."""
        raise RunError(f"the family {self.row.key} does not encode captions", "unknown")

    def to_latents(self, vae: Any, pixels_BCHW: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the denoiser wants them.

        The mode of the posterior, not a draw: a cached latent must be a function of the picture.
        """
        latents: Tensor = vae.encode(pixels_BCHW).latent_dist.mode()
        return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def decode(self, vae: Any, latents_BCHW: Tensor) -> Tensor:
        """The way back: pixels (B, 3, H, W) of latents as ``to_latents`` makes them."""
        latents = latents_BCHW / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels: Tensor = vae.decode(latents).sample
        return pixels

    def to_pipeline(self, latents_BCHW: Tensor) -> Tensor:
        """Latents in the shape that the pipeline's ``latents`` argument has (packed, with a time axis, …)."""
        return latents_BCHW

    def text_parts(self) -> dict[str, Any]:
        """What a pipeline needs in order to encode prompts: tokenizers and text encoders, loaded."""
        tokenizers = {
            part: cls.from_pretrained(self.base.folder(part)) for part, cls in self.tokenizer_classes.items()
        }
        encoders = {
            part: self.place(self.load_part(cls, part), self._quantized_text)
            for part, cls in self.text_classes.items()
        }
        return {**tokenizers, **encoders}

    def sampler(self) -> Any:
        """The scheduler that samples are drawn with: the base's own."""
        import diffusers

        cls = getattr(diffusers, self.schedule["_class_name"])
        return cls.from_config(self.schedule)

    def guidance(self, scale: float) -> dict[str, Any]:
        """The pipeline's argument for guidance, which is 1 where it is off; some count otherwise."""
        return {"guidance_scale": scale}

    def draw_with(self, pipeline: Any, sampler: str) -> None:
        """Give the pipeline a sampler of the user's choice, over the base's own schedule."""
        if sampler != "auto":
            pipeline.scheduler = scheduler(sampler, self.schedule, self.row.process)

    def pipeline_extras(self) -> dict[str, Any]:
        """More keyword arguments of the pipeline's class."""
        return {}

    def native(self, module: str) -> Native:
        """The module's name in the architecture's original code; see :class:`Native`."""
        return Native(module)

    def flow(self, pixels_per_token: int = 16) -> Flow:
        """Rectified flow as most transformers are trained: logit-normal times (Esser et al. 2024), moved
        by the shift that the base is sampled with.

        Where the sampler's shift depends on the picture's size, it is the one at ``resolution``.
        """
        schedule = self.schedule
        shift = float(schedule.get("shift", 1.0))
        if schedule.get("use_dynamic_shifting"):
            tokens = (self.resolution // pixels_per_token) ** 2
            few, many = schedule.get("base_image_seq_len", 256), schedule.get("max_image_seq_len", 4096)
            low, high = schedule.get("base_shift", 0.5), schedule.get("max_shift", 1.15)
            mu = low + (high - low) * (tokens - few) / (many - few)
            shift = mu if schedule.get("time_shift_type") == "linear" else math.exp(mu)
        return Flow(Times("logit_normal", shift))

    # Parts ----------------------------------------------------------------------------------------

    def _read_vae_config(self) -> dict[str, Any]:
        own, given = self.base.read_json("vae", "config.json"), self.base.vae
        if given is None:
            return own
        config = read_config(given / "config.json", "model.vae", "config.json") if given.is_dir() else own
        one, other = own.get("_class_name"), config.get("_class_name", own.get("_class_name"))
        if one != other:
            raise RunError(
                f"model.vae is an {other}, and {self.base.name} has an {one}; {_VAE}", "model_missing"
            )
        channels = own.get("latent_channels", own.get("z_dim"))
        for file in [given] if given.is_file() else given.glob("*.safetensors"):
            for name, tensor in read_header(file).tensors.items():
                if name.endswith("decoder.conv_in.weight") and channels not in (None, tensor.shape[1]):
                    raise RunError(
                        f"the latents of model.vae have {tensor.shape[1]} channels, and those of "
                        f"{self.base.name} have {channels}; {_VAE}",
                        "model_missing",
                    )
        return config

    def source(self, part: str) -> Path:
        """Where a part's weights are: a folder, or a single file."""
        if part == "vae" and self.base.vae:
            return self.base.vae
        if part in self.base.borrowed:
            return self.base.borrowed[part]
        if self.base.single_file and self.in_single_file(part):
            return self.base.weights
        folder = self.base.config if self.base.single_file else self.base.weights
        return folder / part

    def in_single_file(self, part: str) -> bool:
        """Whether the single checkpoint holds this part; DiT checkpoints hold the denoiser alone."""
        return part == self.denoiser_part

    def file_prefix(self, part: str, file: Path) -> str:
        """The beginning of a part's tensor names in a single file."""
        return ""

    def _fingerprint(self, part: str) -> str:
        source = self.source(part)
        if source.is_file():
            return fingerprint(source, prefix=self.file_prefix(part, source))
        files = sorted(source.glob("*.safetensors"))
        if not files:
            raise RunError(
                f"{self.base.name} has no .safetensors weights in {source.name}/; "
                "other formats can hide code and are refused",
                "model_missing",
            )
        return fingerprint(*files)

    def load_part(self, cls: Any, part: str, dtype: torch.dtype | None = None) -> Any:
        """One part in ``dtype`` (the base's number format by default), on the CPU."""
        source, dtype = self.source(part), dtype or self.dtype
        if source.is_dir():
            return cls.from_pretrained(source, dtype=dtype, use_safetensors=True, variant=_variant(source))
        return self.load_from_file(cls, part, source, dtype)

    def load_from_file(self, cls: Any, part: str, file: Path, dtype: torch.dtype) -> Any:
        """A part from a single file in the architecture's original layout."""
        try:
            return cls.from_single_file(
                str(file),
                config=str(self.base.config),
                subfolder=part,
                torch_dtype=dtype,
                local_files_only=True,
            )
        except (ValueError, KeyError, RuntimeError) as error:
            why = str(error).strip().splitlines()[0][:200]
            raise RunError(
                f"{file.name} could not be read as a {self.row.label} checkpoint ({why}); "
                "it may be quantised, damaged or a variant that cannot be trained here",
                "model_missing",
            ) from None

    def place(self, module: Any, quantization: Quantization, device: torch.device | None = None) -> Any:
        """The module frozen, its linear layers quantised where asked, on ``device`` or on the family's."""
        device = device or self.device
        return quantize(module.eval().requires_grad_(False), quantization, device).to(device)

    # Encoding -------------------------------------------------------------------------------------

    def image_encoder_id(self) -> str:
        scale = {key: value for key, value in self.vae_config.items() if not key.startswith("_")}
        # Families that share a VAE need not normalise its latents alike (FLUX.2's).
        return _digest(self.row.key, self._fingerprint("vae"), scale)

    def weights_id(self) -> str:
        return self._fingerprint(self.denoiser_part)

    def denoiser_id(self) -> str:
        return _digest(
            self.weights_id(), self.denoiser_config, self.schedule, str(self.dtype), self._quantized
        )

    def text_encoder_id(self) -> str:
        weights = [self._fingerprint(part) for part in self.text_classes]
        files = [
            hashlib.sha256(file.read_bytes()).hexdigest()
            for part in self.tokenizer_classes
            for file in sorted(self.base.folder(part).glob("*"))
            if file.is_file() and file.suffix != ".safetensors"
        ]
        # The family too: two that share an encoder read other layers of it (Qwen3).
        options = (self.row.key, self.tokens, str(self.dtype), self._quantized_text, *self.text_options())
        return _digest(weights, files, *options)

    def text_options(self) -> Sequence[object]:
        """What the embeddings depend on beside weights, tokenizers, number format and length."""
        return ()

    def _load_vae(self, dtype: torch.dtype) -> Any:
        """The VAE on the device. Loaded anew in another number format, so that no precision is lost."""
        if self._vae is None or self._vae.dtype != dtype:
            self._vae = self.load_part(self.vae_class, "vae", dtype).eval().requires_grad_(False)
            _decode_alone(self._vae, self.device)
        return self._vae.to(self.device)

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Tensor:
        # In fp32 always: it is done once per picture, and every step learns from it. Never in tiles, which
        # class pictures may have been drawn in just before.
        vae = self._load_vae(torch.float32)
        if hasattr(vae, "disable_tiling"):
            vae.disable_tiling()
        return self.to_latents(vae, pixels_BCHW.to(self.device, torch.float32)).float().cpu()

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> list[TextEmbeds]:
        # In the encoders' own number format: all captions of a run stay in memory.
        embeds = self.embed_captions(captions)
        return [{name: tensor.cpu() for name, tensor in one.items()} for one in embeds]

    def cut_captions(self, captions: Sequence[str]) -> list[str]:
        """Counted by the last tokenizer, which is that of the encoder that reads most."""
        # A token is at least one byte of the text, and there are two special ones at most.
        long = [caption for caption in captions if len(caption.encode()) + 2 > self.tokens]
        if not long:
            return []
        part, cls = list(self.tokenizer_classes.items())[-1]
        tokenizer = cls.from_pretrained(self.base.folder(part))
        return [caption for caption in long if len(tokenizer(caption).input_ids) > self.tokens]

    def embed_captions(self, captions: Sequence[str]) -> list[TextEmbeds]:
        if self._text is None:
            self._vae_off()
            self._text = self._load_text()
        return self.embed(self._text, list(captions))

    def _load_text(self) -> Any:
        parts = self.text_parts()
        return self._build_pipeline({**self.pipeline_extras(), **parts})

    def text_encoders(self) -> dict[str, nn.Module]:
        if self._text is None:
            self._text = self._load_text()
        return {part: getattr(self._text, part) for part in self.trainable_text}

    def free_encoders(self, keep_text: bool = False) -> None:
        if not keep_text:
            self._text = None
        self._vae_off()

    def _vae_off(self) -> None:
        """Off the device: where text encoders or a denoiser come, there is no room for it."""
        if self._vae is not None:
            self._vae.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # Training and sampling ------------------------------------------------------------------------

    def load_denoiser(self, in_ram: bool = False) -> nn.Module:
        denoiser = self.load_part(self.denoiser_class, self.denoiser_part)
        device = torch.device("cpu") if in_ram else self.device
        module: nn.Module = self.place(denoiser, self._quantized, device)
        return module

    def _build_pipeline(self, given: dict[str, Any]) -> Any:
        """The pipeline's class with the parts in ``given`` and without the others."""
        parts = dict.fromkeys(self.pipeline_class._get_signature_types())
        return self.pipeline_class(**{**parts, **given})

    def pipeline(self, denoiser: nn.Module, tiled: bool = False) -> Any:
        vae = self._load_vae(self.dtype)
        if hasattr(vae, "enable_tiling"):
            _tile(vae) if tiled else vae.disable_tiling()
        given = {"vae": vae, self.denoiser_part: denoiser, "scheduler": self.sampler()}
        return self._build_pipeline({**self.pipeline_extras(), **given})

    def batched(self, tensor: Tensor) -> Tensor:
        """A cached tensor with a batch dimension of one, on the device, in the base's number format."""
        return self.stacked([tensor])

    def stacked(self, tensors: Sequence[Tensor]) -> Tensor:
        """Cached tensors of equal shape as a batch, on the device; floats in the base's number format."""
        batch = torch.stack(list(tensors)).to(self.device)
        return batch.to(self.dtype) if batch.is_floating_point() else batch

    def padded(self, tensors_LD: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Sequences of different length as a batch: (B, longest, D) and its mask, bool (B, longest)."""
        batch = nn.utils.rnn.pad_sequence([t.to(self.device) for t in tensors_LD], batch_first=True)
        lengths = torch.tensor([len(tensor) for tensor in tensors_LD], device=self.device)
        mask = torch.arange(batch.shape[1], device=self.device)[None] < lengths[:, None]
        return batch.to(self.dtype), mask

    # Export ---------------------------------------------------------------------------------------

    def kohya_name(self, part: str, module: str) -> str:
        """Kohya's key stem of a module of the denoiser or of a text encoder."""
        if part == self.denoiser_part:
            return "lora_unet_" + self.native(module).name.replace(".", "_")
        # Kohya counts encoders only where there are several; transformers 5 dropped "text_model.".
        number = "" if len(self.text_classes) == 1 else str(list(self.text_classes).index(part) + 1)
        module = "text_model." + module.removeprefix("text_model.")
        return f"lora_te{number}_{module.replace('.', '_')}"


def _decode_alone(vae: Any, device: torch.device) -> None:
    """Let ``decode`` take latents in its own number format, whatever surrounds it. In fp16 the pipeline
    decodes in fp32 where the configuration asks for it (SDXL's own VAE overflows), which autocast would undo;
    and on CUDA autocast turns latents into fp32 where a pipeline takes a norm or a reciprocal of them."""
    decode = vae.decode

    def alone(latents: Tensor, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(device.type, enabled=False):
            return decode(latents.to(vae.dtype), *arguments, **options)

    vae.decode = alone


def _tile(vae: Any) -> None:
    """Decode in tiles of at most TILE px. AutoencoderKL's own are as large as what it was trained on."""
    vae.enable_tiling()
    if hasattr(vae, "tile_latent_min_size"):
        factor = vae.tile_sample_min_size // vae.tile_latent_min_size
        vae.tile_sample_min_size = min(vae.tile_sample_min_size, TILE)
        vae.tile_latent_min_size = vae.tile_sample_min_size // factor


def _digest(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _variant(folder: Path) -> str | None:
    """Which weights to load: the plain ones, or a variant in 16 bits where only that was fetched."""
    names = [file.name for file in folder.glob("*.safetensors")]
    plain = [name for name in names if not any(f".{variant}" in name for variant in VARIANTS)]
    return next((v for v in VARIANTS if not plain and any(f".{v}" in name for name in names)), None)
