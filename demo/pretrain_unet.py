"""Stage 2: the denoiser and both text encoders, trained together on cached latents."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from demo.draw import BUCKETS, EYES, NATIVE, Creature, Drawing, caption, random_drawing, render
from demo.pretrain_vae import to_unit
from demo.text import WIDTH, new_encoder
from demo.training import Session

TIMESTEPS = 1000
BATCH = 16
CHUNK = 32
"""Drawings that are encoded at once."""
SQUARE_SHARE = 0.7
"""Share of square drawings; the other seven buckets share the rest."""
EYE_WEIGHT = 8.0
"""How much more the loss counts where the number of eyes shows: a few of the 256 places of a picture, which
without it are learnt last of all."""
DROPOUT = 0.1
"""Share of captions left out: most are the empty string, a few are zeros, as SDXL's pipeline may have it."""


def new_unet() -> UNet2DConditionModel:
    """SDXL's layout in small: no attention at the top level, text and size conditioning added to the time."""
    return UNet2DConditionModel(
        sample_size=NATIVE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 3, 4),  # the number of heads, by diffusers' old naming
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + WIDTH,
    )


def new_scheduler() -> EulerDiscreteScheduler:
    """v-prediction with zero terminal SNR: training reaches pure noise, so backgrounds come out as asked."""
    return EulerDiscreteScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


