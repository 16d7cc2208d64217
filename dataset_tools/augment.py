"""Variants of a training picture: slightly turned, reframed, in other light and colours.

What a variant looks like is a pure function of the picture's bytes and the variant's number, so that
variants can be encoded once like the pictures themselves, and a resumed run sees the same ones. Number 0 is
always the picture as it is. All geometry is done in one step from the original pixels: nothing is resampled
twice, and the frame is made smaller and moved so far that no corner is empty.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from dataset_tools.crop import render_crop
from dataset_tools.dataset import Box, ImageRecord, Size
from trainer.contract.settings.dataset import DatasetSettings, is_varied, variants_of

Frame = tuple[float, float, float, float]
"""left, top, right, bottom in pixels, of a frame that may be turned around its middle."""


@dataclass(frozen=True)
class Variant:
    """How a picture is shown. ``degrees`` turn the picture counter-clockwise, around the frame's middle;
    ``hue`` turns its colours by degrees; the others are factors."""

    frame: Frame
    degrees: float = 0.0
    hue: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


@dataclass(frozen=True)
class View:
    """How a look shows its picture: as it is (None) or as a variant, then mirrored or not."""

    flip: bool = False
    variant: Variant | None = None


def views_of(
    record: ImageRecord, settings: DatasetSettings, mirrored: bool | None = None
) -> tuple[View, ...]:
    """Every view of a cropped picture that a recipe can show. ``mirrored``: whether its folder's are, where
    that is not what the recipe says."""
    flips = (False, True) if (settings.flip if mirrored is None else mirrored) else (False,)
    numbers = range(variants_of(settings))
    return tuple(View(flip, variant(record, number, settings)) for flip in flips for number in numbers)


def variant(record: ImageRecord, number: int, settings: DatasetSettings) -> Variant | None:
    """Variant ``number`` of a cropped picture; None for 0, the picture as it is."""
    if not number or not is_varied(settings):
        return None
    assert record.crop

    def draw(purpose: str) -> float:
        """A number in [-1, 1)."""
        digest = hashlib.sha256(f"{record.sha256}|{number}|{purpose}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**63 - 1

    size = (record.width, record.height)
    degrees = settings.rotate * draw("rotate")
    frame = reframed(record.crop, size, settings.random_crop, draw("size"), draw("x"), draw("y"))
    return Variant(
        frame=fitted(frame, size, degrees),
        degrees=degrees,
        hue=settings.hue * draw("hue"),
        brightness=1 + settings.colour * draw("brightness"),
        contrast=1 + settings.colour * draw("contrast"),
        saturation=1 + settings.colour * draw("saturation"),
    )


def reframed(crop: Box, size: Size, share: float, shrink: float, across: float, down: float) -> Frame:
    """The crop, smaller by up to ``share`` of its sides and moved by up to that much, inside the picture.

    ``shrink``, ``across`` and ``down`` are in [-1, 1]; the aspect stays.
    """
    left, top, right, bottom = crop
    scale = 1 - share * (shrink + 1) / 2
    width, height = (right - left) * scale, (bottom - top) * scale
    x = (left + right) / 2 + share * (right - left) / 2 * across
    y = (top + bottom) / 2 + share * (bottom - top) / 2 * down
    return _inside((x - width / 2, y - height / 2, x + width / 2, y + height / 2), size, width, height)


def fitted(frame: Frame, size: Size, degrees: float) -> Frame:
    """The frame as large as it can be, and where it can be, so that turned by ``degrees`` it lies inside a
    picture of ``size``: its aspect stays, and so does its middle as far as it goes."""
    if not degrees:
        return frame
    left, top, right, bottom = frame
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = right - left, bottom - top
    scale = min(1.0, size[0] / (width * cos + height * sin), size[1] / (width * sin + height * cos))
    width, height = width * scale, height * scale
    x, y = (left + right) / 2, (top + bottom) / 2
    turned = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return _inside(turned, size, width * cos + height * sin, width * sin + height * cos)


def _inside(frame: Frame, size: Size, wide: float, high: float) -> Frame:
    """The frame moved so that a box of ``wide`` × ``high`` around its middle lies inside the picture."""
    left, top, right, bottom = frame
    x, y = (left + right) / 2, (top + bottom) / 2
    dx = min(max(x, wide / 2), size[0] - wide / 2) - x
    dy = min(max(y, high / 2), size[1] - high / 2) - y
    return left + dx, top + dy, right + dx, bottom + dy


def render_view(image: Image.Image, crop: Box, bucket: Size, view: View) -> Image.Image:
    """A training picture: a view of its crop, resized to exactly the bucket, RGB."""
    image = image.convert("RGB")
    rendered = render_place(image, crop, bucket, view)
    return coloured(rendered, view.variant) if view.variant else rendered


def render_place(image: Image.Image, crop: Box, bucket: Size, view: View) -> Image.Image:
    """The same without its light and colours: what a mask, of the picture's size, needs."""
    rendered = render_frame(image, view.variant, bucket) if view.variant else render_crop(image, crop, bucket)
    return rendered.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else rendered


def render_frame(image: Image.Image, shown: Variant, bucket: Size) -> Image.Image:
    """The frame of a variant, resized to exactly the bucket, in the mode of the picture."""
    left, top, right, bottom = shown.frame
    if not shown.degrees:
        box = (max(0.0, left), max(0.0, top), min(right, image.width), min(bottom, image.height))
        return image.resize(bucket, Image.Resampling.LANCZOS, box=box)
    # First turned at the picture's own scale, then resized: a transform that does both would alias.
    width, height = max(1, round(right - left)), max(1, round(bottom - top))
    angle = math.radians(shown.degrees)
    a, b = (right - left) / width * math.cos(angle), -(bottom - top) / height * math.sin(angle)
    d, e = (right - left) / width * math.sin(angle), (bottom - top) / height * math.cos(angle)
    x, y = (left + right) / 2, (top + bottom) / 2
    matrix = (a, b, x - a * width / 2 - b * height / 2, d, e, y - d * width / 2 - e * height / 2)
    turned = image.transform(
        (width, height), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
    )
    return turned.resize(bucket, Image.Resampling.LANCZOS)


_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""RGB to NTSC's luminance and two colour axes."""


def colour_matrix(shown: Variant) -> tuple[float, ...]:
    """The 3 × 4 matrix, by rows, that changes hue, saturation, contrast and brightness of RGB from 0 to 255.

    Hue turns and saturation stretches the colour axes and leave the luminance alone; contrast stretches
    around the middle grey, and brightness is a factor over all.
    """
    angle = math.radians(shown.hue)
    turn = shown.saturation * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    inner = np.eye(3)
    inner[1:, 1:] = turn
    linear = shown.brightness * shown.contrast * (np.linalg.inv(_YIQ) @ inner @ _YIQ)
    offset = shown.brightness * (1 - shown.contrast) * 127.5
    return tuple(float(value) for row in linear for value in (*row, offset))


def coloured(image: Image.Image, shown: Variant) -> Image.Image:
    """An RGB picture in the variant's light and colours."""
    if replace(shown, frame=(0, 0, 0, 0), degrees=0.0) == Variant((0, 0, 0, 0)):
        return image
    return image.convert("RGB", colour_matrix(shown))
