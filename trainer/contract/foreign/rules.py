"""What a table of another program's options says of each: which setting it is, or why it is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .report import Imported, Unusable, is_off


@dataclass(frozen=True)
class To:
    """The option is our ``setting``; ``convert`` turns its value into ours and may raise Unusable."""

    setting: str
    convert: Callable[[Any], Any] | None = None
    why: str = ""


@dataclass(frozen=True)
class Ignored:
    """The option makes no difference to the result here; ``why`` says what holds instead."""

    why: str


@dataclass(frozen=True)
class Absent:
    """The option would change the result and there is nothing like it here. Off, it changes nothing."""

    why: str
    off: tuple[Any, ...] = ()

    def is_off(self, value: Any) -> bool:
        return is_off(value) or value in self.off


@dataclass(frozen=True)
class Only:
    """One value, or a few, are what happens here anyway; ``check`` raises Unusable for the others."""

    check: Callable[[Any], object]
    why: str = "as it is here"


Rule = To | Ignored | Absent | Only
Table = Mapping[str, Rule]


def words(text: str) -> tuple[str, ...]:
    """Option names, as a table lists them where one rule holds for many."""
    return tuple(text.split())


def follow(found: Imported, options: dict[str, Any], table: Table, prefix: str = "") -> None:
    """Take every option that the table knows out of ``options``, with a line each."""
    for name in [name for name in options if name in table]:
        value, rule = options.pop(name), table[name]
        option = prefix + name
        if isinstance(rule, Ignored):
            found.leave(option, value, rule.why)
        elif isinstance(rule, Absent):
            if rule.is_off(value):
                found.leave(option, value, "off, as it is here")
            else:
                found.miss(option, value, rule.why)
        elif value is None or value == "":
            found.leave(option, value, "empty, so that the default holds")
        else:
            try:
                if isinstance(rule, Only):
                    rule.check(value)
                    found.leave(option, value, rule.why)
                else:
                    ours = rule.convert(value) if rule.convert else value
                    found.keep(option, value, rule.setting, ours, rule.why)
            except Unusable as problem:
                found.miss(option, value, str(problem))