class Generator(nn.Module):
    """Denoiser and text encoders as one module: one optimizer, one average, one checkpoint."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = new_unet()
        self.text_encoder = new_encoder(tokenizer, projected=False)
        self.text_encoder_2 = new_encoder(tokenizer, projected=True)

    def load_weights(self, model: Path) -> None:
        """Takes the weights of a pipeline folder that was made by `demo.pretrain.export`."""
        for name, module in self.named_children():
            (file,) = (model / name).glob("*.safetensors")
            module.load_state_dict({key: value.float() for key, value in load_file(file).items()})

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, LENGTH] to SDXL's conditioning: states [B, LENGTH, 2 WIDTH] and pooled [B, WIDTH]."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


@dataclass
class Bucket:
    """Cached drawings of one size: latents float16 [N, 4, H/8, W/8], where the number of eyes shows
    [N, 1, H/8, W/8], time ids [N, 6], and what is drawn."""

    latents: Tensor
    eyes: Tensor
    time_ids: Tensor
    drawings: list[Drawing]


def where_eyes_count(drawing: Drawing, size: tuple[int, int]) -> np.ndarray:
    """Pixels [H, W] that would be others with another number of eyes; none in a plain shape."""
    if not isinstance(drawing.subject, Creature):
        return np.zeros((size[1], size[0]), bool)
    variants = [replace(drawing, subject=replace(drawing.subject, eyes=eyes)) for eyes in EYES]
    first, *others = [np.asarray(render(variant, size)).astype(int) for variant in variants]
    return np.any([np.abs(other - first).max(-1) > 40 for other in others], axis=0)


def framed_drawing(
    rng: random.Random, size: tuple[int, int]
) -> tuple[Drawing, np.ndarray, np.ndarray, list[int]]:
    """A drawing, its pixels [H, W, 3], where its eyes count [H, W], and SDXL's time ids (original size,
    crop top left, target size).

    Seven in ten are plain. The others are drawn on a larger canvas of which `size` is cut out around the
    whole subject, and are said to be reduced from up to eight times that canvas: what happens to real photos.
    """
    width, height = size
    if rng.random() < 0.7:
        drawing = random_drawing(rng, size)
        pixels, eyes = np.asarray(render(drawing, size)), where_eyes_count(drawing, size)
        return drawing, pixels, eyes, [height, width, 0, 0, height, width]
    wide, tall = width + 4 * rng.randint(0, 6), height + 4 * rng.randint(0, 6)
    drawing = random_drawing(rng, (wide, tall))
    drawing = replace(drawing, radius=drawing.radius * min(size) / min(wide, tall))
    reach = 1.4 * drawing.radius * min(wide, tall)
    left = crop_offset(rng, drawing.centre[0] * wide, reach, wide, width)
    top = crop_offset(rng, drawing.centre[1] * tall, reach, tall, height)
    window = slice(top, top + height), slice(left, left + width)
    pixels = np.asarray(render(drawing, (wide, tall)))[window]
    eyes = where_eyes_count(drawing, (wide, tall))[window]
    scale = 2 ** rng.uniform(0, 3)
    return drawing, pixels, eyes, [round(tall * scale), round(wide * scale), top, left, height, width]


def crop_offset(rng: random.Random, centre: float, reach: float, canvas: int, window: int) -> int:
    """An offset of the window in the canvas that keeps centre ± reach inside, as far as there is room."""
    low = max(0, math.ceil(centre + reach - window))
    high = min(canvas - window, math.floor(centre - reach))
    if low > high:
        return max(0, min(canvas - window, round(centre - window / 2)))
    return rng.randint(low, high)


def cache_latents(vae: AutoencoderKL, count: int, seed: int) -> list[Bucket]:
    """Draws and encodes `count` drawings, SQUARE_SHARE of them square."""
    buckets = []
    for index, size in enumerate(BUCKETS):
        share = SQUARE_SHARE if index == 0 else (1 - SQUARE_SHARE) / (len(BUCKETS) - 1)
        rng = random.Random(seed * 1000 + index)
        drawings, latents, eyes = list[Drawing](), list[Tensor](), list[Tensor]()
        time_ids = list[list[int]]()
        for _ in range(max(1, round(count * share / CHUNK))):
            framed = [framed_drawing(rng, size) for _ in range(CHUNK)]
            pixels = torch.from_numpy(np.stack([pixels for _, pixels, _, _ in framed])).permute(0, 3, 1, 2)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                encoded = vae.encode(to_unit(pixels)).latent_dist.mean
            latents.append((encoded.float() * vae.config.scaling_factor).half())
            masks = torch.from_numpy(np.stack([mask for _, _, mask, _ in framed]))[:, None]
            eyes.append(F.max_pool2d(masks.float(), 8))
            drawings += [drawing for drawing, _, _, _ in framed]
            time_ids += [ids for _, _, _, ids in framed]
        buckets.append(Bucket(torch.cat(latents), torch.cat(eyes), torch.tensor(time_ids), drawings))
    return buckets


def train_generator(folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, steps: int, count: int,
                    seed: int = 0, start: Path | None = None, lr: float = 1.2e-3) -> Generator:  # fmt: skip
    """Trains (or goes on training) the denoiser and text encoders; returns their average.

    `start` is a model folder whose weights it begins with, instead of random ones; `lr` the highest
    learning rate, which is lower for a model that has learnt much.
    """
    torch.manual_seed(seed)
    generator = Generator(tokenizer)
    if start:
        generator.load_weights(start)
    optimizer = torch.optim.AdamW(
        generator.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    session = Session(folder, "generator", generator, optimizer, steps, warmup=300, ema_decay=0.999)
    cache = folder / "latents.pt"
    if not cache.exists():
        torch.save(cache_latents(vae, count, seed), cache)
    buckets: list[Bucket] = torch.load(cache, weights_only=False)
    sizes = [len(bucket.drawings) for bucket in buckets]
    alphas = new_scheduler().alphas_cumprod
    while session.running():
        rng = random.Random(seed * 1_000_003 + session.step)
        noise_source = torch.Generator().manual_seed(seed * 1_000_003 + session.step)
        bucket = rng.choices(buckets, sizes)[0]
        picks = [rng.randrange(len(bucket.drawings)) for _ in range(BATCH)]
        clean = bucket.latents[picks].float()
        captions = [caption(bucket.drawings[pick], rng) if rng.random() >= DROPOUT else "" for pick in picks]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

        # one draw in each of BATCH equal intervals, so that the loss varies less; most of them noisy,
        # since that is where the caption decides what the picture will be
        spread = (torch.arange(BATCH) + torch.rand(BATCH, generator=noise_source)) / BATCH
        t = (spread**0.6 * TIMESTEPS).long().clamp_max(TIMESTEPS - 1)
        noise = torch.randn(clean.shape, generator=noise_source)
        signal, sigma = (x.float().view(-1, 1, 1, 1) for x in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        # the flash kernel's backward is the slow one on a CPU
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            states, pooled = generator.encode(tokens)
            kept = torch.tensor([text != "" or rng.random() < 0.7 for text in captions])
            states, pooled = states * kept.view(-1, 1, 1), pooled * kept.view(-1, 1)
            added = {"text_embeds": pooled, "time_ids": bucket.time_ids[picks].float()}
            noisy = signal * clean + sigma * noise
            predicted = generator.unet(noisy, t, states, added_cond_kwargs=added).sample
        error = (predicted.float() - (signal * noise - sigma * clean)).pow(2)
        session.take((error * (1 + EYE_WEIGHT * bucket.eyes[picks])).mean())
    average = Generator(tokenizer).eval()
    average.load_state_dict(session.ema.shadow)
    return average
