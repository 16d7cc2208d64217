"""What a table of another program's options says of each: which setting it is, or why it is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..fields import RECORDS
from .report import Imported, Unusable, is_off, number


@dataclass(frozen=True)
class To:
    """The option is our ``setting``; ``convert`` turns its value into ours, None for what changes nothing
    here, and may raise Unusable."""

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


def switched(amount: float) -> Callable[[Any], float | None]:
    """For an option that only switches on what here has a strength."""
    return lambda value: None if is_off(value) else amount


Rule = To | Ignored | Absent | Only
Table = Mapping[str, Rule]


# What holds in every program ----------------------------------------------------------------------------

SPEED = Ignored("speed or memory only: it does not change the result")
TRACKED = Ignored("the studio keeps and draws the course of a run itself")
HUB = Ignored("publishing is done from the Results page")
CACHED = Ignored("latents and captions are always cached here, keyed by their content")
RESUME = Ignored("runs are resumed by their folder here: python -m trainer resume RUN_DIR")
FOLDER = Ignored("a run is a folder of its own in the workspace")
SECRET = Ignored("a secret, which never goes into a recipe: start the studio with HF_TOKEN")
LENGTH = Ignored("captions are cut at the length that the base's text encoders read")
GUIDANCE = Ignored("distilled bases are trained with the guidance that fits them")
SCHEDULER = Ignored("the base's own scheduler says so")
EXPORTED = Ignored("the exported file has a format of its own choice")
CHECKPOINTING = To("train.gradient_checkpointing", lambda value: "off" if is_off(value) else "on")
LAYERS = Absent("layers are chosen by adapter.targets and adapter.target_regex")
NOT_OFFERED = Absent("not offered")


def on(value: Any) -> str | None:
    return None if is_off(value) else "on"


def v_prediction(value: Any) -> str | None:
    return None if is_off(value) else "v_prediction"


def one(value: Any) -> None:
    """For :class:`Only`: 1, or not offered."""
    if number(value) != 1:
        raise Unusable("not offered; it is 1 here")


def words(text: str) -> tuple[str, ...]:
    """Option names, as a table lists them where one rule holds for many."""
    return tuple(text.split())


def follow(found: Imported, options: dict[str, Any], table: Table, prefix: str = "") -> None:
    """Take every option that the table knows out of ``options``, with a line each, in the table's order: of
    two that are one setting here, the later one holds."""
    for name in [name for name in table if name in options]:
        value, rule = options.pop(name), table[name]
        option = prefix + name
        if isinstance(rule, Ignored):
            found.leave(option, value, rule.why)
        elif isinstance(rule, Absent):
            if rule.is_off(value):
                found.leave(option, value, "off, as it is here")
            else:
                found.miss(option, value, rule.why)
        elif isinstance(rule, To) and rule.setting not in RECORDS and is_off(value):
            found.leave(option, value, "off, as it is here")
        elif value is None or value == "":
            found.leave(option, value, "empty, so that the default holds")
        else:
            try:
                if isinstance(rule, Only):
                    rule.check(value)
                    found.leave(option, value, rule.why)
                else:
                    ours = rule.convert(value) if rule.convert else value
                    if ours is None:
                        found.leave(option, value, "off, as it is here")
                    else:
                        found.keep(option, value, rule.setting, ours, rule.why)
            except Unusable as problem:
                found.miss(option, value, str(problem))
