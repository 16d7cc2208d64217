"""Traps between settings: each rule one sentence and, where there is one, a one-click fix.

A rule looks at a valid recipe and at what is known of photos and machine, and yields findings. Rules
are pure and need no torch; all of them together take milliseconds, so forms run them while one types.
"""

from __future__ import annotations

from dataclasses import replace

from . import (  # noqa: F401 (registers the rules)
    lint_adapter,
    lint_captions,
    lint_dataset,
    lint_families,
    lint_idle,
    lint_limits,
    lint_loss,
    lint_machine,
    lint_masks,
    lint_memory,
    lint_optim,
    lint_photos,
    lint_prior,
    lint_schedule,
    lint_several,
    lint_sizes,
    lint_storage,
    lint_training,
    lint_validation,
)
from .config import TrainConfig
from .findings import LEVELS, RULES, Facts, Finding, looks_per_picture
from .length import batches_of, counts_epochs, in_steps, undone_epochs

__all__ = ["LEVELS", "RULES", "Facts", "Finding", "lint", "looks_per_picture"]


IN_STEPS = (
    *(f"train.{name}" for name in ("steps", "warmup", "decay", "restarts", "ema_decay")),
    *("captions.warmup_steps", "captions.variants"),
    "samples.every",
    "checkpoints.every",
)
"""Settings whose rules look at the number of steps."""


def lint(config: TrainConfig, facts: Facts | None = None) -> list[Finding]:
    """All findings, the gravest first."""
    facts = facts or Facts()
    written, config = config, in_steps(config, batches_of(config, facts.folders))
    found = [replace(one, rule=name) for name, check in RULES.items() for one in check(config, facts)]
    if counts_epochs(config):  # the pictures are not counted yet, so how long it is cannot be judged
        found = [one for one in found if one.field not in IN_STEPS]
    found = [replace(one, fix=one.fix and undone_epochs(written, one.fix)) for one in found]
    return sorted(found, key=lambda one: LEVELS.index(one.level))
