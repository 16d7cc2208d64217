"""Traps between settings: each rule one sentence and, where there is one, a one-click fix.

A rule looks at a valid recipe and at what is known of photos and machine, and yields findings. Rules
are pure and need no torch; all of them together take milliseconds, so forms run them while one types.
"""

from __future__ import annotations

from dataclasses import replace

from . import (  # noqa: F401 (registers the rules)
    lint_captions,
    lint_dataset,
    lint_families,
    lint_loss,
    lint_masks,
    lint_optim,
    lint_photos,
    lint_prior,
    lint_training,
)
from .config import TrainConfig
from .findings import LEVELS, RULES, Facts, Finding, looks_per_picture

__all__ = ["LEVELS", "RULES", "Facts", "Finding", "lint", "looks_per_picture"]


def lint(config: TrainConfig, facts: Facts | None = None) -> list[Finding]:
    """All findings, the gravest first."""
    facts = facts or Facts()
    found = [replace(one, rule=name) for name, check in RULES.items() for one in check(config, facts)]
    return sorted(found, key=lambda one: LEVELS.index(one.level))
