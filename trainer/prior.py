"""Differential output preservation: the base's own answer as the target of captions without the trigger.

The idea is ai-toolkit's ("DOP") and OneTrainer's ("prior prediction"): what the LoRA makes of a photo with
the class in the trigger's place is held to what the base makes of it. No pictures are needed.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch

from .adapters import TrainedOff
from .assemble import Model
from .contract.settings.prior import PriorSettings
from .contract.trigger import without_trigger
from .data import Sample


def kept_captions(prior: PriorSettings, caption: str, trigger: str) -> list[str]:
    """What a photo with this caption may be shown with the second time.

    A caption without the trigger is not kept itself, which the LoRA is to learn: the bare class is.
    """
    named = without_trigger(caption, trigger, prior.class_name) if prior.class_name else ""
    if named == caption:
        named = prior.class_name
    return [*([named] if named else []), *prior.captions]


def kept_caption(prior: PriorSettings, sample: Sample, caption: str) -> str | None:
    """That of one look at a photo with this caption; None where it is not shown a second time
    (``prior.share``, and regularisation pictures, which are the class themselves)."""
    if sample.image.regularisation or sample.uniform("prior") >= prior.share:
        return None
    choices = kept_captions(prior, caption, sample.image.trigger)
    return choices[int(sample.uniform("prior caption") * len(choices))]


class BaseAlone:
    """Inside this block every part behaves as if it had no LoRA, and no gradient flows.

    It happens at most steps: what is to be switched is looked up once, when the adapters are in place.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._switches = [TrainedOff(module) for module in model.parts.values()]

    def __enter__(self) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(torch.no_grad())
        self._stack.enter_context(self._model.drawing())
        for switch in self._switches:
            self._stack.enter_context(switch)

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
