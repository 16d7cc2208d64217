"""Pictures that were drawn with a run's LoRA when it was asked for: which there are, and what they are of.

They lie in the run's folder ``drawings``, and a line of ``drawings.jsonl`` there tells of each. Whoever draws
appends it when the picture is there.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from .runs import RunFolder

INDEX = "drawings.jsonl"


class Drawing(BaseModel):
    """One picture.

    Attributes:
        file: its name in the folder.
        text: the prompt, without its options.
        step: of the checkpoint that it was drawn with.
        time: Unix seconds.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    file: str
    text: str
    seed: int
    step: int
    time: float


def note_drawing(run: RunFolder, drawing: Drawing) -> None:
    """Append a line, on a new one where somebody was killed in the middle of the last."""
    index = run.drawings / INDEX
    torn = index.exists() and not index.read_bytes().endswith(b"\n")
    line = json.dumps(drawing.model_dump(), ensure_ascii=False)
    with index.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + line + "\n")


def list_drawings(run: RunFolder) -> list[Drawing]:
    """Those that are there, the newest first."""
    try:
        lines = (run.drawings / INDEX).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found: list[Drawing] = []
    for line in lines:
        try:
            drawing = Drawing.model_validate_json(line)
        except ValidationError:
            continue  # a torn line
        if Path(drawing.file).name == drawing.file and (run.drawings / drawing.file).is_file():
            found.append(drawing)
    return found[::-1]
