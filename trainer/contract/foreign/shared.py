"""Pieces that the readers of several programs share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from ..config import TEXT_RATES
from ..families import CATALOGUE
from ..fields import RECORDS
from ..optimizers import parse_options, written_options
from ..sizes import sides_text
from .names import flat, optimizer, scheduler
from .report import Imported, Line, Unusable, is_off, number, shown
from .rules import Ignored, Table


def safe_name(name: str) -> str:
    """A file's name in the letters that output.name takes."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:80].strip("-._")
    if not plain:
        raise Unusable(f"{shown(name)} is no name for a file here")
    return plain


def number_or(found: Imported, option: str, value: Any, usual: Any) -> Any:
    """A number; ``usual`` where there is none, with a line where there is something else."""
    if value is None:
        return usual
    try:
        return number(value)
    except Unusable as problem:
        found.miss(option, value, str(problem))
        return usual


def take_share(found: Imported, option: str, value: Any, setting: str, why: str = "") -> None:
    """A number of steps, a ratio below 1 or "10%" -> a setting that takes steps or a share."""
    try:
        given = number(value)
    except Unusable as problem:
        found.miss(option, value, str(problem))
        return
    record = RECORDS.get(setting)
    limit = record.maximum if record else None
    if given >= 1 and limit is not None and limit <= 1:
        steps = found.get("train.steps")
        found.keep(option, value, setting, round(given / steps, 6), why or f"of {steps} steps")
    else:
        found.keep(option, value, setting, given, why)


def take_scheduler(found: Imported, option: str, name: Any, default: str, program: str) -> None:
    """train.scheduler; ``default`` is what ``program`` does where nothing is said."""
    if name in (None, ""):
        found.take("train.scheduler", default, f"{program}'s default", "default")
        return
    try:
        found.keep(option, name, "train.scheduler", scheduler(name))
    except Unusable as problem:
        found.miss(option, name, str(problem))
        found.put("train.scheduler", "constant")


def take_power(found: Imported, option: str, value: Any) -> None:
    """train.power, of the polynomial scheduler."""
    if value in (None, ""):
        return
    if found.get("train.scheduler") == "polynomial":
        found.keep(option, value, "train.power", value)
    else:
        found.leave(option, value, "only the polynomial scheduler has a power")


def take_alpha(found: Imported, option: str, value: Any, default: float | None) -> None:
    """kohya's alpha: 0 is the rank. ``default`` None is the rank too."""
    rank = found.get("adapter.rank")
    if value is None or value == "":
        ours, why = (
            (default, "the default there") if default is not None else (rank, "the default there: the rank")
        )
        found.take(
            "adapter.alpha",
            ours,
            f"{why}; the LoRA is scaled by alpha / rank = {shown(ours / rank)}",
            "default",
        )
    elif is_off(value):
        found.keep(option, value, "adapter.alpha", rank, "alpha 0 is the rank")
    else:
        found.keep(option, value, "adapter.alpha", value)


def take_text_rate(found: Imported, option: str, value: Any, rate: Any) -> None:
    """One rate for all text encoders of the family, which the other program trains together."""
    row = CATALOGUE[found.get("model.family")]
    if not row.trainable_text:
        found.miss(option, value, f"{row.label}'s text encoders are not trained here")
    for name in TEXT_RATES[: len(row.trainable_text)]:
        found.keep(option, value, f"train.{name}", rate)


def is_true(value: Any) -> bool:
    return str(value).strip().lower() in ("true", "1", "yes")


def take_optimizer(found: Imported, option: str, name: Any) -> None:
    if name in (None, ""):
        found.take("train.optimizer", "adamw", "the usual default", "default")
        return
    try:
        ours = optimizer(name)
    except Unusable as problem:
        found.miss(option, name, str(problem))
        found.put("train.optimizer", "adamw")
        return
    less = "8bit" in flat(str(name)) and "8bit" not in ours
    why = "the same steps with states in full precision, for a little more memory" if less else ""
    found.keep(option, name, "train.optimizer", ours, why)


