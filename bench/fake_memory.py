"""Memory at full size without a GPU: ``python -m bench.fake_memory --rows FILE [--only sdxl] [--write]``.

The product's own code encodes a picture and a caption, takes a training step and draws a sample, at full
size, for every base of the catalogue whose configuration is published, on tensors that have no content
(:mod:`bench.live_memory`). What lives at the most in each phase is kept in FILE, a row a base, as it comes;
``--write`` puts these beside what ``trainer plan`` says, into docs/memory.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import ModelMixin
from torch import Tensor

from bench.full_bases import shell
from bench.live_memory import GIB, Meter, without_content
from bench.page import put_between
from trainer.assemble import assemble
from trainer.captions import Captions
from trainer.concepts import TrainImage
from trainer.contract.config import TrainConfig
from trainer.contract.families import CATALOGUE, known_base
from trainer.contract.fields import merge, parse
from trainer.contract.plan import CONTEXT_GIB, Machine, estimate
from trainer.contract.prompt import prompts_of
from trainer.data import BatchPlan
from trainer.families.base import ModelFamily, TextEmbeds, family_class, load_family
from trainer.families.pipeline_family import PipelineFamily
from trainer.memory import mixed_precision
from trainer.objective import Objective
from trainer.optimizers import build_optimizer
from trainer.sampling import draw, sample_size
from trainer.source import resolve

PAGE = Path(__file__).resolve().parents[1] / "docs" / "memory.md"
CPU, HALF = torch.device("cpu"), torch.bfloat16
CAPTION = "a photo of zwx, " * 6
"""About a hundred tokens for tokenizers that know single letters."""
UNKNOWN_TEXT = ("black-forest-labs/FLUX.2-dev",)
"""Bases whose text encoders are not built here: theirs are other ones than their family's."""


@dataclass
class Row:
    """GiB that live at the most while encoding ("picture", then "caption"), before a step ("state"), while
    training ("train"), and while sampling ("denoise", then "decode"; "whole" without tiles); ``paths`` of
    attention."""

    family: str
    base: str
    counted: dict[str, float] = field(default_factory=dict)
    paths: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def recipe(family: str, base: str, **sections: Any) -> TrainConfig:
    """Rank 16 at the base's own resolution, one picture a step, checkpointing."""
    known = known_base(family, base)
    assert known
    tables: dict[str, Any] = {
        "model": {"family": family, "base": base, "assistant": "none"},
        "dataset": {"path": ".", "resolution": known.resolution, "trigger": "zwx"},
        "adapter": {"rank": 16, "alpha": 16.0},
        "train": {"steps": 12, "batch_size": 1, "warmup": 0, "gradient_checkpointing": "on"},
        "samples": {"prompts": [CAPTION], "steps": 2, "guidance": known.guidance},
    }
    return parse(merge(tables, sections))


def _without_weights(family: PipelineFamily, cls: Any, part: str, dtype: torch.dtype | None = None) -> Any:
    """PipelineFamily.load_part, of a part that has a configuration and no weights."""
    source, usual = family.source(part), torch.get_default_dtype()
    torch.set_default_dtype(dtype or family.dtype)
    try:
        if issubclass(cls, ModelMixin):
            module = cls.from_config(cls.load_config(source))
            for child in module.modules():  # what is stored has the number format, such as SD 3's positions
                for name, buffer in child._buffers.items():
                    stored = name not in child._non_persistent_buffers_set
                    if buffer is not None and buffer.is_floating_point() and stored:
                        child._buffers[name] = buffer.to(dtype or family.dtype)
            return module
        config = cls.config_class.from_pretrained(source)
        config.dtype = dtype or family.dtype
        return cls(config)
    finally:
        torch.set_default_dtype(usual)


def _dropped(family: PipelineFamily) -> None:
    """PipelineFamily._vae_off: what a GPU's memory has no more of."""
    family._vae = None
    gc.collect()


