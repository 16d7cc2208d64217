"""What a step minimises: every technique of [loss] and [noise], over small models, through the objective."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_sdxl
from tests.tiny_families import sd3
from trainer.adapters import lora_parameters
from trainer.assemble import assemble, find_base, open_family
from trainer.cache import LatentCache, TextCache
from trainer.captions import Captions
from trainer.contract.errors import RunError
from trainer.contract.families import known_base
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder
from trainer.data import BatchPlan, Sample, frozen_images
from trainer.objective import Objective

from .helpers import Script, recipe, train_here, weights_hash

CPU = torch.device("cpu")


def objective_of(family: str, base: Path, photos: Path, folder: Path) -> tuple[Objective, list[Sample]]:
    """The objective of a plain recipe over a LoRA that has learnt something, and a batch of two."""
    config = recipe(base, photos, model={"family": family}, adapter={"targets": "transformer"})
    run = RunFolder(folder / "runs" / "one")
    run.create(config)
    opened = open_family(config, find_base(run, config), CPU, torch.float32)
    images = frozen_images(run, config, opened, folder / "models")
    latents, texts = LatentCache(folder, opened, pytest.fail), TextCache(folder, opened, pytest.fail)
    latents.fill(photos, images, config.dataset, lambda done, total: None)
    texts.fill([image.caption for image in images], lambda done, total: None)
    model = assemble(opened, config, run.path)
    with torch.no_grad():
        for number, parameter in enumerate(lora_parameters(model.parts).values()):
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(number))
    samples = [Sample(image, 0, 0, 3) for image in images if image.bucket == images[0].bucket][:2]
    captions = Captions(config, BatchPlan(images, 2, 3))
    return Objective(opened, model, latents, texts, captions, config, CPU), samples


@pytest.fixture(scope="module")
def eps(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return objective_of("sdxl", tiny_base, photos, tmp_path_factory.mktemp("eps"))


@pytest.fixture(scope="module")
def v(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("v")
    return objective_of(
        "sdxl", tiny_sdxl(folder / "base", prediction="v_prediction", layers=1, blocks=2), photos, folder
    )


@pytest.fixture(scope="module")
def flow(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("flow")
    return objective_of("sd3", sd3.build(folder / "base"), photos, folder)


def told(objective: Objective, **sections: dict[str, Any]) -> Objective:
    """The same with other settings."""
    config = parse(merge(to_tables(objective.config), sections))
    return replace(objective, config=config)


def gradient(objective: Objective, samples: list[Sample]) -> Tensor:
    """Where the first step goes, all of the LoRA in one row."""
    parameters = list(lora_parameters(objective.model.parts).values())
    torch.manual_seed(0)
    losses = objective.losses(samples)
    assert losses.shape == (2,) and losses.dtype == torch.float32
    return torch.cat([g.flatten() for g in torch.autograd.grad(losses.mean(), parameters)])


ALL = {
    "l1": {"loss": {"type": "l1"}},
    "smooth_l1": {"loss": {"type": "smooth_l1"}},
    "huber": {"loss": {"type": "huber"}},
    "min_snr": {"loss": {"min_snr_gamma": 0.01}},
    "offset": {"noise": {"offset": 0.1}},
    "offset_random": {"noise": {"offset": 0.1, "offset_random": True}},
    "offset_adaptive": {"noise": {"offset_adaptive": 10}},
    "multires": {"noise": {"multires_iterations": 6}},
    "input_perturbation": {"noise": {"input_perturbation": 0.1}},
    "uniform": {"noise": {"timesteps": "uniform", "t_min": 0.05}},
    "logit_normal": {"noise": {"timesteps": "logit_normal", "logit_mean": 0.5}},
    "sigmoid": {"noise": {"timesteps": "sigmoid"}},
    "mode": {"noise": {"timesteps": "mode"}},
    "t_max": {"noise": {"t_max": 0.5}},
}
DIFFUSION = {
    "debiased": {"loss": {"debiased": True}},
    "v_pred_like": {"loss": {"v_pred_like": 0.1}},
}
V = {"scale_v_like_noise": {"loss": {"scale_v_like_noise": True}}}
FLOW = {
    "shift": {"noise": {"timesteps": "shift", "shift": 6.0}},
    "flux_shift": {"noise": {"timesteps": "flux_shift"}},
    "another shift": {"noise": {"shift": 1.5}},
    "cosmap": {"noise": {"weighting": "cosmap"}},
    "sigma_sqrt": {"noise": {"weighting": "sigma_sqrt"}},
    "kohya_flow": {"noise": {"kohya_flow": True}},
}
CASES = [
    *(("eps", name, told) for name, told in (ALL | DIFFUSION).items()),
    *(("v", name, told) for name, told in V.items()),
    *(("flow", name, told) for name, told in (ALL | FLOW).items()),
]


@pytest.mark.parametrize(("process", "name", "sections"), CASES, ids=lambda case: str(case)[:20])
def test_no_technique_is_a_no_op(
    process: str, name: str, sections: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Each moves the LoRA elsewhere than the plain recipe does, or further."""
    objective, samples = request.getfixturevalue(process)
    plain = gradient(objective, samples)
    other = gradient(told(objective, **sections), samples)
    assert bool(other.isfinite().all())
    assert (other - plain).norm() > 0.01 * plain.norm(), name


