"""Lint rules on what single bases and families cannot do, or need."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .config import TrainConfig
from .families import CATALOGUE, known_base, reads_negative
from .findings import Facts, Finding, rule


@rule
def negative_prompt_ignored(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """guidance_off tells of bases that could read it."""
    model, samples = config.model, config.samples
    if samples.prompts and samples.negative and not reads_negative(model.family, model.base):
        base = known_base(model.family, model.base)
        name = base.label if base else CATALOGUE[model.family].label
        yield Finding(
            "warning",
            "samples.negative",
            f"{name} is guided without a negative prompt; this one is ignored.",
            {"samples.negative": ""},
            "Remove it",
        )


@rule
def named_like_a_distilled_base(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """A base of one's own that is named like one of the catalogue's that has an assistant."""
    model = config.model
    if model.assistant or known_base(model.family, model.base):
        return
    words = set(re.split(r"[^a-z]+", re.split(r"[/\\]", model.base)[-1].lower()))
    for base in CATALOGUE[model.family].bases:
        kind = base.id.rpartition("-")[2].lower()
        if base.assistant and kind in words:
            yield Finding(
                "hint",
                "model.assistant",
                f"This seems to be a {kind} model, distilled to few steps: without the assistant LoRA of "
                f"{base.label.partition(' (')[0]} training would undo that.",
                {"model.assistant": base.assistant},
                "Use it",
            )
