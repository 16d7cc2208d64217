"""Lint rules on several folders, regularisation sets, buckets, and what is varied of the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .config import TrainConfig
from .findings import Facts, Finding, looks_per_picture, native_resolution, rule
from .settings.dataset import Subset, is_varied
from .steps import Folder, batches_per_epoch, looks_by_bucket, trained

# Folders ---------------------------------------------------------------------------------------------


@rule
def a_folder_cannot_be_used(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.folders_problem:
        sentence = facts.folders_problem.strip().rstrip(".")
        yield Finding("error", "dataset.subsets", f"{sentence[:1].upper()}{sentence[1:200]}.")


@rule
def concepts_of_very_different_size(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    shown = [one for one in trained(config, facts.folders) if not one.regularisation and one.looks]
    if len(shown) < 2:
        return
    most, least = max(shown, key=_looks), min(shown, key=_looks)
    if most.looks > 3 * least.looks:
        yield Finding(
            "warning",
            "dataset.subsets",
            f"The concept “{most.name[:30]}” is shown {most.looks} times an epoch and “{least.name[:30]}” "
            f"{least.looks} times; the one would be copied while the other is hardly learnt.",
            _evened_out(config, facts, most.looks),
            "Even them out by repeats",
        )


def _looks(folder: Folder) -> int:
    return folder.looks


def _evened_out(config: TrainConfig, facts: Facts, looks: int) -> dict[str, Any]:
    """Settings with repeats such that every concept is shown about ``looks`` times an epoch."""

    def better(folder: Folder, repeats: int) -> int:
        fixed = folder.regularisation or not folder.looks
        return repeats if fixed else min(1000, max(1, round(looks / folder.looks)))

    own, *others = facts.folders
    subsets = [
        one.model_copy(update={"repeats": better(folder, one.repeats)}).line
        for one, folder in zip(config.dataset.subsets, others, strict=False)
    ]
    return {"dataset.repeats": better(own, config.dataset.repeats), "dataset.subsets": tuple(subsets)}


@rule
def concepts_with_the_same_trigger(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    own = config.dataset.trigger.casefold()
    alike = [one for one in _others(config, False) if own and one.trigger.casefold() == own]
    if alike:
        yield Finding(
            "hint",
            "dataset.subsets",
            f"The folder {alike[0].path[:60]} has the trigger of the first one, so the two are learnt as one "
            "concept; another concept needs a word of its own.",
        )


@rule
def regularisation_without_a_class(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    nameless = [one for one in _others(config, True) if not one.trigger]
    if nameless and not any(folder.regularisation for folder in facts.folders):
        yield Finding(
            "hint",
            "dataset.subsets",
            f"The folder {nameless[0].path[:60]} names no class (trigger = dog), so its pictures without a "
            "caption are shown with an empty one.",
        )


@rule
def regularisation_has_the_trigger(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if many := facts.class_captions_with_trigger:
        yield Finding(
            "warning",
            "dataset.subsets",
            f"{many} caption{'s' if many > 1 else ''} of regularisation sets name{'s' * (many == 1)} the "
            f"trigger “{config.dataset.trigger}”, which then stands for the class and not for the subject.",
        )


@rule
def regularisation_larger_than_the_rest(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    unused = sum(
        len(found.pictures) - len(kept.pictures)
        for found, kept in zip(facts.folders, trained(config, facts.folders), strict=True)
    )
    if unused:
        looks = sum(one.looks for one in trained(config, facts.folders) if not one.regularisation)
        classes = sum(one.looks for one in facts.folders if one.regularisation)
        alone = sum(not one.regularisation for one in facts.folders) == 1 and looks > 0
        repeats = min(1000, -(-classes * config.dataset.repeats // max(1, looks)))
        yield Finding(
            "hint",
            "dataset.subsets",
            f"{unused} regularisation picture{'s are' if unused > 1 else ' is'} not used: they would be "
            f"shown more often than what is learnt, which is {looks} times an epoch.",
            {"dataset.repeats": repeats} if alone else None,
            f"Repeat the photos {repeats} times" if alone else "",
        )


@rule
def regularisation_counts_more(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    heavy = [one for one in _others(config, True) if one.weight > 1]
    if heavy:
        lighter = tuple(
            one.model_copy(update={"weight": 1.0}).line if one in heavy else one.line
            for one in config.dataset.subsets
        )
        yield Finding(
            "warning",
            "dataset.subsets",
            f"The folder {heavy[0].path[:60]} counts {heavy[0].weight:g} times as much as what is learnt, "
            "which then comes out weak; 1 or less is usual for a regularisation set.",
            {"dataset.subsets": lighter},
            "Use 1",
        )


def _others(config: TrainConfig, regularisation: bool) -> list[Subset]:
    return [one for one in config.dataset.subsets if one.regularisation == regularisation]


# Batches and buckets ---------------------------------------------------------------------------------


@rule
def batch_above_buckets(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    looks, size = looks_by_bucket(trained(config, facts.folders)), config.train.batch_size
    if looks and size > (most := max(looks.values())):
        yield Finding(
            "warning",
            "train.batch_size",
            f"A batch holds pictures of one shape, and no shape is shown more than {most} times an epoch: a "
            f"batch of {size} is never filled.",
            {"train.batch_size": most},
            f"Use {most}",
        )


@rule
def batches_half_empty(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    looks, size = looks_by_bucket(trained(config, facts.folders)), config.train.batch_size
    if not looks or size > max(looks.values()):
        return

    def filled(batch_size: int) -> float:
        return sum(looks.values()) / (batches_per_epoch(looks, batch_size) * batch_size)

    if filled(size) < 0.7:
        better = max(
            range(1, size + 1), key=lambda one: (filled(one) >= 0.8, one if filled(one) >= 0.8 else 0)
        )
        yield Finding(
            "hint",
            "train.batch_size",
            f"Batches are on average {filled(size):.0%} full, as {len(looks)} shapes are batched apart; "
            "those of rare shapes are small, and noisier.",
            {"train.batch_size": better},
            f"Use {better}",
        )


@rule
def longest_side_cuts_shapes(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    data = config.dataset
    side = data.resolution or native_resolution(config, facts)
    if data.buckets == "all" and data.bucket_max and side and data.bucket_max < 1.5 * side:
        yield Finding(
            "warning",
            "dataset.bucket_max",
            f"With a longest side of {data.bucket_max} px at {side} px, wide and tall photos are cut short, "
            "and trained at a smaller area.",
            {"dataset.bucket_max": None},
            "Use twice the resolution",
        )


@rule
def bucket_settings_do_nothing(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    data = config.dataset
    names = ("bucket_min", "bucket_max") + (("bucket_step",) if data.buckets == "standard" else ())
    idle = [name for name in names if getattr(data, name) is not None]
    if data.buckets != "all" and idle:
        yield Finding(
            "hint",
            f"dataset.{idle[0]}",
            f"The {data.buckets.replace('_', ' ')} buckets have sides of their own, so this does nothing.",
            {f"dataset.{name}": None for name in idle},
            "Leave it out",
        )


@rule
def bucket_step_coarse(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    data = config.dataset
    side = data.resolution or native_resolution(config, facts)
    if data.buckets != "standard" and data.bucket_step and side and data.bucket_step > side / 8:
        yield Finding(
            "warning",
            "dataset.bucket_step",
            f"Steps of {data.bucket_step} px at {side} px cut off up to an eighth of a side and more.",
            {"dataset.bucket_step": None},
            "Use a sixteenth of the resolution",
        )


# Variants --------------------------------------------------------------------------------------------


@rule
def faces_are_mirrored(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.dataset.flip and facts.images and facts.faces > facts.images / 2:
        yield Finding(
            "hint",
            "dataset.flip",
            f"{facts.faces} of {facts.images} photos show a face, and faces are not symmetric: parting, "
            "moles and a crooked smile come out on both sides.",
            {"dataset.flip": False},
            "Do not mirror",
        )


@rule
def more_variants_than_looks(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    data = config.dataset
    if not facts.images or not is_varied(data):
        return
    looks = looks_per_picture(config, facts.images, facts.folders)
    if looks < data.variants and data.variants > 2:
        fewer = max(2, int(looks))
        yield Finding(
            "hint",
            "dataset.variants",
            f"Each picture is shown about {looks:.0f} times, so that of its {data.variants} variants some "
            "are encoded for nothing.",
            {"dataset.variants": fewer},
            f"Use {fewer}",
        )
