"""Files somewhere else: a bucket, the Hub or another disk, by URL, through fsspec.

What is sent counts as sent only when the store has shown that it holds the same bytes, and what is fetched
only when it is what was expected. Errors are whatever the store's library raises; :func:`in_words` makes a
sentence of them.
"""

from __future__ import annotations

import hashlib
import logging
import re
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from .contract.errors import RunError
from .contract.files import is_disk_full, staged
from .contract.whole import sha256_of

PART = 16 * 2**20
"""Bytes that are sent at a time: S3's parts are between 5 MiB and 5 GiB, and at most 10,000."""
SIGNED_S = 7 * 86_400
"""Seconds that a signed address holds; S3 allows no longer."""
TRIES = 3
BUGS = (NameError, AttributeError, AssertionError)
"""What no store raises, whatever is wrong with it. All else may come from a library that speaks with one."""

_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "s3a": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "hf": "HF_TOKEN (a token that may write)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
}
_INSTALL = {
    "s3": "requirements-storage.txt",
    "s3a": "requirements-storage.txt",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}


class Differs(Exception):
    """What arrived is not what was sent."""


class Abandoned(Exception):
    """Whoever asked for it wants it no longer."""


@dataclass(frozen=True)
class Sent:
    """What was sent. ``parts`` is the tag that S3 gives to an upload in parts: the MD5 of their MD5s."""

    size: int
    sha256: str
    md5: str
    parts: str


@dataclass(frozen=True)
class Listed:
    """What the store says of a file. ``tag`` is its ETag, "" where it has none."""

    size: int
    tag: str


class Remote:
    """The folder at ``url``; names in it are relative, with "/" between folders.

    Raises RunError(config) where the library for this kind of URL is not installed or cannot be used.
    """

    def __init__(self, url: str, endpoint: str = "") -> None:
        import fsspec

        self.url = url.rstrip("/")
        self.protocol, _, _ = self.url.partition("://")
        try:
            self.fs, self._root = fsspec.core.url_to_fs(self.url, **_options(self.protocol, endpoint))
        except (ImportError, ValueError) as error:
            reason = _missing(self.protocol, error)
            raise RunError(f"storage.url = {url!r} cannot be used: {reason}", "config") from None
        if self.protocol in ("gs", "gcs"):  # it prints on the terminal what is said here in a sentence
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        self._local = self.protocol == "file"

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def list(self, *folders: str) -> dict[str, Listed]:
        """The files in it and in these of its folders, however deep, by name. What else lies there (it may be
        the root of a bucket) is not looked through."""
        self.fs.invalidate_cache()
        found: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            found = {info["name"]: info for info in self.fs.ls(self._root, detail=True)}
        for folder in folders:
            with suppress(FileNotFoundError):
                found |= self.fs.find(self._path(folder), detail=True)
        start = len(self._root.rstrip("/")) + 1
        files = {path[start:]: info for path, info in found.items() if info["type"] == "file"}
        return {name: _listed(info) for name, info in files.items() if name}

    def read(self, name: str) -> bytes | None:
        """A small file, None where there is none."""
        self.fs.invalidate_cache()
        try:
            data: bytes = self.fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def send(self, source: BinaryIO, name: str, wanted: Callable[[], bool] = lambda: True) -> Sent:
        """Write a file from the position that ``source`` has, and see that it has arrived.

        Raises Differs where it has not, Abandoned as soon as it is no longer ``wanted``.
        """
        sent = self._send(source, name, wanted)
        self._verify(name, sent)
        return sent

    def _send(self, source: BinaryIO, name: str, wanted: Callable[[], bool]) -> Sent:
        path, count = self._path(name), _Count()

        def copy(target: Any) -> None:
            while block := source.read(PART):
                if not wanted():
                    raise Abandoned(name)
                count.add(block)
                target.write(block)

        if self._local:
            with staged(Path(path)) as temporary, temporary.open("wb") as file:
                copy(file)
            return count.sent
        target = self._open_to_write(path)
        try:
            copy(target)
            target.close()
        except BaseException:
            # Left to itself, the half that was written would be closed, and then it is there as a whole.
            with suppress(Exception):
                target.discard()
            target.closed = True
            raise
        return count.sent

    def _open_to_write(self, path: str) -> Any:
        try:
            return self.fs.open(path, "wb", block_size=PART)
        except FileNotFoundError:
            if self.protocol == "hf":
                raise
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            return self.fs.open(path, "wb", block_size=PART)

    def _verify(self, name: str, sent: Sent) -> None:
        """By the store's own checksum; where it has none that says anything (an encrypted bucket), by reading
        the file again. The Hub takes nothing whose hash is not as announced."""
        self.fs.invalidate_cache()
        info = self.fs.info(self._path(name))
        there = _listed(info)
        same = there.size == sent.size
        if same and there.tag not in (sent.md5, sent.parts) and self.protocol != "hf":
            same = self._digest(name) == sent.sha256
        if not same:
            raise Differs(f"{name} did not arrive as it was sent")

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.fs.open(self._path(name), "rb", block_size=PART) as file:
            while block := file.read(PART):
                digest.update(block)
        return digest.hexdigest()

    def fetch(self, name: str, target: Path, size: int, sha256: str = "") -> None:
        """Read a file into ``target``, which appears if it is as expected. Raises Differs where it is not."""
        for left in reversed(range(TRIES)):
            try:
                with staged(target) as temporary:
                    self.fs.get_file(self._path(name), str(temporary))
                    _require(temporary, PurePosixPath(name).name, size, sha256)
                return
            except FileNotFoundError:
                raise Differs(f"{PurePosixPath(name).name} is missing") from None
            except Exception as error:
                if left == 0 or is_refusal(error) or is_disk_full(error):
                    raise

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))
        if self._local:
            with suppress(OSError):  # folders go with their last file
                Path(self._path(name)).parent.rmdir()

    def is_inside(self, folder: Path) -> bool:
        """Whether this is a folder of this machine, within ``folder``."""
        return self._local and Path(self._root).resolve().is_relative_to(folder.resolve())

    def signed_url(self, name: str) -> str | None:
        """An address at which anybody can read the file for a while; None where the store has none."""
        with suppress(Exception):
            if self.protocol in ("s3", "s3a", "gs", "gcs"):
                return str(self.fs.sign(self._path(name), expiration=SIGNED_S))
        return None