def key_values(value: Any) -> dict[str, str]:
    """ "a=1" "b=2" from a list or a text -> {a: 1, b: 2}."""
    words = value if isinstance(value, list) else str(value or "").split()
    pairs = [str(word).strip().strip("\"'").partition("=") for word in words]
    return {name.strip(): text.strip() for name, _, text in pairs if name.strip()}


_DECAY = ("adamw", "paged_adamw", "ademamix", "paged_ademamix")
"""Beginnings of our optimizers whose makers' weight decay is 0.01 where nothing is said; others have none."""
_ALWAYS = {"decouple": True, "relative_step": False, "warmup_init": False, "scale_parameter": False}
"""Options that are so here anyway."""


def take_optimizer_arguments(found: Imported, option: str, arguments: dict[str, Any]) -> None:
    """weight_decay has a setting; the rest goes into train.optimizer_args, as far as the optimizer has it."""
    ours = found.get("train.optimizer")
    rest: dict[str, Any] = {}
    for name, value in arguments.items():
        told = f"{option} {name}"
        if name == "weight_decay":
            found.keep(told, value, "train.weight_decay", value)
        elif value in (None, ""):
            found.leave(told, value, "empty, so that the default holds")
        elif name in _ALWAYS and is_true(value) == _ALWAYS[name]:
            found.leave(told, value, "so it is here anyway")
        else:
            try:
                rest |= parse_options(ours, f"{name}={value}")
            except ValueError as problem:
                found.miss(told, value, str(problem))
    if not ours.startswith(_DECAY):
        found.assume("train.weight_decay", 0.0, f"{ours} has none unless told to")
    if rest:
        text = written_options(rest)
        found.keep(f"{option} {', '.join(rest)}", text, "train.optimizer_args", text)


def leave_off(found: Imported, **options: Any) -> None:
    """A line on options that were looked at and are switched off, where they are given at all."""
    for option, value in options.items():
        if value is not None and is_off(value):
            found.leave(option, value, "off")


def tell_differences(
    found: Imported, prefix: str, own: Mapping[str, Any], first: Mapping[str, Any], where: str, table: Table
) -> None:
    """A line on every option of a further folder: what the first one says holds for all, and differs where
    only the first has switched something on, too. ``where`` names the first, "subsets[0]"; ``table`` has the
    options that make no difference."""
    for name in dict.fromkeys((*own, *first)):
        ours, theirs, rule = own.get(name), first.get(name), table.get(name)
        if isinstance(rule, Ignored) or ours == theirs or (is_off(ours) and is_off(theirs)):
            if name in own:
                found.leave(prefix + name, ours, rule.why if isinstance(rule, Ignored) else f"as in {where}")
            continue
        said = shown(theirs) if name in first else "what is usual"
        found.miss(
            prefix + name, ours, f"one value holds for all folders: {where} has {said}, which is taken"
        )


@dataclass(frozen=True)
class Folder:
    """A folder of pictures. ``names`` are the options that said so, by our field; ``path`` always has one."""

    names: Mapping[str, str]
    path: Any
    trigger: Any = None
    repeats: Any = None
    weight: Any = None
    regularisation: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)
    masks: Any = None


def with_own(
    folder: Folder, at: str, options: Mapping[str, Any], first: Mapping[str, Any], names: Mapping[str, str]
) -> Folder:
    """The folder with what its ``options`` say otherwise than the ``first``'s, which hold for all. ``names``
    are those that a folder can have of its own, by our field; ``at`` is what the report puts before them."""
    own: dict[str, Any] = {}
    told: dict[str, str] = {}
    for ours, option in names.items():
        if folder.regularisation and ours in ("prefix", "suffix"):
            continue  # they name the subject
        kind = OWN[ours]
        try:
            mine, theirs = (kind(level.get(option)) for level in (options, first))
        except Unusable:
            continue  # told as what no folder can have
        if mine != theirs:
            own[ours], told[ours] = mine, at + option
    return replace(folder, names={**folder.names, **told}, own=own)


def _text(value: Any) -> str:
    return str(value or "")


def _switch(value: Any) -> bool:
    return not is_off(value)


def _share(value: Any) -> float:
    return float(number(value or 0))


def _count(value: Any) -> int:
    return int(number(value or 0))


