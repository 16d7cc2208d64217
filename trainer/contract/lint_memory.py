"""Lint rules on memory and disk, by the plan's estimate."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .families import DEMO_BASE
from .fields import flatten, merge, parse, to_tables
from .findings import Facts, Finding, rule
from .hardware import for_card, missing_gib
from .plan import HEADROOM, Machine, estimate
from .retention import most_at_once, saved_milestones

MANY_GIB = 50
"""Of disk, which few keep free for one training."""


@rule
def training_does_not_fit(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.vram_gib is None:
        return
    phases = _phases(config, facts.vram_gib)
    needed = max(phases["cache"], phases["train"])
    if needed > HEADROOM * facts.vram_gib:
        doing = "Training" if needed == phases["train"] else "Encoding the photos and captions"
        yield _too_much(config, facts.vram_gib, f"{doing} needs about {needed:.1f} GiB")


@rule
def drawing_does_not_fit(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.vram_gib is None:
        return
    phases = _phases(config, facts.vram_gib)
    room = HEADROOM * facts.vram_gib
    if max(phases["cache"], phases["train"]) <= room < phases["sample"]:
        yield _too_much(
            config, facts.vram_gib, f"Training fits, but drawing needs {phases['sample']:.1f} GiB"
        )


def _phases(config: TrainConfig, vram_gib: float) -> dict[str, float]:
    return estimate(config, Machine("", vram_gib)).vram_gib


def _too_much(config: TrainConfig, vram_gib: float, sentence: str) -> Finding:
    """With every saving that it takes, where that is enough."""
    leaner = for_card(config, vram_gib)
    sentence += f", and this GPU has {vram_gib:.0f}"
    if missing_gib(leaner, vram_gib):
        text = f"{sentence}; no saving is enough: take a smaller base, resolution or rank."
        return Finding("warning", "model.base", text)
    before = flatten(config)
    fix = {path: value for path, value in flatten(leaner).items() if before[path] != value}
    setting = "samples.tiling" if set(fix) == {"samples.tiling"} else "model.quantize"
    return Finding("warning", setting, f"{sentence}.", fix, "Make it fit")


@rule
def base_in_ram_for_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if not config.machine.offload or facts.vram_gib is None:
        return
    whole = parse(merge(to_tables(config), {"machine": {"offload": False}}))
    if estimate(whole, Machine("", facts.vram_gib)).fits:
        yield Finding(
            "warning",
            "machine.offload",
            "The base fits into this GPU; fetched from RAM, layer by layer, a step takes several times as "
            "long.",
            {"machine.offload": False},
            "Keep it on the GPU",
        )


@rule
def full_precision_of_a_full_size_base(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.model.precision == "fp32" and config.model.base != DEMO_BASE and facts.gpu != "":
        yield Finding(
            "warning",
            "model.precision",
            "In fp32 the base takes twice the memory and more time; that it needs less is said of full "
            "fine-tunes, not of LoRAs.",
            {"model.precision": "auto"},
            "Use auto",
        )


@rule
def checkpoints_fill_the_disk(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    settings = config.checkpoints
    kept = most_at_once(settings, config.train.steps)
    if kept <= 5:
        return
    disk_gib = estimate(config, Machine("", facts.vram_gib)).disk_gib
    if disk_gib > MANY_GIB:
        most = "checkpoints.keep" if settings.keep > 5 else "checkpoints.keep_every"
        fewer = {"keep": min(settings.keep, 4), "keep_every": 0, "keep_best": min(settings.keep_best, 1)}
        fix = {
            f"checkpoints.{name}": value for name, value in fewer.items() if value != getattr(settings, name)
        }
        yield Finding(
            "warning",
            most,
            f"{kept} checkpoints of this rank take {disk_gib:.0f} GiB of disk; a full one ends the run.",
            fix,
            "Keep few",
        )


@rule
def milestones_fall_between_checkpoints(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    settings = config.checkpoints
    apart, every, each = saved_milestones(settings), settings.every, settings.keep_every
    if each and not settings.every_epochs and apart != each:
        nearest = max(1, round(each / every)) * every
        yield Finding(
            "warning",
            "checkpoints.keep_every",
            f"Checkpoints are saved every {every} steps, so that of each multiple of {each} only each of "
            f"{apart} is there to be kept.",
            {"checkpoints.keep_every": nearest},
            f"Each multiple of {nearest}",
        )


@rule
def best_checkpoints_cannot_be_told(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    drawn = config.samples.prompts and (config.samples.every or config.samples.every_epochs)
    if config.checkpoints.keep_best and not config.validation.measures and not drawn:
        yield Finding(
            "warning",
            "checkpoints.keep_best",
            "Nothing is measured that the best checkpoints could be told by: there is no validation, and no "
            "samples are drawn while training.",
            {"validation.every": config.checkpoints.every},
            "Measure at each checkpoint",
        )
