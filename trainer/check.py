"""``python -m trainer check``: a recipe and its photos, looked at without torch."""

from __future__ import annotations

from pathlib import Path

from dataset_tools.buckets import Buckets
from dataset_tools.concepts import concepts_of, survey
from dataset_tools.folder import load_photos

from .contract.class_set import class_pictures_to_draw, with_class_set
from .contract.config import TrainConfig
from .contract.errors import ConfigError, UserError
from .contract.families import CATALOGUE, known_base
from .contract.findings import Facts
from .contract.lint import lint
from .contract.lora_header import start_from_facts
from .contract.settings.dataset import resolutions_of
from .contract.storage_facts import storage_problem


def check_recipe(config: TrainConfig, show_captions: int = 0) -> bool:
    """Print what the linter finds, and what is made of the captions of the first ``show_captions`` photos;
    return whether the recipe can be trained. Raises ConfigError where its photos cannot."""
    facts, notes = facts_of(config)
    findings = lint(config, facts)
    for note in notes:
        print(f"warning: {note}")
    for finding in findings:
        print(f"{finding.level}: {finding.message}")
    if not findings and not notes:
        print("the recipe is fine")
    for line in _caption_lines(config, facts, show_captions) if show_captions > 0 else ():
        print(line)
    return not any(finding.level == "error" for finding in findings)


def facts_of(config: TrainConfig) -> tuple[Facts, tuple[str, ...]]:
    """What the linter wants to know of a recipe whose paths are absolute, and notes on its photos.

    Raises ConfigError where they cannot be trained on.
    """
    row, base = CATALOGUE[config.model.family], known_base(config.model.family, config.model.base)
    buckets = Buckets.of(config.dataset, (base or row).resolution, row.size_multiple)
    try:
        dataset = with_class_set(config.dataset, config.prior)
        concepts = concepts_of(dataset, config.validation, Path(dataset.path), Path())
        several = buckets.at(resolutions_of(dataset))
        drawn = class_pictures_to_draw(config.prior, [one.nearest(1, 1) for one in several])
        found = survey(concepts, buckets, drawn=drawn)
    except UserError as error:
        raise ConfigError({"dataset.path": str(error)}) from None
    problem = storage_problem(config.storage.url)
    others = start_from_facts(config.adapter.start_from, Path())
    facts = Facts(**found.facts, **others, storage_problem=problem, gpus=_gpus_here())
    return facts, found.notes


def _gpus_here() -> int | None:
    """How many NVIDIA GPUs the driver knows, asked without torch; None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return None


def _caption_lines(config: TrainConfig, facts: Facts, show: int) -> list[str]:
    """What is made of the captions of the first folder."""
    from dataset_tools.caption_preview import caption_previews, preview_lines
    from dataset_tools.tokens import counters_for

    photos = load_photos(Path(config.dataset.path))
    trigger = config.dataset.trigger or photos.dataset.trigger
    records = photos.dataset.enabled_images()
    counters = counters_for(config.model.family, config.model.base)
    lines = ["", f"Captions as they are shown with seed {config.train.seed}:"]
    for record in records[:show]:
        previews = caption_previews(
            photos.captions[record.id] or trigger,
            config,
            counters,
            image_id=record.id,
            repeats=record.repeats * config.dataset.repeats,
            folders=facts.folders,
        )
        lines += preview_lines(record.original_name, previews, config)
    return lines
