"""Losses and weights against the formulas written out and the reference's numbers."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.contract.errors import RunError
from trainer.contract.settings.loss import LossSettings
from trainer.losses import (
    debiased,
    elementwise,
    flow_weights,
    huber_c,
    min_snr,
    mse,
    per_sample,
    require_prediction,
    snr_weights,
)
from trainer.noise import Ddpm, Flow


def abar() -> torch.Tensor:
    """Stable Diffusion's "scaled linear" schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


STEPS = (0, 250, 500, 750, 999)
T = (torch.tensor(STEPS) + 0.5) / 1000
EPS = Ddpm(abar(), "epsilon")


def test_errors_one_by_one() -> None:
    errors, borders = (0.0, 0.001, -0.05, 0.2, -3.0), (0.1, 0.9)
    target = torch.full((2, 5, 1, 1), 0.25)
    prediction = target + torch.tensor(errors).reshape(1, 5, 1, 1)
    for kind in ("l2", "l1", "smooth_l1", "huber"):
        losses = elementwise(prediction, target, kind, torch.tensor(borders))  # type: ignore[arg-type]
        assert losses.shape == prediction.shape and losses.dtype == torch.float32
        for row, c in zip(losses.flatten(1).tolist(), borders, strict=True):
            for loss, d in zip(row, errors, strict=True):
                expected = {
                    "l2": d * d,
                    "l1": abs(d),
                    "smooth_l1": 2 * (math.sqrt(d * d + c * c) - c),
                    "huber": 2 * c * (math.sqrt(d * d + c * c) - c),
                }[kind]
                assert loss == pytest.approx(expected, rel=1e-4, abs=1e-9), (kind, d, c)


def test_huber_is_the_square_near_zero_and_the_size_far_off() -> None:
    c = torch.tensor([0.5])
    small, large = torch.full((1, 1, 1, 1), 1e-3), torch.full((1, 1, 1, 1), 1e3)
    zero = torch.zeros(1, 1, 1, 1)
    assert elementwise(small, zero, "huber", c).item() == pytest.approx(1e-6, rel=1e-3)
    assert elementwise(large, zero, "huber", c).item() == pytest.approx(1e3, rel=1e-3)
    assert elementwise(small, zero, "smooth_l1", c).item() == pytest.approx(2e-6, rel=1e-3)
    assert elementwise(large, zero, "smooth_l1", c).item() == pytest.approx(2e3, rel=1e-3)


def test_each_sample_has_a_border_and_a_mean_of_its_own() -> None:
    x, y = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    c = torch.tensor([0.1, 0.5, 1.0])
    together = per_sample(elementwise(x, y, "huber", c))
    for b in range(3):
        one = slice(b, b + 1)
        alone = per_sample(elementwise(x[one], y[one], "huber", c[one]))
        assert alone.item() == pytest.approx(together[b].item(), rel=1e-6)
    assert torch.allclose(mse(x, y), ((x - y) ** 2).mean(dim=(1, 2, 3)))
    assert mse(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("snr", (0.94971, 0.41296, 0.23128, 0.13461, 0.10369)),
        ("exponential", (1, 0.56234, 0.31623, 0.17783, 0.10023)),
        ("constant", (0.1,) * 5),
    ],
)
def test_huber_schedules_are_kohyas(schedule: str, expected: tuple[float, ...]) -> None:
    settings = LossSettings(huber_schedule=schedule, huber_c=0.1)  # type: ignore[arg-type]
    assert huber_c(settings, EPS, T).tolist() == pytest.approx(expected, abs=1e-5)
    doubled = LossSettings(huber_schedule=schedule, huber_c=0.1, huber_scale=2)  # type: ignore[arg-type]
    factor = 1 if schedule == "snr" else 2
    assert huber_c(doubled, EPS, T).tolist() == pytest.approx([factor * c for c in expected], abs=3e-5)


