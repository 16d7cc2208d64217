"""Settings of a run that may still change: those that do not decide what is learnt."""

from __future__ import annotations

from collections.abc import Sequence

from .config import TrainConfig
from .errors import ConfigError, RunError
from .fields import dump_recipe, flatten, merge, override, parse, to_tables
from .files import write_text
from .ladder import read_ladder, write_ladder
from .runs import RunFolder

SECTIONS = ("machine", "notify", "storage", "checkpoints")
"""Where a run trains, what that may cost, who hears of it, where copies are kept, and which states stay."""


def amend(run: RunFolder, assignments: Sequence[str]) -> TrainConfig:
    """Change settings of a run that does not train now, each as ``section.field=value``; the new recipe.

    What is asked for holds also where lack of memory has changed it since (:mod:`.ladder`).

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
    _freeze_anew(run, before, after)
    asked = {assignment.partition("=")[0].strip() for assignment in assignments}
    ladder = read_ladder(run.ladder)
    if asked & {path for one in ladder for path in one.changes}:
        _require_at_rest(run)
        write_ladder(run.ladder, [one.without(asked) for one in ladder])
    return after


def with_sections(config: TrainConfig, of: TrainConfig) -> TrainConfig:
    """The recipe with what may change as ``of`` has it."""
    return config.model_copy(update={section: getattr(of, section) for section in SECTIONS})


def take_over(run: RunFolder, config: TrainConfig) -> None:
    """Change what may change in a run to what ``config`` says of it. Raises RunError as :func:`amend`."""
    before = run.config()
    _freeze_anew(run, before, with_sections(before, of=config))


def _freeze_anew(run: RunFolder, before: TrainConfig, after: TrainConfig) -> None:
    if after != before:
        _require_at_rest(run)
        write_text(run.recipe, dump_recipe(after))


def _require_at_rest(run: RunFolder) -> None:
    if run.alive():
        raise RunError(f"the run {run.id} is being trained; stop it first", "config")
