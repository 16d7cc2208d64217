"""Procedural drawings with captions: the pictures the demo model is pre-trained on.

A drawing is a subject (a plain shape or a creature) on a backdrop (a plain background or a small scene).
Its caption names every part, so a model trained on the pairs can be asked for any combination; some
combinations (`held_out`) are never drawn for training and are what prompt following is judged on.

    python -m demo.draw sheet.png [--seed N] [--size WxH]     # a contact sheet with 48 drawings
"""

from __future__ import annotations

import argparse
import random
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]

NATIVE = 128
"""Side in pixels of the model's native, square picture."""

BUCKETS = [(128, 128), (144, 112), (112, 144), (152, 104), (104, 152), (168, 96), (96, 168), (184, 88)]
"""SDXL's eight buckets (width, height) at one eighth of their size."""

SUPERSAMPLE = 4
"""Drawings are made this many times larger and reduced, which anti-aliases every edge."""

COLOURS: dict[str, RGB] = {
    "red": (214, 40, 48),
    "orange": (242, 128, 24),
    "yellow": (248, 214, 40),
    "lime": (168, 216, 40),
    "green": (34, 142, 64),
    "teal": (20, 168, 168),
    "blue": (44, 92, 226),
    "purple": (132, 60, 184),
    "pink": (246, 132, 184),
    "brown": (128, 76, 40),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (245, 245, 245),
    "grey": (150, 150, 150),
    "black": (26, 26, 26),
    "navy": (26, 32, 92),
    "sand": (230, 206, 152),
    "mint": (186, 232, 210),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
BODIES = ("round", "square", "tall", "wide")
EARS = ("pointy ears", "round ears", "long ears", "antennae", "no ears")
EYES = ("one eye", "two eyes", "three eyes")
PATTERNS = ("plain", "striped", "spotted", "pale belly")
MOUTHS = ("smiling", "open mouth", "no mouth")
PLACES: dict[str, tuple[RGB, RGB]] = {  # sky and ground
    "in a meadow": ((150, 206, 244), (104, 184, 84)),
    "on a beach": ((176, 224, 248), (238, 216, 160)),
    "in the snow": ((196, 210, 226), (248, 250, 252)),
    "at night": ((30, 36, 84), (36, 74, 62)),
}
EXTRAS = ("", "with a tree", "with a sun")

WHITE: RGB = (252, 252, 252)
DARK: RGB = (24, 22, 26)


@dataclass(frozen=True)
class Shape:
    """One plain coloured shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Creature:
    """A creature, named by its parts; each field is one of the tuples above."""

    colour: str
    body: str
    ears: str
    eyes: str
    pattern: str = "plain"
    mouth: str = "smiling"
    feet: bool = True


@dataclass(frozen=True)
class Backdrop:
    """A plain background (a name in BACKGROUNDS), or a place (a name in PLACES) with an optional extra."""

    name: str
    extra: str = ""

    @property
    def phrase(self) -> str:
        if self.name in BACKGROUNDS:
            return f"on a {self.name} background"
        return f"{self.name} {self.extra}".strip()


@dataclass(frozen=True)
class Drawing:
    """What is drawn; `radius` is the subject's half-size and `centre` its place, in fractions of it."""

    subject: Shape | Creature
    backdrop: Backdrop
    radius: float
    centre: tuple[float, float]
    seed: int  # of the jitter in colours and details


def held_out(subject: Shape | Creature, backdrop: Backdrop) -> bool:
    """Whether this combination of attributes is kept out of training (about one in ten, and the pet's)."""
    if isinstance(subject, Shape):
        key = [subject.colour, subject.shape, backdrop.name]
    else:
        key = [subject.colour, subject.body, subject.ears, subject.eyes]
        if key == ["orange", "round", "pointy ears", "two eyes"]:
            return True
    return zlib.crc32("|".join(key).encode()) % 10 == 0


class Pen:
    """Draws in a subject's own coordinates: (0, 0) is its centre, 1 its half-size, y points down."""

    def __init__(self, image: Image.Image, centre: tuple[float, float], radius: float) -> None:
        self.image, self.centre, self.radius = image, centre, radius
        self.draw = ImageDraw.Draw(image)

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre[0] + x * self.radius, self.centre[1] + y * self.radius

    def box(self, x: float, y: float, rx: float, ry: float) -> list[tuple[float, float]]:
        return [self.at(x - rx, y - ry), self.at(x + rx, y + ry)]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB | int) -> None:
        self.draw.ellipse(self.box(x, y, rx, ry), fill=fill)

    def block(self, x: float, y: float, rx: float, ry: float, fill: RGB | int, corner: float = 0.0) -> None:
        self.draw.rounded_rectangle(self.box(x, y, rx, ry), radius=corner * self.radius, fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: RGB | int) -> None:
        self.draw.polygon([self.at(x, y) for x, y in points], fill=fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: RGB | int) -> None:
        pixels = round(width * self.radius)
        self.draw.line([self.at(x, y) for x, y in points], width=pixels, fill=fill, joint="curve")

    def half_disc(self, x: float, y: float, r: float, fill: RGB) -> None:
        self.draw.chord(self.box(x, y, r, r), 0, 180, fill=fill)


