"""Unlearning moves away from the pictures, and stops where it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.contract.events import read_events
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder
from trainer.data import Sample
from trainer.losses import left_to_unlearn, per_sample
from trainer.objective import Objective

from .helpers import recipe, train_here, weights_hash
from .test_prior import objective_of


def test_the_gradient_is_the_negated_one_and_ends_at_the_limit() -> None:
    losses = torch.tensor([0.5, 1.9, 2.5], requires_grad=True)
    left = left_to_unlearn(losses, torch.ones(3), 2.0)
    assert torch.allclose(left, torch.tensor([1.5, 0.1, 0.0]))
    left.sum().backward()
    assert losses.grad is not None and losses.grad.tolist() == [-1, -1, 0]


def test_the_limit_is_what_bounds_it() -> None:
    """The loss (w - 1)², 1 without w: driven to twice that and a swing of Adam beyond it, no further."""

    def after(objective: Callable[[torch.Tensor], torch.Tensor]) -> float:
        w = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.AdamW([w], lr=0.05, weight_decay=0)
        for _ in range(800):
            objective((w - 1).square()).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return (w.item() - 1) ** 2

    assert 2 <= after(lambda loss: left_to_unlearn(loss, torch.ones(1), 2.0)) < 5
    assert after(lambda loss: -loss) > 1000


def growth(objective: Objective, samples: list[Sample]) -> float:
    """Mean loss over the base's own, at several times and noises."""
    own = base = 0.0
    with torch.no_grad():
        for epoch in range(8):
            looks = [Sample(one.image, epoch, 0, one.seed) for one in samples]
            batch = objective.batch(looks)
            own += per_sample(objective.masked(objective.predict(batch), batch)).sum().item()
            base += objective.base_losses(batch, looks).sum().item()
    return own / base


@pytest.fixture(scope="module")
def run(tiny_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Pictures that are frozen and encoded."""
    adapter = {"rank": 8, "alpha": 32.0, "targets": "transformer+conv"}
    config = recipe(tiny_base, photos, adapter=adapter, train={"steps": 1}, samples={"prompts": []})
    run = RunFolder(tmp_path_factory.mktemp("unlearn") / "runs" / "one")
    run.create(config)
    assert train_here(run)
    return run


def trained(run: RunFolder, train: dict[str, Any], cache: Path) -> tuple[Objective, list[Sample]]:
    """The objective over a LoRA that was trained for it."""
    config = parse(merge(to_tables(run.config()), {"train": train}))
    objective, samples = objective_of(config, run, cache)
    optimizer = torch.optim.AdamW(objective.model.parameters().values(), lr=1e-2)
    for epoch in range(12):
        objective.losses([Sample(one.image, 100 + epoch, 0, one.seed) for one in samples]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective, samples


def test_it_moves_away_from_the_pictures(run: RunFolder, tmp_path: Path) -> None:
    learnt = growth(*trained(run, {}, tmp_path))
    objective, samples = trained(run, {"unlearn": True}, tmp_path)
    unlearnt = growth(objective, samples)
    assert learnt < 0.9 and unlearnt > 1.2
    # What is beyond the limit pushes no longer.
    near = parse(merge(to_tables(objective.config), {"train": {"unlearn_limit": 1.001}}))
    left = [objective.losses(samples).detach(), replace(objective, config=near).losses(samples).detach()]
    assert (left[0] > 0).all() and (left[1] == 0).any()


def test_through_the_trainer(run: RunFolder) -> None:
    """The loss falls to what is left to unlearn, and the pictures' own grows."""
    config = parse(merge(to_tables(run.config()), {"train": {"unlearn": True, "steps": 6}}))
    other = RunFolder(run.path.with_name("two"))
    other.create(config)
    assert train_here(other)
    losses = [event["loss"] for event in read_events(other.events)[0] if event["kind"] == "step"]
    assert len(losses) == 6 and all(loss > 0 for loss in losses)
    assert weights_hash(other, 6) != weights_hash(run, 1)


def test_regularisation_pictures_stay_learnt(run: RunFolder, tmp_path: Path) -> None:
    """Class pictures are what must not be unlearnt with the rest."""
    config = parse(merge(to_tables(run.config()), {"train": {"unlearn": True, "unlearn_limit": 3}}))
    objective, samples = objective_of(config, run, tmp_path)
    looks = [
        samples[0],
        replace(samples[1], image=samples[1].image.model_copy(update={"regularisation": True})),
    ]
    plain = parse(merge(to_tables(config), {"train": {"unlearn": False}}))
    torch.manual_seed(0)
    unlearnt = objective.losses(looks)
    torch.manual_seed(0)
    learnt = replace(objective, config=plain).losses(looks)
    assert unlearnt[1] == learnt[1] and unlearnt[0] != learnt[0]
