"""From the text of a caption file to what one look at a picture is captioned with.

The order is that of kohya's trainer (sd-scripts): prefix and suffix, dropout, wildcards, tags, secondary
separator. What it does not take over:

- No separator ever reaches a tokenizer, also where nothing is shuffled: tags are joined with ", ".
- Prefix and suffix stay outside of the shuffle (``captions.protect``), go around the line that a wildcard
  chose instead of into the text that it is chosen from, and are joined with one space.
- Empty tags are left out, so that they are not counted among the kept ones.
- Without wildcards a caption of several lines is read whole, not its first line alone.

Everything is a pure function of the look: the trainer and a preview draw the same. Only
``Random.random()`` is used of Python's generators, whose numbers no version of Python changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from random import Random
from typing import TypeVar

from .config import TrainConfig
from .randomness import derived_seed
from .settings.captions import CaptionSettings
from .settings.dataset import NOTHING_OWN, OwnSettings

FREE_LOOKS = 2000
"""A run of at most so many looks at pictures encodes a caption for each of them beforehand."""
USUAL_VARIANTS = 10
"""Captions of each picture in a longer run that does not say how many (``captions.variants``)."""
COMMA = ", "
_PUNCTUATION = tuple(",.;:!?")
_OPEN, _CLOSE = "\x00", "\x01"

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """One showing of one picture.

    ``epoch`` counts from 0, ``repeat`` within it from 0 to ``repeats``; ``step`` is how many updates the
    LoRA has had. ``own`` is what the picture's folder says instead of the recipe.
    """

    seed: int
    image_id: str
    epoch: int = 0
    repeat: int = 0
    repeats: int = 1
    step: int = 0
    regularisation: bool = False
    own: OwnSettings = NOTHING_OWN

    @property
    def number(self) -> int:
        """How many looks at the picture came before."""
        return self.epoch * self.repeats + self.repeat


@dataclass(frozen=True)
class Stages:
    """A caption after each stage; the last is what the text encoders get."""

    file: str
    affixes: str
    dropout: str
    wildcards: str
    tags: str
    caption: str

    def titled(self) -> list[tuple[str, str]]:
        return list(zip(TITLES, astuple(self), strict=True))


TITLES = ("File", "Prefix and suffix", "Dropout", "Wildcards", "Tags", "Secondary separator")
"""What the stages are called."""


def captions_of_folders(config: TrainConfig) -> list[CaptionSettings]:
    """[captions] as it holds for each folder of the recipe, that of dataset.path first."""
    subsets = config.dataset.subsets
    return [config.captions, *(one.captions(config.captions, one.regularisation) for one in subsets)]


def varies(config: TrainConfig) -> bool:
    """Whether looks at a picture can have different captions, dropout aside."""
    return config.captions.wildcards or moves_any_tags(config)


def moves_any_tags(config: TrainConfig) -> bool:
    return any(map(moves_tags, captions_of_folders(config)))


def moves_tags(settings: CaptionSettings) -> bool:
    return settings.shuffle or settings.tag_dropout > 0 or settings.warmup_steps > 0


def looks_of_run(config: TrainConfig) -> int:
    """At most so many looks at pictures does a run take."""
    return config.train.steps * config.train.gradient_accumulation * config.train.batch_size


def variants_of(config: TrainConfig) -> int:
    """How many captions each picture is shown with in turn; 0 where every look has its own.

    Text encoders that are trained encode anew at every step, so that nothing limits them.
    """
    if config.text_encoder_rates() or not varies(config):
        return 0
    if config.captions.variants:
        return config.captions.variants
    return 0 if looks_of_run(config) <= FREE_LOOKS else USUAL_VARIANTS


def encoded_captions(config: TrainConfig, images: int) -> int:
    """About so many captions of pictures are encoded beforehand, the shorter ones of a warm-up aside."""
    variants = variants_of(config)
    if not varies(config):
        return images
    return images * variants if variants else looks_of_run(config)


def warmup_steps(config: TrainConfig) -> int:
    """Updates of the tag warm-up."""
    given = config.captions.warmup_steps
    return int(given * config.train.steps if given < 1 else given)


def draw_of(config: TrainConfig, look: Look) -> int:
    """The number of the draw that a look shows: its own, or one of the variants.

    Of these each has a part of the warm-up for itself, as it has several lengths there; in turn, every
    variant would be encoded at every length.
    """
    variants, warmup = variants_of(config), warmup_steps(config)
    if not variants:
        return look.number
    return look.step * variants // warmup if look.step < warmup else look.number % variants


def stages(text: str, config: TrainConfig, look: Look, *, dropout: bool = True) -> Stages:
    """All stages of a caption at one look; without ``dropout`` as if it were never dropped whole."""
    settings = look.own.captions(config.captions, look.regularisation)
    prefix, suffix = settings.prefix, settings.suffix
    affixes = joined(prefix, text, suffix)
    if dropout and is_dropped(settings, look):
        return Stages(text, affixes, "", "", "", "")
    number, warmup = draw_of(config, look), warmup_steps(config)

    def chance(purpose: str) -> Random:
        return Random(derived_seed(look.seed, look.image_id, number, purpose))

    body = text
    if settings.wildcards:
        body = chosen(_lines(text), chance("line")) or ""
        random = chance("wildcards")
        prefix, body, suffix = (expanded(part, random) for part in (prefix, body, suffix))
    wildcards = joined(prefix, body, suffix)
    if not settings.protect:
        prefix, body, suffix = "", wildcards, ""
    if moves_tags(settings) or _is_marked(body, settings):
        head, flexible, tail = split_tags(body, settings)
        flexible = flexible[: warmed(len(flexible), look.step, warmup, settings.warmup_min)]
        if settings.shuffle:
            flexible = shuffled(flexible, chance("shuffle"))
        random = chance("tag dropout")
        flexible = [tag for tag in flexible if random.random() >= settings.tag_dropout]
        body = COMMA.join((*head, *flexible, *tail))
    prefix, suffix = (_unmarked(part, settings) for part in (prefix, suffix))
    tags = joined(prefix, body, suffix)
    caption = tags
    if mark := settings.secondary_separator:
        caption = COMMA.join(part for part in map(str.strip, tags.split(mark)) if part)
    return Stages(text, affixes, affixes, wildcards, tags, caption)


# The stages, each by itself -----------------------------------------------------------------------------


def joined(prefix: str, body: str, suffix: str) -> str:
    """With one space between; none before punctuation that the suffix begins with.

    >>> joined("photo of zwx,", "red hat", ", outdoors")
    'photo of zwx, red hat, outdoors'
    """
    if not body:
        prefix, suffix = prefix.rstrip(COMMA), suffix.lstrip(COMMA)
    text = " ".join(part for part in (prefix, body) if part)
    glue = " " if text and suffix and not suffix.startswith(_PUNCTUATION) else ""
    return f"{text}{glue}{suffix}"


def is_dropped(settings: CaptionSettings, look: Look) -> bool:
    """Whether a look has no caption. Epochs are counted from 1 for ``dropout_every_epochs``."""
    every = settings.dropout_every_epochs
    if every and (look.epoch + 1) % every == 0:
        return True
    seed = derived_seed(look.seed, look.epoch, look.image_id, look.repeat, "caption")
    return Random(seed).random() < settings.dropout


def expanded(text: str, random: Random) -> str:
    """Every {a|b|c} replaced by one of its choices, {{ and }} by braces. Not nested, as in kohya's."""
    hidden = text.replace("{{", _OPEN).replace("}}", _CLOSE)
    done = re.sub(r"\{([^}]+)\}", lambda match: chosen(match[1].split("|"), random) or "", hidden)
    return done.replace(_OPEN, "{").replace(_CLOSE, "}")


