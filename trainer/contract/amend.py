"""Settings of a run that may still change: those that do not decide what is learnt."""

from __future__ import annotations

from collections.abc import Sequence

from .config import TrainConfig
from .errors import ConfigError, RunError
from .fields import dump_recipe, flatten, merge, override, parse, to_tables
from .files import write_text
from .runs import RunFolder

SECTIONS = ("machine", "notify", "storage")
"""Where a run trains, what that may cost, who hears of it, and where copies are kept."""


def amend(run: RunFolder, assignments: Sequence[str]) -> TrainConfig:
    """Change settings of a run that does not train now, each as ``section.field=value``; the new recipe.

    Raises ConfigError for a setting that decides the LoRA, RunError for a run that is being trained.
    """
    before = run.config()
    tables = to_tables(before)
    for assignment in assignments:
        tables = merge(tables, override(assignment))
    after = run.own(parse(tables))
    old, new = flatten(before), flatten(after)
    for path in old:
        if old[path] != new[path] and path.partition(".")[0] not in SECTIONS:
            sentence = f"{path} cannot change in a run that has begun; train the recipe as a new run"
            raise ConfigError({path: sentence})
    if after != before:
        if run.alive():
            raise RunError(f"the run {run.id} is being trained; stop it first", "config")
        write_text(run.recipe, dump_recipe(after))
    return after
