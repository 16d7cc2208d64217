"""One case of a lint rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainer.contract.findings import Facts


@dataclass(frozen=True)
class Case:
    """Settings over a good recipe that set a rule off, and such that do not."""

    rule: str
    fires: dict[str, Any]
    silent: dict[str, Any]
    facts: Facts = field(default_factory=Facts)
    silent_facts: Facts | None = None
    says: tuple[str, ...] = field(default=())