def test_huber_by_snr_for_a_flow() -> None:
    sigma = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    by_hand = [0.9 * (1 - s) ** 2 + 0.1 for s in sigma.tolist()]
    assert huber_c(LossSettings(), Flow(), sigma).tolist() == pytest.approx(by_hand, abs=1e-5)
    assert huber_c(LossSettings(huber_schedule="exponential"), Flow(), sigma)[2].item() == pytest.approx(
        0.1**0.5
    )


def test_min_snr_is_kohyas() -> None:
    snr = EPS.snr((torch.tensor([100, 250, 900]) + 0.5) / 1000)
    assert snr[0].item() == pytest.approx(8.454, abs=1e-3)
    assert min_snr(snr, 5.0, "epsilon").tolist() == pytest.approx([0.5914, 1, 1], abs=1e-4)
    by_hand = [min(s, 5) / (s + 1) for s in snr.tolist()]
    assert min_snr(snr, 5.0, "v_prediction").tolist() == pytest.approx(by_hand)
    assert min_snr(snr, 5.0, "sample").tolist() == pytest.approx([min(s, 5) for s in snr.tolist()])


def test_debiased_is_kohyas() -> None:
    snr = torch.tensor([0.25, 4.0, 1e6])
    assert debiased(snr, "epsilon").tolist() == pytest.approx([2, 0.5, 1000**-0.5])
    assert debiased(snr, "v_prediction").tolist() == pytest.approx([0.8, 0.2, 1 / 1001])


def test_all_weights_at_once() -> None:
    """Step by step on a loss, in kohya's order."""
    for prediction in ("epsilon", "v_prediction"):
        settings = LossSettings(min_snr_gamma=5, debiased=True, v_pred_like=0.1, scale_v_like_noise=True)
        for s in (0.01, 1.0, 20.0):
            loss = 0.7 * min(s, 5) / (s if prediction == "epsilon" else s + 1)
            loss = loss * s / (s + 1)
            loss = loss + 0.1 * loss * (s + 1) / s
            loss = loss * (s**-0.5 if prediction == "epsilon" else 1 / (s + 1))
            weight = snr_weights(settings, prediction, torch.tensor([s]))  # type: ignore[arg-type]
            assert 0.7 * weight.item() == pytest.approx(loss, rel=1e-5)
    assert snr_weights(LossSettings(), "epsilon", torch.tensor([0.0, 1e9])).tolist() == [1, 1]


def test_weights_are_finite_where_nothing_but_noise_is_left() -> None:
    settings = LossSettings(min_snr_gamma=5, debiased=True, v_pred_like=1)
    for prediction in ("epsilon", "v_prediction", "velocity"):
        ends = torch.tensor([0.0, 1e12])
        weights = snr_weights(settings, prediction, ends)  # type: ignore[arg-type]
        assert bool(weights.isfinite().all()) and weights.min() >= 0


def test_flow_weights() -> None:
    s = torch.tensor([0.1, 0.5, 1.0])
    assert flow_weights("none", s).tolist() == [1, 1, 1]
    assert flow_weights("sigma_sqrt", s).tolist() == pytest.approx([100, 4, 1])
    by_hand = [2 / (math.pi * (1 - 2 * t + 2 * t * t)) for t in s.tolist()]
    assert flow_weights("cosmap", s).tolist() == pytest.approx(by_hand)
    assert bool(flow_weights("sigma_sqrt", torch.zeros(1)).isfinite().all())


def test_weights_for_the_other_prediction_are_refused() -> None:
    with pytest.raises(RunError, match=r"loss\.v_pred_like = 0\.01 is for bases that predict noise"):
        require_prediction(LossSettings(v_pred_like=0.01), "v_prediction")
    with pytest.raises(RunError, match=r"scale_v_like_noise is for bases that predict v"):
        require_prediction(LossSettings(scale_v_like_noise=True), "epsilon")
    require_prediction(LossSettings(v_pred_like=0.01), "epsilon")
    require_prediction(LossSettings(scale_v_like_noise=True), "v_prediction")
