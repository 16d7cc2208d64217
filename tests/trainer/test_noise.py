"""The noising processes against straight-line formulas from the papers."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.noise import Ddpm, Flow


def abar() -> torch.Tensor:
    """Stable Diffusion's "scaled linear" schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def test_every_timestep_survives_the_way_through_t() -> None:
    ddpm = Ddpm(abar(), "epsilon")
    u = (torch.arange(1000) + 0.999) / 1000
    assert ddpm.timesteps(ddpm.sample_t(u)).tolist() == list(range(1000))
    assert ddpm.timesteps(ddpm.sample_t(torch.tensor([0.0, 1 - 2**-24]))).tolist() == [0, 999]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm_mixes_and_targets(prediction: str) -> None:
    ddpm = Ddpm(abar(), prediction)  # type: ignore[arg-type]
    x, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    t = ddpm.sample_t(torch.tensor([0.01, 0.5, 0.93]))
    for b, step in enumerate((10, 500, 930)):
        a = float(abar()[step])
        mixed = ddpm.mix(x, noise, t)[b]
        assert torch.allclose(mixed, math.sqrt(a) * x[b] + math.sqrt(1 - a) * noise[b], atol=1e-6)
        wanted = {
            "epsilon": noise[b],
            "sample": x[b],
            "v_prediction": math.sqrt(a) * noise[b] - math.sqrt(1 - a) * x[b],
        }[prediction]
        assert torch.allclose(ddpm.target(x, noise, t)[b], wanted, atol=1e-6)


def test_flow() -> None:
    x, noise = torch.randn(2, 2, 4, 2, 2, generator=torch.Generator().manual_seed(1)).unbind(0)
    t = torch.tensor([0.25, 1.0])
    flow = Flow()
    assert torch.allclose(flow.mix(x, noise, t)[0], 0.75 * x[0] + 0.25 * noise[0])
    assert torch.allclose(flow.mix(x, noise, t)[1], noise[1])
    assert torch.equal(flow.target(x, noise, t), noise - x)
    assert torch.allclose(flow.snr(t), torch.tensor([9.0, 0.0]))
    assert torch.equal(flow.progress(t), t)


def test_diffusion_counts_as_kohya_does() -> None:
    ddpm = Ddpm(abar(), "epsilon")
    t = ddpm.sample_t(torch.tensor([0.1, 0.25]))
    assert ddpm.snr(t)[0].item() == pytest.approx(8.454, abs=1e-3)
    assert ddpm.progress(t).tolist() == pytest.approx([0.1, 0.25])
