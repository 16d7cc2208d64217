"""kohya's dataset TOML: [general], [[datasets]] and [[datasets.subsets]], the lower winning."""

from __future__ import annotations

from typing import Any

from . import kohya_tables
from .report import Imported, is_off
from .rules import follow

_SUBSET_ONLY = ("image_dir", "is_reg", "alpha_mask", "metadata_file", "conditioning_data_dir")
_KNOWN = {**kohya_tables.CAPTIONS, **kohya_tables.IMAGES}
_DATASET = {name: kohya_tables.ALL[name] for name in ("validation_split", "validation_seed")}


def take_dataset(found: Imported, tables: dict[str, Any]) -> None:
    tables = dict(tables)
    general = dict(tables.pop("general", {}) or {})
    datasets = [dict(table) for table in tables.pop("datasets", []) if isinstance(table, dict)]
    found.unknown(tables)
    for name in _SUBSET_ONLY:
        if name in general:
            found.note(f"{name} under [general]: kohya refuses it there; it belongs to [[datasets.subsets]].")
    if not datasets:
        found.note("the dataset file has no [[datasets]]; it names no photos.")
    first, *others = datasets or [{}]
    subsets = [dict(table) for table in first.pop("subsets", []) if isinstance(table, dict)]
    merged = general | first
    _take_subsets(found, merged, subsets)
    if batch := merged.pop("batch_size", None):
        found.keep("batch_size", batch, "train.batch_size", batch)
    follow(found, merged, _KNOWN)
    follow(found, merged, _DATASET)
    if "network_multiplier" in merged:
        found.miss("network_multiplier", merged.pop("network_multiplier"), "not offered")
    found.unknown(merged)
    for number, dataset in enumerate(others, 2):
        found.miss(
            f"[[datasets]] number {number}", dataset, "one resolution and batch size holds for all photos"
        )


def _take_subsets(found: Imported, merged: dict[str, Any], subsets: list[dict[str, Any]]) -> None:
    """One folder of photos is the dataset; its own values win over the levels above."""
    plain = [subset for subset in subsets if is_off(subset.get("is_reg"))]
    for subset in subsets:
        if subset not in plain:
            folder = subset.get("image_dir")
            found.keep("image_dir", folder, "prior.path", folder, "regularisation pictures (is_reg)")
            found.take("prior.method", "class_pictures", "regularisation pictures are given", "converted")
    if not plain:
        return
    first, *others = plain
    merged.update(first)
    merged.pop("is_reg", None)
    if folder := merged.pop("image_dir", None):
        found.keep("image_dir", folder, "dataset.path", folder)
    if repeats := merged.pop("num_repeats", None):
        found.keep("num_repeats", repeats, "dataset.repeats", repeats)
    if words := merged.pop("class_tokens", None):
        found.keep("class_tokens", words, "dataset.trigger", words, "the caption of photos that have none")
    if file := merged.pop("metadata_file", None):
        found.miss("metadata_file", file, "captions are .txt files; a metadata JSON is not read")
    for subset in others:
        found.miss("[[datasets.subsets]]", subset, "one folder is taken; put the photos together")
