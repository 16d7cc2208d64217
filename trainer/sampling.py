"""Validation images: the base's own diffusers pipeline around the denoiser that is being trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import nn

from .adapters import assistant_off
from .assemble import Model
from .cache import Texts
from .contract.config import TrainConfig
from .contract.files import staged
from .contract.ladder import amended, read_ladder
from .contract.prompt import Prompt, prompts_of
from .contract.randomness import derived_seed
from .contract.runs import RunFolder
from .contract.settings.dataset import all_resolutions
from .contract.sizes import square_side
from .contract.working import in_tiles
from .families.base import ModelFamily
from .ladder import climb, gpu_is_full, release
from .report import Reporter
from .requests import Asks


class Interrupted(Exception):
    """A picture was given up, as the run is to stop."""


def sample_size(config: TrainConfig, family: ModelFamily) -> int:
    """Side of the validation images where a prompt says nothing else: the largest training resolution."""
    return square_side(all_resolutions(config.dataset, family.resolution)[0], family.row.size_multiple)


@dataclass(frozen=True)
class Drawings:
    """The validation images of a run: one of each prompt, at regular steps."""

    run: RunFolder
    family: ModelFamily
    model: Model
    texts: Texts
    config: TrainConfig
    report: Reporter
    requests: Asks
    autocast: Callable[[], AbstractContextManager[Any]]
    cache: Path

    def due(self, step: int) -> bool:
        """Before the first step (what the base draws by itself), after the last, and every so many."""
        every = self.config.samples.every
        return step in (0, self.config.train.steps) or bool(every and step % every == 0)

    def draw(self, step: int) -> None:
        """Draw what is not there yet. A failure is told and the training goes on: it is worth more."""
        prompts = prompts_of(self.config.samples)
        side = sample_size(self.config, self.family)
        try:
            for number, prompt in enumerate(prompts):
                if self.requests.stop():
                    return
                file = self.run.sample(step, number)
                if not file.exists():
                    baseline = step == 0 and not self.config.adapter.start_from
                    if not (baseline and _copied(self._kept(prompt, number, side), file)):
                        image = self._drawn(prompt, number, side)
                        save_sample(image, file)
                        if baseline:  # a full GPU may have changed meanwhile how it is drawn
                            save_sample(image, self._kept(prompt, number, side))
                self.report.sample(step, number, prompt.text, file.name)
                self.report.stage("sample", number + 1, len(prompts), "Drawing samples")
        except Interrupted:
            return  # a resumed run draws it
        except (RuntimeError, MemoryError, ValueError, TypeError, OSError) as error:
            self.report.warning(f"drawing samples at step {step} failed ({error}); the training goes on")

    def _drawn(self, prompt: Prompt, number: int, side: int) -> Image.Image:
        """One drawing, decoded in tiles where it does not fit otherwise: from then on in this run."""
        whole = self._now()

        def one(config: TrainConfig) -> Image.Image:
            with self.autocast():
                return draw(
                    self.family,
                    self.model,
                    self.texts,
                    config,
                    prompt,
                    number=number,
                    side=side,
                    stop=self.requests.stop,
                )

        try:
            return one(whole)
        except RuntimeError as error:
            if self._tiled(whole, prompt, side) or not gpu_is_full(error):
                raise
            release(error)
        change = climb(self.run, self.config, self.report.status, "draw")
        if change:
            self.report.adapted(change)
            whole = amended(whole, [change])
        return one(whole)

    def _now(self) -> TrainConfig:
        """The recipe with what was changed since this process began."""
        return amended(self.config, read_ladder(self.run.ladder))

    def _tiled(self, config: TrainConfig, prompt: Prompt, side: int) -> bool:
        return in_tiles(config, *_size(self.family, prompt, side))

    def _kept(self, prompt: Prompt, number: int, side: int) -> Path:
        """Where a picture by the base alone is kept, by all that it depends on: runs share theirs."""
        settings, tiled = self.config.samples, self._tiled(self._now(), prompt, side)
        parts = (
            self.family.denoiser_id(),
            self.family.text_encoder_id(),
            self.family.image_encoder_id(),
            (astuple(prompt), number, settings.seed, side, tiled),
            (torch.__version__, diffusers.__version__),
        )
        return self.cache / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.webp"


def _copied(source: Path, target: Path) -> bool:
    """Whether a picture that was kept could be taken; a damaged one is drawn again."""
    try:
        with Image.open(source) as image:
            image.load()
            save_sample(image, target)
    except (OSError, SyntaxError):
        return False
    return True


def _size(family: ModelFamily, prompt: Prompt, side: int | None) -> tuple[int, int]:
    """Width and height in pixels of a prompt's picture; ``side`` where it has none of its own."""
    multiple = family.row.size_multiple
    width, height = (length or side or family.resolution for length in (prompt.width, prompt.height))
    return width // multiple * multiple, height // multiple * multiple


def draw(
    family: ModelFamily,
    model: Model,
    texts: Texts,
    config: TrainConfig,
    prompt: Prompt,
    *,
    number: int = 0,
    side: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Image.Image:
    """One picture of ``prompt`` by the model as it stands; ``side`` in pixels where it has no size.
    Raises Interrupted between two passes of the denoiser when ``stop`` says so.

    The starting noise depends on the prompt's seed, or on ``samples.seed`` and ``number``, and on nothing
    else, so that pictures of different steps can be compared. The global random state is left as it was.
    """
    settings = config.samples
    width, height = _size(family, prompt, side)
    pipeline = family.pipeline(model.denoiser, in_tiles(config, width, height))
    family.draw_with(pipeline, prompt.sampler)
    pipeline.set_progress_bar_config(disable=True)
    seed = derived_seed(settings.seed, number) if prompt.seed is None else prompt.seed
    with (
        torch.random.fork_rng(),
        torch.no_grad(),
        model.drawing(),
        assistant_off(model.denoiser),
        _interruptible(model.denoiser, stop),
    ):
        positive, negative = texts.embeds([prompt.text, prompt.negative])
        result = pipeline(
            **family.pipeline_inputs(positive, negative),
            **family.guidance(prompt.guidance),
            width=width,
            height=height,
            num_inference_steps=prompt.steps,
            generator=torch.Generator().manual_seed(seed),
        )
    image: Image.Image = result.images[0]
    return image


@contextmanager
def _interruptible(denoiser: nn.Module, stop: Callable[[], bool]) -> Iterator[None]:
    """Look before every pass whether to go on: the one place that all pipelines come through."""

    def look(module: nn.Module, inputs: Any) -> None:
        if stop():
            raise Interrupted

    hook = denoiser.register_forward_pre_hook(look, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def save_sample(image: Image.Image, path: Path) -> None:
    """A lossless .webp that appears whole; no metadata."""
    with staged(path) as temporary:
        image.save(temporary, format="WEBP", lossless=True)
