"""Pictures and projects drawn for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from dataset_tools.dataset import Dataset, ImageRecord, load_dataset, save_dataset

COLOURS = ("orange", "teal", "purple", "navy", "gold", "crimson", "olive", "black")


def draw_picture(path: Path, number: int, size: tuple[int, int] = (96, 96)) -> Path:
    """A blob on a plain ground; different for every number."""
    width, height = size
    image = Image.new("RGB", size, COLOURS[(number + 3) % len(COLOURS)])
    box = (width // 5 + number, height // 5, 4 * width // 5, 4 * height // 5 - number)
    ImageDraw.Draw(image).ellipse(box, fill=COLOURS[number % len(COLOURS)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def draw_project(root: Path, count: int = 5, trigger: str = "zwx") -> Path:
    """A project folder whose crops are already chosen: 64x64 and 72x56 buckets in turn."""
    buckets = [((64, 64), (96, 96), (8, 8, 88, 88)), ((72, 56), (90, 96), (0, 10, 90, 80))]
    return _project(root, [buckets[number % 2] for number in range(count)], trigger)


def draw_sizes(root: Path, sides: Sequence[int]) -> Path:
    """A project of square pictures of these sides, each of them whole."""
    return _project(root, [((side, side), (side, side), (0, 0, side, side)) for side in sides])


def draw_squares(root: Path, side: int, count: int = 4) -> Path:
    """A project of square pictures of ``side``, each of them whole."""
    return draw_sizes(root, [side] * count)


Size, Box = tuple[int, int], tuple[int, int, int, int]


def _project(root: Path, pictures: Sequence[tuple[Size, Size, Box]], trigger: str = "zwx") -> Path:
    """A project of pictures by bucket, size and crop."""
    records = []
    for number, (bucket, size, crop) in enumerate(pictures):
        image_id = f"picture{number}"
        file = draw_picture(root / "images" / f"{image_id}.png", number, size)
        file.with_suffix(".txt").write_text(f"a photo of {trigger}, number {number}\n")
        records.append(
            ImageRecord(
                id=image_id,
                file=f"images/{image_id}.png",
                original_name=f"photo {number}.png",
                sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                width=size[0],
                height=size[1],
                bucket=bucket,
                crop=crop,
                reason="drawn for a test",
            )
        )
    save_dataset(root, Dataset(trigger=trigger, images=tuple(records)))
    return root


def left_of(size: tuple[int, int], share: float = 0.5) -> Image.Image:
    """A mask that shows the left."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, round(size[0] * share), size[1]))
    return mask


def draw_masked_project(root: Path, count: int = 5) -> Path:
    """A project whose photos have masks, each another."""
    draw_project(root, count)
    (root / "masks").mkdir()
    for number, record in enumerate(load_dataset(root).images):
        share = 0.4 + 0.05 * number
        left_of((record.width, record.height), share).save(root / "masks" / f"{record.id}.png")
    return root
