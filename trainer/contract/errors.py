"""The error tree.

UserError                 one sentence for the person at the page: the thing, its value, the remedy
├── ConfigError           a recipe is wrong (exit code 2)
├── ImageError            a picture, or several, cannot be used     (dataset_tools)
├── DatasetError          a project or folder of pictures is wrong  (dataset_tools)
└── RunError              a run cannot start, go on or be read; carries the classified cause

Everything else is a bug and is allowed to fly: ``trainer.__main__`` is the one place that catches it.
"""

from __future__ import annotations


class UserError(Exception):
    """An error whose text is one sentence for the user: what, which value, what to do."""


class ConfigError(UserError):
    """A recipe or an argument is wrong. ``problems`` maps dotted field names to sentences."""

    def __init__(self, problems: dict[str, str]) -> None:
        self.problems = dict(problems)
        super().__init__("; ".join(self.problems.values()))


class RunError(UserError):
    """A run cannot start or go on.

    ``cause`` is one of :data:`trainer.contract.runs.CAUSES`; pages choose the remedy button by it.
    """

    def __init__(self, message: str, cause: str = "unknown") -> None:
        self.cause = cause
        super().__init__(message)
