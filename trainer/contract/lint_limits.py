"""Lint rules on one number that is unusually large, whatever else the recipe says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .config import TrainConfig
from .findings import Facts, Finding, rule


@dataclass(frozen=True)
class Limit:
    """A rule called ``name``: it warns where ``setting`` is above ``most``, with ``sentence``, which shows
    the value in braces, and puts it to ``usual``. It is silent where nothing reads the setting."""

    name: str
    setting: str
    most: float
    sentence: str
    usual: Any
    label: str
    is_read: Callable[[TrainConfig], bool] = lambda config: True


LIMITS = (
    Limit(
        "turned_far",
        "dataset.rotate",
        15,
        "Turned by up to {:g} degrees, tilted pictures are learnt, and frames lose much of their edges.",
        5.0,
        "Use 5 degrees",
    ),
    Limit(
        "reframed_far",
        "dataset.random_crop",
        0.25,
        "Frames smaller and moved by up to {:.0%} cut off what the crop was chosen for.",
        0.1,
        "Use 10 %",
    ),
    Limit(
        "hues_of_what_is_learnt",
        "dataset.hue",
        15,
        "Hues shifted by up to {:g} degrees: the colours of a coat, of skin or of a style are then not "
        "learnt.",
        0.0,
        "Leave hues alone",
    ),
    Limit(
        "light_varies_much",
        "dataset.colour",
        0.25,
        "Light and colours changed by up to {:.0%} each make washed-out and gaudy pictures, which are "
        "learnt.",
        0.1,
        "Use 10 %",
    ),
    Limit(
        "caption_dropout_high",
        "captions.dropout",
        0.3,
        "{:.0%} of the pictures are shown without their caption, so the trigger word hardly binds; 5-10 % is "
        "usual.",
        0.1,
        "Use 10 %",
    ),
    Limit(
        "dropout_high",
        "adapter.dropout",
        0.3,
        "Dropout {:g} leaves little to learn from; 0 to 0.1 is usual.",
        0.1,
        "Use 0.1",
    ),
    Limit(
        "noise_offset_high",
        "noise.offset",
        0.15,
        "A noise offset of {:g} makes every picture very dark or very bright; 0.03 to 0.1 is usual.",
        0.05,
        "Use 0.05",
    ),
    Limit(
        "input_perturbation_high",
        "noise.input_perturbation",
        0.2,
        "At {:g} the denoiser sees far more noise than it is told; 0.05 to 0.1 is usual.",
        0.1,
        "Use 0.1",
    ),
    Limit(
        "mask_shows_everything",
        "loss.mask_floor",
        0.8,
        "Outside of the masks {:.0%} counts, so that they change hardly anything; 0.1 is usual.",
        0.1,
        "Use 0.1",
        lambda config: config.loss.mask != "off",
    ),
    Limit(
        "unlearning_too_much",
        "train.unlearn_limit",
        5,
        "Losses {:g} times the base's own are noise: everything else goes with what is unlearnt.",
        2.0,
        "Use 2",
        lambda config: config.train.unlearn,
    ),
    Limit(
        "keeping_outweighs_learning",
        "prior.weight",
        5,
        "Keeping counts {:g} times as much as learning; the subject would hardly be learnt. 1 is usual.",
        1.0,
        "Weight 1",
        lambda config: config.prior.method != "none",
    ),
    Limit(
        "much_is_held_out",
        "validation.share",
        0.3,
        "{:.0%} of the photos are never learnt; 10 to 20 % is usual.",
        0.2,
        "Hold out 20 %",
        lambda config: bool(config.validation.held_share),
    ),
)


def _watch(limit: Limit) -> None:
    section, _, name = limit.setting.partition(".")

    def check(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
        value = getattr(getattr(config, section), name)
        if value > limit.most and limit.is_read(config):
            message = limit.sentence.format(value)
            yield Finding("warning", limit.setting, message, {limit.setting: limit.usual}, limit.label)

    check.__name__ = limit.name
    rule(check)


for _limit in LIMITS:
    _watch(_limit)
