"""What a user drops, taken apart: pictures and captions out of files, folders and zip archives.

Names inside an archive are never used as paths; they only pair captions with pictures. Archives are
read entry by entry, and the bytes are counted as they come, whatever the directory claims.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dataset_tools.dataset import DatasetError

MAX_ENTRY_BYTES = 500_000_000
MAX_CAPTION_BYTES = 1_000_000
MAX_ARCHIVE_BYTES = 10_000_000_000
MAX_ARCHIVE_ENTRIES = 20_000
MAX_RATIO = 200
RATIO_GRACE_BYTES = 1_000_000
"""Smaller entries may be packed tighter than MAX_RATIO: a flat drawing is."""
CHUNK_BYTES = 1 << 20

CAPTION_SUFFIXES = (".txt", ".caption")
ARCHIVE_SUFFIXES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
_KOHYA_FOLDER = re.compile(r"^(\d{1,4})_(.+)$")


@dataclass(frozen=True)
class Entry:
    """One file among the sources."""

    name: str
    """the file's own name, without folders."""
    group: str
    """files of one group are paired by stem: a folder, a folder in a zip, or one upload."""
    folder: str
    """the name of the folder it lies in, "" at the top of an upload or a zip."""
    path: Path | None
    """where it lies on disk; None for an entry of an archive."""
    copy_to: Callable[[Path], None]
    """writes its bytes to a new file; raises :class:`EntryError` or :class:`ArchiveAborted`."""

    @property
    def is_caption(self) -> bool:
        return self.name.lower().endswith(CAPTION_SUFFIXES)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def repeats(self) -> int:
        """What the name of its folder says: 10 for ``10_zwx dog``."""
        return (class_folder(self.folder) or (1, ""))[0]

    @property
    def class_caption(self) -> str:
        """The caption that the name of its folder gives to a picture without one of its own."""
        return (class_folder(self.folder) or (1, ""))[1]


@dataclass(frozen=True)
class Skipped:
    """A file that was not taken in, and one sentence that says why."""

    name: str
    reason: str


class EntryError(DatasetError):
    """One entry cannot be taken; the others can."""


class ArchiveAborted(DatasetError):
    """The archive must not be read any further."""


def pair_captions(
    pictures: Iterable[Entry], texts: Iterable[Entry], skip: Callable[[Skipped], None]
) -> dict[Entry, Entry]:
    """picture -> its caption file; ``skip`` is told of caption files that no picture takes.

    The caption of ``a.jpg`` is ``a.jpg.txt``, else ``a.txt``, which ``a.png`` shares. Capitals do not
    matter (cameras write ``A.JPG``) unless they tell two files apart, and ``.txt`` goes before
    ``.caption``.
    """
    by_stem: dict[tuple[str, str], list[Entry]] = {}
    for text in texts:
        by_stem.setdefault((text.group, text.stem.casefold()), []).append(text)
    pairs: dict[Entry, Entry] = {}
    for picture in pictures:
        names = (picture.name, picture.stem)
        found = [
            (text.stem not in names, order, not text.name.lower().endswith(".txt"), text)
            for order, name in enumerate(names)
            for text in by_stem.get((picture.group, name.casefold()), ())
        ]
        if found:
            pairs[picture] = min(found, key=lambda candidate: candidate[:3])[-1]
    taken = set(pairs.values())
    stems = {(picture.group, name.casefold()) for picture in pairs for name in (picture.name, picture.stem)}
    for text in (text for same in by_stem.values() for text in same):
        if text in taken:
            continue
        name = printable(text.name)
        if (text.group, text.stem.casefold()) in stems:
            reason = f"{name} is one caption too many: its photo has another; delete one of them."
        else:
            reason = f"{name} has no photo of the same name beside it; add both together."
        skip(Skipped(name, reason))
    return pairs


def walk_sources(
    sources: Iterable[Path], skip: Callable[[Skipped], None], archives: ExitStack
) -> Iterator[Entry]:
    """All files of the sources, folders in sorted order; ``skip`` is told of those left out.

    Sources named directly form one group, however their temporary folders are called. Entries of a
    zip can be copied until ``archives`` is closed.
    """
    for source in sources:
        if source.is_dir():
            yield from _walk_folder(source, skip, archives)
        else:
            yield from _walk_file(source, "", "", skip, archives)


def class_folder(folder: str) -> tuple[int, str] | None:
    """(repeats, class words) of a folder named like ``10_zwx dog``, the convention of kohya's trainer."""
    match = _KOHYA_FOLDER.match(folder)
    if not match or int(match[1]) < 1:
        return None
    return int(match[1]), match[2].strip()


def ignored(name: str) -> bool:
    """Whether a file or folder is an operating system's own and left out without a word."""
    return name.startswith(".") or name.lower() in _IGNORED_NAMES


def _walk_folder(folder: Path, skip: Callable[[Skipped], None], archives: ExitStack) -> Iterator[Entry]:
    def unreadable(error: OSError) -> None:
        name = printable(Path(error.filename).name)
        skip(Skipped(name, f"The folder {name} cannot be read ({error.strerror}); check its permissions."))

    for root, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not ignored(name))
        for name in folders:
            if (here / name).is_symlink():  # it may lead back to where we are, so it is not followed
                reason = f"{printable(name)} is a link to a folder; add the folder that it leads to."
                skip(Skipped(printable(name), reason))
        for name in sorted(files):
            if not ignored(name):
                yield from _walk_file(here / name, str(here), here.name, skip, archives)


