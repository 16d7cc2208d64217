"""What a run makes of a caption, shown before it starts: every stage at some looks, and how long it gets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dataset_tools.tokens import Counter, estimated_tokens
from trainer.contract.caption_pipeline import Look, Stages, stages
from trainer.contract.config import TrainConfig
from trainer.contract.families import CATALOGUE
from trainer.contract.length import batches_of, in_steps
from trainer.contract.steps import Folder

FIRST_EPOCHS = 3


@dataclass(frozen=True)
class Tokens:
    """How long a caption is for one text encoder; ``encoder`` is "" for an estimate."""

    encoder: str
    count: int
    limit: int


@dataclass(frozen=True)
class Preview:
    """A caption at one look. ``epoch`` counts from 1, ``step`` is the epoch's first."""

    epoch: int
    step: int
    stages: Stages
    tokens: tuple[Tokens, ...]

    def changes(self) -> list[tuple[str, str]]:
        """(title, text) of the stages that change the caption."""
        titled = self.stages.titled()
        return [(title, text) for (_, before), (title, text) in pairwise(titled) if text != before]


def caption_previews(
    text: str,
    config: TrainConfig,
    counters: Mapping[str, Counter],
    *,
    image_id: str,
    repeats: int,
    folders: Sequence[Folder],
) -> list[Preview]:
    """The first epochs of a picture, and the last; its first repeat in each.

    Exactly what the run draws, which trains on ``folders``. Only a tag warm-up moves on within an epoch,
    which is shown as it begins.
    """
    batches = batches_of(config, folders) or 1  # all photos are left out
    config = in_steps(config, batches)
    accumulation = config.train.gradient_accumulation
    epochs = math.ceil(config.train.steps * accumulation / batches)
    shown = sorted({*range(min(FIRST_EPOCHS, epochs)), epochs - 1})
    previews = []
    for epoch in shown:
        step = epoch * batches // accumulation
        look = Look(config.train.seed, image_id, epoch, 0, repeats, step)
        made = stages(text, config, look)
        previews.append(Preview(epoch + 1, step, made, tokens_of(made.caption, config, counters)))
    return previews


def tokens_of(text: str, config: TrainConfig, counters: Mapping[str, Counter]) -> tuple[Tokens, ...]:
    if counters:
        return tuple(Tokens(name, one.count(text), one.limit) for name, one in counters.items())
    return (Tokens("", estimated_tokens(text), CATALOGUE[config.model.family].token_limit),)


def preview_lines(name: str, previews: list[Preview], config: TrainConfig) -> list[str]:
    """The previews of one picture for a terminal."""
    lines = [f"{name}: {_line(previews[0].stages.file)}"]
    for preview in previews:
        step = f", from step {preview.step + 1}" if config.captions.warmup_steps else ""
        tokens = ", ".join(
            f"{one.count} of {one.limit} tokens ({one.encoder})"
            if one.encoder
            else f"about {one.count} of {one.limit} tokens (estimated)"
            for one in preview.tokens
        )
        lines.append(f"  epoch {preview.epoch}{step}: {tokens}")
        changes = preview.changes() or [("As it is", preview.stages.caption)]
        lines += [f"    {title + ':':20}{_line(text) or '(no caption)'}" for title, text in changes]
    return lines


def _line(text: str) -> str:
    return " ⏎ ".join(text.splitlines())
