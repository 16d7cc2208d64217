"""[checkpoints] and [output]: what is saved."""

from __future__ import annotations

import re

from pydantic import field_validator

from .section import Section, setting


class CheckpointSettings(Section):
    """Resumable states, saved while training."""

    every: int = setting(250, label="Every", unit="steps", basic=True, ge=1, le=1_000_000)
    """Steps between checkpoints: the most that a crash or a power cut can cost."""
    every_epochs: int = setting(0, label="Every so many epochs", unit="epochs", ge=0, le=100_000)
    """The same in epochs; 0 means that the steps hold."""
    keep: int = setting(3, label="Keep", ge=1, le=1000)
    """How many of the last checkpoints stay on disk; the oldest goes first. Two or more is usual, so that
    there is one to go back to. Starred checkpoints stay whatever is set here."""
    keep_every: int = setting(0, label="Keep each multiple of", unit="steps", ge=0, le=1_000_000)
    """Keeps each checkpoint whose step is a multiple of this, however old: milestones to compare afterwards.
    A multiple of checkpoints.every; 0 switches it off."""
    keep_best: int = setting(0, label="Keep the best", ge=0, le=100)
    """How many of the best checkpoints stay, however old: those with the lowest validation loss, or without
    validation those whose samples look most like the photos. 0 switches it off, 1 or 2 is usual."""


class OutputSettings(Section):
    """The finished file."""

    name: str = setting("lora", label="File name", basic=True)
    """Name of the .safetensors file, without the ending. Letters, digits, dot, dash, underscore."""

    @field_validator("name")
    @classmethod
    def _name_is_safe_as_a_file(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
            raise ValueError(
                f"{name!r} cannot be a file name here; use up to 80 letters, digits, dots, dashes and "
                "underscores, with a letter or digit first"
            )
        return name