def _walk_file(
    path: Path, group: str, folder: str, skip: Callable[[Skipped], None], archives: ExitStack
) -> Iterator[Entry]:
    name, suffix = printable(path.name), path.suffix.lower()
    if not path.exists():
        remedy = "add the photo that it leads to" if path.is_symlink() else "check the path"
        skip(Skipped(name, f"{name} {'leads nowhere' if path.is_symlink() else 'does not exist'}; {remedy}."))
    elif not path.is_file():  # reading a pipe would wait for ever
        skip(Skipped(name, f"{name} is no ordinary file; leave it out."))
    elif suffix == ".zip":
        yield from _walk_zip(path, skip, archives)
    elif suffix in ARCHIVE_SUFFIXES:
        skip(Skipped(name, f"{name} is not a zip; unpack it, or pack it again as .zip."))
    else:
        yield disk_entry(path, group, folder)


def disk_entry(path: Path, group: str, folder: str) -> Entry:
    """A file on disk as an entry."""

    def copy_to(target: Path) -> None:
        limit = _size_limit(path.name)
        try:
            if path.stat().st_size > limit:
                raise EntryError(_too_big(path.name, limit))
            data = path.read_bytes()
        except OSError as error:
            raise EntryError(f"{path.name} cannot be read ({error.strerror}); add it again.") from error
        target.write_bytes(data)

    return Entry(path.name, group, folder, path, copy_to)


def _walk_zip(path: Path, skip: Callable[[Skipped], None], archives: ExitStack) -> Iterator[Entry]:
    try:
        archive = archives.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError):
        skip(Skipped(path.name, f"{path.name} is damaged or no zip; pack it again and add it once more."))
        return
    entries = archive.infolist()
    if len(entries) > MAX_ARCHIVE_ENTRIES:
        reason = f"{path.name} has {len(entries)} entries, the most is {MAX_ARCHIVE_ENTRIES}; split it."
        skip(Skipped(path.name, reason))
        return
    budget = _Budget(path.name, path.stat().st_size)
    for info in entries:
        name = _entry_name(info)
        parts = PurePosixPath(name).parts
        if info.is_dir() or not parts:
            continue
        if not _unsafe(name) and any(ignored(part) for part in parts):
            continue
        problem = _entry_problem(info, name)
        if problem:
            skip(Skipped(printable(parts[-1]), f"{printable(name)} in {path.name} {problem}"))
            continue
        folder = parts[-2] if len(parts) > 1 else ""
        group = f"{path}!{'/'.join(parts[:-1])}"
        yield Entry(parts[-1], group, folder, None, _zip_copier(archive, info, budget))


def printable(name: str) -> str:
    """A name as it may be shown: no control characters, at most 120 characters."""
    return "".join(c if c.isprintable() else "?" for c in name)[:120]


def _entry_name(info: zipfile.ZipInfo) -> str:
    """The name of an entry; without the UTF-8 flag it is code page 437, unless it reads as UTF-8."""
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        try:
            return name.encode("cp437").decode("utf-8")
        except UnicodeError:
            return name
    return name


def _entry_problem(info: zipfile.ZipInfo, name: str) -> str | None:
    """Why an entry is not taken, judged by the archive's directory alone."""
    if _unsafe(name):
        return "has an unsafe name; pack the photos again without folder tricks in their names."
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link; pack the photo itself."
    if info.flag_bits & 0x1:
        return "is encrypted; pack it again without a password."
    if name.lower().endswith(ARCHIVE_SUFFIXES):
        return "is an archive in an archive; unpack it first."
    return None


def _unsafe(name: str) -> bool:
    """Whether a name could lead out of the folder that an archive is unpacked into."""
    climbs = ".." in PurePosixPath(name).parts or name.startswith("/")
    return climbs or "\0" in name or "\\" in name or re.match(r"[A-Za-z]:", name) is not None


def _size_limit(name: str) -> int:
    return MAX_CAPTION_BYTES if name.lower().endswith(CAPTION_SUFFIXES) else MAX_ENTRY_BYTES


def _too_big(name: str, limit: int) -> str:
    return f"{printable(name)} is larger than {limit // 10**6} MB; make it smaller, or leave it out."


class _Budget:
    """The bytes that really came out of one archive."""

    def __init__(self, name: str, archive_bytes: int) -> None:
        self.name = name
        self.most = min(MAX_ARCHIVE_BYTES, MAX_RATIO * archive_bytes + RATIO_GRACE_BYTES)
        self.used = 0

    def take(self, count: int) -> None:
        self.used += count
        if self.used > self.most:
            raise ArchiveAborted(
                f"{self.name} unpacks to far more than it should and was not read further; pack the photos "
                "again, in archives of less than 10 GB."
            )


def _zip_copier(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget) -> Callable[[Path], None]:
    def copy_to(target: Path) -> None:
        shown, limit, written = printable(PurePosixPath(info.filename).name), _size_limit(info.filename), 0
        packed = max(1, info.compress_size)
        try:
            with archive.open(info) as source, target.open("xb") as file:
                while chunk := source.read(CHUNK_BYTES):
                    written += len(chunk)
                    budget.take(len(chunk))
                    if written > limit:
                        raise EntryError(_too_big(shown, limit))
                    if written > max(RATIO_GRACE_BYTES, MAX_RATIO * packed):
                        raise ArchiveAborted(
                            f"{shown} in {budget.name} unpacks to more than {MAX_RATIO} times its size, as a "
                            "zip bomb does; the archive was not read further."
                        )
                    file.write(chunk)
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
            raise EntryError(f"{shown} in {budget.name} is damaged; pack it again.") from error

    return copy_to
