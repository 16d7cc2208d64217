"""Which checkpoints stay on disk: the last ones, milestones, the best, and those that a person has starred.

Pure, so that the trainer, the copy in an object storage and the plan's disk space agree.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from .settings.files import CheckpointSettings
from .verdict import verdict


def staying(
    steps: Collection[int],
    settings: CheckpointSettings,
    *,
    starred: Collection[int] = (),
    best: Sequence[int] = (),
) -> frozenset[int]:
    """Of whole checkpoints at ``steps``, those that stay; the newest always does, and so the final one.

    ``best`` are steps, the best first (:func:`best_first`). Those whose checkpoint is gone are passed over.
    """
    there, in_order = frozenset(steps), sorted(frozenset(steps))
    last = frozenset(in_order[-settings.keep :])
    return last | _milestones(there, settings) | _best(there, settings, best) | (there & frozenset(starred))


def dispensable(
    steps: Collection[int],
    settings: CheckpointSettings,
    *,
    starred: Collection[int] = (),
    best: Sequence[int] = (),
) -> list[int]:
    """The order in which checkpoints may go when the disk is full: the oldest first of those that are kept
    for nothing but their age, then milestones, then the best, the worst of them first. Neither the newest nor
    a starred one is ever among them."""
    there = frozenset(steps)
    if not there:
        return []
    chosen = _best(there, settings, best)
    milestones = _milestones(there, settings) - chosen
    plain = there - chosen - milestones
    order = sorted(plain) + sorted(milestones) + sorted(chosen, key=best.index, reverse=True)
    return [step for step in order if step != max(there) and step not in starred]


def _milestones(there: frozenset[int], settings: CheckpointSettings) -> frozenset[int]:
    every = settings.keep_every
    return frozenset(step for step in there if step % every == 0) if every else frozenset()


def _best(there: frozenset[int], settings: CheckpointSettings, best: Sequence[int]) -> frozenset[int]:
    return frozenset([step for step in best if step in there][: settings.keep_best])


def best_first(events: Sequence[dict[str, Any]], *, unlearn: bool = False) -> list[int]:
    """Steps by what a run measured of them, the best first: by validation loss, and where none was measured
    by the score that the verdict suggests a step by. The base itself, step 0, is not among them.

    ``events`` are the current ones (:func:`trainer.contract.events.current_events`).
    """
    bars = [one for one in verdict(events, unlearn=unlearn).bars if one.step]
    losses = [(one.validation, one.step) for one in bars if one.validation is not None and not unlearn]
    if losses:
        return [step for _, step in sorted(losses)]
    scores = [(-one.score, one.step) for one in bars if one.score is not None]
    return [step for _, step in sorted(scores)]


def saved_milestones(settings: CheckpointSettings) -> int:
    """Steps between checkpoints that are both saved and milestones; 0 where there are no milestones."""
    return math.lcm(settings.every, settings.keep_every) if settings.keep_every else 0


def most_at_once(settings: CheckpointSettings, steps: int) -> int:
    """As many as may stay of a run of so many steps, with what is asked for by hand and starred left out."""
    saved = -(-steps // settings.every)
    apart = saved_milestones(settings)
    return min(saved, settings.keep + settings.keep_best + (steps // apart if apart else 0))


def kept_in_words(settings: CheckpointSettings) -> str:
    """
    >>> kept_in_words(CheckpointSettings(keep=3, keep_every=1000, keep_best=2))
    'the last 3 are kept, each of a multiple of 1000 steps, and the best 2'
    """
    parts = [f"the last {settings.keep} are kept" if settings.keep > 1 else "the last is kept"]
    if settings.keep_every:
        parts.append(f"each of a multiple of {settings.keep_every} steps")
    if settings.keep_best:
        parts.append(f"the best {settings.keep_best}" if settings.keep_best > 1 else "the best")
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
