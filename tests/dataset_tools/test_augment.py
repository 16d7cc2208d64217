"""Variants of a picture: seen in its pixels, never with empty corners, the same every time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset_tools.augment import (
    Variant,
    View,
    colour_matrix,
    coloured,
    fitted,
    reframed,
    render_frame,
    render_place,
    render_view,
    variant,
    views_of,
)
from dataset_tools.crop import render_crop
from dataset_tools.dataset import ImageRecord
from trainer.contract.settings.dataset import DatasetSettings, is_varied, variants_of

SIZE = (300, 200)


def record(crop: tuple[int, int, int, int] = (20, 10, 260, 170), sha256: str = "a" * 64) -> ImageRecord:
    return ImageRecord(
        id="a",
        file="a.png",
        original_name="a.png",
        sha256=sha256,
        width=SIZE[0],
        height=SIZE[1],
        bucket=(120, 80),
        crop=crop,
    )


def settings(**values: float) -> DatasetSettings:
    return DatasetSettings.model_validate(values)


def picture() -> Image.Image:
    image = Image.new("RGB", SIZE, (200, 120, 90))
    draw = ImageDraw.Draw(image)
    draw.rectangle((100, 60, 180, 120), fill=(60, 160, 220))
    draw.ellipse((30, 20, 80, 90), fill=(230, 220, 70))
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


EVERYTHING = {"rotate": 20.0, "random_crop": 0.3, "hue": 40.0, "colour": 0.3, "variants": 12}


def test_nothing_is_varied_unless_it_is_asked_for() -> None:
    assert not is_varied(settings()) and variants_of(settings(variants=9)) == 1
    assert variant(record(), 3, settings()) is None
    for name, value in (("rotate", 5), ("random_crop", 0.1), ("hue", 10), ("colour", 0.1)):
        assert is_varied(settings(**{name: value})) and variants_of(settings(**{name: value})) == 8


def test_the_first_variant_is_the_picture_itself() -> None:
    assert variant(record(), 0, settings(**EVERYTHING)) is None
    plain = render_view(picture(), (20, 10, 260, 170), (120, 80), View())
    assert plain.tobytes() == render_crop(picture(), (20, 10, 260, 170), (120, 80)).tobytes()


def test_a_variant_is_a_function_of_the_picture_and_its_number() -> None:
    made = [variant(record(), number, settings(**EVERYTHING)) for number in range(1, 12)]
    assert made == [variant(record(), number, settings(**EVERYTHING)) for number in range(1, 12)]
    assert len(set(made)) == 11
    assert variant(record(sha256="b" * 64), 1, settings(**EVERYTHING)) != made[0]
    more = settings(**{**EVERYTHING, "variants": 64})
    assert variant(record(), 1, more) == made[0], "more variants leave the earlier ones as they were"
    assert all(abs(one.degrees) <= 20 and abs(one.hue) <= 40 for one in made if one)
    factors = [value for one in made if one for value in (one.brightness, one.contrast, one.saturation)]
    assert all(0.7 <= value <= 1.3 for value in factors)
    assert min(factors) < 0.85 and max(factors) > 1.15, "the whole range is used"


@pytest.mark.parametrize("degrees", [-45, -12.5, 0.5, 3, 30, 45])
@pytest.mark.parametrize(
    "crop", [(0, 0, 300, 200), (0, 0, 150, 100), (150, 100, 300, 200), (20, 10, 260, 170)]
)
def test_no_corner_of_a_turned_frame_is_empty(degrees: float, crop: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = fitted(crop, SIZE, degrees)
    assert (right - left) / (bottom - top) == pytest.approx((crop[2] - crop[0]) / (crop[3] - crop[1]))
    x, y, angle = (left + right) / 2, (top + bottom) / 2, math.radians(degrees)
    for dx, dy in (
        (left - x, top - y),
        (right - x, top - y),
        (left - x, bottom - y),
        (right - x, bottom - y),
    ):
        corner = (
            x + dx * math.cos(angle) - dy * math.sin(angle),
            y + dx * math.sin(angle) + dy * math.cos(angle),
        )
        assert -1e-6 <= corner[0] <= SIZE[0] + 1e-6 and -1e-6 <= corner[1] <= SIZE[1] + 1e-6
    # Where there is room, the frame stays as it is.
    inner = (100.0, 70.0, 160.0, 110.0)
    assert fitted(inner, SIZE, degrees) == pytest.approx(inner)
    shown = Variant((left, top, right, bottom), degrees=degrees)
    plain = Image.new("RGB", SIZE, (200, 120, 90))
    assert pixels(render_frame(plain, shown, (120, 80))).min() == 90, "no black came in"


def test_turning_is_what_pillow_does_around_the_middle() -> None:
    shown = Variant((90.0, 60.0, 210.0, 140.0), degrees=10)
    turned = picture().rotate(10, Image.Resampling.BICUBIC, center=(150, 100)).crop((90, 60, 210, 140))
    difference = np.abs(pixels(render_frame(picture(), shown, (120, 80))) - pixels(turned))
    assert difference.mean() < 1 and difference.max() < 60
    straight = pixels(render_frame(picture(), Variant((90.0, 60.0, 210.0, 140.0)), (120, 80)))
    assert np.abs(straight - pixels(turned)).mean() > 5
    mask = Image.new("L", SIZE, 255)
    assert render_frame(mask, shown, (120, 80)).mode == "L"


def test_a_reframed_crop_stays_inside_and_keeps_its_aspect() -> None:
    crop = (20, 10, 260, 170)
    assert reframed(crop, SIZE, 0.0, 1, 1, 1) == crop
    assert reframed(crop, SIZE, 0.2, -1, 0, 0) == pytest.approx(crop)
    assert reframed(crop, SIZE, 0.2, 1, 0, 0) == pytest.approx((44, 26, 236, 154))
    for across in (-1, -0.3, 1):
        left, top, right, bottom = reframed(crop, SIZE, 0.5, 0.2, across, 1)
        assert left >= 0 and top >= 0 and right <= SIZE[0] and bottom <= SIZE[1]
        assert (right - left) / (bottom - top) == pytest.approx(1.5)
    assert reframed(crop, SIZE, 0.2, 1, 1, 0)[0] > reframed(crop, SIZE, 0.2, 1, -1, 0)[0]


def test_colours() -> None:
    plain = Variant((0, 0, 1, 1))
    assert np.allclose(np.array(colour_matrix(plain)).reshape(3, 4), np.eye(3, 4), atol=1e-9)
    image = picture()
    assert coloured(image, plain) is image

    def mean(**values: float) -> np.ndarray:
        return pixels(coloured(image, Variant((0, 0, 1, 1), **values))).reshape(-1, 3)

    before = pixels(image).reshape(-1, 3)
    weights = np.array([0.299, 0.587, 0.114])
    turned = mean(hue=20)
    assert np.abs(turned - before).max() > 15
    assert (turned @ weights).mean() == pytest.approx((before @ weights).mean(), abs=1.5)
    assert mean(brightness=0.8).mean() == pytest.approx(0.8 * before.mean(), abs=1)
    assert mean(contrast=0.5).std() == pytest.approx(0.5 * before.std(), abs=1)
    grey = mean(saturation=0.0)
    assert np.abs(grey - (before @ weights)[:, None]).max() <= 1
    greys = Image.new("RGB", (8, 8), (90, 90, 90))
    assert np.abs(pixels(coloured(greys, Variant((0, 0, 1, 1), hue=120, saturation=1.3))) - 90).max() <= 1


def test_every_variant_shows_in_the_pixels(tmp_path: Path) -> None:
    plain = pixels(render_view(picture(), (20, 10, 260, 170), (120, 80), View()))
    for name, value in (("rotate", 15), ("random_crop", 0.3), ("hue", 60), ("colour", 0.4)):
        some = settings(**{name: value})
        for number in range(1, 8):
            shown = variant(record(), number, some)
            made = render_view(picture(), (20, 10, 260, 170), (120, 80), View(variant=shown))
            assert made.size == (120, 80) and made.mode == "RGB"
            assert np.abs(pixels(made) - plain).mean() > 0.2, (name, number)


def test_views_are_every_variant_both_ways() -> None:
    assert views_of(record(), settings()) == (View(),)
    assert views_of(record(), DatasetSettings(flip=True)) == (View(), View(flip=True))
    many = views_of(record(), DatasetSettings(flip=True, rotate=5, variants=3))
    assert len(set(many)) == 6 and many[0] == View() and many[3] == View(flip=True)


def test_a_mask_follows_its_picture() -> None:
    """The blue rectangle and a mask of it end up in the same place."""
    mask = Image.new("RGB", SIZE, "black")
    ImageDraw.Draw(mask).rectangle((100, 60, 180, 120), fill="white")
    for view in views_of(
        record(), DatasetSettings(flip=True, rotate=20, random_crop=0.3, hue=30, variants=4)
    ):
        inside = pixels(render_place(mask, (20, 10, 260, 170), (120, 80), view))[..., 0] > 200
        colourless = View(view.flip, view.variant and Variant(view.variant.frame, view.variant.degrees))
        shown = pixels(render_view(picture(), (20, 10, 260, 170), (120, 80), colourless))
        assert inside.sum() > 500
        blue = shown[..., 2] > 170
        assert (inside & blue).sum() / inside.sum() > 0.98 and (blue & ~inside).sum() < 0.1 * inside.sum()
