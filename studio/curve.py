"""The learning rates of a recipe over its run, drawn from the very functions that the trainer follows."""

from __future__ import annotations

import html

from trainer.contract.config import TrainConfig
from trainer.contract.length import length_in_words
from trainer.contract.optimizers import OPTIMIZERS
from trainer.contract.rates import highest_rates
from trainer.contract.schedule import decay_steps, lr_curve, warmup_steps


def curve_svg(config: TrainConfig, width: int = 320, height: int = 96) -> str:
    """One line for each rate (parts, LoRA+); the shades are the warm-up and the decay."""
    train, rates = config.train, highest_rates(config)
    points, highest = lr_curve(train), max(rates.values())
    last = max(1, train.steps - 1)
    left, right, top, bottom = 2.0, width - 2.0, 6.0, height - 18.0

    def x(step: float) -> float:
        return left + (right - left) * min(step, last) / last

    def y(share: float) -> float:
        return bottom - (bottom - top) * share

    def shade(start: float, end: float) -> str:
        wide = x(end) - x(start)
        return f'<rect class="warm" x="{x(start):.1f}" y="{top}" width="{wide:.1f}" height="{bottom - top}"/>'

    lines = []
    for whose, peak in rates.items():
        drawn = " ".join(
            f"{x(step):.1f},{y(rate / train.learning_rate * peak / highest):.1f}" for step, rate in points
        )
        named = f"{whose}: up to {peak:g}"
        lines.append(f'<polyline points="{drawn}"><title>{html.escape(named)}</title></polyline>')
    warm = warmup_steps(train)
    decay = decay_steps(train) if train.scheduler == "warmup_stable_decay" else 0
    shades = (shade(0, warm) if warm else "") + (shade(train.steps - decay, train.steps) if decay else "")
    label = html.escape(_label(config, rates, warm, decay))
    return (
        f'<figure class="curve"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'{shades}<path class="axis" d="M{left} {bottom}H{right}"/>{"".join(lines)}'
        f'<text x="{left}" y="{height - 4}">0</text>'
        f'<text x="{right}" y="{height - 4}" text-anchor="end">{length_in_words(train)}</text></svg>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def _label(config: TrainConfig, rates: dict[str, float], warm: int, decay: int) -> str:
    train = config.train
    peaks = [f"up to {peak:g}" + (f" ({whose})" if len(rates) > 1 else "") for whose, peak in rates.items()]
    parts = [train.scheduler.replace("_", " "), *peaks]
    if OPTIMIZERS[train.optimizer].one_rate:
        parts.append(f"times what {train.optimizer.capitalize()} finds")
    if not train.epochs:
        parts.append(f"warm-up of {warm} steps")
        parts += [f"decay of {decay} steps"] if decay else []
    return "Learning rate: " + ", ".join(parts)
