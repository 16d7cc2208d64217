"""``dataset.json``: which pictures a project holds, how each is cropped, whether it takes part.

Captions are sidecar ``.txt`` files beside the pictures, never in here. Records and captions are
paired by id, never by position.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trainer.contract.errors import UserError
from trainer.contract.files import write_json, write_text

DATASET_FILE = "dataset.json"
LOCK_FILE = "project.lock"
LOCK_TIMEOUT_SECONDS = 120.0

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels; right and bottom are exclusive."""
Size = tuple[int, int]
"""width, height in pixels."""


class DatasetError(UserError):
    """A project or a folder of pictures cannot be used."""


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageRecord(_Closed):
    """One picture of a dataset. ``width`` and ``height`` are those of the upright picture."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    file: str
    """posix path relative to the dataset's root."""
    original_name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """of the bytes of ``file``."""
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    bucket: Size | None = None
    """width, height the crop is resized to for training."""
    crop: Box | None = None
    reason: str = ""
    """why this crop, in words for the user."""
    enabled: bool = True
    repeats: Annotated[int, Field(ge=1)] = 1
    warnings: tuple[str, ...] = ()

    @property
    def shows_face(self) -> bool:
        """Whether a face was found when the crop was chosen, as its reason tells."""
        return "face" in self.reason and not self.reason.startswith(("no face", "faces were not"))

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file:
            raise ValueError(f"{file!r} does not lie inside the dataset folder")
        return file


class Dataset(_Closed):
    """All pictures of a project, in the order in which they are shown."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    trigger: str = ""
    images: tuple[ImageRecord, ...] = ()

    @field_validator("images")
    @classmethod
    def _ids_are_unique(cls, images: tuple[ImageRecord, ...]) -> tuple[ImageRecord, ...]:
        if len({record.id for record in images}) != len(images):
            raise ValueError("two pictures have the same id")
        return images

    def get(self, image_id: str) -> ImageRecord:
        """The record with this id; :class:`DatasetError` when there is none."""
        for record in self.images:
            if record.id == image_id:
                return record
        raise DatasetError(f"There is no picture {image_id!r} in this dataset; reload the page.")

    def with_record(self, *changed: ImageRecord) -> Dataset:
        """The dataset with records of the same id replaced; records of unknown ids are left out."""
        by_id = {record.id: record for record in changed}
        return self.model_copy(update={"images": tuple(by_id.get(r.id, r) for r in self.images)})

    def without(self, ids: Iterable[str]) -> Dataset:
        """The dataset without the pictures of these ids."""
        gone = set(ids)
        return self.model_copy(update={"images": tuple(r for r in self.images if r.id not in gone)})

    def enabled_images(self) -> tuple[ImageRecord, ...]:
        """The pictures that take part in training."""
        return tuple(record for record in self.images if record.enabled)


def load_dataset(root: Path) -> Dataset:
    """Read ``root/dataset.json``; a folder without one is an empty dataset.

    Raises :class:`DatasetError` when the folder is missing or the file is damaged.
    """
    path = root / DATASET_FILE
    try:
        return Dataset.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        if root.is_dir():
            return Dataset()
        raise DatasetError(f"The folder {root} does not exist; check the path.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DatasetError(
            f"{path} is damaged at {where} ({first['msg']}); restore it from a backup, or delete it and "
            "add the photos again."
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def save_dataset(root: Path, dataset: Dataset) -> None:
    """Replace ``root/dataset.json`` atomically. Take :func:`project_lock` around read-change-write."""
    value = json.loads(dataset.model_dump_json())
    for image in value["images"]:
        if not image["warnings"]:
            del image["warnings"]
    write_json(root / DATASET_FILE, value)


@contextmanager
def project_lock(root: Path) -> Iterator[None]:
    """Hold the project's lock, so that two tabs or jobs never overwrite each other's changes.

    Not reentrant. Raises :class:`DatasetError` when the folder is missing, or after two minutes of
    waiting.
    """
    if not root.is_dir():
        raise DatasetError(f"The folder {root} does not exist; check the path.")
    try:
        with FileLock(root / LOCK_FILE, timeout=LOCK_TIMEOUT_SECONDS):
            yield
    except Timeout:
        raise DatasetError(
            f"The project {root.name} is being changed by another tab or job; try again in a minute."
        ) from None


def update_dataset(root: Path, change: Callable[[Dataset], Dataset]) -> Dataset:
    """Load, change and save the dataset under the project's lock; return what was saved."""
    with project_lock(root):
        dataset = change(load_dataset(root))
        save_dataset(root, dataset)
        return dataset


def caption_path(root: Path, record: ImageRecord) -> Path:
    """The sidecar of a picture: its file with the suffix ``.txt``."""
    return root / PurePosixPath(record.file).with_suffix(".txt")


def caption_files(root: Path, record: ImageRecord) -> tuple[Path, ...]:
    """Where a caption is looked for: in our sidecar, else in one of kohya's default kind."""
    path = caption_path(root, record)
    return path, path.with_suffix(".caption")


def read_caption(root: Path, record: ImageRecord) -> str:
    """The caption of a picture, "" when it has none. Never fails on an odd encoding."""
    texts = (read_caption_file(path)[0] for path in caption_files(root, record))
    return next((text for text in texts if text), "")


def read_caption_file(path: Path) -> tuple[str, str | None]:
    """As :func:`decode_caption`; a missing file is ("", None)."""
    try:
        return decode_caption(path.read_bytes())
    except FileNotFoundError:
        return "", None


def decode_caption(data: bytes) -> tuple[str, str | None]:
    """(text, guess) for the bytes of a caption file.

    UTF-8 and UTF-16, with and without their marks, are certain; for anything else ``guess`` is the
    encoding that it was read in. No byte sequence fails. Lines end with ``\\n`` alone.
    """
    guesses: list[tuple[str, str | None]] = [("cp1252", "Windows-1252"), ("latin-1", "Latin-1")]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = [("utf-16", None), *guesses]
    elif b"\0" in data:  # Text has no NUL, so this is UTF-16 saved without its mark.
        little = data[1::2].count(0) >= data[0::2].count(0)
        encodings = [("utf-16-le" if little else "utf-16-be", None), *guesses]
    else:
        encodings = [("utf-8-sig", None), *guesses]
    for encoding, guess in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        return text.replace("\r\n", "\n").replace("\r", "\n").strip("\ufeff\0 \t\n"), guess
    raise AssertionError("Latin-1 knows every byte")


def guessed_notes(guesses: Iterable[tuple[str, str | None]]) -> list[str]:
    """For (file name, guess) of :func:`decode_caption`: a sentence for each encoding that was guessed."""
    names: dict[str, list[str]] = {}
    for name, guess in guesses:
        if guess:
            names.setdefault(guess, []).append(name)
    return [
        f"read as {guess}, being no UTF-8, so check the accents: {listed(of)}" for guess, of in names.items()
    ]


def listed(names: Sequence[str], most: int = 3) -> str:
    """ "a, b, c and 9 more" """
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def write_caption(root: Path, record: ImageRecord, text: str) -> None:
    """Replace the caption of a picture atomically. An empty caption is no caption: no file is left."""
    text = text.strip()
    if text:
        write_text(caption_path(root, record), text + "\n")
    else:
        remove_caption(root, record)


def remove_caption(root: Path, record: ImageRecord) -> None:
    for path in caption_files(root, record):
        path.unlink(missing_ok=True)
