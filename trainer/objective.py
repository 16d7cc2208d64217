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
from .losses import elementwise, flow_weights, huber_c, mse, per_sample, snr_weights
from .noising import drawn_noise, perturbed
from .prior import base_alone, kept_caption
from .timesteps import times_of


@dataclass(frozen=True)
class Batch:
    """Samples ready for the denoiser, on its device. All of one bucket.

    Attributes:
        clean_BCHW: latents of the pictures.
        noise_BCHW, seen_BCHW: the noise that the target is made of, and the noise that is mixed in.
        t_B: how much of it, from 0 (clean) to 1 (noise).
    """

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    seen_BCHW: Tensor
    t_B: Tensor
    embeds: list[TextEmbeds]
    geometry: list[Geometry]

    def part(self, numbers: list[int], embeds: list[TextEmbeds]) -> Batch:
        """Some of the samples, with other captions."""
        return Batch(
            self.clean_BCHW[numbers],
            self.noise_BCHW[numbers],
            self.seen_BCHW[numbers],
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
        """How far every number of the denoiser's answer is from its target, (B, C, h, w), float32; of a flow
        weighed by its time."""
        noise, loss, t_B = self.family.noise, self.config.loss, batch.t_B
        prediction_BCHW = self.predict(batch)
        target_BCHW = noise.target(batch.clean_BCHW, batch.noise_BCHW, t_B)
        t = t_B.reshape(-1, 1, 1, 1)
        if self.config.noise.kohya_flow:  # the picture that follows is x_t - t · velocity
            prediction_BCHW, target_BCHW = t * prediction_BCHW.float(), t * target_BCHW
        losses = elementwise(prediction_BCHW, target_BCHW, loss.type, huber_c(loss, noise, t_B))
        return losses * flow_weights(self.config.noise.weighting, t)

    def weights(self, batch: Batch, samples: list[Sample]) -> Tensor:
        """How much each sample counts, (B,): its picture's own weight, and its time's."""
        noise = self.family.noise
        pictures_B = torch.tensor([one.image.weight for one in samples], device=self.device)
        return pictures_B * snr_weights(self.config.loss, noise.prediction, noise.snr(batch.t_B))

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
        settings = self.config.noise
        noise = [drawn_noise(settings, one, latent) for one, latent in zip(samples, clean, strict=True)]
        seen = [perturbed(settings, one, drawn) for one, drawn in zip(samples, noise, strict=True)]
        return Batch(
            torch.stack(clean).to(self.device),
            torch.stack(noise).to(self.device),
            torch.stack(seen).to(self.device),
            self.times(samples, clean[0]).to(self.device),
            self.texts.embeds(captions),
            [one.image.geometry(flip) for one, flip in zip(samples, flips, strict=True)],
        )

    def times(self, samples: list[Sample], latents_CHW: Tensor) -> Tensor:
        """How much noise each sample gets, (B,), as ``noise.timesteps`` draws it."""
        noise, patch = self.family.noise, self.family.patch
        height, width = latents_CHW.shape[-2:]
        u_B = torch.tensor([one.uniform("t") for one in samples])
        return noise.sample_t(u_B, times_of(self.config.noise, noise.times), height * width // patch**2)

    def predict(self, batch: Batch) -> Tensor:
        """The denoiser's answer to a noisy batch, (B, C, h, w)."""
        noisy_BCHW = self.family.noise.mix(batch.clean_BCHW, batch.seen_BCHW, batch.t_B)
        return self.family.predict(self.model.denoiser, noisy_BCHW, batch.t_B, batch.embeds, batch.geometry)
