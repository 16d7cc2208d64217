"""Training times against the closed forms of their distributions and against formulas with normal draws."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.contract.settings.noise import NoiseSettings
from trainer.noise import Ddpm
from trainer.timesteps import Times, size_shift, times_of

OWN = Times("logit_normal", shift=3.0)
U = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def times(own: Times = OWN, **settings: Any) -> Times:
    return times_of(NoiseSettings(**settings), own)


def shifted(s: Tensor, m: float) -> Tensor:
    return m * s / (1 + (m - 1) * s)


def flux_shifted(s: Tensor, mu: float) -> Tensor:
    """As the original code writes it."""
    return math.exp(mu) / (math.exp(mu) + (1 / s - 1))


NORMAL = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EVEN = torch.rand(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CASES = {
    "auto": ({}, shifted(torch.sigmoid(NORMAL), 3)),
    "auto, another shift": ({"shift": 2.0}, shifted(torch.sigmoid(NORMAL), 2)),
    "uniform": ({"timesteps": "uniform"}, EVEN),
    "uniform, shifted": ({"timesteps": "uniform", "shift": 3.0}, shifted(EVEN, 3)),
    "logit_normal": (
        {"timesteps": "logit_normal", "logit_mean": 0.5, "logit_std": 0.7},
        torch.sigmoid(0.5 + 0.7 * NORMAL),
    ),
    "sigmoid": ({"timesteps": "sigmoid", "sigmoid_scale": 1.8}, torch.sigmoid(1.8 * NORMAL)),
    "mode": (
        {"timesteps": "mode"},
        1 - EVEN - 1.29 * (torch.cos(math.pi * EVEN / 2) ** 2 - 1 + EVEN),
    ),
    "shift": (
        {"timesteps": "shift", "sigmoid_scale": 0.8, "shift": 3.1582},
        shifted(torch.sigmoid(0.8 * NORMAL), 3.1582),
    ),
    "shift, as kohya's default": ({"timesteps": "shift"}, shifted(torch.sigmoid(NORMAL), 3)),
    "flux_shift": ({"timesteps": "flux_shift"}, flux_shifted(torch.sigmoid(NORMAL), 1.15)),
    "part": ({"timesteps": "sigmoid", "t_min": 0.2, "t_max": 0.6}, 0.2 + 0.4 * torch.sigmoid(NORMAL)),
}


@pytest.mark.parametrize("name", CASES)
def test_one_uniform_number_gives_the_distribution(name: str) -> None:
    """Rising in u, with the quantiles of so many draws by the original formula."""
    settings, drawn = CASES[name]
    t = times(**settings).draw(U, tokens=4096)
    assert bool((t.diff() >= 0).all()) and t[0] >= 0 and t[-1] <= 1
    q = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    assert torch.allclose(torch.quantile(t, q), torch.quantile(drawn, q), atol=0.006)
    assert t.mean().item() == pytest.approx(drawn.mean().item(), abs=0.004)


def test_logit_normal_has_its_closed_form() -> None:
    t = times(timesteps="logit_normal", logit_mean=-0.3, logit_std=1.4, shift=2.5).draw(U)
    for share, at in ((0.1, 2000), (0.5, 10_000), (0.9, 18_000)):
        # Shifting by m is the same as log(m) more on the mean.
        cdf = NormalDist(-0.3 + math.log(2.5), 1.4).cdf(math.log(t[at] / (1 - t[at])))
        assert cdf == pytest.approx(share, abs=1e-3)


def test_flux_shift_grows_with_the_picture() -> None:
    assert math.log(size_shift(256)) == pytest.approx(0.5)
    assert math.log(size_shift(4096)) == pytest.approx(1.15)
    drawn = times(timesteps="flux_shift")
    middle = torch.tensor([0.5])
    assert drawn.draw(middle, 256).item() == pytest.approx(math.exp(0.5) / (1 + math.exp(0.5)))
    assert drawn.draw(middle, 1024) < drawn.draw(middle, 4096)


def test_timesteps_of_a_part_are_kohyas() -> None:
    """randint from min_timestep to below max_timestep, each as often."""
    ddpm = Ddpm(torch.linspace(0.99, 0.01, 1000), "epsilon")
    part = times(ddpm.times, t_min=0.2, t_max=0.8)
    steps = ddpm.timesteps(ddpm.sample_t((torch.arange(6000) + 0.5) / 6000, part))
    assert sorted(set(steps.tolist())) == list(range(200, 800))
    assert steps.bincount()[200:].float().std() < 0.5
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert ddpm.timesteps(ddpm.sample_t(ends, part)).tolist()[0] == 200


def test_the_default_is_the_familys_own_to_the_last_bit() -> None:
    u = torch.rand(1000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(times().draw(u), OWN.draw(u))
    assert torch.equal(Times().draw(u), u)
