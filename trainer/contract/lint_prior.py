"""Lint rules on prior preservation."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .findings import Facts, Finding, rule
from .trigger import has_trigger, without_trigger


@rule
def class_has_the_trigger(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    trigger, name = config.dataset.trigger, config.prior.class_name
    if config.prior.method != "none" and trigger and has_trigger(name, trigger):
        without = " ".join(without_trigger(name.lower(), trigger, " ").split())
        yield Finding(
            "error",
            "prior.class_name",
            f"The class “{name}” has the trigger “{trigger}” in it, so that learning and keeping pull at the "
            "same words; name the class alone, such as cat.",
            {"prior.class_name": without} if without else None,
            f"Use “{without}”" if without else "",
        )


@rule
def kept_caption_has_the_trigger(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    trigger = config.dataset.trigger
    having = [caption for caption in config.prior.captions if trigger and has_trigger(caption, trigger)]
    if config.prior.method == "output" and having:
        rest = tuple(caption for caption in config.prior.captions if caption not in having)
        yield Finding(
            "warning",
            "prior.captions",
            f"The caption to keep “{having[0][:60]}” has the trigger in it, which the LoRA is to learn.",
            {"prior.captions": rest},
            "Leave it out",
        )


@rule
def prior_settings_without_a_method(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.prior.method == "none" and (config.prior.class_name or config.prior.captions):
        yield Finding(
            "hint",
            "prior.method",
            "A class to keep is named, but prior preservation is off.",
            {"prior.method": "output"},
            "Keep the output",
        )


@rule
def class_pictures_not_all_used(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    prior = config.prior
    if prior.method != "class_pictures" or prior.path or facts.images is None:
        return
    shown = facts.images * config.dataset.repeats
    if prior.pictures > 2 * shown and shown:
        yield Finding(
            "hint",
            "prior.pictures",
            f"{prior.pictures} class pictures are drawn, but an epoch shows {shown} photos and no more class "
            "pictures than that.",
            {"prior.pictures": shown},
            f"Draw {shown}",
        )
