"""What stands at the beginning of a .safetensors file: the names and shapes of its tensors, and metadata."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from .errors import RunError
from .families import Signature

_LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""


@dataclass(frozen=True)
class Tensor:
    """One row of the header: shape, first and last byte + 1 in the file, and number format ("F8_E4M3")."""

    shape: tuple[int, ...]
    start: int
    end: int
    dtype: str = ""


@dataclass(frozen=True)
class Header:
    """What stands at the beginning of a .safetensors file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    def has(self, pattern: str) -> bool:
        """Whether a tensor's name begins with the regular expression."""
        compiled = re.compile(pattern)
        return any(compiled.match(name) for name in self.tensors)

    def width(self, pattern: str) -> int:
        """The last dimension of the first tensor whose name begins with the regular expression, or 0."""
        compiled = re.compile(pattern)
        return next((t.shape[-1] for name, t in self.tensors.items() if t.shape and compiled.match(name)), 0)


def read_header(file: Path) -> Header:
    """Names and shapes without loading anything. Raises RunError(model_missing) for a damaged file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if 2 <= length <= min(_LARGEST_HEADER, size - 8) else b""
    try:
        rows = json.loads(text)
        metadata = rows.pop("__metadata__", None) or {}
        data = 8 + length
        tensors = {
            name: Tensor(tuple(row["shape"]), data + first, data + last, str(row["dtype"]))
            for name, row in rows.items()
            for first, last in [row["data_offsets"]]
        }
    except (ValueError, AttributeError, TypeError, KeyError):
        what = "is empty" if size == 0 else "is not a safetensors file, or only the beginning of one"
        raise RunError(f"{file.name} {what}; download it again", "model_missing") from None
    whole = max((tensor.end for tensor in tensors.values()), default=data)
    if size < whole:
        raise RunError(
            f"{file.name} is incomplete: {size / 2**20:.1f} of {whole / 2**20:.1f} MiB are there; "
            "download it again",
            "model_missing",
        )
    return Header(tensors, metadata)


_DENOISER = r"(model\.)?(diffusion_model\.)?"


def fits(header: Header, signature: Signature) -> bool:
    """Whether a file's names, a denoiser's prefixes apart, are those of the signature."""
    if not all(header.has(_DENOISER + pattern) for pattern in signature.needed):
        return False
    if any(header.has(_DENOISER + pattern) for pattern in signature.excluded):
        return False
    if signature.ratio:
        one, other = (header.width(_DENOISER + pattern) for pattern in signature.ratio[:2])
        if not one or one != other * signature.ratio[2]:
            return False
    return signature.width is None or header.width(_DENOISER + signature.width[0]) == signature.width[1]
