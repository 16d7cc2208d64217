"""Optimizers: each one learns, and goes on from a checkpoint to the bit; averages are worn and taken off."""

from __future__ import annotations

import copy
import hashlib
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer import optimizers
from trainer.averages import Averages
from trainer.checkpoints import TrainState, adapter_tensors, load_checkpoint, save_checkpoint
from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.fields import parse, to_tables
from trainer.contract.optimizers import OPTIMIZERS
from trainer.contract.schedule import ema_decay_at, lr_scale
from trainer.fused import FusedBackward
from trainer.memory import require_formats
from trainer.optimizers import build_optimizer, learning_rate, require_optimizer, scale_learning_rates

CPU = torch.device("cpu")
RATE = {"prodigy": 1.0, "lion": 2e-3, "lion8bit": 2e-3}


def recipe(optimizer: str = "adamw", **train: Any) -> TrainConfig:
    rate = RATE.get(optimizer, 1e-2)
    return parse({"train": {"steps": 20, "learning_rate": rate, "optimizer": optimizer} | train})


class Toy:
    """A LoRA by itself: up · down is to become a matrix of rank 4, with a linear layer's and a convolution's
    shapes, large enough that 8-bit states are in 8 bits."""

    def __init__(self, config: TrainConfig, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

        self.inputs, target = drawn(64, 600) * 600**0.5, drawn(600, 4) @ drawn(4, 600)
        self.outputs = self.inputs @ target
        self.parameters = {
            "down": nn.Parameter(drawn(8, 600).to(dtype)),
            "up": nn.Parameter(torch.zeros(600, 8, dtype=dtype)),
            "kernel": nn.Parameter(drawn(8, 4, 3, 3).to(dtype)),
        }
        self.config, self.step = config, 0
        first, *others = self.parameters.values()
        rate = config.train.learning_rate
        self.optimizer = build_optimizer(config.train, [(rate, [first]), (rate, others)])
        self.averages = Averages(self.parameters, self.optimizer, config.train)

    def loss(self) -> torch.Tensor:
        down, up, kernel = (one.float() for one in self.parameters.values())
        return (self.inputs @ down.T @ up.T - self.outputs).square().mean() + kernel.square().mean()

    def run(self, until: int) -> float:
        loss = torch.zeros(())
        while self.step < until:
            scale_learning_rates(self.optimizer, lr_scale(self.config.train, self.step))
            loss = self.loss()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averages.update(self.step)
            self.step += 1
        return loss.item()

    def save(self, folder: Path) -> None:
        state = TrainState(step=self.step, loss=None)
        save_checkpoint(folder, state, self.parameters, self.optimizer, self.averages.tensors())

    def load(self, folder: Path) -> None:
        self.step = load_checkpoint(folder, self.parameters, self.optimizer).step
        if self.averages.any:
            self.averages.load(adapter_tensors(folder))


def contents(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_learns_and_resumes_to_the_bit(
    optimizer: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    straight, stopped, resumed = (Toy(recipe(optimizer), dtype) for _ in range(3))
    before = straight.loss().item()
    straight.run(20)
    assert straight.loss().item() < 0.9 * before
    stopped.run(7)
    stopped.save(tmp_path / "step-000007")
    resumed.load(tmp_path / "step-000007")
    resumed.run(20)
    straight.save(tmp_path / "straight")
    resumed.save(tmp_path / "resumed")
    assert contents(tmp_path / "straight") == contents(tmp_path / "resumed")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_takes_what_the_catalogue_says(optimizer: str) -> None:
    toy = Toy(recipe(optimizer))
    toy.run(3)
    del toy.parameters["kernel"]  # of a convolution, row and column sums are as large as it is
    sizes = 0
    for parameter in toy.parameters.values():
        for name, value in toy.optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor) and not name.startswith(
                "qmap"
            ):  # a table of 256, whatever the size
                sizes += value.nbytes
    told = OPTIMIZERS[optimizer].state_bytes(4, 8) * sum(one.numel() for one in toy.parameters.values())
    if optimizer == "prodigy":  # of weights that begin at zero it need not remember where they began
        told -= 4 * toy.parameters["up"].numel()
    assert sizes == pytest.approx(told, rel=0.02)


def test_options_reach_the_optimizer() -> None:
    slow, usual = Toy(recipe(optimizer_args="betas=0.99,0.999")), Toy(recipe())
    assert slow.optimizer.param_groups[0]["betas"] == (0.99, 0.999)
    slow.run(5), usual.run(5)
    assert not torch.equal(slow.parameters["up"], usual.parameters["up"])


def test_adafactor_follows_the_learning_rate() -> None:
    """Not a share of the weights' size, of which the outer factors have none at the start."""
    toy = Toy(recipe("adafactor", warmup=0, max_grad_norm=0))
    toy.run(1)
    assert toy.parameters["up"].square().mean().sqrt().item() == pytest.approx(1e-2, rel=0.05)


@pytest.mark.parametrize(
    ("optimizer", "command"),
    [
        ("adamw8bit", "needs bitsandbytes; run pip install -r requirements-quant.txt"),
        ("prodigy", "needs prodigyopt; run pip install -r requirements-optimizers.txt"),
        ("came", "needs pytorch-optimizer; run pip install -r requirements-optimizers.txt"),
    ],
)
def test_a_missing_library_is_told(optimizer: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_optimizer(recipe(optimizer), CPU)
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=command):
        require_optimizer(recipe(optimizer), CPU)
    require_optimizer(recipe("adamw"), CPU)


def test_what_only_the_optimizer_can_know_is_told_before_the_model_loads() -> None:
    with pytest.raises(RunError, match=r"train\.optimizer_args: adamw refuses them .*beta"):
        require_optimizer(recipe(optimizer_args="betas=1.5,0.9"), CPU)


def test_prodigy_has_one_rate() -> None:
    with pytest.raises(RunError, match="one learning rate for all"):
        require_optimizer(recipe("prodigy", loraplus_ratio=16), CPU)
    with pytest.raises(RunError, match="one learning rate for all"):
        require_optimizer(recipe("prodigy", text_encoder_lr=0.5), CPU)
    require_optimizer(recipe("prodigy", text_encoder_lr=1.0), CPU)
    for weights, refused in (("12: 0.5", True), ("12: 0", False)):
        tables = to_tables(recipe("prodigy")) | {"adapter": {"block_weights": weights}}
        with pytest.raises(RunError, match="block_weights") if refused else nullcontext():
            require_optimizer(parse(tables), CPU)
    toy = Toy(recipe("prodigy"))
    toy.run(10)
    assert learning_rate(toy.optimizer) == pytest.approx(
        toy.optimizer.param_groups[0]["d"] * lr_scale(toy.config.train, 9)
    )


def averaged_by_hand(toy: Toy, decay: float, steps: int) -> torch.Tensor:
    average = toy.parameters["up"].detach().clone()
    for step in range(steps):
        toy.run(step + 1)
        average.lerp_(toy.parameters["up"].detach(), 1 - ema_decay_at(decay, step))
    return average


def test_the_moving_average() -> None:
    toy = Toy(recipe(ema_decay=0.5))
    expected = averaged_by_hand(Toy(recipe()), 0.5, 6)
    toy.run(6)
    trained = toy.parameters["up"].detach().clone()
    with toy.averages.worn():
        assert torch.equal(toy.parameters["up"], expected) and not torch.equal(expected, trained)
    assert torch.equal(toy.parameters["up"], trained)


def test_the_moving_average_warms_up() -> None:
    assert [ema_decay_at(0.9, step) for step in (0, 8, 1000)] == pytest.approx([0.1, 0.5, 0.9])


@pytest.mark.parametrize("train", [{"ema_decay": 0.9}, {"ema_decay": 0.9, "ema_on_cpu": True}])
def test_the_average_resumes_to_the_bit(train: dict[str, Any], tmp_path: Path) -> None:
    straight, stopped, resumed = (Toy(recipe(**train)) for _ in range(3))
    stopped.run(7)
    stopped.save(tmp_path / "step-000007")
    resumed.load(tmp_path / "step-000007")
    for toy in (straight, resumed):
        toy.run(12)
        toy.save(tmp_path / f"{id(toy)}")
    assert contents(tmp_path / f"{id(straight)}") == contents(tmp_path / f"{id(resumed)}")
    assert torch.equal(adapter_tensors(tmp_path / f"{id(resumed)}")["up"], resumed.averages.tensors()["up"])


def test_a_learning_rate_that_was_amended_holds_after_a_resume(tmp_path: Path) -> None:
    before, after = Toy(recipe(learning_rate=1e-2)), Toy(recipe(learning_rate=5e-3))
    before.run(3)
    before.save(tmp_path / "step-000003")
    after.load(tmp_path / "step-000003")
    for toy in (before, after):
        toy.run(4)
    assert learning_rate(after.optimizer) == pytest.approx(learning_rate(before.optimizer) / 2)


def test_schedule_free_hands_out_its_average() -> None:
    """x by the paper's recursion: the mean of z weighed by the squared learning rate."""
    toy = Toy(recipe("schedulefree_adamw", scheduler="constant", warmup=0))
    average, zs = None, []
    for step in range(6):
        toy.run(step + 1)
        zs.append(toy.optimizer.state[toy.parameters["up"]]["z"].clone())
    average = torch.stack(zs).mean(0)
    trained = toy.parameters["up"].detach().clone()
    with toy.averages.worn():
        assert torch.allclose(toy.parameters["up"], average, atol=1e-6)
        assert not torch.allclose(trained, average, atol=1e-4)
    assert torch.equal(toy.parameters["up"], trained)
    toy.run(7)  # in training mode again


def test_without_averages_nothing_is_copied() -> None:
    toy = Toy(recipe())
    toy.run(2)
    before = copy.deepcopy(toy.parameters["up"])
    with toy.averages.worn():
        assert torch.equal(toy.parameters["up"], before)
    assert toy.averages.tensors() == {} and not toy.averages.any


FUSED = [name for name, row in OPTIMIZERS.items() if not row.one_rate and not row.averages]


@pytest.mark.parametrize("optimizer", FUSED)
def test_fused_backward_is_the_same_to_the_bit(optimizer: str) -> None:
    plain, fused = Toy(recipe(optimizer)), Toy(recipe(optimizer))
    hooks = FusedBackward(fused.optimizer, math.inf)
    for step in range(5):
        plain.run(step + 1)
        fused.run(step + 1)
        assert all(one.grad is None for one in fused.parameters.values())
        assert hooks.grad_norm().isfinite()
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter, fused.parameters[name]), name


def test_fused_backward_is_refused_in_fp16() -> None:
    config = recipe(fused_backward=True)
    require_formats(config, torch.bfloat16)
    with pytest.raises(RunError, match="cannot be used over a base in fp16"):
        require_formats(config, torch.float16)


def test_fused_backward_clips_each_by_itself() -> None:
    """Two gradients of length 3 and 4: together 5. Fused, only what is above the limit alone is shortened."""
    lengths = {}
    for fused in (False, True):
        one, two = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        optimizer = torch.optim.SGD([one, two], lr=1.0)
        hooks = FusedBackward(optimizer, 3.5) if fused else None
        (3 * one + 4 * two).backward()
        if hooks:
            assert hooks.grad_norm().item() == pytest.approx(5)
        else:
            nn.utils.clip_grad_norm_([one, two], 3.5)
            optimizer.step()
        lengths[fused] = (-one.item(), -two.item())
    assert lengths[False] == pytest.approx((2.1, 2.8), rel=1e-4)
    assert lengths[True] == pytest.approx((3.0, 3.5), rel=1e-4)
