"""Bulk changes to captions.

Every editing function takes captions as {image id: text} and returns only those that it changes, so
that a page can show "17 changes" before it applies them. Words are matched whole: "cat" is not found
in "category". Tags are the parts of a caption between commas.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from dataset_tools.dataset import Dataset, DatasetError, read_caption, write_caption
from trainer.contract.errors import UserError

Captions = Mapping[str, str]
"""image id -> caption."""


class CaptionError(UserError):
    """A bulk change cannot be made."""


def add_prefix(captions: Captions, prefix: str) -> dict[str, str]:
    """Put ``prefix`` before every caption that does not begin with it already."""
    prefix = prefix.strip()

    def edit(text: str) -> str:
        return text if _starts_with(text, prefix) else f"{prefix} {text}".strip()

    return _changes(captions, edit)


def add_suffix(captions: Captions, suffix: str) -> dict[str, str]:
    """Put ``suffix`` after every caption that does not end with it already.

    A suffix that begins with punctuation (", outdoors") joins without a space.
    """
    suffix = suffix.strip()
    glue = "" if suffix[:1] in tuple(",.;:!?") else " "

    def edit(text: str) -> str:
        if not text:
            return suffix.lstrip(",.;:!? ")
        return text if _ends_with(text, suffix) else f"{text}{glue}{suffix}"

    return _changes(captions, edit)


def find_replace(
    captions: Captions,
    find: str,
    replace: str,
    *,
    regex: bool = False,
    ignore_case: bool = False,
    whole_words: bool = True,
) -> dict[str, str]:
    """Replace ``find`` by ``replace``; with ``regex`` both follow Python's ``re.sub``.

    Raises :class:`CaptionError` for a regular expression, or its replacement, that is not valid.
    """
    if not find:
        return {}
    flags = re.IGNORECASE if ignore_case else 0
    if regex:
        try:
            pattern = re.compile(find, flags)
        except re.error as error:
            raise CaptionError(
                f"{find!r} is not a regular expression ({error}); correct it, or switch regex off."
            ) from error
    else:
        pattern = re.compile(_whole(find) if whole_words else re.escape(find), flags)
    template: str | Callable[[re.Match[str]], str] = replace if regex else lambda match: replace
    try:
        return _changes(captions, lambda text: pattern.sub(template, text))
    except (re.error, IndexError) as error:
        raise CaptionError(
            f"The replacement {replace!r} does not fit the expression ({error}); correct its groups."
        ) from error


def remove_tag(captions: Captions, tag: str) -> dict[str, str]:
    """Take a tag out of every caption that has it between commas; capitals do not matter."""
    unwanted = _normal(tag)

    def edit(text: str) -> str:
        tags = split_tags(text)
        kept = [t for t in tags if _normal(t) != unwanted]
        return text if len(kept) == len(tags) else ", ".join(kept)

    return _changes(captions, edit)


def insert_trigger(captions: Captions, trigger: str) -> dict[str, str]:
    """Put the trigger in front of every caption that lacks it; an empty caption becomes the trigger."""
    trigger = trigger.strip()
    missing = set(missing_trigger(captions, trigger))
    return {
        key: f"{trigger}, {text}" if text.strip() else trigger
        for key, text in captions.items()
        if key in missing
    }


def missing_trigger(captions: Captions, trigger: str) -> list[str]:
    """The ids whose captions do not contain the trigger as whole words, in their order.

    Capitals and the width of spaces do not matter. An empty trigger is missing nowhere.
    """
    words = trigger.split()
    if not words:
        return []
    pattern = re.compile(_whole(" ".join(words)).replace(r"\ ", r"\s+"), re.IGNORECASE)
    return [key for key, text in captions.items() if not pattern.search(text)]


def tag_frequency(captions: Captions) -> list[tuple[str, int]]:
    """(tag, in how many captions), the most frequent first; capitals do not matter."""
    counts: Counter[str] = Counter()
    for text in captions.values():
        counts.update({_normal(tag) for tag in split_tags(text)})
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def split_tags(text: str) -> list[str]:
    """The parts between commas, stripped, without empty ones."""
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def read_captions(root: Path, dataset: Dataset) -> dict[str, str]:
    """The captions of all pictures, in the dataset's order; "" where there is none."""
    return {record.id: read_caption(root, record) for record in dataset.images}


def apply_captions(root: Path, dataset: Dataset, changes: Captions) -> dict[str, str]:
    """Write changed captions and return the texts that they replace.

    Applying the returned captions undoes the change. Should a write fail, those already written are
    put back. Raises :class:`DatasetError`.
    """
    previous: dict[str, str] = {}
    try:
        for image_id, text in changes.items():
            record = dataset.get(image_id)
            previous[image_id] = read_caption(root, record)
            write_caption(root, record, text)
    except OSError as error:
        for image_id, text in previous.items():
            if read_caption(root, dataset.get(image_id)) != text:
                write_caption(root, dataset.get(image_id), text)
        raise DatasetError(
            f"The captions in {root} cannot be written ({error.strerror or error}); free some space or check "
            "its permissions. Nothing was changed."
        ) from error
    return previous


def _changes(captions: Captions, edit: Callable[[str], str]) -> dict[str, str]:
    edited = {key: edit(text) for key, text in captions.items()}
    return {key: text for key, text in edited.items() if text != captions[key]}


def _whole(words: str) -> str:
    """A pattern for these words, not as part of longer ones."""
    start = r"(?<!\w)" if re.match(r"\w", words) else ""
    end = r"(?!\w)" if re.search(r"\w$", words) else ""
    return f"{start}{re.escape(words)}{end}"


def _starts_with(text: str, prefix: str) -> bool:
    return re.match(_whole(prefix), text) is not None


def _ends_with(text: str, suffix: str) -> bool:
    return re.search(f"{_whole(suffix)}$", text) is not None


def _normal(tag: str) -> str:
    return " ".join(tag.lower().split())
