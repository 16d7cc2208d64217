"""The picture of a denoiser's blocks: which is which, and what the recipe does in each of them."""

from __future__ import annotations

import html
from itertools import groupby

from trainer.contract.config import TrainConfig
from trainer.contract.families import block_maps
from trainer.contract.placing import BlockRow, block_map, of_a_guide

SIDE, GAP, PER_ROW = 24, 3, 12
"""Of the squares, in px; how many stand side by side: what a phone has room for."""

PARTS = {"down": "on the way down", "mid": "in the middle", "up": "on the way up", "": "outside"}


def block_map_html(config: TrainConfig) -> str:
    """A row of numbered squares for each part, the fuller the larger rank and learning rate are there. Empty
    where the lists do not fit: then that is said instead."""
    blocks = block_maps(config.model.family, config.model.base)[0]
    if of_a_guide(config.adapter, blocks):
        return ""
    try:
        rows = block_map(config.adapter, blocks)
    except ValueError:
        return ""
    trained = [row for row in rows if row.can and row.rank]
    strongest = max((row.rank * row.weight for row in trained), default=1.0)
    lines = [
        (PARTS.get(part, part.replace("_", " ")), list(group))
        for part, group in groupby(rows, key=lambda row: row.part)
    ]
    pictures = [
        f"<div><span>{html.escape(name)}</span>{_squares(group, strongest)}</div>" for name, group in lines
    ]
    count = f"{len(trained)} of {len(rows)} blocks are trained."
    return (
        f'<figure class="block-map" aria-label="Blocks: {html.escape(count)}">{"".join(pictures)}'
        f"<figcaption>{html.escape(count)} Fuller is a larger rank or learning rate; empty ones are left "
        "out, dashed ones hold nothing that is adapted.</figcaption></figure>"
    )


def _squares(rows: list[BlockRow], strongest: float) -> str:
    step = SIDE + GAP
    width = step * min(len(rows), PER_ROW) - GAP
    height = step * -(-len(rows) // PER_ROW) - GAP
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape("; ".join(map(_said, rows)), quote=True)}">'
        + "".join(
            _square(row, step * (number % PER_ROW), step * (number // PER_ROW), strongest)
            for number, row in enumerate(rows)
        )
        + "</svg>"
    )


def _square(row: BlockRow, x: int, y: int, strongest: float) -> str:
    kind, fill = "off", 0.0
    if not row.can:
        kind = "none"
    elif row.rank:
        kind, fill = "on", 0.2 + 0.8 * row.rank * row.weight / strongest
    return (
        f'<g class="{kind}"><title>{html.escape(_said(row))}</title>'
        f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{SIDE - 1}" height="{SIDE - 1}" rx="4" '
        f'fill-opacity="{fill:.2f}"/>'
        f'<text x="{x + SIDE / 2}" y="{y + SIDE / 2 + 4}">{row.number}</text></g>'
    )


def _said(row: BlockRow) -> str:
    name = f"{row.number}: {row.label}"
    if not row.can:
        return f"{name}, nothing to adapt"
    if not row.rank:
        return f"{name}, left out"
    return f"{name}, rank {row.rank}, alpha {row.alpha:g}, learning rate × {row.weight:.3g}"
