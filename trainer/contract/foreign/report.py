"""What was made of another program's recipe: a partial recipe of ours, and a line for every option."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import ValidationError

from ..errors import ConfigError
from ..fields import RECORDS, SECTIONS, Record, parse, plain

Outcome = Literal["kept", "converted", "default", "ignored", "missing", "unknown", "note"]
MEANING: dict[Outcome, str] = {
    "kept": "taken over as it is",
    "converted": "taken over in the way that it means the same here",
    "default": "not in the file: what the other program does then, made explicit",
    "ignored": "makes no difference here, or is done anyway",
    "missing": "would change the result, and is not offered here",
    "unknown": "no option of that program that is known here",
    "note": "worth knowing",
}
"""The outcomes, in words, in the order in which a report counts them."""


@dataclass(frozen=True)
class Line:
    """What became of one option.

    ``option`` and ``value`` are the other program's, ``setting`` and ``ours`` this one's; either pair may
    be missing. ``why`` is a clause or a sentence.
    """

    outcome: Outcome
    option: str = ""
    value: Any = None
    setting: str = ""
    ours: Any = None
    why: str = ""

    def __str__(self) -> str:
        there = f"{self.option} = {shown(self.value)}" if self.option else ""
        here = f"{self.setting} = {shown(self.ours)}" if self.setting else ""
        both = " → ".join(part for part in (there, here) if part)
        if not both:
            return self.why
        if not here:
            return f"{both}: {self.why}"
        return f"{both} ({self.why})" if self.why else both


def shown(value: Any) -> str:
    """A value as it stands in a report: short, and numbers as people write them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return plain(value) if 1e-3 <= abs(value) < 1e6 else f"{value:g}"
    text = value if isinstance(value, str) else ""
    if not text:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:119] + "…"


class Unusable(Exception):
    """A value that no setting of ours can express; the text says why."""


@dataclass
class Imported:
    """A partial recipe, and what was done: one line each."""

    program: str = ""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    part: bool = False
    """Whether it goes into another recipe: a few options, as guides print them, and no base."""

    def get(self, setting: str) -> Any:
        """The value taken so far, else our default."""
        section, _, name = setting.partition(".")
        return self.tables.get(section, {}).get(name, RECORDS[setting].default)

    def has(self, setting: str) -> bool:
        section, _, name = setting.partition(".")
        return name in self.tables.get(section, {})

    def put(self, setting: str, value: Any) -> Any:
        """Set without a line. Returns the value as the setting's type. Raises Unusable for a wrong one."""
        record = RECORDS.get(setting)
        if record is None:
            raise Unusable(f"it would be {setting}, which is not offered here")
        value = coerced(record, value)
        try:
            SECTIONS[record.section].model_validate({record.name: value})
        except ValidationError:
            try:
                parse({record.section: {record.name: value}})
            except ConfigError as error:
                raise Unusable(str(error)) from None
            raise
        self.tables.setdefault(record.section, {})[record.name] = value
        return value

    def take(self, setting: str, value: Any, source: str, outcome: Outcome = "kept") -> None:
        """A setting that no single option gave; ``source`` says where it is from."""
        try:
            value = self.put(setting, value)
        except Unusable as problem:
            self.lines.append(Line("missing", setting, value, why=f"{problem} ({source})"))
        else:
            self.lines.append(Line(outcome, setting=setting, ours=value, why=source))

    def assume(self, setting: str, value: Any, source: str) -> None:
        """A default of the other program, made explicit; nothing is said where ours is the same."""
        if not self.has(setting):
            self.take(setting, value, source, "default")

    def keep(self, option: str, value: Any, setting: str, ours: Any, why: str = "") -> None:
        """An option that became a setting."""
        try:
            ours = self.put(setting, ours)
        except Unusable as problem:
            self.miss(option, value, str(problem))
            return
        try:
            same = coerced(RECORDS[setting], value) == ours
        except Unusable:
            same = False
        self.lines.append(Line("kept" if same else "converted", option, value, setting, ours, why))

    def leave(self, option: str, value: Any, why: str) -> None:
        self.lines.append(Line("ignored", option, value, why=why))

    def miss(self, option: str, value: Any, why: str) -> None:
        self.lines.append(Line("missing", option, value, why=why))

    def unknown(self, options: Mapping[str, Any]) -> None:
        for option, value in options.items():
            self.lines.append(Line("unknown", option, value, why="not known here, so it was left out"))

    def note(self, why: str) -> None:
        self.lines.append(Line("note", why=why))

    def without_defaults(self) -> None:
        """Leave what the file itself says, of a part that goes into another recipe: nothing of the base, and
        nothing that the other program does where nothing is said."""
        gone = {line.setting for line in self.lines if line.outcome == "default"}
        for setting in gone | {"model.family", "model.base"}:
            section, _, name = setting.partition(".")
            self.tables.get(section, {}).pop(name, None)
        self.lines = [line for line in self.lines if line.outcome != "default"]

    def renamed(self, names: Mapping[str, str]) -> None:
        """Tell of options by the names that the file has for them: {name so far: name in the file}."""
        self.lines = [
            replace(line, option=names[line.option]) if line.option in names else line for line in self.lines
        ]

    def settle(self) -> None:
        """Leave out what does not go together, with a line each: the recipe must be valid."""
        while True:
            try:
                parse(self.tables)
                return
            except ConfigError as error:
                if not any(self._drop(name, text) for name, text in error.problems.items()):
                    raise

    def _drop(self, setting: str, why: str) -> bool:
        """Leave a setting out after all, and say so where it was said to be taken."""
        section, _, name = setting.partition(".")
        if self.tables.get(section, {}).pop(name, self) is self:
            return False
        told = [place for place, line in enumerate(self.lines) if line.setting == setting]
        for place in told:
            line = self.lines[place]
            self.lines[place] = Line("missing", line.option or setting, line.value or line.ours, why=why)
        if not told:
            self.miss(setting, None, why)
        return True

    def counts(self) -> str:
        """ "12 kept, 3 converted, …": the report in a line."""
        number = {outcome: sum(line.outcome == outcome for line in self.lines) for outcome in MEANING}
        return ", ".join(f"{many} {name}" for name, many in number.items() if many and name != "note")


# Values, whatever notation they come in ---------------------------------------------------------------

OFF = ("", "none", "no", "false", "off", "0", "0.0", "null", "disabled")


def is_off(value: Any) -> bool:
    """Whether an option is switched off, in any of the ways that files say so."""
    if isinstance(value, str):
        return value.strip().lower() in OFF
    return not value


def number(value: Any) -> float:
    """1e-4, "1e-4", "10%" -> a number. Raises Unusable."""
    text = str(value).strip()
    try:
        given = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise Unusable(f"{shown(value)} is not a number") from None
    if given != given or abs(given) == float("inf"):
        raise Unusable(f"{shown(value)} is not a number")
    return given


def switch(value: Any) -> bool:
    return not is_off(value)


def coerced(record: Record, value: Any) -> Any:
    """A value in the type of a setting, as far as that loses nothing. Raises Unusable."""
    if isinstance(value, (dict, list)) and record.kind != "lines":
        raise Unusable(f"{shown(value)} is a list, and {record.path} takes one value")
    if value is None and record.optional:
        return None
    if record.kind == "switch":
        return switch(value)
    if record.kind == "integer":
        given = number(value)
        return int(given) if given == int(given) else given
    if record.kind == "number":
        return number(value)
    if record.kind == "lines":
        return list(value) if isinstance(value, (list, tuple)) else [str(value)]
    return str(value).strip()
