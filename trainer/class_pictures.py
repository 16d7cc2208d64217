"""Class pictures for prior preservation (DreamBooth, Ruiz et al. 2022), drawn by the base, once for all."""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path

import torch

from .assemble import base_of
from .cache import TextCache
from .contract.class_set import with_class_set
from .contract.config import TrainConfig
from .contract.files import write_text
from .contract.prompt import Prompt
from .contract.runs import RunFolder
from .contract.working import in_tiles
from .data import Stages
from .families.base import ModelFamily
from .memory import mixed_precision
from .report import Reporter
from .requests import Asks
from .sampling import Interrupted, draw, sample_size, save_sample


def with_class_pictures(
    run: RunFolder,
    config: TrainConfig,
    family: ModelFamily,
    device: torch.device,
    dtype: torch.dtype,
    cache: Path,
    stages: Stages,
    report: Reporter,
    requests: Asks,
) -> TrainConfig:
    """The recipe with the class pictures as one more regularisation set; what is missing is drawn.

    As it is once the run's pictures are frozen, for a frozen dataset has them.
    """
    prior = config.prior
    if prior.method != "class_pictures" or run.dataset.exists():
        return config
    folder = ""
    if not prior.path:
        with mixed_precision(device, dtype):
            folder = str(_drawn(config, family, cache, stages, report, requests))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return config.model_copy(update={"dataset": with_class_set(config.dataset, prior, folder)})


def class_prompts(config: TrainConfig) -> list[str]:
    """What is drawn, in turn: the class, and the captions to keep."""
    name = config.prior.class_name
    return [*([f"a photo of {name}"] if name else []), *config.prior.captions]


def _drawn(
    config: TrainConfig,
    family: ModelFamily,
    cache: Path,
    stages: Stages,
    report: Reporter,
    requests: Asks,
) -> Path:
    """The folder of pictures with their prompts as captions. If it is ended, the next run goes on there."""
    side, prompts = sample_size(config, family), class_prompts(config)
    settings = config.samples
    what: tuple[object, ...] = (prompts, side, settings.steps, settings.guidance, settings.negative)
    what = (*what, settings.sampler)
    if settings.tiling == "auto" and in_tiles(config, side, side):
        what = (*what, "in tiles")
    whose = (family.denoiser_id(), family.text_encoder_id(), family.image_encoder_id())
    key = hashlib.sha256(repr((what, whose, config.train.seed)).encode()).hexdigest()[:24]
    folder = cache / "class-pictures" / f"{key}-{config.prior.pictures}"
    missing = [
        number for number in range(config.prior.pictures) if not (folder / f"{number:05d}.txt").exists()
    ]
    if not missing:
        return folder
    texts = TextCache(cache, family, report.warning)
    texts.fill([*prompts, settings.negative], stages("captions", "Encoding captions"))
    family.free_encoders()
    report.stage("load", 0, 0, "Loading the denoiser for the class pictures")
    model = base_of(family, config)
    progress = stages("class", "Drawing class pictures")
    for done, number in enumerate(missing, config.prior.pictures - len(missing)):
        progress(done, config.prior.pictures)
        text = prompts[number % len(prompts)]
        prompt = Prompt(
            text, settings.negative, None, None, settings.steps, settings.guidance, None, settings.sampler
        )
        samples = settings.model_copy(update={"seed": config.train.seed})
        seeded = config.model_copy(update={"samples": samples})
        try:
            image = draw(family, model, texts, seeded, prompt, number=number, side=side, stop=requests.stop)
        except Interrupted:
            progress(done, config.prior.pictures)  # which ends the preparation
            raise
        save_sample(image, folder / f"{number:05d}.webp")
        write_text(folder / f"{number:05d}.txt", text)  # last: with it the picture counts as drawn
    progress(config.prior.pictures, config.prior.pictures)
    family.free_encoders()
    del model
    gc.collect()
    return folder
