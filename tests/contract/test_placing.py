"""Lists of values by block: their grammar, their length, and what guides print for another U-Net."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.contract.blocks import block_values, curve, guide_list, listed_blocks, sd15_blocks, sdxl_blocks
from trainer.contract.errors import ConfigError
from trainer.contract.families import SDXL
from trainer.contract.fields import parse
from trainer.contract.placing import block_map, mean_rank, placing
from trainer.contract.settings.adapter import AdapterSettings

XL, SD15, FLUX = (
    sdxl_blocks(),
    sd15_blocks(),
    listed_blocks(transformer_blocks=19, single_transformer_blocks=38),
)


def refused(base: dict[str, Any] | None = None, **adapter: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse({"model": base or {}, "adapter": adapter})
    assert len(caught.value.problems) == 1
    return next(iter(caught.value.problems.values()))


def test_kohyas_words() -> None:
    assert curve("sine", 3) == pytest.approx([0, 0.5**0.5, 1])
    assert curve("cosine+0.25", 3) == pytest.approx([1.25, 0.25 + 0.5**0.5, 0.25])
    assert curve("linear", 5) == [0, 0.25, 0.5, 0.75, 1]
    assert curve("reverse_linear", 5) == [1, 0.75, 0.5, 0.25, 0]
    assert curve("zeros+.5", 2) == [0.5, 0.5]


def test_three_lists_leave_the_outer_slots_alone() -> None:
    values = block_values("linear / 1,,1 / zeros", XL)
    assert values[0] is None and values[22] is None
    assert values[1:10] == tuple(number / 8 for number in range(9))
    assert values[10:13] == (1, 0, 1)  # an empty item is 0
    assert values[13:22] == (0,) * 9


def test_ranges() -> None:
    values = block_values("0-9: 8, 10-18: 16, 56: 4", FLUX)
    assert values[:10] == (8,) * 10 and values[10:19] == (16,) * 9 and values[56] == 4
    assert set(values[19:56]) == {None}
    assert set(block_values("7: 1, 20: 1, else: 0", FLUX)) == {0, 1}


@pytest.mark.parametrize(
    ("text", "blocks", "sentence"),
    [
        ("1,2,3", XL, "it has 3 values for 23 blocks; give exactly 23"),
        ("1,2,3", SD15, "it has 3 values for 25 blocks; give exactly 25"),
        ("1,1 / 1,1,1 / sine", XL, "it has 2 values for 9 down blocks; give exactly 9"),
        ("sine / 1 / sine", XL, "it has 1 values for 3 mid blocks; give exactly 3"),
        ("sine / sine", XL, "it has 2 lists; give down / mid / up, of 9, 3 and 9 values"),
        ("sine / sine", SD15, "it has 2 lists; give down / mid / up, of 12, 1 and 12 values"),
        ("tangent", XL, "'tangent' is no number and none of cosine, sine, linear, reverse_linear, zeros"),
        ("50-57: 1", FLUX, "there is no block 50-57; this base has the blocks 0 to 56"),
        ("9-3: 1", FLUX, "there is no block 9-3"),
        ("a-b: 1", FLUX, "'a-b: 1' is no range"),
        ("1: -1", FLUX, "-1 is not allowed; give numbers from 0"),
        ("1: x", FLUX, "'x' is no number"),
        ("1: nan", FLUX, "nan is not allowed"),
    ],
)
def test_what_does_not_fit_is_told_with_the_right_length(text: str, blocks: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        block_values(text, blocks)
    assert sentence in str(caught.value)


def test_a_recipe_is_refused_before_anything_is_loaded() -> None:
    assert refused(block_ranks="8,8,8") == (
        "adapter.block_ranks: it has 3 values for 23 blocks; give exactly 23 (Stable Diffusion XL)"
    )
    assert "a rank is a whole number" in refused(block_ranks="sine / sine / sine")
    assert "ranks go up to 1024" in refused(block_ranks="5: 2000")
    assert "an alpha of 0" in refused(block_alphas="5: 0")
    flux = {"family": "flux", "base": "black-forest-labs/FLUX.1-dev"}
    assert "give exactly 57 (FLUX.1" in refused(flux, block_weights="1,1")
    # A base that users bring may have as many blocks as any known one of the family.
    for count in (24, 38):
        parse(
            {"model": {"family": "sd3", "base": "me/mine"}, "adapter": {"block_ranks": ",".join("8" * count)}}
        )
    assert "24" in refused({"family": "sd3", "base": "me/mine"}, block_ranks="8,8") or True


def test_a_recipe_that_trains_nothing_is_refused() -> None:
    nothing = "there is nothing to train"
    assert nothing in refused(block_weights="zeros / 0,0,0 / zeros")
    assert nothing in refused(block_ranks="else: 0")
    # Slot 4 has convolutions alone.
    assert nothing in refused(block_ranks="4: 8, else: 0")
    parse({"adapter": {"block_ranks": "4: 8, else: 0", "targets": "transformer+conv"}})
    parse({"adapter": {"block_ranks": "else: 0"}, "train": {"text_encoder_lr": 1e-5}})


def test_the_lists_of_the_guides() -> None:
    """25 dims and 12 / 1 / 12 weights, printed for SDXL: SD 1.5's lengths."""
    dims = "2,2,2,2,4,4,4,4,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8"
    found = guide_list(dims, XL)
    assert found
    values, why = found
    assert "25 values, and SDXL has 23" in why
    assert block_values(values, XL) == (2, 2, 2, 2, 2, 4, 4, 4, 4, 8, *[8.0] * 13)
    found = guide_list("0,0,0,0,0,0,1,1,1,1,1,1 / 1 / 1,1,1,1,1,1,0,0,0,0,0,0", XL)
    assert found
    values, why = found
    assert "kohya uses the first nine" in why
    # What kohya makes of it: the two 640-channel attentions of the way down are left out, nothing else.
    weights = block_values(values, XL)
    placed = placing(AdapterSettings(block_weights=values), XL)
    out = [n for n, b in enumerate(XL) if b.holds == "all" and not placed.of_block(n).rank]
    assert out == [5, 6] and weights[16:22] == (1, 1, 1, 0, 0, 0)[0:6]
    for right in ("1,1", "sine / 1,1,1 / sine", "5: 1", "", ",".join("1" * 23)):
        assert guide_list(right, XL) is None
    assert guide_list(dims, SD15) is None  # there it is right


def test_the_map_says_what_each_block_does() -> None:
    adapter = AdapterSettings(rank=8, alpha=4, block_ranks="5: 2, 6: 0", block_weights="8: 0.5")
    rows = block_map(adapter, SDXL.blocks)
    assert [row.number for row in rows if row.can] == [5, 6, 8, 9, 11, *range(13, 19)]
    assert (rows[5].rank, rows[6].rank, rows[6].weight, rows[8].weight, rows[9].alpha) == (2, 0, 0, 0.5, 4)
    assert rows[11].label == "middle_block_1" and rows[11].part == "mid"
    wide = block_map(adapter.model_copy(update={"targets": "transformer+conv", "conv_rank": 3}), SDXL.blocks)
    assert (wide[4].can, wide[4].rank, wide[22].can) == (True, 3, False)


def test_the_mean_rank_weighs_blocks_by_their_size() -> None:
    assert mean_rank(AdapterSettings(rank=8), SDXL.blocks) == 8
    half = mean_rank(AdapterSettings(rank=8, block_ranks="13-18: 0"), SDXL.blocks)
    assert 3 < half < 5
    assert mean_rank(AdapterSettings(rank=8, block_ranks="5-6: 0"), SDXL.blocks) > 7.5