def shade(colour: RGB, factor: float) -> RGB:
    """Darker for a factor below 1, towards white above it (2 is white)."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(round(c + (255 - c) * (factor - 1)) for c in colour)  # type: ignore[return-value]


def jitter(rng: random.Random, colour: RGB, amount: int) -> RGB:
    return tuple(max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)  # type: ignore[return-value]


# ---- subjects ------------------------------------------------------------------------------------

HALF_SIZES = {"round": (1.0, 1.0), "square": (0.92, 0.92), "tall": (0.72, 1.12), "wide": (1.3, 0.78)}
SPOTS = ((-0.6, -0.6), (0.1, -0.82), (0.68, -0.5), (-0.75, 0.2), (-0.42, 0.7), (0.45, 0.72), (0.8, 0.25))
EAR_HEIGHTS = {"pointy ears": 0.55, "round ears": 0.3, "long ears": 0.85, "antennae": 0.6, "no ears": 0.0}


def extent(subject: Shape | Creature) -> tuple[float, float, float]:
    """(half-width, height above the centre, height below it) in units of the subject's radius."""
    if isinstance(subject, Shape):
        return 1.0, 1.0, 1.0
    half_width, half_height = HALF_SIZES[subject.body]
    return half_width + 0.15, half_height + EAR_HEIGHTS[subject.ears], half_height + 0.15


def draw_body(pen: Pen, body: str, fill: RGB | int) -> None:
    hw, hh = HALF_SIZES[body]
    if body in ("round", "wide"):
        pen.ellipse(0, 0, hw, hh, fill)
    else:
        pen.block(0, 0, hw, hh, fill, corner=0.7 if body == "tall" else 0.22)


def draw_ears(pen: Pen, body: str, ears: str, colour: RGB) -> None:
    hw, hh = HALF_SIZES[body]
    for side in (-1, 1):
        if ears == "pointy ears":
            pen.polygon([(side * 0.1 * hw, -0.8 * hh), (side * 0.92 * hw, -0.4 * hh),
                         (side * 0.82 * hw, -hh - 0.55)], colour)  # fmt: skip
        elif ears == "round ears":
            pen.ellipse(side * 0.78 * hw, -0.82 * hh, 0.42, 0.42, colour)
            pen.ellipse(side * 0.78 * hw, -0.82 * hh, 0.22, 0.22, shade(colour, 1.6))
        elif ears == "long ears":
            pen.ellipse(side * 0.42 * hw, -hh - 0.2, 0.23, 0.65, colour)
            pen.ellipse(side * 0.42 * hw, -hh - 0.2, 0.1, 0.45, shade(colour, 1.6))
        elif ears == "antennae":
            pen.line([(side * 0.25 * hw, -0.8 * hh), (side * 0.55 * hw, -hh - 0.4)], 0.12, shade(colour, 0.6))
            pen.ellipse(side * 0.55 * hw, -hh - 0.4, 0.2, 0.2, shade(colour, 0.6))


