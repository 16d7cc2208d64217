"""Taking photos into a project: decoded, upright, sRGB, without metadata, each with its caption and mask.

What is wrong with one file is told in one sentence and the others go in. Nothing that the project
already holds is changed, and ``dataset.json`` is replaced after every few photos, so that a crash
loses at most the batch in hand.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dataset_tools.dataset import (
    Dataset,
    DatasetError,
    ImageRecord,
    Size,
    caption_path,
    decode_caption,
    guessed_notes,
    load_dataset,
    project_lock,
    read_caption,
    remove_caption,
    save_dataset,
    write_caption,
)
from dataset_tools.images import ImageError, encode_mask, encode_png, open_image
from dataset_tools.masks import mask_of, mask_path, names_of, open_mask, pair_masks, remove_masks
from dataset_tools.sources import (
    ArchiveAborted,
    Entry,
    EntryError,
    Skipped,
    pair_captions,
    printable,
    walk_sources,
)
from trainer.contract.errors import UserError
from trainer.contract.files import write_bytes

MAX_IMAGES = 2000
BATCH_IMAGES = 16
BATCH_BYTES = 64_000_000


@dataclass(frozen=True)
class IngestReport:
    """What came of an ingest."""

    added: tuple[str, ...]
    """ids of the new pictures."""
    skipped: tuple[Skipped, ...]
    captions: int
    """how many of the new pictures got a caption."""
    notes: tuple[str, ...]
    """what was changed on the way, counted: "GPS position removed (14 photos)"."""
    masks: int = 0
    """how many pictures got a mask, from a file or from their transparency."""

    def summary(self) -> str:
        """One line: "23 added · 2 skipped · 20 captions · GPS position removed (14 photos)"."""
        parts = [f"{len(self.added)} added"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
        if self.captions:
            parts.append(f"{self.captions} captions")
        if self.masks:
            parts.append(f"{self.masks} masks")
        return " · ".join([*parts, *self.notes])


@dataclass
class _Prepared:
    """A decoded picture that waits to be written."""

    record: ImageRecord
    png: bytes
    caption: str
    mask: bytes | None
    """PNG, as large as the picture."""
    original: tuple[str, bytes] | None
    """(suffix, bytes) of the file as it came."""


@dataclass
class _Ingest:
    """The state of one ingest."""

    project_dir: Path
    keep_originals: bool
    added: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    caption_notes: list[str] = field(default_factory=list)
    captions: int = 0
    masks: int = 0
    batch: list[_Prepared] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(printable(name), reason))

    def prepare(self, entry: Entry, caption: str, mask_entry: Entry | None, work: Path) -> None:
        """Decode one picture into the batch. Its mask is that of a file, or its own transparency."""
        copy = work / "entry"
        try:
            if entry.path is None or self.keep_originals:
                entry.copy_to(copy)
            source = copy if copy.exists() else entry.path
            assert source is not None
            opened = open_image(source, printable(entry.name))
            original = (
                (PurePosixPath(entry.name).suffix.lower(), copy.read_bytes()) if self.keep_originals else None
            )
        finally:
            copy.unlink(missing_ok=True)
        self.notes.update(opened.notes)
        width, height = opened.image.size
        png = encode_png(opened.image)
        mask = encode_mask(opened.alpha) if opened.alpha else None
        if mask_entry:
            mask = self.read_mask(mask_entry, (width, height), work) or mask
        image_id = hashlib.sha256(f"{width}x{height} ".encode() + opened.image.tobytes()).hexdigest()[:12]
        record = ImageRecord(
            id=image_id,
            file=f"images/{image_id}.png",
            original_name=printable(entry.name),
            sha256=hashlib.sha256(png).hexdigest(),
            width=width,
            height=height,
            repeats=entry.repeats,
        )
        self.batch.append(_Prepared(record, png, caption, mask, original))

    def read_mask(self, entry: Entry, size: Size, work: Path) -> bytes | None:
        """The mask in a file; None where it cannot be used, which is told. Its photo is taken in anyway."""
        copy = work / "mask"
        try:
            entry.copy_to(copy)
            return encode_mask(open_mask(copy, size, printable(entry.name)))
        except (ImageError, EntryError) as error:
            self.skip(entry.name, str(error))
            return None
        finally:
            copy.unlink(missing_ok=True)

    def mask_of(self, record: ImageRecord) -> bytes | None:
        path = mask_path(self.project_dir, record.id)
        return path.read_bytes() if path.exists() else None

    def add_masks(self, entries: Sequence[Entry], work: Path) -> None:
        """Masks that come without a photo, for photos that are in the project already."""
        there = names_of(load_dataset(self.project_dir).images) if entries else {}
        for entry in entries:
            shown = printable(entry.name)
            named = next((there[name] for _, name in mask_of(entry) if name in there), [])
            if not named:
                self.skip(entry.name, f"{shown} is the mask of no photo here; name it like its photo.")
                continue
            if len(named) > 1:
                self.skip(entry.name, f"{shown} could be the mask of {len(named)} photos; rename them apart.")
                continue
            record = named[0]
            try:
                mask = self.read_mask(entry, (record.width, record.height), work)
            except ArchiveAborted as error:
                self.skip(entry.name, str(error))
                continue
            with project_lock(self.project_dir):
                if mask and record in load_dataset(self.project_dir).images:  # not deleted meanwhile
                    write_bytes(mask_path(self.project_dir, record.id), mask)
                    self.masks += 1

    def batch_is_full(self) -> bool:
        return len(self.batch) >= BATCH_IMAGES or sum(len(p.png) for p in self.batch) >= BATCH_BYTES

    def commit(self) -> None:
        """Write the batch and enter it into dataset.json, under the project's lock."""
        batch, self.batch = self.batch, []
        if not batch:
            return
        with project_lock(self.project_dir):
            dataset = load_dataset(self.project_dir)
            new, captions, masks = self._choose_new(batch, dataset)
            written: list[tuple[str, Path]] = []
            try:
                for prepared in new:
                    self._write(prepared, written)
                for image_id, caption in captions.items():
                    write_caption(self.project_dir, dataset.get(image_id), caption)
                for image_id, mask in masks.items():
                    write_bytes(mask_path(self.project_dir, image_id), mask)
                if new:
                    images = (*dataset.images, *(prepared.record for prepared in new))
                    save_dataset(self.project_dir, dataset.model_copy(update={"images": images}))
            except OSError as error:
                self._take_back(written)
                raise disk_error(error, self.project_dir) from error
        self.added += [prepared.record.id for prepared in new]
        self.captions += sum(bool(prepared.caption) for prepared in new) + len(captions)
        self.masks += sum(prepared.mask is not None for prepared in new) + len(masks)

    def _choose_new(
        self, batch: list[_Prepared], dataset: Dataset
    ) -> tuple[list[_Prepared], dict[str, str], dict[str, bytes]]:
        """Those of the batch that the project lacks and has room for; the others are skipped.

        With them, by id, captions and masks for pictures that are there without: they may come later than
        their photos.
        """
        known = {record.id: record for record in dataset.images}
        new: dict[str, _Prepared] = {}
        captions: dict[str, str] = {}
        masks: dict[str, bytes] = {}
        for prepared in batch:
            record, name = prepared.record, prepared.record.original_name
            twin, earlier = known.get(record.id), new.get(record.id)
            if twin:
                there = earlier.caption if earlier else read_caption(self.project_dir, twin)
                there = there or captions.get(record.id, "")
                sentence = f"{name} is already in the project as {twin.original_name}"
                if prepared.caption and not there:
                    if earlier:
                        earlier.caption = prepared.caption
                    else:
                        captions[record.id] = prepared.caption
                    sentence += "; its caption was added"
                elif prepared.caption not in ("", there):
                    sentence += " with another caption, which is kept"
                masked = earlier.mask if earlier else self.mask_of(twin)
                masked = masked or masks.get(record.id)
                if prepared.mask and not masked:
                    if earlier:
                        earlier.mask = prepared.mask
                    else:
                        masks[record.id] = prepared.mask
                    sentence += "; its mask was added"
                elif prepared.mask not in (None, masked):
                    sentence += "; its other mask is kept, add the new one without the photo to replace it"
                self.skip(name, f"{sentence}.")
            elif len(known) >= MAX_IMAGES:
                self.skip(name, _project_full(name))
            else:
                known[record.id] = record
                new[record.id] = prepared
        return list(new.values()), captions, masks

    def _take_back(self, written: list[tuple[str, Path]]) -> None:
        """Remove what was written, but for pictures that dataset.json names by now after all."""
        entered = {record.id for record in load_dataset(self.project_dir).images}
        for image_id, path in written:
            if image_id not in entered:
                path.unlink(missing_ok=True)

    def _write(self, prepared: _Prepared, written: list[tuple[str, Path]]) -> None:
        """Write one picture's files, each noted as (id, path) before."""
        record = prepared.record
        path = self.project_dir / record.file
        written.append((record.id, path))
        write_bytes(path, prepared.png)
        if prepared.original:
            suffix, data = prepared.original
            original = self.project_dir / "originals" / f"{record.id}{suffix}"
            written.append((record.id, original))
            write_bytes(original, data)
        if prepared.mask:
            mask = mask_path(self.project_dir, record.id)
            written.append((record.id, mask))
            write_bytes(mask, prepared.mask)
        if prepared.caption:
            written.append((record.id, caption_path(self.project_dir, record)))
            write_caption(self.project_dir, record, prepared.caption)


