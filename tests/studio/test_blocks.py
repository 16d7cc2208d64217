"""The picture of the blocks beside the settings that go by block."""

from __future__ import annotations

import re
from typing import Any

from studio.blocks import block_map_html
from trainer.contract.fields import parse


def picture(base: dict[str, Any] | None = None, **adapter: Any) -> str:
    return block_map_html(parse({"model": base or {}, "adapter": adapter}))


def kinds(text: str) -> list[str]:
    return re.findall(r'<g class="(on|off|none)">', text)


def test_sdxls_23_blocks() -> None:
    text = picture(rank=8, block_ranks="5: 4, 6: 0", block_weights="8: 0.5")
    assert kinds(text) == [
        *["none"] * 5,
        *["on", "off", "none", "on", "on", "none", "on", "none"],
        *["on"] * 6,
        *["none"] * 4,
    ]
    assert "5: input_blocks_4, rank 4, alpha 16, learning rate × 1" in text
    assert "6: input_blocks_5, left out" in text and "8: input_blocks_7, rank 8" in text
    assert "10 of 23 blocks are trained" in text
    fills = {number: fill for fill, number in re.findall(r'fill-opacity="([\d.]+)"/><text[^>]*>(\d+)<', text)}
    assert float(fills["8"]) == float(fills["5"]) < float(fills["9"]) == 1
    wide = picture(targets="transformer+conv")
    assert kinds(wide).count("on") == 20


def test_a_transformers_blocks_by_list() -> None:
    flux = {"family": "flux", "base": "black-forest-labs/FLUX.1-dev"}
    text = picture(flux, block_ranks="7: 8, 20: 8, else: 0")
    assert kinds(text).count("on") == 2 and len(kinds(text)) == 57
    assert ">transformer blocks<" in text and ">single transformer blocks<" in text


def test_a_list_that_does_not_fit_has_no_picture() -> None:
    assert picture(block_ranks=",".join(["8"] * 25)) == ""
