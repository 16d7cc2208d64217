"""A plain folder of pictures, as other trainers use it: read in place, nothing is written.

Taken are the pictures in the folder itself and in subfolders named like ``10_zwx dog``, kohya's way of
giving repeats and a caption. Masks are found by their names and in folders called ``masks``. Other subfolders
are left out, as they often hold rejects or the samples of a run; what is left out is told, never passed over
in silence.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataset_tools.captions import read_captions
from dataset_tools.dataset import (
    DATASET_FILE,
    Dataset,
    DatasetError,
    ImageRecord,
    guessed_notes,
    listed,
    load_dataset,
    read_caption_file,
)
from dataset_tools.images import ImageError, probe_image
from dataset_tools.masks import FOLDERS, is_transparent, mask_path, pair_masks
from dataset_tools.sources import (
    Entry,
    Skipped,
    class_folder,
    disk_entry,
    ignored,
    pair_captions,
    printable,
)

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".heic",
    ".heif",
    ".avif",
)


@dataclass(frozen=True)
class Photos:
    """Pictures to train on, of a project or of a plain folder."""

    dataset: Dataset
    captions: dict[str, str]
    """image id -> caption, "" where there is none."""
    notes: tuple[str, ...] = ()
    """sentences on what was left out or guessed."""
    masks: Mapping[str, str] = field(default_factory=dict)
    """image id -> file of its mask, seen from the folder; the picture's own where it is transparent."""


def load_photos(root: Path) -> Photos:
    """The pictures of a project folder, or of a plain one."""
    if not (root / DATASET_FILE).exists():
        return scan_folder(root)
    dataset = load_dataset(root)
    paths = {record.id: mask_path(root, record.id) for record in dataset.images}
    masks = {key: path.relative_to(root).as_posix() for key, path in paths.items() if path.exists()}
    return Photos(dataset, read_captions(root, dataset), masks=masks)


def scan_folder(folder: Path) -> Photos:
    """The pictures of a plain folder with their captions, sorted by name, each decoded once.

    Raises :class:`DatasetError` when there is none, and :class:`~dataset_tools.images.ImageError` with
    their names when some cannot be used.
    """
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist; check the path of the dataset.")
    try:
        entries, elsewhere = _entries(folder)
    except OSError as error:
        raise DatasetError(
            f"{error.filename} cannot be read ({error.strerror}); check its permissions."
        ) from error
    paired = pair_masks(entry for entry in entries if not entry.is_caption)
    pictures = paired.photos
    if not pictures:
        raise DatasetError(_nothing(folder, elsewhere))
    alone: list[Skipped] = []
    pairs = pair_captions(pictures, (entry for entry in entries if entry.is_caption), alone.append)
    records, captions, problems, guesses, masks = [], {}, [], {}, {}
    for picture in pictures:
        try:
            record = _record(folder, picture)
            caption, guess = _caption(pairs[picture]) if picture in pairs else ("", None)
            if picture in paired.masks:
                masks[record.id] = _file(paired.masks[picture]).relative_to(folder).as_posix()
            elif is_transparent(_file(picture)):
                masks[record.id] = record.file
        except ImageError as error:
            problems.append(str(error))
            continue
        records.append(record)
        captions[record.id] = caption or picture.class_caption
        if picture in pairs:
            guesses[printable(pairs[picture].name)] = guess
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ImageError(
            f"{len(problems)} of {len(pictures)} pictures cannot be used: {' '.join(problems[:3])}{more}"
        )
    notes = [_left_out(elsewhere)] if elsewhere else []
    if alone:
        names = listed([skipped.name for skipped in alone])
        notes.append(f"no picture takes the caption file{'s' * (len(alone) > 1)} {names}; check the names")
    if others := [printable(entry.name) for entry in (*paired.alone, *paired.spare)]:
        notes.append(f"no picture takes the mask{'s' * (len(others) > 1)} {listed(others)}; check the names")
    notes += guessed_notes(guesses.items())
    return Photos(Dataset(images=tuple(records)), captions, tuple(notes), masks)


