"""T5's tokenizer from a folder that has it as SentencePiece model alone, as Chroma's does.

transformers reads these with two more packages (sentencepiece, protobuf); what it takes from the file is a
list of pieces with scores and a table for normalising text, so they are read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import T5Tokenizer

from ..contract.errors import RunError


class T5FolderTokenizer:
    """Stands in for the class where a tokenizer is loaded."""

    @staticmethod
    def from_pretrained(folder: Path) -> T5Tokenizer:
        """Raises RunError(model_missing) when there is no tokenizer, or a damaged one."""
        model = folder / "spiece.model"
        if (folder / "tokenizer.json").exists() or not model.exists():
            tokenizer: T5Tokenizer = T5Tokenizer.from_pretrained(folder)
            return tokenizer
        try:
            pieces, table = _read(model.read_bytes())
        except (IndexError, KeyError, ValueError, struct.error):
            raise RunError(f"{model.name} is damaged; download it again", "model_missing") from None
        return T5Tokenizer(vocab=pieces, _spm_precompiled_charsmap=table)


def _read(content: bytes) -> tuple[list[tuple[str, float]], bytes | None]:
    """Pieces with their log probabilities, and the normaliser's table, of a serialised ModelProto
    (sentencepiece_model.proto: 1 is a piece of 1 text and 2 score, 3 the normaliser with 2 its table)."""
    pieces: list[tuple[str, float]] = []
    table: bytes | None = None
    for number, value in _fields(content):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0]))
        elif number == 3:
            table = dict(_fields(value)).get(2) or None
    if not pieces:
        raise ValueError("no pieces")
    return pieces, table


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: numbers as int, everything else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 2: -1, 5: 4}[kind]
        size = varint() if size < 0 else size
        if at + size > len(message):
            raise ValueError("cut off")
        yield key >> 3, message[at : at + size]
        at += size
