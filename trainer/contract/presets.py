"""Presets: partial recipes in presets/*.toml, one file each.

A file has a ``[preset]`` table (what it is for, in plain words) and any of a recipe's tables. Choosing
a preset starts from the defaults, so that nothing of an earlier choice lingers, and keeps what is the
user's own: the photos, the trigger word, the name of the file, a base model they brought.

A goal has one file for each pace. The fast and the careful one are written as what they change of the
balanced one, which they name (``of``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .config import TrainConfig
from .errors import ConfigError
from .families import DEMO_BASE, known_base
from .fields import SECTIONS, load_recipe, merge, override, parse, read_tables, to_tables

PRESETS_DIR = Path(__file__).resolve().parents[2] / "presets"

Pace = Literal["fast", "balanced", "careful"]
Group = Literal["goals", "guides"]

OWN = {
    "dataset": ("path", "trigger"),
    "output": ("name",),
}
"""Settings that no preset touches."""


class _Head(BaseModel):
    """The [preset] table of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: str = ""
    title: str = Field(min_length=1)
    summary: str = Field(min_length=1)
    source: str = Field(min_length=1)
    caveat: str = ""
    order: int = 100
    group: Group = "goals"
    pace: Pace = "balanced"
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """One file of presets/.

    Attributes:
        key: the file's name without its ending.
        summary, source, caveat: plain sentences: what it is for, where its numbers come from, what to mind.
        group: whether it is ours, for a goal, or the recipe of a published guide.
        goal: the key of the balanced preset of the same goal; its own where it has no other pace.
        prompts: sample prompts in which ``{trigger}`` stands for the trigger word.
        values: the partial recipe.
    """

    key: str
    title: str
    summary: str
    source: str
    caveat: str
    order: int
    group: Group
    goal: str
    pace: Pace
    prompts: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]]

    @property
    def family(self) -> str:
        return str(self.values["model"]["family"])

    @property
    def base(self) -> str:
        return str(self.values["model"]["base"])

    def prompts_for(self, trigger: str) -> tuple[str, ...]:
        """The sample prompts with the trigger word in its place; without one, only those that need none."""
        return tuple(
            prompt.replace("{trigger}", trigger)
            for prompt in self.prompts
            if trigger or "{trigger}" not in prompt
        )

    def apply(self, config: TrainConfig) -> TrainConfig:
        """What this preset makes of ``config``: defaults, then the preset, then what is the user's own."""
        tables = to_tables(config)
        values = merge(self.values, {"samples": {"prompts": self.prompts_for(config.dataset.trigger)}})
        for section, names in OWN.items():
            values = merge(values, {section: {name: tables[section][name] for name in names}})
        own_base = known_base(config.model.family, config.model.base) is None
        if own_base and self.base != DEMO_BASE and config.model.family == self.family:
            # The recipe is for a full-size model, and theirs is one of the same architecture.
            values = merge(values, {"model": {"base": config.model.base, "revision": config.model.revision}})
        return parse(values)


def _tables_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(recipe, head) of a file, over those of the preset it is made from."""
    tables = read_tables(path)
    head = tables.pop("preset", {})
    if isinstance(head, dict) and (other := head.get("of")):
        source = path.with_name(f"{other}.toml")
        if source == path or not source.is_file():
            raise ConfigError({"preset": f"{path.name}: [preset] of: there is no other preset {other!r}"})
        their_tables, their_head = _tables_of(source)
        return merge(their_tables, tables), {**their_head, **head}
    return tables, head


def load_preset(path: Path) -> Preset:
    """Read one file. Raises ConfigError when the head or the partial recipe is wrong."""
    tables, head_table = _tables_of(path)
    try:
        head = _Head.model_validate(head_table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError({"preset": f"{path.name}: [preset] {where}: {first['msg'].lower()}"}) from None
    try:
        config = parse(tables)
    except ConfigError as error:
        raise ConfigError({name: f"{path.name}: {text}" for name, text in error.problems.items()}) from None
    values = {section: tables[section] for section in SECTIONS if section in tables}
    values = merge({"model": {"family": config.model.family, "base": config.model.base}}, values)
    for section, names in OWN.items():
        if taken := [name for name in names if name in values.get(section, {})]:
            raise ConfigError({"preset": f"{path.name} sets {section}.{taken[0]}, which is the user's own"})
    return Preset(
        key=path.stem,
        title=head.title,
        summary=head.summary,
        source=head.source,
        caveat=head.caveat,
        order=head.order,
        group=head.group,
        goal=head.of if head.pace != "balanced" else path.stem,
        pace=head.pace,
        prompts=head.prompts,
        values=values,
    )


def load_recipe_or_preset(path: Path, assignments: tuple[str, ...] = ()) -> TrainConfig:
    """A recipe file with ``--set`` assignments over it; a file of presets/ is put over their photos and
    trigger first. Raises ConfigError."""
    if "preset" not in read_tables(path):
        return load_recipe(path, assignments)
    over: dict[str, Any] = {}
    for assignment in assignments:
        over = merge(over, override(assignment))
    own = {
        section: {name: over[section][name] for name in names if name in over.get(section, {})}
        for section, names in OWN.items()
    }
    return parse(merge(to_tables(load_preset(path).apply(parse(own))), over))


def load_presets(folder: Path = PRESETS_DIR) -> list[Preset]:
    """All presets of a folder, in the order they are shown."""
    return sorted(
        (load_preset(path) for path in folder.glob("*.toml")), key=lambda preset: (preset.order, preset.key)
    )
