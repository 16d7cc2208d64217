"""Several processes train what one does."""

from __future__ import annotations

import pytest

from trainer.processes import ALONE, Crew


class Number(Crew):
    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [[4], [1, 1, 1, 1], [3, 2], [1], [5, 1, 7]])
def test_every_sample_of_a_step_is_in_one_share(world: int, sizes: list[int]) -> None:
    step = [[(batch, number) for number in range(size)] for batch, size in enumerate(sizes)]
    shares = [Number(rank, world).share(step) for rank in range(world)]
    dealt = [sample for share in shares for batch in share for sample in batch]
    assert sorted(dealt) == [sample for batch in step for sample in batch]
    assert all(len({batch for batch, _ in part}) == 1 for share in shares for part in share)
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert ALONE.share(step) == step