def ingest(
    sources: Iterable[Path],
    project_dir: Path,
    *,
    keep_originals: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> IngestReport:
    """Take pictures and captions from files, folders and zips into a project.

    ``keep_originals`` also stores each file as it came, with its metadata, under ``originals/``.
    ``progress`` gets (done, total, name). Two ingests into one project at once both succeed.
    Raises :class:`UserError` only where nothing can go on: a full disk, a locked or damaged project.
    """
    try:
        project_dir.mkdir(parents=True, exist_ok=True)
        load_dataset(project_dir)
        with tempfile.TemporaryDirectory(prefix="ingest-") as folder, ExitStack() as archives:
            state = _Ingest(project_dir, keep_originals)
            entries = list(walk_sources(sources, state.skipped.append, archives))
            return _ingest(entries, state, Path(folder), progress)
    except OSError as error:
        raise disk_error(error, project_dir) from error


def _ingest(
    entries: list[Entry], state: _Ingest, work: Path, progress: Callable[[int, int, str], None] | None
) -> IngestReport:
    there = names_of(load_dataset(state.project_dir).images)
    paired = pair_masks((entry for entry in entries if not entry.is_caption), there)
    pictures = paired.photos
    aborted: set[str] = set()
    texts = [entry for entry in entries if entry.is_caption]
    pairs = pair_captions(pictures, texts, state.skipped.append)
    captions = _read_captions(pairs, work, state, aborted)
    for done, entry in enumerate(pictures):
        if progress:
            progress(done, len(pictures), printable(entry.name))
        if _archive_of(entry) in aborted:
            continue
        try:
            if len(state.added) + len(state.batch) >= MAX_IMAGES:
                raise EntryError(_project_full(printable(entry.name)))
            caption = captions.get(pairs[entry], "") if entry in pairs else ""
            state.prepare(entry, caption or entry.class_caption, paired.masks.get(entry), work)
        except ArchiveAborted as error:
            aborted.add(_archive_of(entry))
            state.skip(entry.name, str(error))
        except (ImageError, EntryError) as error:
            state.skip(entry.name, str(error))
        if state.batch_is_full():
            state.commit()
    state.commit()
    for entry in paired.spare:
        shown = printable(entry.name)
        state.skip(entry.name, f"{shown} is one mask too many: its photo has another; delete one of them.")
    state.add_masks(paired.alone, work)
    if progress:
        progress(len(pictures), len(pictures), "done")
    notes = [f"{what} ({count} photo{'s' * (count > 1)})" for what, count in state.notes.most_common()]
    return IngestReport(
        tuple(state.added), tuple(state.skipped), state.captions, (*notes, *state.caption_notes), state.masks
    )


def remove_images(project_dir: Path, ids: Iterable[str]) -> Dataset:
    """Take pictures out of a project, with their captions, masks and originals."""
    gone = set(ids)
    with project_lock(project_dir):
        dataset = load_dataset(project_dir)
        records = [record for record in dataset.images if record.id in gone]
        remaining = dataset.without(gone)
        save_dataset(project_dir, remaining)  # First: a record without files is worse than the reverse.
        for record in records:
            (project_dir / record.file).unlink(missing_ok=True)
            remove_caption(project_dir, record)
            remove_masks(project_dir, record.id)
            for original in (project_dir / "originals").glob(f"{record.id}.*"):
                original.unlink()
        return remaining


def disk_error(error: OSError, project_dir: Path) -> UserError:
    """The sentence for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DatasetError(
            f"The disk is full (at {project_dir} or the temporary folder); free some space and add the "
            "remaining photos again."
        )
    return DatasetError(
        f"{project_dir} cannot be written ({error.strerror or error}); check its permissions."
    )


def _archive_of(entry: Entry) -> str:
    """The archive that an entry belongs to, as its group names it."""
    return entry.group.partition("!")[0] if entry.path is None else ""


def _project_full(name: str) -> str:
    return f"{name} was left out: a project holds at most {MAX_IMAGES} photos; remove some first."


def _read_captions(
    pairs: dict[Entry, Entry], work: Path, state: _Ingest, aborted: set[str]
) -> dict[Entry, str]:
    """caption file -> its text, for those that can be read."""
    captions: dict[Entry, str] = {}
    guesses = []
    for entry in dict.fromkeys(pairs.values()):
        if _archive_of(entry) in aborted:
            continue
        copy = work / "caption"
        try:
            entry.copy_to(copy)
            captions[entry], guess = decode_caption(copy.read_bytes())
            guesses.append((printable(entry.name), guess))
        except ArchiveAborted as error:
            aborted.add(_archive_of(entry))
            state.skip(entry.name, str(error))
        except EntryError as error:
            state.skip(entry.name, str(error))
        finally:
            copy.unlink(missing_ok=True)
    state.caption_notes = guessed_notes(guesses)
    return captions
