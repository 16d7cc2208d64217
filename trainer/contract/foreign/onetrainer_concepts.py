"""The concepts of OneTrainer, which are folders of photos, and the files that a recipe of it may name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..settings.dataset import listed_sides
from ..sizes import sides_text
from . import onetrainer_tables as tables
from .kohya import Beside
from .names import sides
from .reading import parse_json, read_text
from .report import Imported, Unusable, is_off, shown
from .rules import follow
from .shared import Folder, number_or, take_folders, take_sizes, tell_differences, with_sizes


def rows_of(
    found: Imported, options: dict[str, Any], name: str, file_option: str, beside: Beside
) -> list[Any]:
    """A list that the recipe holds, or that a file beside it does."""
    rows, named = options.pop(name, None), options.pop(file_option, None)
    if isinstance(rows, list):
        if named is not None:
            found.leave(file_option, named, f"{name} are in this file")
        return rows
    if named is None:
        return []
    file = beside(str(named))
    if file is None:
        found.miss(file_option, named, "it is not there; put it beside, or fill it in by hand")
        return []
    found.leave(file_option, named, "read, see below")
    data = parse_json(read_text(file), file.name)
    return data if isinstance(data, list) else []


def take_concepts(found: Imported, options: dict[str, Any], beside: Beside) -> None:
    folders: list[Folder] = []
    first: dict[str, Any] = {}
    where = ""
    usual = [found.get("dataset.resolution"), *listed_sides(found.get("dataset.more_resolutions"))]
    own: Sequence[int] = usual
    sizes: list[Sequence[int]] = []
    for place, row in enumerate(rows_of(found, options, "concepts", "concept_file_name", beside)):
        if not isinstance(row, dict):
            continue
        concept, prefix = dict(row), f"concepts[{place}]."
        kind = str(concept.pop("type", "STANDARD"))
        if is_off(concept.pop("enabled", True)):
            found.leave(prefix + "enabled", False, "a concept that is switched off is left out")
            continue
        path = concept.pop("path", "")
        if kind == "VALIDATION":
            found.keep(prefix + "path", path, "validation.path", path)
            continue
        regular = kind == "PRIOR_PREDICTION"
        if regular:
            found.miss(
                prefix + "type", kind, "its pictures are a regularisation set: what they show is learned"
            )
        else:
            found.leave(prefix + "type", kind, "photos of the subject")
        repeats, weight = concept.pop("balancing", None), concept.pop("loss_weight", None)
        strategy = str(concept.pop("balancing_strategy", "REPEATS"))
        if strategy == "REPEATS":
            found.leave(prefix + "balancing_strategy", strategy, "repeats, as here")
        else:
            found.miss(prefix + "balancing_strategy", strategy, "a number of samples; repeats balance here")
            repeats = None
        names = {"path": "path", "repeats": "balancing", "weight": "loss_weight"}
        names = {ours: prefix + option for ours, option in names.items()}
        whole = _whole(found, prefix, repeats)
        folders.append(Folder(names, path, repeats=whole, weight=weight, regularisation=regular))
        sizes.append(_override(found, f"{prefix}image.", concept))
        if where:
            folders[-1] = with_sizes(
                folders[-1], f"{prefix}image.resolution_override", sizes[-1] or usual, own
            )
            for part in ("image", "text"):
                mine, theirs = (_part(one, part) for one in (concept, dict(first)))
                tell_differences(found, f"{prefix}{part}.", mine, theirs, where, tables.CONCEPT)
            plain = {name: value for name, value in first.items() if name not in ("image", "text")}
            tell_differences(found, prefix, concept, plain, where, tables.CONCEPT)
            continue
        first, where = dict(concept), prefix.rstrip(".")
        if sizes[-1]:
            own = sizes[-1]
            take_sizes(found, f"{prefix}image.resolution_override", own, own)
            found.put("dataset.more_resolutions", sides_text(own[1:]))
        for part in ("image", "text"):
            table = concept.pop(part, None)
            if isinstance(table, dict):
                table = dict(table)
                follow(found, table, tables.CONCEPT, f"{prefix}{part}.")
                found.unknown({f"{prefix}{part}.{key}": value for key, value in table.items()})
        follow(found, concept, tables.CONCEPT, prefix)
        found.unknown({prefix + key: value for key, value in concept.items()})
    take_folders(found, folders)


def _override(found: Imported, at: str, concept: dict[str, Any]) -> Sequence[int]:
    """The resolutions that a concept has of its own, taken out of it; none where it has none."""
    image = dict(concept.get("image") or {}) if isinstance(concept.get("image"), dict) else {}
    on, text = image.pop("enable_resolution_override", None), image.pop("resolution_override", None)
    if on is not None or text is not None:
        concept["image"] = image
    if is_off(on):
        for option, value in (("enable_resolution_override", on), ("resolution_override", text)):
            if value is not None:
                found.leave(at + option, value, "off, as it is here")
        return ()
    found.leave(f"{at}enable_resolution_override", on, "read with resolution_override")
    try:
        return sides(str(text).split(","))
    except Unusable as problem:
        found.miss(f"{at}resolution_override", text, str(problem))
        return ()


def _part(concept: dict[str, Any], name: str) -> dict[str, Any]:
    table = concept.pop(name, None)
    return table if isinstance(table, dict) else {}


def _whole(found: Imported, prefix: str, repeats: Any) -> Any:
    given = number_or(found, f"{prefix}balancing", repeats, None)
    if given is None or given == int(given):
        return given and int(given)
    ours = max(1, round(given))
    found.note(f"{prefix}balancing = {shown(repeats)}: repeats are whole numbers here, so {ours}.")
    return ours
