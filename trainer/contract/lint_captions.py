"""Lint rules on what is made of captions. Those that need the captions themselves are silent without."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .caption_pipeline import (
    USUAL_VARIANTS,
    captions_of_folders,
    joined,
    looks_of_run,
    moves_any_tags,
    split_tags,
    variants_of,
    varies,
    warmup_steps,
)
from .config import TrainConfig
from .families import CATALOGUE
from .findings import Facts, Finding, rule
from .settings.captions import CaptionSettings
from .settings.dataset import Subset
from .steps import epochs_of, trained
from .trigger import has_trigger

CHOICE = re.compile(r"\{[^{}|]*\|[^{}]*\}")
"""{red|green}."""
KEEP_MARK, SECOND_MARK = "|||", ";;;"
"""What the guides write for captions.keep_tokens_separator and captions.secondary_separator."""
PROSE_WORDS = 4
"""Parts between commas that have more words than this, on average, are of a sentence."""


def _many(number: int, one: str, several: str) -> str:
    """ "1 caption has", "3 captions have"."""
    return f"1 caption {one}" if number == 1 else f"{number} captions {several}"


def in_folders(config: TrainConfig, facts: Facts) -> list[tuple[str, CaptionSettings, str]]:
    """(caption, [captions] as it holds for its folder, the folder's trigger)"""
    settings = captions_of_folders(config)
    triggers = [
        config.dataset.trigger,
        *(one.trigger or config.dataset.trigger for one in config.dataset.subsets),
    ]
    places = facts.caption_folders or (0,) * len(facts.captions)
    return [
        (text, settings[place], triggers[place]) for text, place in zip(facts.captions, places, strict=True)
    ]


@rule
def captions_are_cut(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """Words are the fewest tokens that a caption can have, so it fires too seldom rather than too often."""
    limit = CATALOGUE[config.model.family].token_limit
    whole = [joined(own.prefix, one, own.suffix) for one, own, _ in in_folders(config, facts)]
    if cut := sum(len(re.findall(r"\w+", one)) > limit - 2 for one in whole):
        many = "is longer" if cut == 1 else "are longer"
        yield Finding(
            "warning",
            "captions.suffix" if config.captions.suffix else "dataset.path",
            f"{_many(cut, many, many)} than the {limit} tokens that the text encoder reads; the end is cut "
            "off, unread. The Captions page shows where.",
        )


# Tags ------------------------------------------------------------------------------------------------


@rule
def separator_in_no_caption(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    mark = config.captions.separator
    if facts.captions and moves_any_tags(config) and not any(mark in one for one in facts.captions):
        commas = any("," in one for one in facts.captions)
        yield Finding(
            "warning",
            "captions.separator",
            f"No caption has a “{mark}”, so there are no tags that could be moved.",
            {"captions.separator": ","} if commas else None,
            "Use a comma" if commas else "",
        )


@rule
def sentences_are_shuffled(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """Told of the folders where it is shuffled."""
    shuffled = [(text, own) for text, own, _ in in_folders(config, facts) if own.shuffle]
    prose = sum(_is_prose(text, own.separator) for text, own in shuffled)
    if prose > len(shuffled) / 2:
        fix: dict[str, Any] = {"captions.shuffle": False} if config.captions.shuffle else {}
        if any(one.shuffle for one in config.dataset.subsets):
            fix["dataset.subsets"] = tuple(_unshuffled(one) for one in config.dataset.subsets)
        yield Finding(
            "warning",
            next(iter(fix)),
            f"{_many(prose, 'is a sentence', 'are sentences')}, which shuffling turns into nonsense; it is "
            "for lists of tags.",
            fix,
            "Do not shuffle",
        )


def _unshuffled(subset: Subset) -> str:
    return subset.model_copy(update={"shuffle": None}).line if subset.shuffle else subset.line


def _is_prose(caption: str, separator: str) -> bool:
    parts = [part.split() for part in caption.split(separator) if part.strip()]
    return len(parts) > 0 and sum(map(len, parts)) / len(parts) > PROSE_WORDS


@rule
def trigger_is_moved(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    settings = config.captions
    moving = [
        (split_tags(text if own.protect else joined(own.prefix, text, own.suffix), own), trigger)
        for text, own, trigger in in_folders(config, facts)
        if (own.shuffle or own.tag_dropout)
        and trigger
        and not (own.protect and has_trigger(f"{own.prefix} {own.suffix}", trigger))
    ]
    split = [parts for parts, _ in moving]
    places = [
        next((place for place, tag in enumerate(flexible, 1) if has_trigger(tag, trigger)), 0)
        for (_, flexible, _), trigger in moving
    ]
    moved = [place for place in places if place]
    lone = [not head and len(flexible) == 1 for head, flexible, _ in split]
    if not moved or all(lone):
        return
    keep = settings.keep_tokens + max(moved)
    own = any(one.keep_tokens is not None for one in config.dataset.subsets)
    fixes = keep <= 3 and not settings.keep_tokens_separator and not own
    what = "dropped now and then" if settings.tag_dropout else "shuffled along"
    yield Finding(
        "warning" if settings.tag_dropout else "hint",
        "captions.keep_tokens",
        f"In {_many(len(moved), 'the trigger is', 'the trigger is')} {what}; among the kept tags in front it "
        "binds best.",
        {"captions.keep_tokens": keep} if fixes else None,
        (f"Keep the first {keep} tags" if keep > 1 else "Keep the first tag") if fixes else "",
    )


@rule
def affixes_are_moved(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    """trigger_is_moved tells of those with the trigger in them."""
    settings = config.captions
    affixes = f"{settings.prefix} {settings.suffix}"
    if settings.protect or not (settings.shuffle or settings.tag_dropout) or not affixes.strip():
        return
    _, in_front, _ = split_tags(settings.prefix, settings)
    if settings.suffix or in_front:
        moved = "shuffled" if settings.shuffle else "dropped"
        yield Finding(
            "hint",
            "captions.protect",
            f"Prefix and suffix are {moved} like other tags, as in kohya's scripts; protected, they stay "
            "where they are.",
            {"captions.protect": True},
            "Protect them",
        )


@rule
def kept_tags_never_move(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.captions.keep_tokens and not moves_any_tags(config):
        yield Finding(
            "hint",
            "captions.keep_tokens",
            "No tags are shuffled, dropped or warmed up, so keeping the first ones changes nothing.",
            {"captions.keep_tokens": 0},
            "Keep none",
        )


@rule
def kept_twice(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    mark = config.captions.keep_tokens_separator
    if config.captions.keep_tokens and mark and facts.captions and all(mark in c for c in facts.captions):
        yield Finding(
            "hint",
            "captions.keep_tokens",
            f"Every caption has a “{mark}”, which says what is kept; the number of tags is ignored.",
            {"captions.keep_tokens": 0},
            "Keep none by number",
        )


@rule
def keep_separator_in_no_caption(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    mark = config.captions.keep_tokens_separator
    texts = (*facts.captions, config.captions.prefix, config.captions.suffix)
    if mark and facts.captions and not any(mark in text for text in texts):
        yield Finding(
            "warning",
            "captions.keep_tokens_separator",
            f"No caption has a “{mark}”, so it keeps no tag.",
            {"captions.keep_tokens_separator": ""},
            "Remove it",
        )


@rule
def secondary_separator_in_no_caption(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    mark = config.captions.secondary_separator
    texts = (*facts.captions, config.captions.prefix, config.captions.suffix)
    if mark and facts.captions and not any(mark in text for text in texts):
        yield Finding(
            "hint",
            "captions.secondary_separator",
            f"No caption has a “{mark}”.",
            {"captions.secondary_separator": ""},
            "Remove it",
        )


@rule
def separator_is_read(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    for name, mark in (("keep_tokens_separator", KEEP_MARK), ("secondary_separator", SECOND_MARK)):
        having = sum(mark in caption for caption in facts.captions)
        if having and not getattr(config.captions, name):
            yield Finding(
                "warning",
                f"captions.{name}",
                f"{_many(having, 'has', 'have')} a “{mark}”, which is learnt as if it were text.",
                {f"captions.{name}": mark},
                f"{mark} is a separator",
            )


@rule
def tags_are_mostly_missing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    settings = config.captions
    missing = 1 - (1 - settings.dropout) * (1 - settings.tag_dropout)
    if settings.tag_dropout and missing > 0.4:
        yield Finding(
            "warning",
            "captions.tag_dropout",
            f"With dropout of tags and of whole captions a tag is missing at {missing:.0%} of the looks; "
            "what it names is then learnt as the trigger.",
            {"captions.tag_dropout": 0.1, "captions.dropout": min(settings.dropout, 0.1)},
            "Use 10 %",
        )


@rule
def tag_warmup_long(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    steps = config.train.steps
    if config.captions.warmup_steps and warmup_steps(config) >= steps:
        yield Finding(
            "warning",
            "captions.warmup_steps",
            f"The tag warm-up takes {warmup_steps(config)} of {steps} steps, so whole captions are never "
            "shown.",
            {"captions.warmup_steps": 0.25},
            "A quarter of the run",
        )


# Wildcards and lines ---------------------------------------------------------------------------------


@rule
def wildcards_off(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    settings = config.captions
    having = sum(bool(CHOICE.search(text)) for text in (*facts.captions, settings.prefix, settings.suffix))
    if having and not settings.wildcards:
        yield Finding(
            "warning",
            "captions.wildcards",
            f"{_many(having, 'has', 'have')} choices like {{red|green}}, which are learnt as text while "
            "wildcards are off.",
            {"captions.wildcards": True},
            "Switch them on",
        )


@rule
def wildcards_in_no_caption(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    settings = config.captions
    texts = (*facts.captions, settings.prefix, settings.suffix)
    if settings.wildcards and facts.captions and not any("{" in one or "\n" in one for one in texts):
        yield Finding(
            "hint",
            "captions.wildcards",
            "No caption has a choice like {red|green}, or several lines.",
            {"captions.wildcards": False},
            "Switch them off",
        )


@rule
def several_lines(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    several = sum("\n" in caption.strip() for caption in facts.captions)
    if several and not config.captions.wildcards:
        yield Finding(
            "hint",
            "captions.wildcards",
            f"{_many(several, 'has', 'have')} several lines, which are read as one text. Kohya's trainer "
            "reads the first alone; with wildcards one is chosen at each look.",
            {"captions.wildcards": True},
            "Choose a line",
        )


# Prefix, dropout, variants ---------------------------------------------------------------------------


@rule
def trigger_twice(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    trigger, prefix = config.dataset.trigger, config.captions.prefix
    if not trigger or not has_trigger(prefix, trigger):
        return
    times = prefix.casefold().count(trigger.casefold())
    having = sum(has_trigger(caption, trigger) for caption in facts.captions)
    if times > 1:
        yield Finding(
            "warning",
            "captions.prefix",
            f"The prefix names the trigger “{trigger}” {times} times; once does.",
        )
    elif having:
        yield Finding(
            "warning",
            "captions.prefix",
            f"The prefix names the trigger “{trigger}”, and {_many(having, 'does', 'do')} too.",
            {"captions.prefix": ""},
            "No prefix",
        )


@rule
def prefix_of_one_concept(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    trigger, affixes = config.dataset.trigger, (config.captions.prefix, config.captions.suffix)
    others = [
        one
        for one in config.dataset.subsets
        if not one.regularisation and one.trigger and None in (one.prefix, one.suffix)
    ]
    if trigger and others and any(has_trigger(text, trigger) for text in affixes):
        yield Finding(
            "warning",
            "captions.prefix",
            f"Prefix and suffix are also put around the captions of {others[0].path}, whose trigger is "
            f"“{others[0].trigger}” and not “{trigger}”.",
            {"dataset.subsets": tuple(_own_affixes(config, trigger, one) for one in config.dataset.subsets)},
            "Give it its own",
        )


def _own_affixes(config: TrainConfig, trigger: str, subset: Subset) -> str:
    """The line of a subset with the recipe's prefix and suffix around its own trigger."""
    if subset.regularisation or not subset.trigger:
        return subset.line
    word = re.compile(re.escape(trigger), re.IGNORECASE)
    own = {
        name: word.sub(lambda _: subset.trigger, text) if given is None else given
        for name, given, text in (
            ("prefix", subset.prefix, config.captions.prefix),
            ("suffix", subset.suffix, config.captions.suffix),
        )
    }
    return subset.model_copy(update=own).line


@rule
def epochs_without_captions(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    every = config.captions.dropout_every_epochs
    if every == 1:
        yield Finding(
            "warning",
            "captions.dropout_every_epochs",
            "Every epoch is shown without captions, so no word is learnt, not even the trigger.",
            {"captions.dropout_every_epochs": 0},
            "Show captions",
        )
    elif every and facts.folders and (epochs := epochs_of(config, trained(config, facts.folders))) < every:
        yield Finding(
            "hint",
            "captions.dropout_every_epochs",
            f"The run has about {epochs:.0f} epochs, so there is none without captions.",
            {"captions.dropout_every_epochs": 0},
            "Remove it",
        )


@rule
def one_variant(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if variants_of(config) == 1:
        yield Finding(
            "warning",
            "captions.variants",
            "With one variant each caption is drawn once and then always the same.",
            {"captions.variants": USUAL_VARIANTS},
            f"Use {USUAL_VARIANTS}",
        )


@rule
def variants_change_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.captions.variants and not variants_of(config):
        still = "captions are encoded anew at every step" if varies(config) else "captions never vary"
        yield Finding(
            "hint",
            "captions.variants",
            f"The number of variants changes nothing, as {still}.",
            {"captions.variants": 0},
            "Remove it",
        )


@rule
def variants_by_length_of_run(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if not config.captions.variants and (variants := variants_of(config)):
        yield Finding(
            "hint",
            "captions.variants",
            f"The run takes {looks_of_run(config)} looks at pictures, too many to encode a caption for each: "
            f"{variants} variants of every caption are shown in turn.",
            {"captions.variants": variants},
            f"{variants} it is",
        )
