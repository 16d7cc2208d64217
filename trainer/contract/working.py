"""What a step and a decoding need beside the weights that stay, and whether a picture is decoded in tiles.

Counted at full size by ``python -m bench.fake_memory`` (docs/memory.md): the product's own code on fake
tensors, torch 2.13.
"""

from __future__ import annotations

from dataclasses import dataclass

from .adapter_size import AdapterSize, adapter_size
from .config import TrainConfig
from .families import CATALOGUE, block_maps, known_base
from .ladder import at_once
from .settings.dataset import all_resolutions

GIB = 2**30
TEXT_LORA_PER_RANK = 1.1
"""Thousands of LoRA parameters per unit of rank and million parameters: 18 width a layer of 12 width²."""
TEXT_ACTIVATION_GIB = 0.2
"""Of one caption of 77 tokens, for every thousand million parameters that are trained: 34 bytes per token,
width and layer (Korthikanti et al. 2022)."""
TILE = 512
"""Side in pixels of the tiles that a picture is decoded in."""
DENOISING = 0.8
"""Of the activations of a step with gradient checkpointing, what the denoiser takes while it draws, guidance
included; counted as 0.2 to 0.84 (docs/memory.md), most of them below this."""
HALF = 2.0
"""Bytes of a number of 16 bits."""


@dataclass(frozen=True)
class Figures:
    """The catalogue's figures of a recipe's base, see :class:`trainer.contract.family_types.Family`."""

    params: tuple[float, float, float]
    activation_gib: tuple[float, float]
    resolution: int
    side: int
    """Of the largest pictures that are trained on, in pixels."""

    @property
    def area(self) -> float:
        """Theirs; 1 is that of the base's own pictures."""
        return (self.side / self.resolution) ** 2


def figures(config: TrainConfig) -> Figures:
    family = CATALOGUE[config.model.family]
    base = known_base(config.model.family, config.model.base)
    native = base.resolution if base else family.resolution
    return Figures(
        (base and base.params) or family.params,
        (base and base.activation_gib) or family.activation_gib,
        native,
        all_resolutions(config.dataset, native)[0],
    )


def trained_text(config: TrainConfig) -> float:
    """Millions of parameters of the text encoders that get a LoRA."""
    row = CATALOGUE[config.model.family]
    sizes = dict(zip(row.trainable_text, row.trainable_text_params, strict=True))
    return sum(sizes[part] for part in config.text_encoder_rates())


def adapter_of(config: TrainConfig) -> AdapterSize:
    """What is trained: LoRAs, in the denoiser and in text encoders."""
    family = CATALOGUE[config.model.family]
    base = known_base(config.model.family, config.model.base)
    per_rank = (base and base.lora_params_per_rank) or family.lora_params_per_rank
    blocks = block_maps(config.model.family, config.model.base)[0]
    linear = figures(config).params[0] * family.linear_share
    return adapter_size(config.adapter, per_rank, blocks, linear, TEXT_LORA_PER_RANK * trained_text(config))


def gradients_gib(config: TrainConfig) -> float:
    """Of the LoRA, in its number format, all at once."""
    return adapter_of(config).trained * (2 if config.adapter.precision == "bf16" else 4) / GIB


def step_gib(config: TrainConfig, *, recompute: bool, bytes_each: float = HALF, processes: int = 1) -> float:
    """Activations of a step; ``recompute``: with gradient checkpointing."""
    here = figures(config)
    pictures = min(at_once(config), -(-config.train.batch_size // processes))  # each has its share of a batch
    # To keep what the base draws, pictures are shown twice, in the same pass.
    samples = here.area * pictures * (2 if config.prior.method == "output" else 1)
    text = TEXT_ACTIVATION_GIB * trained_text(config) / 1e3 * pictures
    rebuilt = adapter_of(config).rebuilt * bytes_each / GIB
    # Of what is recomputed, one block's is there at a time: about a tenth.
    return here.activation_gib[recompute] * samples + (text + rebuilt) * (0.1 if recompute else 1.0)


def encode_gib(config: TrainConfig) -> float:
    """Activations of the VAE that encodes a photo, in fp32."""
    here = figures(config)
    return CATALOGUE[config.model.family].vae_gib[0] * here.area * here.resolution**2 / 2**20


def decode_gib(config: TrainConfig, width: int, height: int) -> float:
    """Activations of the VAE that decodes a picture, in tiles where it is."""
    pixels = width * height
    if in_tiles(config, width, height):
        pixels = min(pixels, TILE**2)
    return _whole_gib(config, pixels)


def drawing_gib(config: TrainConfig, width: int, height: int) -> float:
    """Activations while a picture is drawn: of the denoiser, and then of the VAE."""
    here = figures(config)
    denoise = DENOISING * here.activation_gib[1] * width * height / here.resolution**2
    return max(denoise, decode_gib(config, width, height))


def _whole_gib(config: TrainConfig, pixels: int) -> float:
    return CATALOGUE[config.model.family].vae_gib[1] * pixels / 2**20


def in_tiles(config: TrainConfig, width: int, height: int) -> bool:
    """Whether a picture of this size is decoded in tiles (``samples.tiling``).

    "auto": where decoding it whole takes more than a training step does, which would make it the peak of the
    run. It follows from the recipe alone, as if there were a GPU: a picture is the same wherever it is drawn.
    """
    if config.samples.tiling != "auto":
        return config.samples.tiling == "on"
    if max(width, height) <= TILE:
        return False
    vae = figures(config).params[2] * 1e6 * HALF / GIB
    recompute = config.train.gradient_checkpointing != "off"
    step = step_gib(config, recompute=recompute, processes=config.machine.gpus or 1)
    if not config.train.fused_backward:
        step += gradients_gib(config)
    return vae + _whole_gib(config, width * height) > step
