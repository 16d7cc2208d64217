"""``python -m trainer check``: a recipe and its photos, looked at without torch."""

from __future__ import annotations

from pathlib import Path

from dataset_tools.caption_preview import caption_previews, preview_lines
from dataset_tools.captions import missing_trigger
from dataset_tools.dataset import ImageRecord
from dataset_tools.folder import load_photos
from dataset_tools.tokens import counters_for

from .contract.config import TrainConfig
from .contract.errors import ConfigError, UserError
from .contract.findings import Facts
from .contract.lint import lint
from .contract.lora_header import start_from_facts


def check_recipe(config: TrainConfig, show_captions: int = 0) -> bool:
    """Print what the linter finds, and what is made of the captions of the first ``show_captions`` photos;
    return whether the recipe can be trained. Raises ConfigError where its photos cannot."""
    try:
        photos = load_photos(Path(config.dataset.path))
    except UserError as error:
        raise ConfigError({"dataset.path": str(error)}) from None
    trigger = config.dataset.trigger or photos.dataset.trigger
    records = photos.dataset.enabled_images()
    captions = {record.id: photos.captions[record.id] or trigger for record in records}
    facts = Facts(
        images=len(captions),
        captions_missing_trigger=len(missing_trigger(captions, trigger)),
        distinct_captions=len(set(captions.values())),
        captions=tuple(captions.values()),
        **start_from_facts(config.adapter.start_from, Path()),
    )
    findings = lint(config, facts)
    for note in photos.notes:
        print(f"warning: {note}")
    for finding in findings:
        print(f"{finding.level}: {finding.message}")
    if not findings and not photos.notes:
        print("the recipe is fine")
    for line in _caption_lines(config, records, captions, show_captions):
        print(line)
    return not any(finding.level == "error" for finding in findings)


def _caption_lines(
    config: TrainConfig, records: tuple[ImageRecord, ...], captions: dict[str, str], show: int
) -> list[str]:
    if show <= 0 or not records:
        return []
    counters = counters_for(config.model.family, config.model.base)
    repeats = {record.id: record.repeats * config.dataset.repeats for record in records}
    lines = ["", f"Captions as they are shown with seed {config.train.seed}:"]
    for record in records[:show]:
        previews = caption_previews(
            captions[record.id],
            config,
            counters,
            image_id=record.id,
            repeats=repeats[record.id],
            looks_an_epoch=sum(repeats.values()),
        )
        lines += preview_lines(record.original_name, previews, config)
    return lines
