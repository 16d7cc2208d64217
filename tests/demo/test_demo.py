"""The embedded model and the pet photos are what demo/README.md says, with a margin."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image

from demo import evaluate
from demo.draw import BUCKETS, Creature, describe, held_out, render
from demo.judge import WEIGHTS, accuracy, labels_of, load_judge
from demo.make_photos import PHOTOS, TRIGGER, pet, references, stranger
from demo.pretrain_vae import draw_pictures, psnr


@pytest.fixture(scope="module")
def pipeline():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield evaluate.load_pipeline()
    torch.set_num_threads(threads)


def test_model_folder_is_small_and_safe():
    files = [file for file in evaluate.MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt"}
    assert WEIGHTS.stat().st_size < 500e3
    index = json.loads((evaluate.MODEL / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"


def test_model_is_sdxl_in_small(pipeline):
    unet = pipeline.unet.config
    assert (unet.addition_embed_type, unet.sample_size * pipeline.vae_scale_factor) == ("text_time", 128)
    assert pipeline.vae.config.latent_channels == 4
    assert type(pipeline.text_encoder_2).__name__ == "CLIPTextModelWithProjection"
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_known_words_are_one_token_and_unknown_words_come_apart(pipeline):
    tokens = pipeline.tokenizer.tokenize("a teal creature with pointy ears")
    assert tokens == ["a</w>", "teal</w>", "creature</w>", "with</w>", "pointy</w>", "ears</w>"]
    assert pipeline.tokenizer.tokenize(TRIGGER) == ["z", "w", "x</w>", "creature</w>"]


def test_autoencoder_keeps_held_out_drawings(pipeline):
    assert psnr(pipeline.vae, draw_pictures(12, seed=123, holdout=True)) >= 29.5


def test_judge_reads_held_out_drawings():
    drawings = evaluate.held_out_drawings(creatures=150, shapes=100, seed=5)
    for attribute, share in accuracy(load_judge(), drawings).items():
        assert share >= 0.98, attribute


def test_prompts_of_held_out_combinations_are_followed(pipeline):
    drawings = evaluate.held_out_drawings(creatures=20, shapes=12, seed=11)
    assert all(held_out(drawing.subject, drawing.backdrop) for drawing in drawings)
    prompts = [describe(drawing.subject, drawing.backdrop) for drawing in drawings]
    counts = evaluate.following(evaluate.generate(pipeline, prompts, steps=10), drawings)
    for attribute in ("background", "colour"):
        right, asked = counts[attribute]
        assert right >= 0.95 * asked, attribute
    for attribute in ("shape", "body", "eyes", "ears"):
        right, asked = counts[attribute]
        assert right >= 0.85 * asked, attribute  # chance gives 0.12 to 0.33


def test_following_tells_right_pictures_from_wrong_ones():
    drawings = evaluate.held_out_drawings(creatures=20, shapes=12, seed=11)
    pictures = [render(drawing) for drawing in drawings]
    assert all(right >= asked - 1 for right, asked in evaluate.following(pictures, drawings).values())
    shifted = evaluate.following(pictures[1:] + pictures[:1], drawings)
    assert all(right < 0.7 * asked for right, asked in shifted.values())


def test_every_bucket_can_be_sampled(pipeline):
    for size in BUCKETS[1::3]:
        (image,) = evaluate.generate(pipeline, ["a red circle on a white background"], steps=2, size=size)
        assert image.size == size


def test_pet_distance_and_drift():
    drawn = references(pet)
    assert len(drawn) == 48
    again, other = evaluate.pet_distance(references(pet, 8, seed=2), drawn), references(stranger, 8)
    assert evaluate.pet_distance(drawn[:4], drawn) < 1e-6
    assert again < evaluate.pet_distance(other, drawn) / 2
    assert evaluate.drift(drawn[:4], drawn[:4]) == 0 < evaluate.drift(drawn[:4], drawn[4:8])


def test_pet_is_kept_out_of_training():
    rounded = Creature("orange", "round", "pointy ears", "two eyes", "striped")
    drawings = evaluate.held_out_drawings(creatures=5, shapes=0)
    assert held_out(rounded, drawings[0].backdrop)
    assert all(labels_of(drawing)["shape"] == "creature" for drawing in drawings)


def test_photos_have_captions_that_name_the_place():
    photos = sorted(PHOTOS.glob("*.jpg"))
    assert len(photos) == 16
    assert sum(file.stat().st_size for file in PHOTOS.iterdir()) <= 3e6
    sizes = set()
    for photo in photos:
        with Image.open(photo) as image:
            image.load()
            sizes.add(image.size)
            assert min(image.size) >= 3 * 128
        caption = photo.with_suffix(".txt").read_text().strip()
        assert re.fullmatch(
            TRIGGER + " (on a [a-z]+ background|in a meadow.*|on a beach|in the snow.*|at night)", caption
        )
    assert len(sizes) >= 6
    assert len(list(PHOTOS.iterdir())) == 32