class _Sampler:
    """A sampler as far as memory goes: the bases' own look up numbers, which are not there."""

    order, init_noise_sigma = 1, 1.0

    def __init__(self, real: Any) -> None:
        self.config = real.config

    def set_timesteps(
        self, steps: int | None = None, device: Any = None, sigmas: Any = None, **_: Any
    ) -> None:
        self.num_inference_steps = len(sigmas) if steps is None else steps
        self.timesteps = torch.tensor([500.0 - number for number in range(self.num_inference_steps)])
        self.sigmas = torch.tensor([0.5] * (self.num_inference_steps + 1))

    def set_begin_index(self, begin: int) -> None:
        pass

    def scale_model_input(self, sample: Tensor, *_: Any) -> Tensor:
        return sample * 1.0

    def step(self, output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> _Moved:
        return _Moved([(sample.float() + output).to(sample.dtype)])


class _Moved(tuple[Tensor]):
    @property
    def prev_sample(self) -> Tensor:
        return self[0]


@contextmanager
def opened(config: TrainConfig, folder: Path) -> Iterator[ModelFamily]:
    """The recipe's family over a base folder that has configurations and no weights."""
    with (
        patch.object(PipelineFamily, "load_part", _without_weights),
        patch.object(PipelineFamily, "_vae_off", _dropped),
    ):
        key = config.model.family
        family: Any = load_family(key, resolve(key, str(folder)), CPU, HALF)
        sampler = _Sampler(family.sampler())
        with patch.object(family, "sampler", lambda: sampler):
            yield family


@dataclass
class Account:
    """One recipe, phase after phase, as trainer/train.py has them. Each method returns bytes at the most."""

    config: TrainConfig
    family: Any
    meter: Meter

    def encode(self) -> dict[str, int]:
        side = self.config.dataset.resolution or 0
        picture = self.meter.peak_of(lambda: self._picture(torch.zeros(1, 3, side, side)))
        caption = self.meter.peak_of(self._caption)
        self._let_go_of_encoders()
        return {"picture": picture, "caption": caption}

    def _picture(self, pixels_BCHW: Tensor) -> None:
        self.latents = self.family.encode_images(pixels_BCHW)[0]

    def _caption(self) -> None:
        base = known_base(self.config.model.family, self.config.model.base)
        tokens, numbers = (base and base.caption) or self.family.row.caption
        if self.config.model.base in UNKNOWN_TEXT:
            embeds = {"prompt": torch.zeros(tokens, numbers, dtype=HALF)}
        else:
            (embeds,) = self.family.encode_captions([CAPTION])
        self.embeds: TextEmbeds = embeds

    def _let_go_of_encoders(self) -> None:
        self.family.free_encoders()
        gc.collect()  # of encoders too

    def train(self) -> dict[str, int]:
        config, family = self.config, self.family
        self.model = assemble(family, config, Path("."))
        if config.train.gradient_checkpointing == "on":
            self.model.use_checkpointing()
        for module in self.model.parts.values():
            module.train()
        optimizer = self.optimizer = build_optimizer(config.train, self.model.groups(config))
        plan = BatchPlan([_image(config.dataset.resolution or 0)], 1, 0)
        ones = torch.ones_like(self.latents[:1])
        latents: Any = SimpleNamespace(get=lambda *_: self.latents, mask=lambda *_: ones)
        self.texts: Any = SimpleNamespace(embeds=lambda captions: [self.embeds for _ in captions])
        objective = Objective(family, self.model, latents, self.texts, Captions(config, plan), config, CPU)

        def step(number: int) -> None:
            self.model.begin_step(config, number)
            with mixed_precision(CPU, HALF):
                losses_B = objective.losses(plan.batch(number))
            losses_B.mean().backward()
            torch.nn.utils.clip_grad_norm_(list(self.model.parameters().values()), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        for parameter in self.model.parameters().values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        optimizer.zero_grad()
        return {"state": self.meter.now, "train": self.meter.peak_of(lambda: step(1))}

    def sample(self) -> dict[str, int]:
        made, peaks, stack = self.family.pipeline, {}, ExitStack()

        def pipeline(*args: Any, **options: Any) -> Any:
            pipe = made(*args, **options)
            pipe.image_processor.postprocess = lambda image, **_: [image]
            decode = pipe.vae.decode

            def decoded(*args: Any, **options: Any) -> Any:
                peaks["denoise"] = self.meter.peak
                self.meter.peak = self.meter.now
                return decode(*args, **options)

            stack.enter_context(patch.object(pipe.vae, "decode", decoded))
            return pipe

        def one() -> None:
            side, prompt = sample_size(self.config, self.family), prompts_of(self.config.samples)[0]
            with stack, patch.object(self.family, "pipeline", pipeline), mixed_precision(CPU, HALF):
                draw(self.family, self.model, self.texts, self.config, prompt, side=side)

        gc.collect()  # of the step's graph
        peaks["decode"] = self.meter.peak_of(one)
        gc.collect()
        vae = self.family._vae
        if hasattr(vae, "disable_tiling"):
            vae.disable_tiling()
        with torch.no_grad():
            peaks["whole"] = self.meter.peak_of(lambda: self.family.decode(vae, self.latents[None].to(HALF)))
        return peaks


def _image(side: int) -> TrainImage:
    return TrainImage(
        id="a",
        file="a.png",
        original_name="a.png",
        sha256="0" * 64,
        width=side,
        height=side,
        bucket=(side, side),
        crop=(0, 0, side, side),
        caption=CAPTION,
    )


def account(config: TrainConfig, build: Callable[[Path], Any]) -> Row:
    """The peaks of a recipe over the base that ``build`` puts into a folder."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        with opened(config, Path(folder)) as family, without_content() as (meter, kernels):
            run = Account(config, family, meter)
            peaks = run.encode() | run.train()
            if config.samples.prompts:
                peaks |= run.sample()
    counted = {name: round(size / GIB, 3) for name, size in peaks.items()}
    seconds = round(time.monotonic() - began, 1)
    return Row(config.model.family, config.model.base, counted, kernels.paths, seconds)


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as Markdown. What a plan says is without the CUDA context, which has no tensors."""
    lines = [
        "| Base | Encoding | Training | Sampling | of which denoising, decoding | Sampling adds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        known = known_base(row.family, row.base)
        assert known
        planned = estimate(recipe(row.family, row.base), Machine("", 1000.0), images=1).vram_gib
        counted = {
            "cache": max(row.counted["picture"], row.counted["caption"]),
            "train": row.counted["train"],
            "sample": max(row.counted["denoise"], row.counted["decode"]),
        }
        cells = [f"{counted[phase]:.2f} ({planned[phase] - CONTEXT_GIB:.2f})" for phase in counted]
        if row.base in UNKNOWN_TEXT:
            cells[0] = f"not counted ({planned['cache'] - CONTEXT_GIB:.2f})"
        adds = max(0.0, counted["sample"] - counted["train"])
        both = f"{row.counted['denoise']:.2f}, {row.counted['decode']:.2f}"
        lines.append(f"| {' | '.join([known.label, *cells, both, f'{adds:.2f}' if adds else 'nothing'])} |")
    return lines


def read_rows(file: Path) -> list[Row]:
    """The newest row of each base, in the catalogue's order."""
    rows = [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    newest = {row.base: row for row in rows}
    return [newest[base.id] for row in CATALOGUE.values() for base in row.bases if base.id in newest]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fake_memory", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="file that rows are added to")
    parser.add_argument("--only", default="", help="families, by commas")
    parser.add_argument("--stored", action="store_true", help="keep all activations, and draw nothing")
    parser.add_argument("--write", action="store_true", help="put the rows of FILE into docs/memory.md")
    given = parser.parse_args()
    if given.write:
        put_between(PAGE, "counted", table(read_rows(given.rows)))
        return
    other = {"train": {"gradient_checkpointing": "off"}, "samples": {"prompts": []}} if given.stored else {}
    for key in given.only.split(",") if given.only else CATALOGUE:
        for base in family_class(key).published:
            try:
                row = account(recipe(key, base, **other), lambda folder, of=(key, base): shell(*of, folder))
            except Exception:
                traceback.print_exc()
                print(f"{base} could not be counted", flush=True)
                continue
            with given.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
