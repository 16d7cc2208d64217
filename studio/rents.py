"""What a rented machine may cost, below the box for its price: by what cards were rented out for."""

from __future__ import annotations

import html
from typing import Any

from trainer.contract.config import TrainConfig
from trainer.contract.cost import RENTS, RENTS_ARE_OF, money, usual_rent

from .form import set_attribute


def rents_html(config: TrainConfig, gpu: dict[str, Any] | None) -> str:
    """A button with the price of this machine's cards, or one for each card that is known; nothing where
    there is a price. ``gpu``: as :meth:`studio.machine.Gpu.state`."""
    if config.machine.price_per_hour is not None:
        return ""
    name, count = (gpu["name"], int(gpu["count"] or 1)) if gpu else ("", 1)
    if rent := usual_rent(name):
        low, high = (money(count * price) for price in rent)
        span = low if low == high else f"{low} to {high}"
        cards = f"{count} × {name}" if count > 1 else name
        listed = f"{html.escape(cards)} {'were' if count > 1 else 'was'} rented out for {span} an hour"
        button = _button(f"Use {high}", count * rent[1])
        return f'<p class="say">{listed} in {RENTS_ARE_OF}; check yours.{button}</p>'
    buttons = "".join(_button(f"{card} {money(high)}", high) for card, _, _, high in RENTS)
    return (
        f'<details class="say"><summary>What cards were rented out for in {RENTS_ARE_OF}, an hour</summary>'
        f'<p class="say">At most, one card each; check yours:{buttons}</p></details>'
    )


def _button(text: str, price: float) -> str:
    values = {"machine.price_per_hour": round(price, 2), "machine.currency": "$"}
    return f' <button type="button" class="fix" {set_attribute(values)}>{html.escape(text)}</button>'
