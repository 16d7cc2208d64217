"""Taking photos into a project: decoded, upright, sRGB, without metadata, each with its caption.

What is wrong with one file is told in one sentence and the others go in. Nothing that the project
already holds is changed, and ``dataset.json`` is replaced after every few photos, so that a crash
loses at most the batch in hand.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dataset_tools.dataset import (
    Dataset,
    DatasetError,
    ImageRecord,
    caption_path,
    decode_caption,
    guessed_notes,
    load_dataset,
    project_lock,
    read_caption,
    save_dataset,
    write_caption,
)
from dataset_tools.images import ImageError, encode_png, open_image
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

    def summary(self) -> str:
        """One line: "23 added · 2 skipped · 20 captions · GPS position removed (14 photos)"."""
        parts = [f"{len(self.added)} added"]
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
        if self.captions:
            parts.append(f"{self.captions} captions")
        return " · ".join([*parts, *self.notes])


@dataclass
class _Prepared:
    """A decoded picture that waits to be written."""

    record: ImageRecord
    png: bytes
    caption: str
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
    batch: list[_Prepared] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(printable(name), reason))

    def prepare(self, entry: Entry, caption: str, work: Path) -> None:
        """Decode one picture into the batch."""
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
        self.batch.append(_Prepared(record, png, caption, original))

    def batch_is_full(self) -> bool:
        return len(self.batch) >= BATCH_IMAGES or sum(len(p.png) for p in self.batch) >= BATCH_BYTES

    def commit(self) -> None:
        """Write the batch and enter it into dataset.json, under the project's lock."""
        batch, self.batch = self.batch, []
        if not batch:
            return
        with project_lock(self.project_dir):
            dataset = load_dataset(self.project_dir)
            new, captions = self._choose_new(batch, dataset)
            written: list[tuple[str, Path]] = []
            try:
                for prepared in new:
                    self._write(prepared, written)
                for image_id, caption in captions.items():
                    write_caption(self.project_dir, dataset.get(image_id), caption)
                if new:
                    images = (*dataset.images, *(prepared.record for prepared in new))
                    save_dataset(self.project_dir, dataset.model_copy(update={"images": images}))
            except OSError as error:
                self._take_back(written)
                raise disk_error(error, self.project_dir) from error
        self.added += [prepared.record.id for prepared in new]
        self.captions += sum(bool(prepared.caption) for prepared in new) + len(captions)

    def _choose_new(self, batch: list[_Prepared], dataset: Dataset) -> tuple[list[_Prepared], dict[str, str]]:
        """Those of the batch that the project lacks and has room for; the others are skipped.

        With them, by id, captions for pictures that are there without one: they may come later than
        their photos.
        """
        known = {record.id: record for record in dataset.images}
        new: dict[str, _Prepared] = {}
        captions: dict[str, str] = {}
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
                self.skip(name, f"{sentence}.")
            elif len(known) >= MAX_IMAGES:
                self.skip(name, _project_full(name))
            else:
                known[record.id] = record
                new[record.id] = prepared
        return list(new.values()), captions

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
    pictures = [entry for entry in entries if not entry.is_caption]
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
            state.prepare(entry, caption or entry.class_caption, work)
        except ArchiveAborted as error:
            aborted.add(_archive_of(entry))
            state.skip(entry.name, str(error))
        except (ImageError, EntryError) as error:
            state.skip(entry.name, str(error))
        if state.batch_is_full():
            state.commit()
    state.commit()
    if progress:
        progress(len(pictures), len(pictures), "done")
    notes = [f"{what} ({count} photo{'s' * (count > 1)})" for what, count in state.notes.most_common()]
    return IngestReport(
        tuple(state.added), tuple(state.skipped), state.captions, (*notes, *state.caption_notes)
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
            caption_path(project_dir, record).unlink(missing_ok=True)
            (project_dir / "masks" / f"{record.id}.png").unlink(missing_ok=True)
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
