"""Which checkpoints stay, and which go first when the disk is full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main
from trainer.contract.config import TrainConfig
from trainer.contract.errors import RunError
from trainer.contract.plan import Machine, estimate
from trainer.contract.retention import best_first, dispensable, kept_in_words, most_at_once, staying
from trainer.contract.runs import RunFolder
from trainer.contract.settings.files import CheckpointSettings

STEPS = range(100, 1100, 100)


def settings(**values: int) -> CheckpointSettings:
    return CheckpointSettings(**{"every": 100, "keep": 1, **values})


def test_the_last_ones_stay() -> None:
    assert staying(STEPS, settings(keep=3)) == {800, 900, 1000}
    assert staying(STEPS[::-1], settings()) == {1000}
    assert staying([], settings()) == set()
    assert staying([100], settings(keep=9)) == {100}


def test_milestones_stay() -> None:
    assert staying(STEPS, settings(keep_every=300)) == {300, 600, 900, 1000}
    assert staying(STEPS, settings(keep_every=5000)) == {1000}


def test_the_best_stay() -> None:
    best = [250, 300, 1000, 200]
    assert staying(STEPS, settings(keep_best=1), best=best) == {300, 1000}, "of 250 there is none"
    assert staying(STEPS, settings(keep_best=3), best=best) == {200, 300, 1000}
    assert staying(STEPS, settings(), best=best) == {1000}


def test_starred_ones_stay() -> None:
    assert staying(STEPS, settings(), starred={200, 250}) == {200, 1000}


def test_reasons_add_up() -> None:
    every_reason = settings(keep=2, keep_every=500, keep_best=1)
    assert staying(STEPS, every_reason, best=[400], starred=[100]) == {100, 400, 500, 900, 1000}


def test_a_full_disk_takes_the_least_first() -> None:
    every_reason = settings(keep=9, keep_every=500, keep_best=2)
    order = dispensable(STEPS, every_reason, best=[400, 700, 200], starred=[100])
    assert order == [200, 300, 600, 800, 900, 500, 700, 400]
    assert dispensable([500], every_reason) == [] == dispensable([], every_reason)
    assert 1000 not in dispensable(STEPS, settings(), best=[1000])


def events(*rows: tuple[str, int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"kind": kind, "step": step, **data} for kind, step, data in rows]


def drawn(step: int, likeness: float) -> tuple[str, int, dict[str, Any]]:
    return "measured", step, {"trigger": True, "likeness": likeness, "change": 0.1, "copied": 0.0, "text": ""}


def test_the_best_have_the_lowest_validation_loss() -> None:
    losses = [("validation", step, {"loss": loss}) for step, loss in ((0, 0.1), (100, 0.4), (200, 0.2))]
    assert best_first(events(*losses, drawn(0, 0.1), drawn(100, 0.9))) == [200, 100]


def test_without_validation_they_look_most_like_the_photos() -> None:
    rows = [drawn(0, 0.1), drawn(100, 0.5), drawn(200, 0.8), drawn(300, 0.6)]
    assert best_first(events(*rows)) == [200, 300, 100]
    assert best_first([]) == []


def test_unlearning_does_not_go_by_the_loss() -> None:
    losses = [("validation", step, {"loss": loss}) for step, loss in ((100, 0.2), (200, 0.4))]
    rows = events(*losses, drawn(0, 0.9), drawn(100, 0.8), drawn(200, 0.3))
    assert best_first(rows, unlearn=True) == [200, 100]


@pytest.mark.parametrize(
    ("values", "most"),
    [
        ({"keep": 3}, 3),
        ({"keep": 30}, 10),
        ({"keep": 1, "keep_best": 2}, 3),
        ({"keep": 1, "keep_every": 500}, 3),
        ({"keep": 1, "keep_every": 250}, 3),
        ({"keep": 1, "keep_every": 100}, 10),
    ],
)
def test_how_many_there_are_at_most(values: dict[str, int], most: int) -> None:
    assert most_at_once(settings(**values), 1000) == most


def test_the_plan_counts_what_stays() -> None:
    def disk(**values: int) -> float:
        train = TrainConfig().train.model_copy(update={"steps": 10_000})
        adapter = TrainConfig().adapter.model_copy(update={"rank": 512})  # for more digits
        config = TrainConfig(train=train, adapter=adapter, checkpoints=settings(every=500, **values))
        return estimate(config, Machine("", None)).disk_gib

    one = disk(keep=2) - disk(keep=1)
    assert one > 0
    assert disk(keep_every=1000) - disk() == pytest.approx(10 * one, rel=0.01)
    assert disk(keep_best=2) - disk() == pytest.approx(2 * one, rel=0.01)


def test_in_words() -> None:
    assert kept_in_words(settings()) == "the last is kept"
    assert kept_in_words(settings(keep=3, keep_best=1)) == "the last 3 are kept, and the best"


def test_stars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(TrainConfig())
    assert run.starred() == set()
    with pytest.raises(RunError, match="no checkpoint of step 5"):
        run.star(5)
    for step in (5, 10):
        run.checkpoint(step).mkdir()
        run.star(step)
    assert run.starred() == {5, 10}
    run.star(10, on=False)
    run.star(99, on=False)
    assert run.starred() == {5}
    assert main(["star", str(run.path), "10"]) == 0 == main(["star", str(run.path), "5", "--off"])
    assert run.starred() == {10} and capsys.readouterr().out.splitlines()[-1] == "starred: 10"
    assert main(["star", str(run.path), "7"]) == 2
    run.stars.write_text("[5,")
    with pytest.raises(RunError, match="damaged"):
        run.starred()
