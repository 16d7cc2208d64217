"""The steps calculator, with the guides' example."""

from __future__ import annotations

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.fields import parse
from trainer.contract.findings import looks_per_picture
from trainer.contract.steps import (
    Folder,
    balance,
    balanced_repeats,
    batches_per_epoch,
    calculation,
    epochs_of,
    guide_steps,
    looks_by_bucket,
)

SQUARE, WIDE, TALL = (1024, 1024), (1216, 832), (832, 1216)


def recipe(**train: object) -> TrainConfig:
    return parse({"train": train})


def folder(name: str, repeats: int = 1, regularisation: bool = False, **buckets: int) -> Folder:
    sizes = {"square": SQUARE, "wide": WIDE, "tall": TALL}
    pictures = tuple((sizes[bucket], repeats) for bucket, count in buckets.items() for _ in range(count))
    return Folder(name, pictures, regularisation)


def test_the_guides_example_both_ways() -> None:
    """476 photos × 5 repeats, batch 6, 30 epochs: 396.67 steps an epoch, which make 11,900 or 11,910."""
    guide = guide_steps(476, 5, 6, 30)
    assert guide.per_epoch == pytest.approx(396.67, abs=0.005) and guide.total == 11_900
    whole = batches_per_epoch({SQUARE: 476 * 5}, 6)
    assert whole == 397 and whole * 30 == 11_910
    lines = calculation(recipe(steps=11_910, batch_size=6), [folder("x", 5, square=476)])
    assert lines == [
        "476 photos × 5 repeats in 1 bucket, batch 6 → 397 steps an epoch; 11910 steps = 30 epochs",
        "By the guides' formula, which knows no buckets: 396.67 steps an epoch, 11900 in 30 epochs; "
        "here 11910",
    ]


def test_remainders_of_every_bucket_count() -> None:
    twelve = folder("x", 10, square=7, wide=3, tall=2)
    assert looks_by_bucket([twelve]) == {SQUARE: 70, WIDE: 30, TALL: 20}
    assert batches_per_epoch(looks_by_bucket([twelve]), 4) == 18 + 8 + 5
    lines = calculation(recipe(steps=1000, batch_size=4), [twelve])
    assert (
        lines[0]
        == "12 photos × 10 repeats in 3 buckets, batch 4 → 31 steps an epoch; 1000 steps = 32.3 epochs"
    )
    assert "30.00 steps an epoch, 960 in 32 epochs; here 992" in lines[1]
    assert len(calculation(recipe(batch_size=1), [twelve])) == 1, "nothing is left over with a batch of one"
    accumulated = calculation(recipe(steps=1000, batch_size=2, gradient_accumulation=2), [twelve])
    assert "batch 2 × 2 → 30 steps an epoch; 1000 steps = 33.3 epochs" in accumulated[0]


def test_several_concepts_share_batches() -> None:
    rex, mia = folder("zwx dog", 2, square=5), folder("qrt cat", 4, square=3, wide=2)
    dogs = folder("dog", 1, True, square=40)
    trained = balance([rex, mia, dogs])
    assert [one.looks for one in trained] == [10, 20, 30] and len(trained[2].pictures) == 30
    assert looks_by_bucket(trained) == {SQUARE: 10 + 12 + 30, WIDE: 8}
    lines = calculation(recipe(steps=300, batch_size=4), [rex, mia, dogs])
    assert lines[:3] == [
        "zwx dog: 5 photos × 2 repeats = 10 looks an epoch (17%)",
        "qrt cat: 5 photos × 4 repeats = 20 looks an epoch (33%)",
        "dog: 30 photos = 30 looks an epoch (50%), regularisation; 10 more are not needed",
    ]
    assert lines[3] == "60 looks in 2 buckets, batch 4 → 15 steps an epoch; 300 steps = 20 epochs"
    assert epochs_of(recipe(steps=300, batch_size=4), trained) == 20
    # 20 epochs show the ten photos of the two concepts 30 × 20 times.
    assert looks_per_picture(recipe(steps=300, batch_size=4), 10, [rex, mia, dogs]) == 60


@pytest.mark.parametrize(
    ("wanted", "repeats", "given"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (10, [3, 3, 3], [4, 3, 3]),
        (10, [6, 6, 6], [6, 4, 0]),
        (10, [20], [10]),
        (3, [1, 1, 1, 1], [1, 1, 1, 0]),
        (0, [5], [0]),
        (10, [], []),
    ],
)
def test_regularisation_is_taken_in_turn(wanted: int, repeats: list[int], given: list[int]) -> None:
    assert balanced_repeats(wanted, repeats) == given


def test_nothing_to_count() -> None:
    assert calculation(recipe(), []) == [] == calculation(recipe(), [folder("x")])
