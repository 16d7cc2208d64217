"""kohya's dataset TOML: [general], [[datasets]] and [[datasets.subsets]], the lower winning."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..sizes import sides_text
from . import kohya_tables
from .names import side
from .report import Imported, Unusable, is_off
from .rules import follow
from .shared import Folder, take_folders, tell_differences, with_own, with_sizes

_SUBSET_ONLY = ("image_dir", "is_reg", "alpha_mask", "metadata_file", "conditioning_data_dir")
_KNOWN = {**kohya_tables.CAPTIONS, **kohya_tables.IMAGES}
_DATASET = {name: kohya_tables.ALL[name] for name in ("validation_split", "validation_seed")}
_BUCKETS = ("enable_bucket", "bucket_no_upscale", *kohya_tables.BUCKETS)
_COMMAND = {name: name for name in (*_KNOWN, *_DATASET, *_BUCKETS)} | {
    "train_batch_size": "batch_size",
    "dataset_repeats": "num_repeats",
}
"""Options of a command that are of photos, and what dataset files call them."""
_FOLDER = ("image_dir", "class_tokens", "num_repeats", "is_reg", "metadata_file")
"""What every folder has for itself here too."""


def take_dataset(
    found: Imported,
    tables: dict[str, Any],
    reg_weight: Any = None,
    command: dict[str, Any] | None = None,
) -> None:
    """``reg_weight``: the command's prior_loss_weight. What a ``command`` says of photos is taken out of it;
    the file wins over it."""
    tables = dict(tables)
    general, rows = tables.pop("general", {}), tables.pop("datasets", [])
    if not isinstance(general, dict):
        found.miss("general", general, "it should be a table of options")
        general = {}
    datasets = _tables(rows)
    found.unknown(tables)
    for name in _SUBSET_ONLY:
        if name in general:
            found.note(f"{name} under [general]: kohya refuses it there; it belongs to [[datasets.subsets]].")
    if not datasets:
        found.note("the dataset file has no [[datasets]]; it names no photos.")
    subsets = [_tables(table.pop("subsets", [])) for table in datasets]
    below = _below(found, command or {}, [general, *datasets, *(row for rows in subsets for row in rows)])
    levels = [below | general | table for table in datasets or [{}]]
    merged = levels[0] | _take_subsets(found, levels, subsets, reg_weight)
    for number, level in enumerate(levels[1:], 1):
        at = f"datasets[{number}] "
        tell_differences(found, at, _shared(level), _shared(levels[0]), "datasets[0]", _KNOWN)
        if "resolution" in level and _sides([level]) == _sides(levels[:1]):
            found.leave(f"{at}resolution", level["resolution"], "as in datasets[0]")
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


def _tables(rows: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _shared(level: dict[str, Any]) -> dict[str, Any]:
    own = (*_FOLDER, *kohya_tables.OWN.values(), "resolution")
    return {name: value for name, value in level.items() if name not in own}


def _below(found: Imported, command: dict[str, Any], tables: list[dict[str, Any]]) -> dict[str, Any]:
    """What the command says of photos, where the file says nothing."""
    below: dict[str, Any] = {}
    for option in [option for option in _COMMAND if option in command]:
        value, name = command.pop(option), _COMMAND[option]
        if any(name in table for table in tables):
            found.leave(option, value, f"the dataset file has {name}, and wins")
        else:
            below[name] = value
    return below


def _take_subsets(
    found: Imported, levels: list[dict[str, Any]], subsets: list[list[dict[str, Any]]], reg_weight: Any
) -> dict[str, Any]:
    """The folders. Returns the options of the first folder of photos, which win over the levels above.

    ``levels``: what holds for each of the datasets, ``subsets`` their folders.
    """
    folders: list[Folder] = []
    own: dict[str, Any] | None = None
    first = _first(levels, subsets)
    where = ""
    seen: dict[Any, tuple[str, dict[str, Any]]] = {}
    shown_at: dict[Any, list[dict[str, Any]]] = {}  # folder: the datasets that it is in
    for number, (above, rows) in enumerate(zip(levels, subsets, strict=False)):
        for place, subset in enumerate(rows):
            label = f"datasets[{number}].subsets[{place}]" if len(levels) > 1 else f"subsets[{place}]"
            if file := subset.pop("metadata_file", None):
                found.miss(f"{label} metadata_file", file, "captions are .txt files; JSON is not read")
            whole = {name: value for name, value in subset.items() if name != "image_dir"}
            folder = _folder(f"{label} ", subset, above, reg_weight)
            among = shown_at.setdefault(folder.path, [])
            among.append(above | {"at": number})
            if len(among) > 1:
                again = len(_sides(among)) == len(_sides(among[:-1]))
                why = "they are shown once" if again else "at another resolution"
                found.leave(f"{label} image_dir", folder.path, f"the same photos again; {why}")
                name, before = seen[folder.path]
                tell_differences(found, f"{label} ", whole, before, name, _KNOWN)
                continue
            seen[folder.path] = (label, whole)
            if own is None and not folder.regularisation:
                folders.append(folder)
                own, where = {name: above[name] for name in ("resolution",) if name in above} | subset, label
                continue
            folder = with_own(folder, f"{label} ", above | subset, first, kohya_tables.OWN)
            told = [kohya_tables.OWN[ours] for ours in folder.own]
            folders.append(folder)
            if own is not None:
                mine, theirs = (
                    {name: level[name] for name in (*subset, *own) if name in level and name not in told}
                    for level in (above | subset, first)
                )
                tell_differences(found, f"{label} ", mine, theirs, where, _KNOWN)
    main = next((folder for folder in folders if not folder.regularisation), None)
    usual = _sides(shown_at[main.path]) if main else []
    if main and (more := sides_text(usual[1:])):
        option = ", ".join(f"datasets[{one['at']}] resolution" for one in shown_at[main.path][1:])
        found.keep(option, usual[1:], "dataset.more_resolutions", more, "each photo is shown at each of them")
    for place, folder in enumerate(folders):
        if folder is not main:
            among = shown_at[folder.path]
            option = f"datasets[{among[0]['at']}] resolution" if len(levels) > 1 else "resolution"
            folders[place] = with_sizes(folder, option, _sides(among), usual)
    take_folders(found, folders)
    for level in levels:
        for name in ("class_tokens", "num_repeats"):
            level.pop(name, None)
    return own or {}


def _sides(levels: list[dict[str, Any]]) -> list[int]:
    """The resolutions of some datasets, in their order, as far as they can be read."""
    found: list[int] = []
    for level in levels:
        with suppress(Unusable):
            found += [one for one in [side(level.get("resolution"))] if one not in found]
    return found


def _first(levels: list[dict[str, Any]], subsets: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The options of the first folder of photos, which hold for all."""
    wholes = (above | row for above, rows in zip(levels, subsets, strict=False) for row in rows)
    return next((whole for whole in wholes if is_off(whole.get("is_reg"))), {})


def _folder(at: str, subset: dict[str, Any], above: dict[str, Any], reg_weight: Any) -> Folder:
    """What a folder has for itself, taken out of ``subset``."""
    names = {"path": "image_dir", "trigger": "class_tokens", "repeats": "num_repeats"}
    names |= {"weight": "prior_loss_weight"} | ({"regularisation": "is_reg"} if "is_reg" in subset else {})
    names["masks"] = "conditioning_data_dir"
    regular = not is_off(subset.pop("is_reg", None))
    return Folder(
        {ours: at + option for ours, option in names.items()},
        subset.pop("image_dir", ""),
        subset.pop("class_tokens", above.get("class_tokens")),
        subset.pop("num_repeats", above.get("num_repeats")),
        reg_weight if regular else None,
        regular,
        masks=subset.pop("conditioning_data_dir", None),
    )


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
