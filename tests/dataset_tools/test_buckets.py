from __future__ import annotations

import pytest

from dataset_tools.buckets import SDXL_BUCKETS, Buckets, area_buckets, own_bucket, scaled_buckets
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


@pytest.mark.parametrize(
    ("resolution", "minimum", "maximum", "step", "count"),
    [
        (512, 256, 1024, 64, 17),
        (1024, 256, 1024, 64, 25),
        (1024, 256, 2048, 64, 41),
        (1024, 256, 2048, 32, 81),
        (512, 256, 2048, 32, 33),
        (512, 256, 2048, 64, 17),  # no side of 256 or more goes with one above 1024
    ],
)
def test_every_shape_of_an_area_is_kohyas_list(
    resolution: int, minimum: int, maximum: int, step: int, count: int
) -> None:
    buckets = area_buckets(resolution, minimum, maximum, step)
    assert len(buckets) == count
    assert {(h, w) for w, h in buckets} == set(buckets) and list(buckets) == sorted(set(buckets))
    assert all(w * h <= resolution**2 and w % step == h % step == 0 for w, h in buckets)


def both_ways(*sizes: tuple[int, int]) -> set[tuple[int, int]]:
    return {*sizes, *((h, w) for w, h in sizes)}


def test_the_members_of_kohyas_lists() -> None:
    small = both_ways((320, 704), (320, 768), (384, 640), (448, 576), (512, 512))
    small |= both_ways(*((256, h) for h in range(832, 1025, 64)))
    assert set(area_buckets(512, 256, 1024, 64)) == small
    large = both_ways((640, 1536), (640, 1600), (704, 1408), (704, 1472), (768, 1280), (768, 1344))
    large |= both_ways((832, 1216), (896, 1152), (960, 1088), (1024, 1024))
    large |= both_ways(*((512, h) for h in (1856, 1920, 1984, 2048)), *((576, h) for h in (1664, 1728, 1792)))
    large |= both_ways(*((w, 2048) for w in range(256, 449, 64)))
    assert set(area_buckets(1024, 256, 2048, 64)) == large
    assert (832, 1216) not in area_buckets(1024, 256, 1024, 64), "what the longest side of 1024 spoils"


def test_the_limits_that_are_left_out_never_cut_a_long_side() -> None:
    for resolution in (64, 128, 512, 768, 1024):
        sizes = Buckets(resolution, "all").sizes(1, 1)
        step = bucket_step(resolution)
        assert max(max(size) for size in sizes) == 2 * resolution
        assert all(w * h > resolution**2 - max(w, h) * step for w, h in sizes), "none is of a smaller area"
    assert Buckets(1024, "all", maximum=1024).sizes(1, 1) == area_buckets(1024, 512, 1024, 64)
    assert Buckets(1024, "all").nearest(1920, 1080) == (1344, 768)
    with pytest.raises(DatasetError, match="No bucket"):
        area_buckets(32, 512, 1024, 64)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((500, 333), (448, 320)),  # its own size, floored
        ((4000, 3000), (1088, 832)),  # shrunk to 1182 x 887; 1152 x 832 is farther from 4 : 3
        ((1024, 1024), (1024, 1024)),
        ((40, 30), (64, 64)),  # at least a step
        ((9000, 200), (5760, 128)),
    ],
)
def test_without_enlarging(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert own_bucket(*size, 1024, 64) == bucket
    assert Buckets(1024, "no_upscale").sizes(*size) == (bucket,)