TRICKS = {
    "loss": {"type": "huber", "min_snr_gamma": 2},
    "noise": {
        "timesteps": "logit_normal",
        "offset": 0.1,
        "offset_random": True,
        "offset_adaptive": 0.02,
        "multires_iterations": 5,
        "input_perturbation": 0.1,
        "t_min": 0.1,
        "t_max": 0.9,
    },
}
PER_PROCESS: dict[str, dict[str, Any]] = {
    "eps": {"loss": {"debiased": True, "v_pred_like": 0.01}},
    "v": {"loss": {"scale_v_like_noise": True, "debiased": True}},
    "flow": {"noise": {"timesteps": "flux_shift", "weighting": "cosmap", "kohya_flow": True}},
}


@pytest.mark.parametrize("process", PER_PROCESS)
def test_a_sample_counts_the_same_alone_and_in_a_batch(process: str, request: pytest.FixtureRequest) -> None:
    objective, samples = request.getfixturevalue(process)
    busy = told(objective, **merge(TRICKS, PER_PROCESS[process]))
    with torch.no_grad():
        together = busy.losses(samples)
        alone = torch.cat([busy.losses([one]) for one in samples])
    assert torch.allclose(together, alone, rtol=2e-4)


@pytest.mark.parametrize("process", ["eps", "v"])
def test_a_step_of_diffusion_written_out(process: str, request: pytest.FixtureRequest) -> None:
    objective, samples = request.getfixturevalue(process)
    busy = told(objective, **merge(TRICKS, PER_PROCESS[process]))
    settings = busy.config.loss
    batch = busy.batch(samples)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)[(batch.t_B * 1000).long()].float()
    with torch.no_grad():
        losses = busy.losses(samples)
        # What is seen has noise + 0.1 · more; the target is made of the noise alone.
        rows = []
        for b, one in enumerate(samples):
            a, x, noise = abar[b], batch.clean_BCHW[b], batch.noise_BCHW[b]
            more = torch.randn(noise.shape, generator=one.generator("input perturbation"))
            seen = a.sqrt() * x + (1 - a).sqrt() * (noise + 0.1 * more)
            target = noise if process == "eps" else a.sqrt() * noise - (1 - a).sqrt() * x
            answer = busy.family.predict(
                busy.model.denoiser,
                seen[None],
                batch.t_B[b : b + 1],
                batch.embeds[b : b + 1],
                batch.geometry[b : b + 1],
            )[0]
            s, d = a / (1 - a), answer - target
            c = (1 - settings.huber_c) / (1 + 1 / s.sqrt()) ** 2 + settings.huber_c
            loss = (2 * c * ((d**2 + c**2).sqrt() - c)).mean()
            loss = loss * min(float(s), 2) / (s if process == "eps" else s + 1)
            if process == "v":
                loss = loss * s / (s + 1)
                loss = loss / (s + 1)
            else:
                loss = loss + 0.01 * loss * (s + 1) / s
                loss = loss / s.sqrt()
            rows.append(loss)
    assert losses.tolist() == pytest.approx([row.item() for row in rows], rel=2e-3)


def kohyas_sd3(x: Tensor, noise: Tensor, velocity: Tensor, s: float, weight: float) -> float:
    """sd3_train_network: the picture that follows from the answer against the picture, weighed."""
    noisy = (1 - s) * x + s * noise
    return float((weight * (noisy - s * velocity - x) ** 2).mean())


WEIGHTS: dict[str, Callable[[float], float]] = {
    "none": lambda s: 1.0,
    "sigma_sqrt": lambda s: s**-2,
    "cosmap": lambda s: 2 / (math.pi * (1 - 2 * s + 2 * s * s)),
}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_kohyas_loss_for_sd3(weighting: str, flow: Any) -> None:
    objective, samples = flow
    switched = told(objective, noise={"kohya_flow": True, "weighting": weighting})
    with torch.no_grad():
        losses, plain = switched.losses(samples), objective.losses(samples)
        batch = switched.batch(samples)
        velocity = switched.predict(batch)
    for b, s in enumerate(batch.t_B.tolist()):
        by_hand = kohyas_sd3(batch.clean_BCHW[b], batch.noise_BCHW[b], velocity[b], s, WEIGHTS[weighting](s))
        assert losses[b].item() == pytest.approx(by_hand, rel=1e-4)
        if weighting == "sigma_sqrt":
            assert losses[b].item() == pytest.approx(plain[b].item(), rel=1e-4), "plain velocity again"
        elif weighting == "none":
            assert losses[b].item() == pytest.approx(s * s * plain[b].item(), rel=1e-4)


