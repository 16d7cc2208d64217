"""Noise offset, pyramid noise and input perturbation, written out again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from trainer.contract.settings.noise import NoiseSettings
from trainer.data import Sample, TrainImage
from trainer.noising import drawn_noise, perturbed, pyramid

LATENTS = torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(9)) + torch.tensor(
    [2.0, -1.0, 0.5, 0.0]
).reshape(4, 1, 1)


def sample(number: int = 0) -> Sample:
    image = TrainImage(
        id=f"i{number}", file="a.png", original_name="a.png", sha256="0" * 64, width=64, height=64, caption=""
    )
    return Sample(image, epoch=1, repeat=0, seed=3)


def noise(number: int = 0, **settings: Any) -> torch.Tensor:
    return drawn_noise(NoiseSettings(**settings), sample(number), LATENTS)


def test_without_tricks_it_is_the_plain_noise() -> None:
    assert torch.equal(noise(), sample().noise_like(LATENTS))
    assert perturbed(NoiseSettings(), sample(), LATENTS) is LATENTS


def test_the_offset_moves_whole_channels() -> None:
    moved = noise(offset=0.1) - noise()
    drawn = torch.randn(4, 1, 1, generator=sample().generator("noise offset"))
    assert torch.allclose(moved, (0.1 * drawn).expand(4, 24, 16), atol=1e-6)
    assert len({round(value, 4) for value in drawn.flatten().tolist()}) == 4


def test_over_many_pictures_the_offset_has_its_strength() -> None:
    moved = torch.stack([noise(n, offset=0.2)[:, 0, 0] - noise(n)[:, 0, 0] for n in range(400)])
    assert moved.std().item() == pytest.approx(0.2, rel=0.08)
    random = torch.stack(
        [noise(n, offset=0.2, offset_random=True)[:, 0, 0] - noise(n)[:, 0, 0] for n in range(400)]
    )
    # U(0, 1) · Normal(0, 1) has a variance of 1/3.
    assert random.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.12)


def test_the_adaptive_offset_follows_the_channels_means() -> None:
    drawn = torch.randn(4, 1, 1, generator=sample().generator("noise offset"))
    means = LATENTS.mean(dim=(1, 2), keepdim=True).abs()
    more = noise(offset=0.05, offset_adaptive=0.1) - noise()
    assert torch.allclose(more, ((0.05 + 0.1 * means) * drawn).expand_as(more), atol=1e-6)
    less = noise(offset=0.05, offset_adaptive=-0.1) - noise()
    assert torch.allclose(less, ((0.05 - 0.1 * means).clamp(min=0) * drawn).expand_as(less), atol=1e-6)
    assert less[0].abs().max() < 1e-6, "never negative"


def test_the_pyramid_written_out() -> None:
    fine = noise()
    ours = pyramid(fine, 3, 0.4, torch.Generator().manual_seed(5))
    generator, total = torch.Generator().manual_seed(5), fine.clone()
    for i in range(3):
        r = torch.rand((), generator=generator).item() * 2 + 2
        h, w = max(1, int(24 / r**i)), max(1, int(16 / r**i))
        layer = torch.randn(4, h, w, generator=generator)[None]
        total += F.interpolate(layer, (24, 16), mode="bilinear", align_corners=False)[0] * 0.4**i
    assert torch.allclose(ours, total / total.std(), atol=1e-6)


def test_the_pyramid_keeps_its_strength_and_ends_at_one() -> None:
    for iterations in (1, 6, 16):
        made = noise(multires_iterations=iterations, multires_discount=0.9)
        assert made.std().item() == pytest.approx(1, abs=1e-5) and bool(made.isfinite().all())
    # Coarse noise: means over areas vary more than those of plain noise.
    areas = [F.avg_pool2d(noise(n, multires_iterations=6, multires_discount=0.8), 8).std() for n in range(20)]
    plain = [F.avg_pool2d(noise(n), 8).std() for n in range(20)]
    assert sum(areas) > 1.5 * sum(plain)


def test_what_is_seen_has_more_noise_than_the_target() -> None:
    plain = noise()
    seen = perturbed(NoiseSettings(input_perturbation=0.1), sample(), plain)
    more = torch.randn(plain.shape, generator=sample().generator("input perturbation"))
    assert torch.allclose(seen, plain + 0.1 * more)
    assert not torch.equal(more, plain)


def test_pictures_and_epochs_have_noise_of_their_own() -> None:
    tricks = {"offset": 0.1, "offset_random": True, "multires_iterations": 4}
    assert torch.equal(noise(1, **tricks), noise(1, **tricks))
    assert not torch.equal(noise(1, **tricks), noise(2, **tricks))
