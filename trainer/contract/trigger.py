"""The trigger in a text: whole words, in whatever case, for "art" is not in "party"."""

from __future__ import annotations

import re


def has_trigger(text: str, trigger: str) -> bool:
    """Whether a text has the trigger; the empty one is in none."""
    return bool(trigger) and bool(_words(trigger).search(text))


def without_trigger(text: str, trigger: str, instead: str) -> str:
    """The text with something else wherever the trigger was.

    >>> without_trigger("Zwx cat on a sofa", "zwx cat", "cat")
    'cat on a sofa'
    """
    return _words(trigger).sub(lambda match: instead, text) if trigger else text


def _words(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
