"""TrainConfig as flat records, and recipes to and from TOML.

One record per setting (``train.learning_rate``) feeds the form, the ``--set`` option, the reference
page and the sentences that are shown for a wrong value.
"""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import tomlkit
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .config import TrainConfig
from .errors import ConfigError
from .settings.dataset import Subset
from .settings.section import Section

Kind = Literal["text", "lines", "integer", "number", "switch", "choice"]


@dataclass(frozen=True)
class Record:
    """What a form, a command line and a reference page need to know of one setting.

    ``minimum`` and ``maximum`` are inclusive unless ``open_minimum`` / ``open_maximum`` say otherwise.
    """

    path: str
    section: str
    name: str
    label: str
    help: str
    kind: Kind
    default: Any
    optional: bool
    basic: bool
    unit: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    open_minimum: bool = False
    open_maximum: bool = False

    @property
    def range_text(self) -> str:
        """The allowed range in words, empty where there is none."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind not in ("integer", "number"):
            return ""
        if self.minimum is None and self.maximum is None:
            return ""
        low = "" if self.minimum is None else plain(self.minimum)
        high = "" if self.maximum is None else plain(self.maximum)
        if low and high and not self.open_minimum:
            return f"{low} to {'below ' if self.open_maximum else ''}{high}"
        low = low and (f"above {low}" if self.open_minimum else f"at least {low}")
        high = high and (f"below {high}" if self.open_maximum else f"at most {high}")
        return " and ".join(part for part in (low, high) if part)


def plain(number: float) -> str:
    """A number as people write it: 1000000 and not 1e+06, 0.05 and not 0.050000000000000003."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _kind_of(annotation: Any) -> tuple[Kind, bool, tuple[str, ...]]:
    """(kind, optional, choices) of a field's type."""
    optional = False
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not type(None)]
        optional, annotation = len(inner) < len(get_args(annotation)), inner[0]
    if get_origin(annotation) is Literal:
        return "choice", optional, tuple(get_args(annotation))
    if get_origin(annotation) is tuple:
        return "lines", optional, ()
    kinds: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number", str: "text"}
    return kinds[annotation], optional, ()


def _records_of(section: str, model: type[BaseModel]) -> Iterator[Record]:
    for name, field in model.model_fields.items():
        extra: Any = field.json_schema_extra or {}
        kind, optional, choices = _kind_of(field.annotation)
        if extra.get("choices"):
            kind, choices = "choice", tuple(extra["choices"])
        limits: dict[str, Any] = {}
        for limit in field.metadata:
            for key in ("ge", "gt", "le", "lt"):
                if getattr(limit, key, None) is not None:
                    limits[key] = getattr(limit, key)
        yield Record(
            path=f"{section}.{name}",
            section=section,
            name=name,
            label=extra.get("label") or name.replace("_", " ").capitalize(),
            help=" ".join((field.description or "").split()),
            kind=kind,
            default=field.default,
            optional=optional,
            basic=bool(extra.get("basic")),
            unit=extra.get("unit", ""),
            choices=choices,
            minimum=limits.get("ge", limits.get("gt")),
            maximum=limits.get("le", limits.get("lt")),
            open_minimum="gt" in limits,
            open_maximum="lt" in limits,
        )


SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation  # type: ignore[misc]
    for name, field in TrainConfig.model_fields.items()
}
RECORDS: dict[str, Record] = {
    record.path: record for section, model in SECTIONS.items() for record in _records_of(section, model)
}

TABLES: dict[str, type[Section]] = {"dataset.subsets": Subset}
"""Settings that are lists of tables, and what each of these is. It may be given as a line, too."""
INNER: dict[str, Record] = {
    record.path: record for path, model in TABLES.items() for record in _records_of(path, model)
}


def flatten(config: TrainConfig) -> dict[str, Any]:
    """{"train.steps": 1000, …}: the values that a form shows, and JSON can hold."""
    values = {path: getattr(getattr(config, record.section), record.name) for path, record in RECORDS.items()}
    for path in TABLES:
        values[path] = tuple(entry.line for entry in values[path])
    return values