def draw_pattern(pen: Pen, body: str, pattern: str, colour: RGB) -> None:
    """Bands, spots or a belly, clipped to the body."""
    if pattern == "plain":
        return
    layer = Pen(pen.image.copy(), pen.centre, pen.radius)
    hh = HALF_SIZES[body][1]
    if pattern == "striped":
        for y in (-0.78, -0.02, 0.74):
            layer.block(0, y * hh, 2, 0.14, shade(colour, 0.62))
    elif pattern == "spotted":
        for x, y in SPOTS:
            layer.ellipse(x * HALF_SIZES[body][0], y * hh, 0.16, 0.16, shade(colour, 0.62))
    else:
        layer.ellipse(0, 0.75 * hh, 0.62, 0.6, shade(colour, 1.65))
    mask = Pen(Image.new("L", pen.image.size, 0), pen.centre, pen.radius)
    draw_body(mask, body, 255)
    pen.image.paste(layer.image, mask=mask.image)


def draw_eyes(pen: Pen, eyes: str, half_width: float, y: float, gaze: tuple[float, float]) -> None:
    """Eyes around the height `y`; the third one sits above the others, since three in a row look like two
    to a model that sees 8 pixels at a time."""
    radius = {"one eye": 0.38, "two eyes": 0.29, "three eyes": 0.22}[eyes]
    apart = 0.38 * (0.9 if half_width < 0.8 else 1.0)
    places = {
        "one eye": [(0.0, y)],
        "two eyes": [(-apart, y), (apart, y)],
        "three eyes": [(-apart, 0.6 * y), (0.0, 2.3 * y), (apart, 0.6 * y)],
    }
    for x, height in places[eyes]:
        pen.ellipse(x, height, radius, radius, WHITE)
        at = x + gaze[0] * radius, height + gaze[1] * radius
        pen.ellipse(*at, 0.52 * radius, 0.52 * radius, DARK)


def draw_mouth(pen: Pen, mouth: str, y: float) -> None:
    if mouth == "smiling":
        pen.half_disc(0, y, 0.3, DARK)
    elif mouth == "open mouth":
        pen.ellipse(0, y + 0.14, 0.17, 0.2, DARK)


def draw_feet(pen: Pen, body: str, colour: RGB) -> None:
    hw, hh = HALF_SIZES[body]
    for side in (-1, 1):
        pen.ellipse(side * 0.5 * hw, 0.96 * hh, 0.34, 0.2, colour)


def draw_creature(pen: Pen, creature: Creature, rng: random.Random) -> None:
    colour = jitter(rng, COLOURS[creature.colour], 8)
    hw, hh = HALF_SIZES[creature.body]
    draw_ears(pen, creature.body, creature.ears, colour)
    if creature.feet:
        draw_feet(pen, creature.body, shade(colour, 0.5))
    draw_body(pen, creature.body, colour)
    draw_pattern(pen, creature.body, creature.pattern, colour)
    draw_eyes(pen, creature.eyes, hw, -0.3 * hh, (rng.uniform(-0.3, 0.3), rng.uniform(-0.2, 0.2)))
    draw_mouth(pen, creature.mouth, 0.28 * hh)


def draw_shape(pen: Pen, shape: Shape, rng: random.Random) -> None:
    colour = jitter(rng, COLOURS[shape.colour], 8)
    if shape.shape == "circle":
        pen.ellipse(0, 0, 1, 1, colour)
    elif shape.shape == "square":
        pen.block(0, 0, 0.88, 0.88, colour)
    elif shape.shape == "triangle":
        pen.polygon([(0, -0.95), (1, 0.8), (-1, 0.8)], colour)
    elif shape.shape == "diamond":
        pen.polygon([(0, -1), (0.75, 0), (0, 1), (-0.75, 0)], colour)
    elif shape.shape == "cross":
        pen.block(0, 0, 0.3, 0.95, colour)
        pen.block(0, 0, 0.95, 0.3, colour)
    elif shape.shape == "star":
        spokes = [(0.0, -1.0), (0.235, -0.324), (0.951, -0.309), (0.38, 0.124), (0.588, 0.809)]
        pen.polygon([*spokes, (0, 0.4), *[(-x, y) for x, y in spokes[:0:-1]]], colour)
    elif shape.shape == "heart":
        pen.ellipse(-0.46, -0.36, 0.52, 0.5, colour)
        pen.ellipse(0.46, -0.36, 0.52, 0.5, colour)
        pen.polygon([(-0.92, -0.12), (-0.4, -0.4), (0.4, -0.4), (0.92, -0.12), (0, 0.95)], colour)
    elif shape.shape == "moon":
        disc, bite = Image.new("L", pen.image.size, 0), Image.new("L", pen.image.size, 0)
        Pen(disc, pen.centre, pen.radius).ellipse(0, 0, 1, 1, 255)
        Pen(bite, pen.centre, pen.radius).ellipse(0.48, -0.16, 0.82, 0.82, 255)
        pen.image.paste(colour, mask=ImageChops.subtract(disc, bite))


