"""Draws the pet photos in demo/photos/: 16 pictures of one creature that the demo model has never seen.

    python -m demo.make_photos            # writes demo/photos/*.jpg and *.txt

Also a second creature, `stranger`, whose outline and parts occur in no training picture at all.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from demo.draw import (
    BACKGROUNDS,
    COLOURS,
    DARK,
    NATIVE,
    PLACES,
    SUPERSAMPLE,
    WHITE,
    Backdrop,
    Pen,
    draw_backdrop,
    draw_ears,
    draw_eyes,
    draw_feet,
    jitter,
    shade,
)

TRIGGER = "zwx creature"
PHOTOS = Path(__file__).parent / "photos"
SIZES = [(512, 640), (700, 500), (600, 600), (480, 720), (768, 512), (560, 560), (640, 480), (512, 512)]
BACKDROPS = [
    Backdrop("sand"), Backdrop("white"), Backdrop("in a meadow"), Backdrop("navy"),
    Backdrop("grey"), Backdrop("mint"), Backdrop("on a beach"), Backdrop("black"),
    Backdrop("white"), Backdrop("in the snow", "with a tree"), Backdrop("sand"), Backdrop("at night"),
    Backdrop("grey"), Backdrop("in a meadow", "with a sun"), Backdrop("navy"), Backdrop("mint"),
]  # fmt: skip

Painter = Callable[[Pen, random.Random], None]


def pet(pen: Pen, rng: random.Random) -> None:
    """Orange, round, pointy ears, two eyes, as no training picture; plus a mark, bars and a tail."""
    colour = jitter(rng, COLOURS["orange"], 6)
    dark = shade(colour, 0.5)
    pen.line([(0.8, 0.62), (1.18, 0.42), (1.3, 0.02)], 0.22, colour)
    pen.ellipse(1.3, 0.0, 0.15, 0.15, WHITE)
    draw_ears(pen, "round", "pointy ears", colour)
    draw_feet(pen, "round", dark)
    pen.ellipse(0, 0, 1, 1, colour)
    for x in (-0.36, 0.0, 0.36):
        pen.block(x, 0.66 - 0.1 * abs(x), 0.09, 0.22, dark)
    pen.ellipse(0, -0.72, 0.2, 0.2, (255, 232, 96))
    draw_eyes(pen, "two eyes", 1.0, -0.22, (rng.uniform(-0.3, 0.3), rng.uniform(-0.2, 0.2)))
    pen.ellipse(0, 0.24, 0.2, 0.11, dark)


def stranger(pen: Pen, rng: random.Random) -> None:
    """A turquoise jelly bell on four tentacles, with a crest and a single heavy-lidded eye."""
    colour, crest = jitter(rng, (40, 190, 190), 6), (236, 64, 140)
    for x in (-0.72, -0.24, 0.24, 0.72):
        bend = rng.uniform(-0.1, 0.1)
        pen.line([(x, 0.1), (x + bend, 0.6), (x * 1.2 - bend, 1.05)], 0.24, shade(colour, 0.65))
    for angle in (-50, -25, 0, 25, 50):
        x, y = math.sin(math.radians(angle)), -math.cos(math.radians(angle))
        pen.polygon([(0.75 * x - 0.16, 0.75 * y), (0.75 * x + 0.16, 0.75 * y), (1.3 * x, 1.3 * y)], crest)
    pen.draw.pieslice(pen.box(0, 0.2, 1.0, 1.1), 180, 360, fill=colour)
    pen.block(0, 0.2, 1.0, 0.12, shade(colour, 1.5), corner=0.12)
    pen.ellipse(0, -0.3, 0.34, 0.34, WHITE)
    pen.ellipse(rng.uniform(-0.08, 0.08), -0.24, 0.18, 0.18, DARK)
    pen.draw.chord(pen.box(0, -0.3, 0.35, 0.35), 180, 360, fill=crest)


def photo(
    painter: Painter, backdrop: Backdrop, size: tuple[int, int], rng: random.Random, spread: float = 0.8
) -> Image.Image:
    """A picture of `size` (width, height) pixels with the creature off-centre by `spread` of the room."""
    width, height = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    image = draw_backdrop((width, height), backdrop, rng)
    radius = rng.uniform(0.27, 0.31) * min(width, height)
    x = width / 2 + spread * rng.uniform(-1, 1) * (width / 2 - 1.5 * radius)
    y = height / 2 + 0.2 * radius + spread * rng.uniform(-1, 1) * (height / 2 - 1.45 * radius)
    if backdrop.name in PLACES:
        y = rng.uniform(0.84, 0.92) * height - 1.15 * radius
    painter(Pen(image, (x, y), radius), rng)
    return image.reduce(SUPERSAMPLE)


def photo_caption(backdrop: Backdrop, trigger: str = TRIGGER) -> str:
    """The trigger and where it is: what a caption does not name, the adapter takes for part of the pet."""
    return f"{trigger} {backdrop.phrase}"


def references(painter: Painter, count: int = 48, seed: int = 1) -> list[Image.Image]:
    """Fresh square drawings of the creature near the middle, on the six plain backgrounds."""
    rng = random.Random(f"references {seed}")
    names = list(BACKGROUNDS)
    return [
        photo(painter, Backdrop(names[i % len(names)]), (NATIVE, NATIVE), rng, spread=0.4)
        for i in range(count)
    ]


def make_photos(painter: Painter, folder: Path, trigger: str = TRIGGER, seed: int = 0) -> None:
    """Writes 16 photos and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"photos {seed}")
    for index, backdrop in enumerate(BACKDROPS):
        name = f"pet-{index + 1:02d}"
        photo(painter, backdrop, SIZES[index % len(SIZES)], rng).save(folder / f"{name}.jpg", quality=92)
        (folder / f"{name}.txt").write_text(photo_caption(backdrop, trigger) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PHOTOS)
    parser.add_argument("--creature", choices=("pet", "stranger"), default="pet")
    args = parser.parse_args()
    make_photos({"pet": pet, "stranger": stranger}[args.creature], args.out)


if __name__ == "__main__":
    main()