def _entries(folder: Path) -> tuple[list[Entry], Counter[str]]:
    """(pictures and captions to take, how many pictures lie in each subfolder that is not taken)."""
    groups, elsewhere = [(folder, "")], Counter[str]()
    for path in _subfolders(folder):
        if class_folder(path.name):
            groups.append((path, path.name))
            for below in _subfolders(path):
                if _is_masks(below, path):
                    groups.append((below, below.name))
                else:
                    elsewhere[f"{path.name}/{below.name}"] = _count(below)
        elif _is_masks(path, folder):
            groups.append((path, path.name))
        else:
            elsewhere[path.name] = _count(path)
    entries = [
        disk_entry(path, group=str(group), folder=name)
        for group, name in groups
        for path in sorted(group.iterdir())
        if not ignored(path.name) and not path.is_dir()
    ]
    return [entry for entry in entries if entry.is_caption or _is_picture(entry.name)], +elsewhere


def _is_masks(path: Path, beside: Path) -> bool:
    """Whether a folder holds masks of the photos beside it."""
    return path.name.casefold() in FOLDERS and any(_is_picture(photo.name) for photo in beside.iterdir())


def _subfolders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_dir() and not ignored(path.name))


def _count(folder: Path) -> int:
    """How many pictures lie in a folder, at any depth."""
    return sum(_is_picture(name) for _, _, files in os.walk(folder) for name in files)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not ignored(name)


def _record(folder: Path, entry: Entry) -> ImageRecord:
    path = _file(entry)
    name = path.relative_to(folder).as_posix()
    width, height = probe_image(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageRecord(
        id=hashlib.sha256(f"{sha256} {name}".encode()).hexdigest()[:12],
        file=name,
        original_name=printable(entry.name),
        sha256=sha256,
        width=width,
        height=height,
        repeats=entry.repeats,
    )


def _caption(entry: Entry) -> tuple[str, str | None]:
    try:
        return read_caption_file(_file(entry))
    except OSError as error:
        raise ImageError(
            f"{printable(entry.name)} cannot be read ({error.strerror}); check its permissions."
        ) from error


def _file(entry: Entry) -> Path:
    """The path of an entry that can be opened, and whose name dataset.json can hold."""
    assert entry.path
    shown = printable(entry.name)
    try:
        odd = "\\" in f"{entry.folder}/{entry.name}".encode().decode()
    except UnicodeEncodeError:  # the file system holds bytes that are no text
        odd = True
    if odd:
        raise ImageError(f"{shown} has an odd name; rename it with letters, digits and dashes.")
    if not entry.path.is_file():
        raise ImageError(f"{shown} is no file, or a link that leads nowhere; take it away.")
    return entry.path


def _in_words(elsewhere: Counter[str]) -> str:
    return listed([f"{printable(name)}: {count}" for name, count in sorted(elsewhere.items())])


def _nothing(folder: Path, elsewhere: Counter[str]) -> str:
    if elsewhere:
        return (
            f"{folder} holds no pictures itself, but there are some in its subfolders "
            f"({_in_words(elsewhere)}); {_remedy(elsewhere)}."
        )
    return (
        f"{folder} holds no pictures; put PNG, JPEG or WebP files into it, or into folders named like "
        "10_zwx dog."
    )


def _left_out(elsewhere: Counter[str]) -> str:
    total = elsewhere.total()
    return (
        f"{total} picture{'s' * (total > 1)} in subfolders {'were' if total > 1 else 'was'} left out "
        f"({_in_words(elsewhere)}); to train on them, {_remedy(elsewhere)}"
    )


def _remedy(elsewhere: Counter[str]) -> str:
    beside = [name for name in sorted(elsewhere) if "/" not in name]
    if not beside:
        return "move them up"
    return f"rename the subfolders like 1_{printable(beside[0])} (repeats, caption)"
