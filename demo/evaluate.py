"""Judges the demo model: autoencoder, prompt following, and what a LoRA changes.

python -m demo.evaluate                            # PSNR and prompt following on held-out combinations
python -m demo.evaluate --lora pet.safetensors --picture demo/demo.png
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging
from PIL import Image

from demo.draw import (
    BACKGROUNDS,
    NATIVE,
    Backdrop,
    Creature,
    Drawing,
    Shape,
    contact_sheet,
    describe,
    random_drawing,
)
from demo.judge import labels_of, load_judge, to_tensor
from demo.make_photos import TRIGGER, Painter, pet, references, stranger
from demo.pretrain_vae import draw_pictures, psnr

MODEL = Path(__file__).parent / "model"
STEPS, GUIDANCE = 25, 4.0
OTHER_CREATURE = describe(
    Creature("green", "round", "round ears", "one eye", "spotted", "smiling", True), Backdrop("grey")
)
STAR = describe(Shape("blue", "star"), Backdrop("sand"))


def load_pipeline(folder: Path = MODEL) -> StableDiffusionXLPipeline:
    """The model in float32 without progress bars."""
    logging.set_verbosity_error()
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    size: tuple[int, int] = (NATIVE, NATIVE),
    batch: int = 16,
) -> list[Image.Image]:
    """One picture per prompt; picture i has seed `seed + i`, whatever the batch."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        noise = [torch.Generator().manual_seed(seed + start + index) for index in range(len(chunk))]
        images += pipeline(
            chunk,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
        ).images
    return images


def held_out_drawings(creatures: int, shapes: int, seed: int = 7) -> list[Drawing]:
    """Drawings of combinations that pre-training never saw; `describe` gives their prompts."""
    rng = random.Random(seed)
    wanted = {Creature: creatures, Shape: shapes}
    drawings: list[Drawing] = []
    while len(drawings) < creatures + shapes:
        drawing = random_drawing(rng, holdout=True)
        if wanted[type(drawing.subject)]:
            wanted[type(drawing.subject)] -= 1
            drawings.append(drawing)
    return drawings


def following(images: Sequence[Image.Image], drawings: Sequence[Drawing]) -> dict[str, tuple[int, int]]:
    """Per attribute, how many of the asked-for values the judge finds in the pictures: (right, asked)."""
    counts: dict[str, tuple[int, int]] = {}
    for drawing, reading in zip(drawings, load_judge().read(list(images)), strict=True):
        for name, value in labels_of(drawing).items():
            if name == "shape" and value == "creature":
                continue  # "shape" is asked of plain shapes
            right, asked = counts.get(name, (0, 0))
            counts[name] = right + (reading[name] == value), asked + 1
    return counts


def pet_distance(images: Sequence[Image.Image], drawings: Sequence[Image.Image], side: int = 32) -> float:
    """Mean over `images` of the squared error to the nearest of `drawings`, at `side` pixels, in [0, 1]²."""
    a, b = to_tensor(list(images), side).flatten(1), to_tensor(list(drawings), side).flatten(1)
    return float((torch.cdist(a, b).pow(2) / a.shape[1]).min(dim=1).values.mean())