class _Count:
    """Size and hashes of blocks as they go by; each is one part of an upload in parts."""

    def __init__(self) -> None:
        self._size, self._sha256, self._md5 = 0, hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._parts: list[bytes] = []

    def add(self, block: bytes) -> None:
        self._size += len(block)
        self._sha256.update(block)
        self._md5.update(block)
        self._parts.append(hashlib.md5(block, usedforsecurity=False).digest())

    @property
    def sent(self) -> Sent:
        parts = hashlib.md5(b"".join(self._parts), usedforsecurity=False).hexdigest()
        return Sent(
            self._size, self._sha256.hexdigest(), self._md5.hexdigest(), f"{parts}-{len(self._parts)}"
        )


def _require(file: Path, name: str, size: int, sha256: str) -> None:
    if (found := file.stat().st_size) != size:
        raise Differs(f"{name} has {found} bytes instead of {size}")
    if sha256 and sha256_of(file) != sha256:
        raise Differs(f"{name} holds other bytes than it should")


def _listed(info: dict[str, Any]) -> Listed:
    """Of fsspec's description; Google's has its MD5 in base64."""
    tag = str(info.get("ETag") or "").strip('"')
    if base64 := info.get("md5Hash"):
        with suppress(ValueError):
            tag = b64decode(str(base64)).hex()
    return Listed(int(info.get("size") or 0), tag)


def _options(protocol: str, endpoint: str) -> dict[str, Any]:
    """For fsspec: no caches, as others write there too, and no waiting for minutes."""
    options: dict[str, Any] = {"skip_instance_cache": True}
    if protocol in ("s3", "s3a"):
        config = {
            "connect_timeout": 10,
            "read_timeout": 30,
            "retries": {"max_attempts": 1},  # s3fs tries again by itself, and so do we
            "signature_version": "s3v4",  # of signed addresses; R2 and others know no older one
        }
        if endpoint:
            # Not every server knows Amazon's newer checksums; what arrived is verified anyway.
            config["request_checksum_calculation"] = "when_required"
            config["response_checksum_validation"] = "when_required"
        options |= {"use_listings_cache": False, "config_kwargs": config}
        options |= {"endpoint_url": endpoint} if endpoint else {}
    return options


def _missing(protocol: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        what = _INSTALL.get(protocol, "")
        flag = "-r " if what.endswith(".txt") else ""
        return f"pip install {flag}{what} first" if what else _first_line(error)
    return _first_line(error)


def in_words(error: BaseException, url: str) -> str:
    """What is wrong with the storage, and what helps, as the first half of a sentence."""
    where = f"the storage {url}"
    protocol = url.partition("://")[0]
    if isinstance(error, RunError):
        return str(error)
    if is_refusal(error):
        keys = _KEYS.get(protocol, "")
        remedy = f"set {keys} in the environment" if keys else "check its permissions"
        return f"{where} refuses the credentials ({_first_line(error)}); {remedy}"
    if is_missing(error):
        return f"{where} does not exist ({_first_line(error)}); create it, or correct storage.url"
    if isinstance(error, Differs):
        return f"{where} does not keep what is sent to it ({error})"
    if is_disk_full(error):
        return f"{where} is full; free some space there"
    return f"{where} cannot be reached ({_first_line(error)})"


def is_missing(error: BaseException) -> bool:
    """Whether the bucket or the repository is not there."""
    return isinstance(error, FileNotFoundError) or _status(error) == 404


def is_refusal(error: BaseException) -> bool:
    """Whether the store knows us and does not let us in, which waiting alone does not change."""
    named = ("NoCredentialsError", "PartialCredentialsError", "LocalTokenNotFoundError")
    return isinstance(error, PermissionError) or type(error).__name__ in named or _status(error) in (401, 403)


def _status(error: BaseException) -> int | None:
    """Of an answer over HTTP."""
    code: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return code


def _first_line(error: BaseException) -> str:
    """The library's own words, short, without the query of an address, where signatures stand."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"(://[^\s?\"']*)\?[^\s\"']*", r"\1", text.splitlines()[0])[:200].rstrip(".")