def nest(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The inverse of :func:`flatten`, as plain nested tables. Dotted names that are no setting stay in."""
    tables: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        tables.setdefault(section, {})[name] = value
    return tables


def _sentence(error: ErrorDetails) -> tuple[str, str]:
    """(dotted field, one sentence) for a pydantic error."""
    where = [str(part) for part in error["loc"] if not isinstance(part, int)]
    field = ".".join(where[:2])
    path = ".".join(where[:3]) if field in TABLES else field
    return _field_of(error) or field or "recipe", _words(error, path, len(where))


def _field_of(error: ErrorDetails) -> str:
    return str(error["ctx"]["setting"]) if error["type"] == "together" else ""


def _words(error: ErrorDetails, path: str, depth: int) -> str:
    value = error.get("input")
    if error["type"] == "together":
        return f"{error['ctx']['setting']}: {error['ctx']['sentence']}"
    if error["type"] == "extra_forbidden":
        known = [*INNER] if depth > 2 else [*RECORDS] if depth > 1 else [*SECTIONS, *RECORDS]
        name = path.rpartition(".")[2]
        near = [other for other in known if other.rpartition(".")[2] == name]  # right name, wrong section
        near = near or difflib.get_close_matches(path, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "docs/settings.md lists all settings"
        return f"{path} is not a setting; {hint}"
    record = RECORDS.get(path) or INNER.get(path)
    if record is None:
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] in ("string_too_short", "missing"):
        return f"{path} is empty; it needs a value"
    if error["type"] in ("string_too_long", "too_long"):
        things = "characters" if error["type"] == "string_too_long" else "entries"
        return f"{path} has {len(value)} {things}; at most {error['ctx']['max_length']} are allowed"
    if error["type"] == "string_pattern_mismatch":
        return f"{path} = {value!r} holds a |, which separates settings; take it away"
    wanted = {
        "text": "a text",
        "lines": "a list of tables or lines" if path in TABLES else "a list of texts",
        "integer": "a whole number",
        "number": "a number",
        "switch": "true or false",
        "choice": "one of",
    }[record.kind]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "…"
    span = record.range_text
    allowed = f"{wanted} {'from ' if span[:1].isdigit() else ''}{span}".strip()
    if record.optional:
        allowed += ", or leave it out"
    return f"{path} = {shown} is not allowed; give {allowed}"


MOVED = {"train.min_snr_gamma": "loss.min_snr_gamma", "dataset.caption_dropout": "captions.dropout"}
"""Settings that recipes of earlier versions have elsewhere, with the same meaning."""


def _at_home(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The tables with settings that have moved where they are now; what is there already goes before."""
    found = merge(tables, {})
    for old, new in MOVED.items():
        section, _, name = old.partition(".")
        table = found.get(section)
        if isinstance(table, dict) and name in table:
            found = merge(nest({new: table.pop(name)}), found)
    return found


def parse(tables: Mapping[str, Any]) -> TrainConfig:
    """Nested tables -> TrainConfig.

    Raises:
        ConfigError: one sentence per wrong setting, keyed by its dotted name.
    """
    try:
        return TrainConfig.model_validate(_at_home(tables))
    except ValidationError as error:
        raise ConfigError(dict(_sentence(detail) for detail in error.errors())) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two levels of tables, ``over`` winning; neither argument is changed."""
    tables = {name: dict(table) if isinstance(table, Mapping) else table for name, table in base.items()}
    for name, table in over.items():
        if isinstance(table, Mapping) and isinstance(tables.get(name), dict):
            tables[name].update(table)
        else:
            tables[name] = dict(table) if isinstance(table, Mapping) else table
    return tables


def override(assignment: str) -> dict[str, dict[str, Any]]:
    """``section.field=value`` -> nested tables. The value is TOML; what is not TOML is a text.

    An empty value means "left out" for settings that allow it.
    """
    path, separator, text = assignment.partition("=")
    path = path.strip()
    if not separator or "." not in path:
        raise ConfigError({"--set": f"--set {assignment!r} is not section.field=value"})
    record = RECORDS.get(path)
    if record and record.kind in ("text", "choice"):
        value: Any = text.strip().strip("\"'")
    elif record and record.optional and not text.strip():
        value = None
    else:
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
    return nest({path: value})


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, unvalidated."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError({"recipe": f"the recipe {path} does not exist"}) from None
    except IsADirectoryError:
        raise ConfigError({"recipe": f"{path} is a folder; name the .toml file in it"}) from None
    except OSError as error:
        raise ConfigError({"recipe": f"the recipe {path} cannot be read: {error.strerror}"}) from None
    except UnicodeDecodeError:
        raise ConfigError({"recipe": f"{path} is not a text file in UTF-8; save it as UTF-8"}) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError({"recipe": f"{path} is not valid TOML: {error}"}) from None


def load_recipe(path: Path, assignments: tuple[str, ...] = ()) -> TrainConfig:
    """Read a recipe file and apply ``--set`` assignments over it. Raises ConfigError."""
    tables = read_tables(path)
    for assignment in assignments:
        tables = merge(tables, override(assignment))
    return parse(tables)


def to_tables(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """The complete recipe as nested tables; settings that are None are left out, as TOML has no null."""
    return config.model_dump(mode="json", exclude_none=True)


def dump_recipe(config: TrainConfig) -> str:
    """The complete recipe as TOML; :func:`load_recipe` gives the same TrainConfig back."""
    return "\n".join(_dumped(section, table) for section, table in to_tables(config).items())


def _dumped(section: str, table: dict[str, Any]) -> str:
    """What ``tomlkit.dumps`` makes of a section: line by line, which takes it a seventh of the time."""
    if any(isinstance(value, list) and value and isinstance(value[0], dict) for value in table.values()):
        return tomlkit.dumps({section: table})
    lines = (f"{name} = {tomlkit.item(value).as_string()}\n" for name, value in table.items())
    return f"[{section}]\n{''.join(lines)}"


def settings_page() -> str:
    """docs/settings.md: every setting with its default, range and help."""
    lines = [
        "# Settings",
        "",
        "Every setting of a recipe. This page is generated from `trainer/contract/settings/` by",
        "`python -m trainer.contract.fields > docs/settings.md`; a test holds it current.",
        "",
    ]
    for section, model in SECTIONS.items():
        lines += [f"## [{section}]", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        for record in RECORDS.values():
            if record.section != section:
                continue
            value = str(record.default).lower() if record.kind == "switch" else record.default
            default = "" if value in (None, "", ()) else f"`{value}`"
            unit = f" ({record.unit})" if record.unit else ""
            allowed = {"switch": "true, false", "lines": "list of texts"}.get(record.kind, record.range_text)
            help_text = record.help.replace("|", "\\|")
            lines.append(f"| `{record.name}`{unit} | {default} | {allowed} | {help_text} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(settings_page(), end="")