def with_sizes(folder: Folder, option: str, mine: Sequence[int], first: Sequence[int]) -> Folder:
    """The folder with the resolutions that an option gives it, where the ``first``'s, which hold for all, are
    others."""
    own: dict[str, Any] = {}
    mine, first = ([one for one in given if one] for given in (mine, first))
    if mine and first and set(mine) != set(first):
        own = {"resolution": mine[0], "more_resolutions": sides_text(mine[1:])}
        usual = {"resolution": first[0], "more_resolutions": sides_text(first[1:])}
        own = {name: value for name, value in own.items() if value != usual[name]}
    told = dict.fromkeys(own, option)
    return replace(folder, names={**folder.names, **told}, own={**folder.own, **own})


def take_sizes(found: Imported, option: str, value: Any, sizes: Sequence[int], why: str = "") -> None:
    """dataset.resolution and, where there are several, dataset.more_resolutions."""
    found.keep(option, value, "dataset.resolution", sizes[0], why)
    if more := sides_text(sizes[1:]):
        found.keep(option, value, "dataset.more_resolutions", more, "each photo is shown at each of them")


OWN: Mapping[str, Callable[[Any], Any]] = {
    "prefix": _text,
    "suffix": _text,
    "shuffle": _switch,
    "keep_tokens": _count,
    "dropout": _share,
    "flip": _switch,
}
"""What a folder can have of its own, and how it is read; nothing said is off."""

MASKS = ("masks", "mask")
"""What a folder of masks is called that lies in the folder of its photos; it is found there by itself."""


def take_masks(found: Imported, option: str, masks: Any, photos: Any) -> None:
    """A folder of masks that another program is told of."""
    here, there = (PurePosixPath(str(path).replace("\\", "/")) for path in (masks, photos))
    if here.parent == there and here.name.casefold() in MASKS:
        found.leave(option, masks, "masks in this folder are found by themselves")
    else:
        found.miss(
            option, masks, f"put the masks into {there / MASKS[0]}, where they are found by themselves"
        )


def take_folders(found: Imported, folders: list[Folder]) -> None:
    """The first folder of photos is the dataset's own; all others are subsets."""
    subsets: list[dict[str, Any]] = []
    own = next((folder for folder in folders if not folder.regularisation), None)
    for folder in folders:
        if not is_off(folder.masks):
            take_masks(found, folder.names["masks"], folder.masks, folder.path)
        given = {name: getattr(folder, name) for name in ("trigger", "repeats", "weight")}
        given = {name: value for name, value in given.items() if value not in (None, "")}
        for count in ("repeats", "weight"):
            if count in given and number_or(found, folder.names[count], given[count], None) is None:
                del given[count]
        if folder is own:
            found.keep(folder.names["path"], folder.path, "dataset.path", folder.path)
            for name, value in given.items():
                if name != "weight":
                    why = "the caption of photos that have none" if name == "trigger" else ""
                    found.keep(folder.names[name], value, f"dataset.{name}", value, why)
                elif number(value) != 1:
                    found.miss(folder.names[name], value, "the first folder weighs 1; weigh the others by it")
                else:
                    found.leave(folder.names[name], value, "as it is here")
            continue
        given |= folder.own
        table: dict[str, Any] = {"path": str(folder.path), **given}
        for name, kind in (("repeats", int), ("weight", float)):
            if name in table:
                table[name] = kind(number(table[name]))
        if folder.regularisation:
            table["regularisation"] = True
        try:
            found.put("dataset.subsets", [*subsets, table])
        except Unusable as problem:
            found.miss(folder.names["path"], folder.path, str(problem))
            continue
        subsets.append(table)
        why = "pictures of the class in general" if folder.regularisation else "one more folder of photos"
        line = Line("converted", folder.names["path"], folder.path, "dataset.subsets", table, why)
        found.lines.append(line)
        for name, value in given.items():
            if name != "more_resolutions":  # told with its resolution
                found.leave(folder.names[name], value, "in that subset")
    for folder in folders:
        if "regularisation" in folder.names:
            told = "a regularisation set" if folder.regularisation else "photos of the subject"
            found.leave(folder.names["regularisation"], folder.regularisation, told)
