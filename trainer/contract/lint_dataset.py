"""Lint rules on several folders, buckets and what is varied of the pictures."""

from __future__ import annotations

from collections.abc import Iterator

from .config import TrainConfig
from .findings import Facts, Finding, rule


@rule
def a_folder_cannot_be_used(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if facts.folders_problem:
        sentence = facts.folders_problem.strip().rstrip(".")
        yield Finding("error", "dataset.subsets", f"{sentence[:1].upper()}{sentence[1:200]}.")
