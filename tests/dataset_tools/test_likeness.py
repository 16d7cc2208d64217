"""Likeness, copies and change of pictures, on drawn creatures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dataset_tools.likeness import change, copied_from, descriptor, likeness, thumbnail
from demo.make_photos import pet, references, stranger


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return references(pet, 12)


def test_others_of_the_same_are_more_alike_than_others(photos: list[Image.Image]) -> None:
    known = [descriptor(photo) for photo in photos]
    same = [likeness(descriptor(one), known) for one in references(pet, 8, seed=3)]
    other = [likeness(descriptor(one), known) for one in references(stranger, 8, seed=3)]
    assert np.mean(same) > np.mean(other) + 0.1
    assert likeness(known[0], known, nearest=1) == pytest.approx(1, abs=1e-5)
    assert likeness(known[0], []) == 0


def test_edges_count_and_not_colours_alone(photos: list[Image.Image]) -> None:
    grey = [descriptor(ImageOps.grayscale(one)) for one in photos]
    same = likeness(descriptor(ImageOps.grayscale(references(pet, 1, seed=3)[0])), grey)
    flat = likeness(descriptor(Image.new("L", (64, 64), 128)), grey)
    assert same > flat + 0.2


def test_a_copy_is_found_though_it_is_mirrored_darker_and_of_another_size(photos: list[Image.Image]) -> None:
    known = [thumbnail(photo) for photo in photos]
    disguised = ImageEnhance.Brightness(ImageOps.mirror(photos[5]).resize((200, 170))).enhance(0.8)
    found = copied_from(thumbnail(disguised), known)
    assert found.photo == 5 and found.score > 0.97
    fresh = [copied_from(thumbnail(one), known).score for one in references(pet, 8, seed=3)]
    assert np.mean(fresh) < 0.93
    assert copied_from(thumbnail(photos[0]), []).photo == -1


def test_change_is_none_for_the_same_and_one_between_black_and_white() -> None:
    black, white = (Image.new("RGB", (80, 60), colour) for colour in ("black", "white"))
    assert change(black, black) == 0 and change(black, white) == pytest.approx(1)
