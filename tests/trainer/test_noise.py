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


def test_min_snr_weights_are_kohyas() -> None:
    eps = Ddpm(abar(), "epsilon")
    t = eps.sample_t(torch.tensor([0.1, 0.25, 0.9]))
    assert eps.weight(t, 5.0).tolist() == pytest.approx([0.5914, 1.0, 1.0], abs=2e-4)
    v = Ddpm(abar(), "v_prediction")
    snr = abar()[100] / (1 - abar()[100])
    assert v.weight(t, 5.0)[0].item() == pytest.approx(5.0 / (float(snr) + 1), rel=1e-4)
    assert eps.weight(t, 0).tolist() == [1, 1, 1]


def test_min_snr_is_finite_at_zero_terminal_snr() -> None:
    schedule = abar()
    schedule[-1] = 0.0
    for prediction in ("epsilon", "v_prediction"):
        ddpm = Ddpm(schedule, prediction)  # type: ignore[arg-type]
        assert bool(ddpm.weight(torch.tensor([0.9999]), 5.0).isfinite().all())


def test_flow() -> None:
    x, noise = torch.randn(2, 2, 4, 2, 2, generator=torch.Generator().manual_seed(1)).unbind(0)
    t = torch.tensor([0.25, 1.0])
    flow = Flow()
    assert torch.allclose(flow.mix(x, noise, t)[0], 0.75 * x[0] + 0.25 * noise[0])
    assert torch.allclose(flow.mix(x, noise, t)[1], noise[1])
    assert torch.equal(flow.target(x, noise, t), noise - x)
    assert Flow(shift=3.0).sample_t(torch.tensor([0.5])).item() == pytest.approx(0.75)
    drawn = Flow(logit_normal=True).sample_t(torch.linspace(0.0005, 0.9995, 1000))
    assert drawn.median().item() == pytest.approx(0.5, abs=1e-3)
    assert torch.logit(drawn).std().item() == pytest.approx(1.0, abs=0.02)
