"""What a step minimises: the loss of each sample of a batch, from its cached latents and caption."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .assemble import Model
from .cache import LatentCache, Texts
from .captions import Captions
from .contract.config import TrainConfig
from .data import Sample
from .families.base import Geometry, ModelFamily, TextEmbeds
from .losses import elementwise, mse, per_sample
from .prior import base_alone, kept_caption


@dataclass(frozen=True)
class Batch:
    """Samples ready for the denoiser, on its device. All of one bucket.

    Attributes:
        clean_BCHW, noise_BCHW: latents of the pictures, and the noise that is mixed in.
        t_B: how much of it, from 0 (clean) to 1 (noise).
    """

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    t_B: Tensor
    embeds: list[TextEmbeds]
    geometry: list[Geometry]

    def part(self, numbers: list[int], embeds: list[TextEmbeds]) -> Batch:
        """Some of the samples, with other captions."""
        return Batch(
            self.clean_BCHW[numbers],
            self.noise_BCHW[numbers],
            self.t_B[numbers],
            embeds,
            [self.geometry[number] for number in numbers],
        )


@dataclass(frozen=True)
class Objective:
    """The loss of a recipe. Everything random in it is a function of the sample (:class:`Sample`)."""

    family: ModelFamily
    model: Model
    latents: LatentCache
    texts: Texts
    captions: Captions
    config: TrainConfig
    device: torch.device
    trigger: str

    def losses(self, samples: list[Sample]) -> Tensor:
        """(B,), float32, with gradients."""
        batch = self.batch(samples)
        losses_B = per_sample(self.elementwise(batch)) * self.weights(batch, samples)
        if self.config.prior.method == "output":
            losses_B = losses_B + self.config.prior.weight * self.output_change(samples, batch)
        return losses_B

    def elementwise(self, batch: Batch) -> Tensor:
        """How far every number of the denoiser's answer is from its target, (B, C, h, w), float32."""
        target_BCHW = self.family.noise.target(batch.clean_BCHW, batch.noise_BCHW, batch.t_B)
        return elementwise(self.predict(batch), target_BCHW)

    def weights(self, batch: Batch, samples: list[Sample]) -> Tensor:
        """How much each sample counts, (B,): its picture's own weight, and its time's."""
        pictures_B = torch.tensor([one.image.weight for one in samples], device=self.device)
        return pictures_B * self.family.noise.weight(batch.t_B, self.config.loss.min_snr_gamma)

    def output_change(self, samples: list[Sample], batch: Batch) -> Tensor:
        """How far the LoRA moves the answers to captions without the trigger, (B,); 0 for samples that
        are not asked (``prior.share``)."""
        captions = {
            number: caption
            for number, one in enumerate(samples)
            for text in [self.captions.of(one, dropout=False)]
            if (caption := kept_caption(self.config.prior, one, text, self.trigger)) is not None
        }
        change_B = torch.zeros(len(samples), device=self.device)
        if not captions:
            return change_B
        asked, texts = list(captions), list(captions.values())
        with base_alone(self.model):
            target = self.predict(batch.part(asked, self.texts.embeds(texts)))
        losses = mse(self.predict(batch.part(asked, self.texts.embeds(texts))), target)
        return change_B.index_put((torch.tensor(asked, device=self.device),), losses)

    def batch(self, samples: list[Sample]) -> Batch:
        """What is looked up and drawn for the samples."""
        data = self.config.dataset
        flips = [data.flip and sample.uniform("flip") < 0.5 for sample in samples]
        captions = [self.captions.of(sample) for sample in samples]
        clean = [self.latents.get(one.image.id, flip) for one, flip in zip(samples, flips, strict=True)]
        noise = [one.noise_like(latent) for one, latent in zip(samples, clean, strict=True)]
        t_B = self.family.noise.sample_t(torch.tensor([one.uniform("t") for one in samples]))
        return Batch(
            torch.stack(clean).to(self.device),
            torch.stack(noise).to(self.device),
            t_B.to(self.device),
            self.texts.embeds(captions),
            [one.image.geometry(flip) for one, flip in zip(samples, flips, strict=True)],
        )

    def predict(self, batch: Batch) -> Tensor:
        """The denoiser's answer to a noisy batch, (B, C, h, w)."""
        noisy_BCHW = self.family.noise.mix(batch.clean_BCHW, batch.noise_BCHW, batch.t_B)
        return self.family.predict(self.model.denoiser, noisy_BCHW, batch.t_B, batch.embeds, batch.geometry)
