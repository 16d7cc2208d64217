"""Did it learn? What a run measures of its LoRA and of the pictures that it draws, as events.

:mod:`trainer.contract.verdict` says in words what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from dataset_tools.crop import render_crop
from dataset_tools.images import ImageError, open_image
from dataset_tools.likeness import Vector, change, copied_from, descriptor, likeness, thumbnail

from .adapters import change_norm, lora_parameters
from .adapters.dora import dense_weight
from .adapters.layers import trained_layers
from .checkpoints import list_checkpoints, step_of
from .contract.errors import RunError
from .contract.events import current_events, read_events
from .contract.runs import RunFolder
from .contract.trigger import has_trigger
from .contract.verdict import verdict
from .data import TrainImage, derived_seed
from .report import Reporter
from .requests import Asks
from .sampling import Interrupted

MOST_PHOTOS = 64
"""As many photos are compared with: more tell no more, and have to be decoded."""
UNET_PARTS = ("attentions", "resnets", "downsamplers", "upsamplers")


def block_of(module: str) -> str:
    """The block that a dotted module name (with its part) lies in.

    >>> block_of("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    'unet.down_blocks.1.attentions.0'
    >>> block_of("transformer.single_transformer_blocks.7.attn.to_k")
    'transformer.single_transformer_blocks.7'
    """
    parts = module.split(".")
    end = next((at + 1 for at, part in enumerate(parts) if part.isdigit()), 2)
    if parts[end : end + 1] and parts[end] in UNET_PARTS:
        end += 2
    return ".".join(parts[:end])


class Weights:
    """How far the adapter has moved the weights, by block."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self._parts = parts

    def _layers(self) -> dict[str, Any]:
        return {
            f"{part}.{name}": layer
            for part, module in self._parts.items()
            for name, layer in trained_layers(module).items()
        }

    @cached_property
    def _base_norms(self) -> dict[str, float]:
        """‖W‖ of each adapted layer."""
        return {
            name: getattr(layer, "base_norm", None) or float(dense_weight(layer).norm())
            for name, layer in self._layers().items()
        }

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """``norm``: ‖ΔW‖ over everything; ``up``: ‖B‖ likewise, which is 0 until something is learnt, None of
        kinds that have no B; ``blocks``: {block: ‖ΔW‖ / ‖W‖}. Computed where the layers are: some kinds need
        all of the base's weights, which a processor would take minutes for."""
        total = 0.0
        squares: dict[str, list[float]] = {}
        for name, layer in self._layers().items():
            moved = change_norm(layer) ** 2
            total += moved
            sums = squares.setdefault(block_of(name), [0.0, 0.0])
            sums[0] += moved
            sums[1] += self._base_norms[name] ** 2
        if not math.isfinite(total):
            raise RunError(
                "the LoRA's weights became infinite; train again with a lower learning rate", "nan"
            )
        blocks = {block: round((moved / base) ** 0.5, 6) for block, (moved, base) in squares.items() if base}
        up = [each for name, each in lora_parameters(self._parts).items() if ".lora_B." in name]
        return {
            "norm": total**0.5,
            "up": float(torch.stack([each.float().norm() for each in up]).norm()) if up else None,
            "blocks": blocks,
        }


class Pictures:
    """How the drawings of a run compare with its photos and with what the base drew."""

    def __init__(
        self,
        run: RunFolder,
        root: Path,
        images: Sequence[TrainImage],
        report: Reporter,
        requests: Asks,
    ) -> None:
        self._run, self._root, self._report, self._requests = run, root, report, requests
        own = [image for image in images if not image.regularisation]
        own = list(
            {(image.folder, image.file): image for image in reversed(own)}.values()
        )  # one size of each
        self._triggers = {image.trigger for image in own if image.trigger}
        by_chance = sorted(own, key=lambda image: derived_seed("compared", image.id))
        self._images = by_chance[:MOST_PHOTOS]
        self._done: set[tuple[int, int]] = set()

    @cached_property
    def _photos(self) -> list[tuple[str, Vector, Vector]]:
        """(name, descriptor, thumbnail) of the crops that are trained on."""
        photos = []
        for image in self._images:
            if self._requests.stop():
                raise Interrupted
            assert image.crop and image.bucket
            try:
                opened = open_image(image.path(self._root), name=image.original_name).image
            except ImageError:
                continue  # deleted since; the training does without as well
            crop = render_crop(opened, image.crop, image.bucket)
            photos.append((image.original_name, descriptor(crop), thumbnail(crop)))
        return photos

    def measure(self, step: int, prompts: Sequence[str]) -> None:
        """Compare the drawings of a step. The base's own, of step 0, come along with the first of them.
        What a stop leaves out is measured by the run that goes on."""
        with suppress(Interrupted):
            self._measure(step, prompts)

    def _measure(self, step: int, prompts: Sequence[str]) -> None:
        for at in dict.fromkeys((0, step)) if step else ():
            for number, prompt in enumerate(prompts):
                file, base = self._run.sample(at, number), self._run.sample(0, number)
                if (at, number) in self._done or not (file.exists() and base.exists()):
                    continue
                if self._requests.stop():
                    raise Interrupted
                photos = self._photos
                self._done.add((at, number))
                with Image.open(file) as drawing, Image.open(base) as before:
                    copy = copied_from(thumbnail(drawing), [photo[2] for photo in photos])
                    self._report.measured(
                        at,
                        prompt=number,
                        text=prompt,
                        trigger=any(has_trigger(prompt, trigger) for trigger in self._triggers),
                        likeness=round(likeness(descriptor(drawing), [photo[1] for photo in photos]), 4),
                        change=round(change(drawing, before), 4),
                        copied=round(copy.score, 4),
                        photo=photos[copy.photo][0] if photos else "",
                    )


def say_verdict(run: RunFolder, report: Reporter) -> None:
    """What was measured, in words, on the terminal; the Results page has it from the same events."""
    events = current_events(read_events(run.events)[0])
    kept = [step_of(folder) for folder in list_checkpoints(run.checkpoints)]
    for sentence in verdict(events, unlearn=run.config().train.unlearn, kept=kept).sentences:
        report.say(sentence.text)
