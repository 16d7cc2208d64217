from __future__ import annotations

import pytest

from dataset_tools.buckets import SDXL_BUCKETS, scaled_buckets
from dataset_tools.dataset import DatasetError
from trainer.contract.sizes import bucket_step, exact_resolution, rounded, square_side


def test_the_sdxl_list_is_closed_under_transposition() -> None:
    assert len(SDXL_BUCKETS) == 9
    assert {(h, w) for w, h in SDXL_BUCKETS} == set(SDXL_BUCKETS)
    assert {(1472, 704), (704, 1472), (1216, 832)} <= set(SDXL_BUCKETS)


@pytest.mark.parametrize(
    ("resolution", "step"), [(128, 8), (256, 16), (512, 32), (768, 48), (1024, 64), (1536, 96)]
)
def test_multiples_of_128_scale_the_list_exactly(resolution: int, step: int) -> None:
    assert bucket_step(resolution) == step
    expected = tuple((w * resolution // 1024, h * resolution // 1024) for w, h in SDXL_BUCKETS)
    assert scaled_buckets(resolution) == expected
    assert all(w % step == 0 and h % step == 0 for w, h in expected)


def test_at_128_it_is_the_list_at_an_eighth() -> None:
    landscape = [(144, 112), (152, 104), (168, 96), (184, 88)]
    expected = {(128, 128), *landscape, *((h, w) for w, h in landscape)}
    assert set(scaled_buckets(128)) == expected and len(scaled_buckets(128)) == 9


@pytest.mark.parametrize("resolution", [64, 100, 333, 600, 1000, 1111, 2048])
def test_any_resolution_gives_whole_steps_near_its_area(resolution: int) -> None:
    step = bucket_step(resolution)
    buckets = scaled_buckets(resolution)
    assert len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % step == 0 and height % step == 0
        assert 0.7 < (width * height) ** 0.5 / resolution < 1.3


def test_a_coarse_step_merges_equal_sizes() -> None:
    assert scaled_buckets(128, 64) == ((128, 128), (192, 128), (128, 192), (192, 64), (64, 192))


@pytest.mark.parametrize(("resolution", "step"), [(0, None), (10_000, None), (512, 0)])
def test_senseless_values_are_refused(resolution: int, step: int | None) -> None:
    with pytest.raises(DatasetError, match="; "):
        scaled_buckets(resolution, step)


@pytest.mark.parametrize("multiple", [8, 16, 32])
def test_the_side_that_is_trained_is_told(multiple: int) -> None:
    for resolution in range(64, 2049):
        side = square_side(resolution, multiple)
        assert (side, side) == scaled_buckets(resolution, bucket_step(resolution, multiple))[0]
        exact = exact_resolution(resolution, multiple)
        assert square_side(exact, multiple) == exact and 64 <= exact <= 2048, "not rounded once more"
        assert (exact == resolution) == (side == resolution)
        assert bool(rounded(resolution, multiple)) == (side != resolution)
    assert rounded(100) == "100 px is no multiple of 8, as the buckets need; it trains at 96 px."
    assert exact_resolution(100) == 104 and exact_resolution(500) == 512 and exact_resolution(321) == 320
    assert rounded(1024) == rounded(512) == rounded(96) == ""