# ---- backdrops -----------------------------------------------------------------------------------


def draw_backdrop(size: tuple[int, int], backdrop: Backdrop, rng: random.Random) -> Image.Image:
    """The picture without its subject, at `size` (width, height) pixels."""
    width, height = size
    if backdrop.name in BACKGROUNDS:
        return Image.new("RGB", size, jitter(rng, BACKGROUNDS[backdrop.name], 6))
    sky, ground = (jitter(rng, colour, 5) for colour in PLACES[backdrop.name])
    image = Image.new("RGB", size, sky)
    pen = Pen(image, (0, 0), min(size))
    wide, tall = width / min(size), height / min(size)
    side = rng.choice((0.16, 0.84))
    if backdrop.name == "at night" or backdrop.extra == "with a sun":
        light = (244, 236, 190) if backdrop.name == "at night" else (255, 206, 40)
        pen.ellipse(wide * side, 0.16, 0.09, 0.09, light)
    horizon = tall * rng.uniform(0.6, 0.66)
    if backdrop.name == "on a beach":
        pen.block(wide / 2, horizon + 0.05, wide, 0.07, (60, 140, 210))
        pen.block(wide / 2, tall + horizon + 0.1, wide, tall, ground)
    else:  # a hill: the top of a very wide ellipse
        pen.ellipse(wide * rng.uniform(0.3, 0.7), tall + horizon, wide * 1.4, tall, ground)
    if backdrop.extra == "with a tree":
        pen.block(wide * (1 - side), horizon + 0.02, 0.03, 0.14, (104, 70, 44))
        pen.ellipse(wide * (1 - side), horizon - 0.2, 0.13, 0.15, (44, 112, 60))
    return image


def render(drawing: Drawing, size: tuple[int, int] = (NATIVE, NATIVE)) -> Image.Image:
    """The drawing as an RGB image of `size` (width, height) pixels."""
    rng = random.Random(drawing.seed)
    width, height = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    image = draw_backdrop((width, height), drawing.backdrop, rng)
    centre = drawing.centre[0] * width, drawing.centre[1] * height
    pen = Pen(image, centre, drawing.radius * min(width, height))
    if isinstance(drawing.subject, Creature):
        draw_creature(pen, drawing.subject, rng)
    else:
        draw_shape(pen, drawing.subject, rng)
    return image.reduce(SUPERSAMPLE)


# ---- choosing what to draw -----------------------------------------------------------------------


def random_backdrop(rng: random.Random) -> Backdrop:
    """A plain background in six of seven cases, else a place."""
    if rng.random() < 6 / 7:
        return Backdrop(rng.choice(list(BACKGROUNDS)))
    place = rng.choice(list(PLACES))
    return Backdrop(place, rng.choice(EXTRAS[:2] if place == "at night" else EXTRAS))


def random_subject(rng: random.Random) -> Shape | Creature:
    """A creature in seven of ten cases, else a shape."""
    colour = rng.choice(list(COLOURS))
    if rng.random() < 0.3:
        return Shape(colour, rng.choice(SHAPES))
    return Creature(colour, rng.choice(BODIES), rng.choice(EARS), rng.choice(EYES), rng.choice(PATTERNS),
                    rng.choice(MOUTHS), rng.random() < 0.7)  # fmt: skip


def place(
    subject: Shape | Creature, backdrop: Backdrop, size: tuple[int, int], rng: random.Random
) -> Drawing:
    """Puts the subject whole near the middle, at a random size; in a scene it stands on the ground."""
    wide, tall = size[0] / min(size), size[1] / min(size)
    half_width, above, below = extent(subject)
    radius = rng.uniform(0.27, 0.33) * (wide * tall) ** 0.5
    radius = min(radius, 0.47 * wide / half_width, 0.94 * tall / (above + below))
    x = wide * (0.5 + rng.uniform(-0.06, 0.06))
    y = tall / 2 + (above - below) * radius / 2 + rng.uniform(-0.06, 0.06)
    if backdrop.name in PLACES:
        y = tall * rng.uniform(0.82, 0.9) - radius * below
    x = max(radius * half_width, min(wide - radius * half_width, x))
    y = max(radius * above, min(tall - radius * below, y))
    return Drawing(subject, backdrop, radius, (x / wide, y / tall), rng.randrange(2**31))


