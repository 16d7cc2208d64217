"""What every look at a picture is captioned with, for a whole run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .concepts import TrainImage
from .contract.caption_pipeline import Look, stages, variants_of, varies, warmup_steps
from .contract.config import TrainConfig
from .data import BatchPlan, Sample

TRIED = 8
"""Draws of each picture that are looked at where there is no end to them."""


@dataclass(frozen=True)
class Captions:
    """The captions of a run, see :mod:`trainer.contract.caption_pipeline`."""

    config: TrainConfig
    plan: BatchPlan
    held_out: tuple[TrainImage, ...] = ()

    @property
    def images(self) -> tuple[TrainImage, ...]:
        return (*self.plan.images, *self.held_out)

    def of(self, sample: Sample, *, dropout: bool = True) -> str:
        """The text that a sample is shown with; without ``dropout`` as if it were never dropped whole."""
        look = Look(
            seed=sample.seed,
            image_id=sample.image.id,
            epoch=sample.epoch,
            repeat=sample.repeat,
            repeats=sample.image.repeats,
            step=sample.batch // self.config.train.gradient_accumulation,
            regularisation=sample.image.regularisation,
            own=sample.image.own,
        )
        return stages(sample.image.caption, self.config, look, dropout=dropout).caption

    def fixed(self, image: TrainImage) -> str:
        """The one caption of a picture that is held out: whole, and the same in every run."""
        last = (self.config.train.steps - 1) * self.config.train.gradient_accumulation
        return self.of(Sample(image, 0, 0, 0, last), dropout=False)

    def of_held_out(self) -> set[tuple[str, str]]:
        """(image id, caption)"""
        return {(image.id, self.fixed(image)) for image in self.held_out}

    def all(self) -> set[tuple[str, str]]:
        """(image id, caption) of everything that is shown in this run, the empty caption aside.

        Where there are variants these are all of them, whole, and what the warm-up shows of them.
        """
        if not varies(self.config):
            return self.some(1)
        variants = variants_of(self.config)
        if variants:
            warming = warmup_steps(self.config)
            return self._until(warming) | self.some(variants)
        return self._until(self.config.train.steps)

    def some(self, draws: int = TRIED) -> set[tuple[str, str]]:
        """(image id, caption) of the first draws of each picture, as they are after the warm-up."""
        last = (self.config.train.steps - 1) * self.config.train.gradient_accumulation
        seed = self.config.train.seed
        return {
            (image.id, self.of(Sample(image, epoch, repeat, seed, last), dropout=False))
            for image in self.plan.images
            for epoch, repeat in (divmod(draw, image.repeats) for draw in range(draws))
        }

    def _until(self, step: int) -> set[tuple[str, str]]:
        return {(one.image.id, self.of(one, dropout=False)) for one in self._samples(step)}

    def _samples(self, step: int) -> Iterator[Sample]:
        for batch in range(min(step, self.config.train.steps) * self.config.train.gradient_accumulation):
            yield from self.plan.batch(batch)
