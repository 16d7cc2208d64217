"""kohya's dataset TOML: [general], [[datasets]] and [[datasets.subsets]], the lower winning."""

from __future__ import annotations

from typing import Any

from . import kohya_tables
from .report import Imported, is_off
from .rules import follow
from .shared import Folder, take_folders

_SUBSET_ONLY = ("image_dir", "is_reg", "alpha_mask", "metadata_file", "conditioning_data_dir")
_KNOWN = {**kohya_tables.CAPTIONS, **kohya_tables.IMAGES}
_DATASET = {name: kohya_tables.ALL[name] for name in ("validation_split", "validation_seed")}


def take_dataset(found: Imported, tables: dict[str, Any], reg_weight: Any = None) -> None:
    """``reg_weight``: the command's prior_loss_weight."""
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
    merged |= _take_subsets(found, merged, subsets, reg_weight)
    if batch := merged.pop("batch_size", None):
        found.keep("batch_size", batch, "train.batch_size", batch)
    take_buckets(found, merged)
    follow(found, merged, _KNOWN)
    follow(found, merged, _DATASET)
    if found.has("loss.mask"):
        found.assume("loss.mask_floor", 0, "kohya's masks hide all that lies outside")
    if "network_multiplier" in merged:
        found.miss("network_multiplier", merged.pop("network_multiplier"), "not offered")
    found.unknown(merged)
    for number, dataset in enumerate(others, 2):
        found.miss(
            f"[[datasets]] number {number}", dataset, "one resolution and batch size holds for all photos"
        )


def _take_subsets(
    found: Imported, above: dict[str, Any], subsets: list[dict[str, Any]], reg_weight: Any
) -> dict[str, Any]:
    """The folders. Returns the options of the first folder of photos, which win over the levels above."""
    folders: list[Folder] = []
    own: dict[str, Any] = {}
    for place, subset in enumerate(subsets):
        if file := subset.pop("metadata_file", None):
            found.miss(f"subsets[{place}] metadata_file", file, "captions are .txt files; JSON is not read")
        regular = not is_off(subset.pop("is_reg", None))
        at = f"subsets[{place}] "
        names = {"path": "image_dir", "trigger": "class_tokens", "repeats": "num_repeats"}
        names |= {"weight": "prior_loss_weight", "regularisation": "is_reg"}
        folders.append(
            Folder(
                {ours: at + option for ours, option in names.items()},
                subset.pop("image_dir", ""),
                subset.pop("class_tokens", above.get("class_tokens")),
                subset.pop("num_repeats", above.get("num_repeats")),
                reg_weight if regular else None,
                regular,
            )
        )
        if not own and not regular:
            own = subset
        elif different := {name: value for name, value in subset.items() if own.get(name) != value}:
            for name, value in different.items():
                found.miss(f"subsets[{place}] {name}", value, "the first folder's holds for all of them")
    take_folders(found, folders)
    for name in ("class_tokens", "num_repeats"):
        above.pop(name, None)
    return own


def take_buckets(found: Imported, options: dict[str, Any]) -> None:
    """enable_bucket and what goes with it; off is kohya's default, and crops every photo to a square."""
    on, keep = options.pop("enable_bucket", None), options.pop("bucket_no_upscale", None)
    if is_off(on):
        if on is not None or "resolution" in options:
            found.miss("enable_bucket", bool(on), "kohya crops to squares then; here photos keep their shape")
        for option in ("bucket_no_upscale", *kohya_tables.BUCKETS):
            value = keep if option == "bucket_no_upscale" else options.pop(option, None)
            if value is not None:
                found.leave(option, value, "enable_bucket is off")
        return
    found.keep("enable_bucket", on, "dataset.buckets", "all" if is_off(keep) else "no_upscale")
    if keep is not None:
        found.leave("bucket_no_upscale", keep, "read with enable_bucket")
    if "max_bucket_reso" not in options:
        found.note(
            "No max_bucket_reso: kohya's 1024 would cut the long sides of every shape but the square at a "
            "resolution of 1024; here it is twice the resolution (dataset.bucket_max)."
        )
    follow(found, options, kohya_tables.BUCKETS)
