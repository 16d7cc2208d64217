"""What a step minimises: the loss of each sample of a batch, from its cached latents and caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dataset_tools.augment import View

from .assemble import Model
from .cache import LatentCache, Texts
from .captions import Captions
from .concepts import PLAIN
from .contract.config import TrainConfig
from .contract.settings.noise import NoiseSettings
from .data import Sample
from .families.base import Geometry, ModelFamily, TextEmbeds
from .losses import elementwise, flow_weights, huber_c, left_to_unlearn, mse, per_sample, snr_weights
from .masks import mask_weights
from .noising import drawn_noise, perturbed
from .prior import BaseAlone, kept_caption
from .timesteps import times_of


@dataclass(frozen=True)
class Batch:
    """Samples ready for the denoiser, on its device. All of one bucket.

    Attributes:
        clean_BCHW: latents of the pictures.
        noise_BCHW, seen_BCHW: the noise that the target is made of, and the noise that is mixed in.
        t_B: how much of it, from 0 (clean) to 1 (noise).
        mask_B1HW: what the masks show of the pictures, from 0 to 1.
        masks_N1HW: those of the whole batch of the plan that they are a part of.
    """

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    seen_BCHW: Tensor
    t_B: Tensor
    mask_B1HW: Tensor
    masks_N1HW: Tensor
    embeds: list[TextEmbeds]
    geometry: list[Geometry]

    def part(self, numbers: list[int], embeds: list[TextEmbeds]) -> Batch:
        """Some of the samples, with other captions."""
        return Batch(
            self.clean_BCHW[numbers],
            self.noise_BCHW[numbers],
            self.seen_BCHW[numbers],
            self.t_B[numbers],
            self.mask_B1HW[numbers],
            self.masks_N1HW,
            embeds,
            [self.geometry[number] for number in numbers],
        )

    def joined(self, other: Batch) -> Batch:
        """Both, for one pass of the denoiser."""
        return Batch(
            torch.cat([self.clean_BCHW, other.clean_BCHW]),
            torch.cat([self.noise_BCHW, other.noise_BCHW]),
            torch.cat([self.seen_BCHW, other.seen_BCHW]),
            torch.cat([self.t_B, other.t_B]),
            torch.cat([self.mask_B1HW, other.mask_B1HW]),
            self.masks_N1HW,
            self.embeds + other.embeds,
            self.geometry + other.geometry,
        )


class SecondLook(NamedTuple):
    """Samples of a batch with captions that must not change: their numbers, and what the base answers."""

    asked: list[int]
    batch: Batch
    answer_BCHW: Tensor


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

    @cached_property
    def base_alone(self) -> BaseAlone:
        return BaseAlone(self.model)

    def losses(self, samples: list[Sample]) -> Tensor:
        """(B,), float32, with gradients."""
        own, kept = [self.captions.of(one) for one in samples], self.kept(samples)
        embeds = self.texts.embeds([*own, *kept.values()])  # one pass, of encoders that are trained
        batch = self.batch(samples, embeds[: len(samples)])
        second = self.second_look(batch, kept, embeds[len(samples) :]) if kept else None
        prediction_BCHW = self.predict(batch.joined(second.batch) if second else batch)
        own_BCHW = prediction_BCHW[: len(samples)]
        losses_B = per_sample(self.masked(own_BCHW, batch))
        if self.config.train.unlearn:
            losses_B = self.unlearnt(losses_B, batch, samples)
        losses_B = losses_B * self.weights(batch, samples)
        if second:
            changes = mse(prediction_BCHW[len(samples) :], second.answer_BCHW)
            asked = torch.tensor(second.asked, device=self.device)
            losses_B = losses_B.index_add(0, asked, self.config.prior.weight * changes)
        return losses_B

    def fixed_losses(self, samples: Sequence[Sample], u: Sequence[float]) -> Tensor:
        """(B,), of samples as they are told apart by nothing but their picture and noise: not mirrored, with
        their whole caption, at the noise levels that the numbers ``u`` in [0, 1) draw."""
        embeds = self.texts.embeds([self.captions.fixed(one.image) for one in samples])
        batch = self.assembled(samples, [PLAIN] * len(samples), embeds, u, NoiseSettings())
        return per_sample(self.masked(self.predict(batch), batch)) * self.weights(batch, samples)

    def elementwise(self, prediction_BCHW: Tensor, batch: Batch) -> Tensor:
        """How far every number of the denoiser's answer is from its target, (B, C, h, w), float32; of a flow
        weighed by its time."""
        noise, loss, t_B = self.family.noise, self.config.loss, batch.t_B
        target_BCHW = noise.target(batch.clean_BCHW, batch.noise_BCHW, t_B)
        t = t_B.reshape(-1, 1, 1, 1)
        if self.config.noise.kohya_flow:  # the picture that follows is x_t - t · velocity
            prediction_BCHW, target_BCHW = t * prediction_BCHW.float(), t * target_BCHW
        losses = elementwise(prediction_BCHW, target_BCHW, loss.type, huber_c(loss, noise, t_B))
        return losses * flow_weights(self.config.noise.weighting, t)

    def masked(self, prediction_BCHW: Tensor, batch: Batch) -> Tensor:
        """The same, weighted by place."""
        mode, floor = self.config.loss.mask, self.config.loss.mask_floor
        losses_BCHW = self.elementwise(prediction_BCHW, batch)
        if mode == "off":
            return losses_BCHW
        return losses_BCHW * mask_weights(batch.mask_B1HW, mode, floor, batch.masks_N1HW)

    def unlearnt(self, losses_B: Tensor, batch: Batch, samples: list[Sample]) -> Tensor:
        """What is minimised of them to unlearn (``train.unlearn``): regularisation pictures stay learnt."""
        left_B = left_to_unlearn(losses_B, self.base_losses(batch, samples), self.config.train.unlearn_limit)
        kept_B = torch.tensor([one.image.regularisation for one in samples], device=self.device)
        return torch.where(kept_B, losses_B, left_B)

    def base_losses(self, batch: Batch, samples: list[Sample]) -> Tensor:
        """The losses that the base has without the LoRA, (B,), without gradients."""
        with self.base_alone:
            embeds = self.texts.embeds([self.captions.of(one) for one in samples])
            plain = batch.part(list(range(len(samples))), embeds)
            return per_sample(self.masked(self.predict(plain), batch))

    def weights(self, batch: Batch, samples: Sequence[Sample]) -> Tensor:
        """How much each sample counts, (B,): its picture's own weight, and its time's."""
        noise = self.family.noise
        pictures_B = torch.tensor([one.image.weight for one in samples], device=self.device)
        return pictures_B * snr_weights(self.config.loss, noise.prediction, noise.snr(batch.t_B))

    def kept(self, samples: Sequence[Sample]) -> dict[int, str]:
        """The captions without the trigger with which samples are shown again (``prior.method``), by the
        samples' numbers."""
        prior = self.config.prior
        if prior.method != "output":
            return {}
        captions = (kept_caption(prior, one, self.captions.of(one, dropout=False)) for one in samples)
        return {number: caption for number, caption in enumerate(captions) if caption is not None}

    def second_look(self, batch: Batch, kept: dict[int, str], embeds: list[TextEmbeds]) -> SecondLook:
        """The samples of a batch that are shown again, with their ``kept`` captions as encoded."""
        asked = list(kept)
        with self.base_alone:
            answer_BCHW = self.predict(batch.part(asked, self.texts.embeds(list(kept.values()))))
        return SecondLook(asked, batch.part(asked, embeds), answer_BCHW)

    def batch(self, samples: Sequence[Sample], embeds: list[TextEmbeds] | None = None) -> Batch:
        """What is looked up and drawn for the samples; ``embeds``: their captions, encoded already."""
        views = [sample.view(self.config.dataset) for sample in samples]
        embeds = embeds or self.texts.embeds([self.captions.of(one) for one in samples])
        u = [one.uniform("t") for one in samples]
        batch = self.assembled(samples, views, embeds, u, self.config.noise)
        return replace(batch, masks_N1HW=self.masks_of_batch(samples)) if self.in_part(samples) else batch

    def in_part(self, samples: Sequence[Sample]) -> bool:
        """Whether these are only some of a batch whose masks are to be seen together."""
        whole = self.captions.plan.batch(samples[0].batch) if self.config.loss.mask == "batch" else samples
        return len(samples) < len(whole)

    def masks_of_batch(self, samples: Sequence[Sample]) -> Tensor:
        """The masks of the plan's batch that the samples are of, (N, 1, h, w)."""
        whole = self.captions.plan.batch(samples[0].batch)
        masks = [self.latents.mask(one.image.id, one.view(self.config.dataset)) for one in whole]
        return torch.stack(masks).to(self.device)

    def assembled(
        self,
        samples: Sequence[Sample],
        views: Sequence[View],
        embeds: list[TextEmbeds],
        u: Sequence[float],
        settings: NoiseSettings,
    ) -> Batch:
        """Samples in their views, with encoded captions, at the noise levels that ``u`` draws, in the noise
        of ``settings``."""
        looks = [(one.image.id, view) for one, view in zip(samples, views, strict=True)]
        clean = [self.latents.get(*look) for look in looks]
        masks = [self.latents.mask(*look) for look in looks]
        noise = [drawn_noise(settings, one, latent) for one, latent in zip(samples, clean, strict=True)]
        seen = [perturbed(settings, one, drawn) for one, drawn in zip(samples, noise, strict=True)]
        mask_B1HW = torch.stack(masks).to(self.device)
        return Batch(
            torch.stack(clean).to(self.device),
            torch.stack(noise).to(self.device),
            torch.stack(seen).to(self.device),
            self.times(u, clean[0]).to(self.device),
            mask_B1HW,
            mask_B1HW,
            embeds,
            [one.image.geometry(view) for one, view in zip(samples, views, strict=True)],
        )

    def times(self, u: Sequence[float], latents_CHW: Tensor) -> Tensor:
        """How much noise each sample gets, (B,), as ``noise.timesteps`` draws it with the numbers ``u``."""
        noise, patch = self.family.noise, self.family.patch
        height, width = latents_CHW.shape[-2:]
        return noise.sample_t(
            torch.tensor(u), times_of(self.config.noise, noise.times), height * width // patch**2
        )

    def predict(self, batch: Batch) -> Tensor:
        """The denoiser's answer to a noisy batch, (B, C, h, w)."""
        noisy_BCHW = self.family.noise.mix(batch.clean_BCHW, batch.seen_BCHW, batch.t_B)
        return self.family.predict(self.model.denoiser, noisy_BCHW, batch.t_B, batch.embeds, batch.geometry)
