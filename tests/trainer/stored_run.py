"""A run's folder on some machine, filled by hand, and its mirror."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pictures import draw_picture
from trainer.contract.config import TrainConfig
from trainer.contract.fields import parse
from trainer.contract.runs import RunFolder, Status
from trainer.contract.whole import MANIFEST
from trainer.storage import Mirror


class Told:
    """Stands in for the reporter."""

    def __init__(self) -> None:
        self.status = Status(step=7)
        self.mirror = ""
        self.warnings: list[str] = []
        self.lines: list[str] = []
        self.warning = self.warnings.append
        self.say = self.lines.append


class Machine:
    """A run's folder on some machine, filled by hand, and what its mirror tells."""

    def __init__(
        self, root: Path, url: str, endpoint: str = "", made: RunFolder | None = None, **storage: Any
    ) -> None:
        self.photos = root / "photos"
        self.run = made or RunFolder(root / "runs" / "first")
        self.told = Told()
        if made:
            return
        settings = {"url": url, "endpoint": endpoint, **storage}
        tables = {"dataset": {"path": str(self.photos)}, "storage": settings}
        self.run.create(parse(tables))
        self.run.write_status(Status(state="training", step=7))
        self.run.events.write_text('{"seq": 1, "kind": "started", "step": 0}\n{"seq": 2, "kind": "st')

    @property
    def config(self) -> TrainConfig:
        return self.run.config()

    def draw(self, count: int = 2) -> None:
        rows = []
        for number in range(count):
            file = draw_picture(self.photos / "images" / f"{number}.png", number)
            mask = draw_picture(self.photos / "masks" / f"{number}.png", number + 3)
            row = {"id": f"p{number}", "file": f"images/{number}.png", "original_name": f"{number}.png"}
            row |= {"sha256": sha256(file), "mask": f"masks/{number}.png", "mask_sha256": sha256(mask)}
            rows.append(row | {"width": 96, "height": 96, "caption": "a"})
        frozen = {"version": 1, "trigger": "zwx", "images": rows}
        self.run.dataset.write_text(json.dumps(frozen))

    def save(self, step: int, sizes: dict[str, int] | None = None) -> Path:
        folder = self.run.checkpoint(step)
        staging = folder.with_name(f".{folder.name}.tmp")
        staging.mkdir()
        manifest = {}
        for name, size in (sizes or {"adapter.safetensors": 1000, "optimizer.safetensors": 2000}).items():
            data = os.urandom(size)
            (staging / name).write_bytes(data)
            manifest[name] = {"size": size, "sha256": hashlib.sha256(data).hexdigest()}
        (staging / MANIFEST).write_text(json.dumps(manifest))
        staging.rename(folder)
        return folder

    def mirror(self, start: bool = True) -> Mirror:
        mirror = Mirror(self.run, self.config, self.told)  # type: ignore[arg-type]
        return mirror.start() if start else mirror

    def flush(self, seconds: float = 120) -> None:
        close(self.mirror(), seconds)


def close(mirror: Mirror, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    mirror.close(lambda: end)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def until(true: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run.dataset.read_text())["images"]
    return rows


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