def split_tags(text: str, settings: CaptionSettings) -> tuple[list[str], list[str], list[str]]:
    """(tags kept at the beginning, tags that may move, tags kept at the end).

    ``keep_tokens_separator``, where it is in the text, goes before ``keep_tokens``.
    """
    mark = settings.keep_tokens_separator
    if mark and mark in text:
        head, _, rest = text.partition(mark)
        flexible, _, tail = rest.partition(mark)
        tail = tail.replace(mark, settings.separator)
        return _tags(head, settings), _tags(flexible, settings), _tags(tail, settings)
    tags = _tags(text, settings)
    return tags[: settings.keep_tokens], tags[settings.keep_tokens :], []


def warmed(tags: int, step: int, warmup: int, least: int) -> int:
    """How many of the tags are shown at a step of a warm-up of so many steps.

    >>> [warmed(5, step, 4, 1) for step in range(6)]
    [1, 2, 3, 4, 5, 5]
    """
    return tags if step >= warmup else max(0, step * (tags - least) // warmup + least)


def shuffled(items: Sequence[T], random: Random) -> list[T]:
    keys = [random.random() for _ in items]
    return [items[number] for number in sorted(range(len(items)), key=keys.__getitem__)]


def chosen(items: Sequence[T], random: Random) -> T | None:
    """One of the items, None of none."""
    number = int(random.random() * len(items))
    return items[number] if items else None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _tags(text: str, settings: CaptionSettings) -> list[str]:
    return [" ".join(tag.split()) for tag in text.split(settings.separator) if tag.strip()]


def _is_marked(text: str, settings: CaptionSettings) -> bool:
    """Whether the text holds a separator that no tokenizer should see."""
    marks = [mark for mark in (settings.separator, settings.keep_tokens_separator) if mark not in ("", ",")]
    return any(mark in text for mark in marks)


def _unmarked(text: str, settings: CaptionSettings) -> str:
    if not _is_marked(text, settings):
        return text
    return COMMA.join(tag for part in split_tags(text, settings) for tag in part)
