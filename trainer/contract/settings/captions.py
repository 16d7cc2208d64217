"""[captions]: how a caption becomes what a sample is shown with."""

from __future__ import annotations

from .section import Section, setting


class CaptionSettings(Section):
    """What happens to captions before they are encoded, in this order: prefix and suffix, dropout,
    wildcards, tags (warm-up, shuffle, tag dropout), secondary separator. The Captions page and
    `python -m trainer check RECIPE.toml --captions 3` show it for every photo."""

    prefix: str = setting("", label="Prefix", max_length=500)
    """Put before every caption, such as "photo of zwx cat,"; not before those of regularisation sets."""
    suffix: str = setting("", label="Suffix", max_length=500)
    """Put after every caption; not after those of regularisation sets."""
    protect: bool = setting(True, label="Protect prefix and suffix")
    """Keep prefix and suffix where they are while tags are shuffled and dropped. Off, they are tags like
    the others, as in kohya's trainer."""
    dropout: float = setting(0.0, label="Caption dropout", ge=0, le=1)
    """Share of the pictures shown with an empty caption. 0.05-0.1 keeps guidance working and lowers
    the drift of prompts without the trigger."""
    dropout_every_epochs: int = setting(0, label="Whole epochs without", unit="epochs", ge=0, le=100_000)
    """Every so many epochs are shown without any caption; 0 for none. 4 drops the captions of the fourth,
    the eighth and so on."""
    wildcards: bool = setting(False, label="Wildcards")
    """Choose one of {red|green|blue} anew at each look, and of a caption with several lines one line.
    {{ and }} stand for braces. Off, braces stay as they are and all lines are read as one text."""
    shuffle: bool = setting(False, label="Shuffle tags")
    """Put the tags of a caption in another order at each look, so that none is bound to its place. For
    lists of tags; sentences become nonsense."""
    separator: str = setting(",", label="Separator", min_length=1, max_length=20)
    """What stands between tags. They are put together again with a comma, whatever it is."""
    keep_tokens: int = setting(0, label="Keep first tags", unit="tags", ge=0, le=100)
    """So many tags at the beginning, such as the trigger, are neither shuffled nor dropped. A protected
    prefix does not count."""
    keep_tokens_separator: str = setting("", label="Separator of kept tags", max_length=20)
    """Text such as ||| within a caption: the tags before it are kept, and where it comes twice also those
    after the second. It goes before "Keep first tags", and is never read itself."""
    secondary_separator: str = setting("", label="Secondary separator", max_length=20)
    """Text such as ;;; between tags that stay together while the others are shuffled; it becomes a comma
    at the end."""
    tag_dropout: float = setting(0.0, label="Tag dropout", ge=0, le=1)
    """Share of the tags that are left out at each look; kept ones stay. 0.05-0.2 loosens what always
    comes together."""
    warmup_min: int = setting(1, label="Tags at first", unit="tags", ge=0, le=1000)
    """How many tags, beside the kept ones, are shown at the first step of the tag warm-up."""
    warmup_steps: float = setting(0.0, label="Tag warm-up", ge=0, le=1_000_000)
    """Over this time captions grow from their first tags to the whole list: a share of the run below 1,
    steps from 1; 0 shows all from the beginning."""
    variants: int = setting(0, label="Variants", ge=0, le=10_000)
    """How many captions of each picture are drawn and encoded beforehand, then shown in turn. With 0 every
    look has its own as long as the run has no more than 2000 looks, and otherwise a picture has 10. More
    variants take longer to prepare, and disk. A tag warm-up shows them one after the other. Without effect
    where text encoders are trained, as captions are then encoded anew at every step."""
