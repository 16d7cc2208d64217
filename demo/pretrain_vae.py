"""Stage 1: the autoencoder, trained on crops from busy areas of drawings, at the end on whole drawings."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from demo.draw import NATIVE, random_drawing, render
from demo.training import Session

PICTURES = 8000
CROP = 64
CROPS, WHOLES = 8, 3
"""Pictures in a batch: crops at first, later whole drawings (the norms have to see what they see in use)."""
WHOLE_FROM = 0.75
"""Share of the steps after which whole drawings are used."""


def new_vae() -> AutoencoderKL:
    """An untrained, SDXL-like autoencoder: 8x smaller, 4 latent channels, 3 M parameters.

    It starts as `open_colour_path` says. One norm group, so that flat colour is not normalised away.
    """
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(32, 32, 96, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=NATIVE,
        force_upcast=False,
    )
    open_colour_path(vae)
    return vae


@torch.no_grad()
def open_colour_path(vae: AutoencoderKL) -> None:
    """Makes an untrained autoencoder one that keeps the mean colour of each 8 x 8 block.

    Found by itself, that map takes a thousand steps. Six channels carry +RGB and -RGB through all
    convolutions outside residual branches; the branches start at zero; and silu(x) - silu(-x) = x undoes the
    nonlinearity before each output. The posterior starts narrow, so that latents are not drowned in noise.
    """
    signed = torch.cat([torch.eye(3), -torch.eye(3)])  # [6, 3]

    def carry(conv: nn.Conv2d, weights: Tensor, pool: bool = False) -> None:
        outputs, inputs = weights.shape
        conv.weight[:outputs] = 0
        middle = conv.kernel_size[0] // 2
        taps = [(0, 0), (0, 1), (1, 0), (1, 1)] if pool else [(middle, middle)]
        for row, column in taps:
            conv.weight[:outputs, :inputs, row, column] = weights / len(taps)
        if conv.bias is not None:
            conv.bias[:outputs] = 0

    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                carry(module.conv_shortcut, torch.eye(6))
        elif isinstance(module, Downsample2D):
            carry(module.conv, torch.eye(6), pool=True)
        elif isinstance(module, Upsample2D):
            carry(module.conv, torch.eye(6))
    carry(vae.encoder.conv_in, signed)
    carry(vae.encoder.conv_out, 0.25 * signed.T)
    carry(vae.quant_conv, torch.eye(8))
    vae.encoder.conv_out.weight[4:] = 0
    nn.init.constant_(vae.encoder.conv_out.bias[4:], -6.0)  # log variance
    carry(vae.post_quant_conv, torch.eye(4))
    carry(vae.decoder.conv_in, signed)
    carry(vae.decoder.conv_out, 0.25 * signed.T)


def draw_pictures(
    count: int, seed: int, holdout: bool = False, size: tuple[int, int] = (NATIVE, NATIVE)
) -> Tensor:
    """uint8 [count, 3, height, width]."""
    rng = random.Random(seed)
    pictures = np.stack([np.asarray(render(random_drawing(rng, size, holdout), size)) for _ in range(count)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 to float in [-1, 1], channels last."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def busy_crops(pictures: Tensor, indices: Tensor, generator: torch.Generator) -> Tensor:
    """One CROP x CROP crop per index, centred near a randomly chosen edge of that drawing."""
    chosen = pictures[indices]
    grey = chosen.float().mean(1)
    edges = (grey[:, 1:, :-1] - grey[:, :-1, :-1]).abs() + (grey[:, :-1, 1:] - grey[:, :-1, :-1]).abs()
    cells = F.avg_pool2d(F.pad(edges, (0, 1, 0, 1))[:, None], 8)[:, 0]  # [B, 16, 16]
    picks = torch.multinomial(cells.flatten(1) + 0.2, 1, generator=generator)[:, 0]
    offsets = torch.randint(-16, 17, (len(indices), 2), generator=generator)
    crops = []
    for picture, pick, offset in zip(chosen, picks.tolist(), offsets.tolist(), strict=True):
        top = min(max(pick // 16 * 8 + 4 + offset[0] - CROP // 2, 0), NATIVE - CROP)
        left = min(max(pick % 16 * 8 + 4 + offset[1] - CROP // 2, 0), NATIVE - CROP)
        crops.append(picture[:, top : top + CROP, left : left + CROP])
    return to_unit(torch.stack(crops))


def colour_jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Other colours than the ten: each picture's channels scaled and shifted within [-1, 1]."""
    scale = torch.empty(len(x), 3, 1, 1).uniform_(0.6, 1.0, generator=generator)
    shift = torch.empty(len(x), 3, 1, 1).uniform_(-1, 1, generator=generator) * (1 - scale)
    return x * scale + shift


def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of uint8 pictures [N, 3, H, W] after encoding and decoding."""
    values = []
    with torch.no_grad():
        for batch in pictures.split(16):
            x = to_unit(batch).to(vae.dtype)
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.float()
            decoded = ((y.clamp(-1, 1) + 1) * 127.5).round()
            mse = (decoded - batch.float()).pow(2).flatten(1).mean(1).clamp_min(1e-2)
            values.append(10 * torch.log10(255**2 / mse))
    return float(torch.cat(values).mean())


def train_vae(folder: Path, steps: int, seed: int = 0) -> AutoencoderKL:
    """Trains (or goes on training) the autoencoder; returns its average and saves it in `folder/vae`.

    Its config holds the latents' scale.
    """
    if (folder / "vae").exists():
        return AutoencoderKL.from_pretrained(folder / "vae")
    torch.manual_seed(seed)
    pictures, fresh = draw_pictures(PICTURES, seed), draw_pictures(64, seed + 1, holdout=True)
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=6e-4, betas=(0.9, 0.99), weight_decay=1e-3)
    session = Session(folder, "vae", vae, optimizer, steps, warmup=50, ema_decay=0.998)
    while session.running():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + session.step)
        whole = session.step >= WHOLE_FROM * session.steps
        picks = torch.randint(PICTURES, (WHOLES if whole else CROPS,), generator=generator)
        x = to_unit(pictures[picks]) if whole else busy_crops(pictures, picks, generator)
        if session.step % 4 == 0:
            x = colour_jitter(x, generator)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator)
            y = vae.decode(mean + noise * (0.5 * logvar).exp()).sample.float()
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        session.take((y - x).abs().mean() + 2 * (y - x).pow(2).mean() + 5e-5 * kl)
    vae.load_state_dict(session.ema.shadow)
    with torch.no_grad():
        latents = vae.encode(to_unit(pictures[:512])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    vae.save_pretrained(folder / "vae")
    print(f"vae: PSNR {psnr(vae, fresh):.2f} dB on held-out drawings", flush=True)
    return vae.eval()
