"""The folders that a recipe names, and what can be told of their pictures before a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_tools.buckets import Buckets
from dataset_tools.captions import missing_trigger
from dataset_tools.crop import shown_at
from dataset_tools.dataset import ImageRecord, Size
from dataset_tools.folder import Photos, load_photos
from trainer.contract.held_out import held_out
from trainer.contract.settings.dataset import NOTHING_OWN, DatasetSettings, OwnSettings, resolutions_of
from trainer.contract.settings.validation import ValidationSettings
from trainer.contract.steps import Folder


@dataclass(frozen=True)
class Concept:
    """One folder of a recipe; ``trigger`` is "" where the folder's own word is meant."""

    folder: Path
    trigger: str = ""
    repeats: int = 1
    regularisation: bool = False
    weight: float = 1.0
    own: OwnSettings = NOTHING_OWN
    held_share: float = 0.0
    """of the pictures, that are not trained on but measured on (:func:`trainer.contract.held_out.held_out`);
    1 for the folder of validation.path."""
    resolutions: tuple[int | None, ...] = ()
    """sides that its pictures are shown at, None for the base's own; empty for that of the buckets."""


def concepts_of(
    settings: DatasetSettings, validation: ValidationSettings, root: Path, beside: Path
) -> tuple[Concept, ...]:
    """The folder ``root`` that dataset.path names, then those of dataset.subsets and that of validation.path,
    looked up in ``beside``."""
    share = validation.held_share
    others = (
        Concept(
            (beside / Path(one.path).expanduser()).resolve(),
            one.trigger,
            one.repeats,
            one.regularisation,
            one.weight,
            one.own,
            0.0 if one.regularisation else share,
            resolutions_of(settings, one),
        )
        for one in settings.subsets
    )
    sides = resolutions_of(settings)
    own = Concept(root, settings.trigger, settings.repeats, held_share=share, resolutions=sides)
    if not (validation.measures and validation.path):
        return (own, *others)
    measured = (beside / Path(validation.path).expanduser()).resolve()
    return (own, *others, Concept(measured, settings.trigger, held_share=1.0, resolutions=sides))


@dataclass(frozen=True)
class Survey:
    """What the linter and the steps calculator want to know of the pictures, and notes for the user.

    Attributes:
        facts: arguments of :class:`trainer.contract.findings.Facts`.
    """

    facts: dict[str, Any]
    notes: tuple[str, ...]


def survey(
    concepts: Sequence[Concept],
    buckets: Buckets,
    load: Callable[[Path], Photos] = load_photos,
    drawn: Sequence[Folder] = (),
) -> Survey:
    """Look through the folders; those ``drawn`` are counted already. Raises DatasetError for one that is not
    there or holds nothing."""
    folders, notes, faces, measured = list[Folder](), list[str](), 0, 0
    missing, texts, places, leaking, masks, first = 0, list[str](), list[int](), 0, 0, ""
    for number, concept in enumerate(concepts):
        photos = load(concept.folder)
        notes += photos.notes
        records = photos.dataset.enabled_images()
        chosen = held_out([one.sha256 for one in records], concept.held_share)
        measured += sum(one.sha256 in chosen for one in records)
        records = tuple(one for one in records if one.sha256 not in chosen)
        if concept.held_share == 1:
            continue
        trigger = concept.trigger or photos.dataset.trigger
        if not number:
            first = trigger
        elif not concept.regularisation:
            trigger = trigger or first
        several = buckets.at(concept.resolutions)
        shown = tuple(look for one in records for look in expected_looks(one, several))
        name = trigger or concept.folder.name
        folders.append(Folder(name, shown, concept.regularisation, len(records)))
        captions = {one.id: photos.captions[one.id] or trigger for one in records}
        if concept.regularisation:
            leaking += len(captions) - len(missing_trigger(captions, first)) if first else 0
        else:
            whole = {
                name: f"{concept.own.prefix or ''} {text} {concept.own.suffix or ''}"
                for name, text in captions.items()
            }
            missing += len(missing_trigger(whole, trigger))
            texts += captions.values()
            places += [number] * len(captions)
            masks += len(photos.masks.keys() & captions.keys())
            faces += sum(one.shows_face for one in records)
    facts = {
        "images": len(texts),
        "held_out": measured,
        "masks": masks,
        "captions_missing_trigger": missing,
        "distinct_captions": len(set(texts)),
        "captions": tuple(texts),
        "caption_folders": tuple(places),
        "faces": faces,
        "class_captions_with_trigger": leaking,
        "folders": (*folders, *drawn),
    }
    return Survey(facts, tuple(notes))


def expected_looks(record: ImageRecord, several: Sequence[Buckets]) -> tuple[tuple[Size, int], ...]:
    """(bucket, looks an epoch) of a picture as it will be trained; of one that is not cropped yet, by its
    shape alone."""
    if record.crop is None:
        whole = (0, 0, record.width, record.height)
        record = record.model_copy(update={"crop": whole, "bucket": None})
    return tuple((bucket, record.repeats * times) for bucket, _, times in shown_at(record, several))