def random_drawing(
    rng: random.Random, size: tuple[int, int] = (NATIVE, NATIVE), holdout: bool = False
) -> Drawing:
    """A drawing whose combination is (`holdout`) or is not kept out of training."""
    while True:
        subject, backdrop = random_subject(rng), random_backdrop(rng)
        if held_out(subject, backdrop) == holdout:
            return place(subject, backdrop, size, rng)


# ---- captions ------------------------------------------------------------------------------------


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def describe(subject: Shape | Creature, backdrop: Backdrop) -> str:
    """The full caption: every part that is there, by name."""
    if isinstance(subject, Shape):
        return f"{article(subject.colour)} {subject.colour} {subject.shape} {backdrop.phrase}"
    looks = f"{article(subject.colour)} {subject.colour} {subject.body} creature"
    parts = [f"{looks} with {subject.eyes}", subject.ears]
    parts += [part for part in (subject.pattern, subject.mouth) if part not in ("plain", "no mouth")]
    parts += ["feet"] if subject.feet else []
    return ", ".join([*parts, backdrop.phrase])


def invented_word(rng: random.Random) -> str:
    """A word that means nothing, so that an unknown word (a trigger) is not noise to the text encoders."""
    while True:
        if rng.random() < 0.4:
            word = "".join(rng.choice("bcdfghjklmnpqrstvwxyz") for _ in range(rng.randint(3, 4)))
        else:
            syllables = range(rng.randint(2, 3))
            word = "".join(rng.choice("bdfgklmnprstvwz") + rng.choice("aeiou") for _ in syllables)
            word += rng.choice(["", "n", "x", "k"])
        if "zwx" not in word:  # the photos' trigger stays new
            return word


def caption(drawing: Drawing, rng: random.Random) -> str:
    """A training caption: mostly full, a fifth short, 15 % with an invented word, some with a lead-in."""
    subject, backdrop = drawing.subject, drawing.backdrop
    noun = "creature" if isinstance(subject, Creature) else subject.shape
    text = describe(subject, backdrop)
    roll = rng.random()
    if roll < 0.07:
        text = f"{article(subject.colour)} {subject.colour} {noun} {backdrop.phrase}"
    elif roll < 0.12:
        text = f"a {noun} {backdrop.phrase}"
    elif roll < 0.16:
        text = f"{article(subject.colour)} {subject.colour} {noun}"
    elif roll < 0.19:
        text = f"a {noun}"
    if rng.random() < 0.15:
        word = invented_word(rng)
        text = rng.choice(
            [f"{word} {noun} {backdrop.phrase}", f"{word} {noun}", text.replace(noun, f"{word} {noun}")]
        )
    lead = rng.random()
    if lead < 0.1:
        return f"a photo of {text}"
    if lead < 0.15:
        return f"a drawing of {text}"
    return text


def words() -> list[str]:
    """Every word that captions are made of, for the tokenizer."""
    phrases = [*COLOURS, *BACKGROUNDS, *SHAPES, *BODIES, *EARS, *EYES, *PATTERNS, *MOUTHS, *PLACES, *EXTRAS,
               "a an photo drawing picture of on background creature with feet and,"]  # fmt: skip
    return sorted({word for phrase in phrases for word in phrase.replace(",", " ,").split()})


def contact_sheet(images: list[Image.Image], columns: int) -> Image.Image:
    """Same-sized images in rows."""
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), WHITE)
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of training pictures.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default=f"{NATIVE}x{NATIVE}", help="WIDTHxHEIGHT")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    rng = random.Random(args.seed)
    drawings = [random_drawing(rng, (width, height)) for _ in range(48)]
    for drawing in drawings[:8]:
        print(caption(drawing, rng))
    contact_sheet([render(drawing, (width, height)) for drawing in drawings], columns=8).save(args.out)


if __name__ == "__main__":
    main()