def test_flux_shift_knows_the_pictures_tokens(flow: Any, eps: Any) -> None:
    objective, samples = flow
    shifted = told(objective, noise={"timesteps": "flux_shift"})
    latents = shifted.batch(samples).clean_BCHW
    tokens = latents.shape[-2] // 2 * (latents.shape[-1] // 2)  # SD3's patches are 2 x 2
    mu = 0.5 + 0.65 * (tokens - 256) / 3840
    u = [one.uniform("t") for one in samples]
    for one, t in zip(samples, shifted.times(u, latents[0]).tolist(), strict=True):
        normal = math.log(t / (1 - t)) - mu
        assert 0.5 * (1 + math.erf(normal / 2**0.5)) == pytest.approx(one.uniform("t"), abs=1e-4)


def test_resume_is_exact_with_everything_on(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    sections = merge(TRICKS, PER_PROCESS["eps"]) | {"train": {"steps": 4}, "samples": {"prompts": []}}
    config = recipe(tiny_base, photos, **sections)
    runs = [RunFolder(tmp_path / "runs" / name) for name in ("straight", "stopped")]
    for run in runs:
        run.create(config)
    assert train_here(runs[0])
    assert not train_here(runs[1], Script(runs[1], "stop", 2))
    assert train_here(runs[1])
    assert weights_hash(runs[0], 4) == weights_hash(runs[1], 4)


# What the recipe says of the base ---------------------------------------------------------------------


def test_a_base_can_be_told_what_it_predicts(tiny_base: Path, photos: Path, tmp_path: Path) -> None:
    """Training and sampling follow the same schedule, and the file says so."""
    noise = {"prediction": "v_prediction", "zero_terminal_snr": "on"}
    config = recipe(tiny_base, photos, noise=noise)
    family = open_family(config, find_base(RunFolder(tmp_path), config), CPU, torch.float32)
    assert family.noise.prediction == "v_prediction"
    plain = open_family(
        recipe(tiny_base, photos),
        find_base(RunFolder(tmp_path), recipe(tiny_base, photos)),
        CPU,
        torch.float32,
    )
    # Lin et al. 2023, algorithm 1: q = sqrt(abar), moved to end in 0 and scaled to begin where it did.
    q = plain.noise.alphas_cumprod.double().sqrt()  # type: ignore[attr-defined]
    q = (q - q[-1]) * q[0] / (q[0] - q[-1])
    assert torch.allclose(family.noise.alphas_cumprod.double(), q**2, atol=1e-5)  # type: ignore[attr-defined]
    scheduler = family.sampler()  # type: ignore[attr-defined]
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr and scheduler.config.timestep_spacing == "trailing"
    assert family.denoiser_id() != plain.denoiser_id(), "pictures of the base alone are drawn anew"
    said = family.metadata()
    assert (said["ss_v_parameterization"], said["ss_zero_terminal_snr"]) == ("True", "True")
    assert "ss_zero_terminal_snr" not in plain.metadata()


def test_a_base_that_says_it_can_be_contradicted(photos: Path, tmp_path: Path) -> None:
    base = tiny_sdxl(tmp_path / "base", prediction="v_prediction")
    file = base / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_betas_zero_snr": True}))
    config = recipe(base, photos, noise={"prediction": "epsilon", "zero_terminal_snr": "off"})
    noise = open_family(config, find_base(RunFolder(tmp_path), config), CPU, torch.float32).noise
    assert noise.prediction == "epsilon" and noise.alphas_cumprod[-1] > 0.004  # type: ignore[attr-defined]


def test_a_loss_for_another_prediction_is_refused_before_anything_loads(
    tiny_base: Path, photos: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "runs" / "one")
    run.create(recipe(tiny_base, photos, loss={"scale_v_like_noise": True}))
    with pytest.raises(RunError, match="is for bases that predict v, and this one does not"):
        train_here(run)
    assert run.read_status().cause == "config" and not run.dataset.exists()


def test_the_catalogue_knows_what_the_demo_model_predicts(photos: Path, tmp_path: Path) -> None:
    config = recipe(Path("demo"), photos)
    noise = open_family(config, find_base(RunFolder(tmp_path), config), CPU, torch.float32).noise
    row = known_base("sdxl", "demo")
    assert row and noise.prediction == row.prediction == "v_prediction"
    assert row.zero_terminal_snr and noise.alphas_cumprod[-1] == 0  # type: ignore[attr-defined]
