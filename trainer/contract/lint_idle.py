"""Lint rules on settings that are changed and that nothing reads, as another one is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .caption_pipeline import moves_any_tags
from .config import TrainConfig
from .fields import RECORDS, flatten
from .findings import Facts, Finding, rule
from .settings.dataset import is_varied

Reads = Callable[[TrainConfig], bool]

IDLE: dict[str, tuple[Reads, str]] = {
    "train.restarts": (
        lambda config: config.train.scheduler == "cosine_with_restarts",
        "only cosine_with_restarts restarts",
    ),
    "train.decay": (
        lambda config: config.train.scheduler == "warmup_stable_decay",
        "only warmup_stable_decay has a decay of its own",
    ),
    "train.power": (lambda config: config.train.scheduler == "polynomial", "only polynomial has a power"),
    "train.unlearn_limit": (lambda config: config.train.unlearn, "train.unlearn is off"),
    "loss.huber_schedule": (
        lambda config: config.loss.type in ("huber", "smooth_l1"),
        "only the losses huber and smooth_l1 have a border",
    ),
    "loss.mask_floor": (lambda config: config.loss.mask != "off", "loss.mask is off"),
    "noise.multires_discount": (
        lambda config: config.noise.multires_iterations > 0,
        "noise.multires_iterations is 0",
    ),
    "captions.warmup_min": (
        lambda config: config.captions.warmup_steps > 0,
        "there is no tag warm-up (captions.warmup_steps)",
    ),
    "captions.protect": (
        moves_any_tags,
        "no tags are shuffled or dropped",
    ),
    "dataset.variants": (
        lambda config: is_varied(config.dataset),
        "photos are neither turned nor reframed nor coloured",
    ),
    "machine.pictures_at_once": (
        lambda config: config.machine.pictures_at_once < config.train.batch_size,
        "a batch has no more pictures",
    ),
    "prior.weight": (lambda config: config.prior.method != "none", "prior.method is none"),
    "prior.share": (lambda config: config.prior.method == "output", "prior.method is not output"),
    "prior.pictures": (
        lambda config: config.prior.method == "class_pictures" and not config.prior.path,
        "no class pictures are drawn",
    ),
}
"""{setting: (whether it is read, why it is not)}. Some settings have rules of their own that know better."""


@rule
def nothing_reads_it(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    values = flatten(config)
    for setting, (reads, why) in IDLE.items():
        usual = RECORDS[setting].default
        if values[setting] != usual and not reads(config):
            shown = str(usual).lower() if isinstance(usual, bool) else usual
            yield Finding(
                "hint",
                setting,
                f"It changes nothing here: {why}.",
                {setting: usual},
                f"Back to {shown}",
            )