def drift(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
    """Mean squared error between pictures of the same seeds, values in [0, 1], at full size."""
    pairs = zip(before, after, strict=True)
    return float(np.mean([((np.asarray(a, float) - np.asarray(b, float)) / 255) ** 2 for a, b in pairs]))


def trigger_prompts(count: int, trigger: str = TRIGGER) -> list[str]:
    """Half with a background named, half without."""
    places = [Backdrop(name).phrase for name in BACKGROUNDS]
    prompts = []
    for index in range(count):
        named = f"{trigger} {places[index // 2 % len(places)]}"
        prompts.append(f"a photo of {trigger}" if index % 2 else named)
    return prompts


Pictures = dict[str, list[Image.Image]]


def asked_pictures(
    pipeline: StableDiffusionXLPipeline, trigger: str, count: int, steps: int = STEPS
) -> Pictures:
    """``count`` pictures each with the trigger, of another creature, and of a star; always the same seeds."""
    prompts = {
        "trigger": trigger_prompts(count, trigger),
        "creature": [OTHER_CREATURE] * count,
        "star": [STAR] * count,
    }
    return {name: generate(pipeline, texts, steps=steps) for name, texts in prompts.items()}


def compare(base: Pictures, tuned: Pictures, painter: Painter) -> dict[str, float]:
    """Distances to the pet and drifts of the base and of a LoRA, from :func:`asked_pictures` of both."""
    drawn, count = references(painter), len(base["trigger"])
    figures = {
        "base + trigger": pet_distance(base["trigger"], drawn),
        "LoRA + trigger": pet_distance(tuned["trigger"], drawn),
        "base, another creature": pet_distance(base["creature"], drawn),
        "LoRA, another creature": pet_distance(tuned["creature"], drawn),
        "other drawings of the pet": pet_distance(references(painter, count, seed=2), drawn),
        "drift, another creature": drift(base["creature"], tuned["creature"]),
        "drift, star": drift(base["star"], tuned["star"]),
    }
    return {**figures, "ratio LoRA / base": figures["LoRA + trigger"] / figures["base + trigger"]}


def evaluate_lora(
    pipeline: StableDiffusionXLPipeline,
    lora: Path,
    painter: Painter,
    trigger: str,
    count: int,
    steps: int = STEPS,
) -> tuple[dict[str, float], Pictures]:
    """Figures of a LoRA file, and the pictures behind them."""
    base = asked_pictures(pipeline, trigger, count, steps)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    tuned = asked_pictures(pipeline, trigger, count, steps)
    pipeline.unload_lora_weights()
    images: Pictures = {"pet": references(painter)}
    for name in base:
        images |= {f"base {name}": base[name], f"LoRA {name}": tuned[name]}
    return compare(base, tuned, painter), images


def evaluate_base(
    pipeline: StableDiffusionXLPipeline, creatures: int, shapes: int, guidance: float, sheet: Path | None
) -> None:
    """Prints the autoencoder's PSNR and how well held-out prompts are followed."""
    print(f"VAE PSNR on held-out drawings  {psnr(pipeline.vae, draw_pictures(64, 99, holdout=True)):.2f} dB")
    drawings = held_out_drawings(creatures, shapes)
    started = time.monotonic()
    prompts = [describe(drawing.subject, drawing.backdrop) for drawing in drawings]
    images = generate(pipeline, prompts, guidance=guidance)
    print(f"{len(images)} pictures in {time.monotonic() - started:.0f} s")
    for name, (right, asked) in following(images, drawings).items():
        print(f"{name:12} {right:4d} of {asked:4d}  {100 * right / asked:.1f} %")
    if sheet:
        contact_sheet(images, columns=16).save(sheet)


def picture(images: dict[str, list[Image.Image]]) -> Image.Image:
    """Rows of eight: the pet, then base and LoRA with the trigger, for another creature and for a star."""
    rows = ["pet", "base trigger", "LoRA trigger", "base creature", "LoRA creature", "base star", "LoRA star"]
    return contact_sheet([image for row in rows for image in images[row][:8]], columns=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--creatures", type=int, default=120, help="held-out prompts for creatures")
    parser.add_argument("--shapes", type=int, default=80, help="held-out prompts for plain shapes")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--sheet", type=Path, help="write the held-out pictures here")
    parser.add_argument("--lora", type=Path, help="judge this adapter instead")
    parser.add_argument(
        "--creature", choices=("pet", "stranger"), default="pet", help="what the adapter was taught"
    )
    parser.add_argument("--trigger", default=TRIGGER)
    parser.add_argument("--picture", type=Path, help="write base and LoRA side by side here")
    parser.add_argument("--count", type=int, default=24, help="pictures per row with --lora")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*torchvision.*")
    pipeline = load_pipeline(args.model)
    if args.lora:
        painter = {"pet": pet, "stranger": stranger}[args.creature]
        figures, images = evaluate_lora(pipeline, args.lora, painter, args.trigger, args.count)
        for name, value in figures.items():
            print(f"{name:28} {value:.4f}")
        if args.picture:
            picture(images).quantize(256).save(args.picture, optimize=True)
    else:
        evaluate_base(pipeline, args.creatures, args.shapes, args.guidance, args.sheet)


if __name__ == "__main__":
    main()
