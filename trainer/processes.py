"""The processes of one training: one for each GPU, on one machine or on several.

Every process has the whole model and takes its share of each step's pictures; the gradients of the LoRA,
which are small, are added up, so that all of them take the same step. The first process alone writes the run
folder; what it decides the others are told. A :class:`Crew` of one does nothing of this.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

STOPPED = 3
LOST = 75
"""Exit code (EX_TEMPFAIL) of a process that has lost another one: torchrun starts all of them again."""
CODE_FILE = "TRAINER_EXIT_CODE_FILE"
"""Environment: where the first process leaves the exit code that torchrun has no way to pass on."""

T = TypeVar("T")


class PeerLost(Exception):
    """Another process is gone without a word. Nothing has ended: torchrun starts all of them again."""


class Crew:
    """One process of the training, and what it does together with the others.

    The methods are called by all processes at the same places, those that say "anywhere" aside. An error of
    one of them is raised in all.
    """

    rank, world, local_rank = 0, 1, 0
    over = False
    """Whether all have agreed on how this ends."""

    @property
    def main(self) -> bool:
        """Anywhere: whether this is the first process, the one that writes."""
        return self.rank == 0

    @property
    def times(self) -> str:
        """Anywhere: "2 × " before the device of each, nothing where there is one."""
        return f"{self.world} × " if self.world > 1 else ""

    def share(self, batches: Sequence[Sequence[T]]) -> list[list[T]]:
        """Anywhere: this process's part of a step, batch by batch. Samples are dealt out in turn over the
        whole step, so that nobody has more than one too many, whatever the batches' sizes."""
        shares: list[list[T]] = []
        dealt = 0
        for batch in batches:
            shares.append(
                [one for number, one in enumerate(batch, dealt) if number % self.world == self.rank]
            )
            dealt += len(batch)
        return [share for share in shares if share]

    def any(self, asked: bool) -> bool:
        """Whether it was asked of one of them."""
        return asked

    def add_up(self, parameters: Iterable[Any], loss: float) -> float:
        """Replace the gradients of ``parameters`` by their sums over all; return the sum of the losses."""
        return loss

    def same(self, value: T) -> T:
        """The first process's value."""
        return value

    def delivered(self, path: Path | None) -> Path | None:
        """The first process's file or folder, brought to every machine that does not have it."""
        return path

    @contextmanager
    def in_turn(self, *files: Path) -> Iterator[None]:
        """The block is run by the first process, then by the first of each other machine, then by the rest:
        what one has fetched or encoded, the next ones find. ``files`` of the first are then everywhere."""
        yield

    def tell(self, error: BaseException) -> None:
        """Anywhere: let an error of this process end the others as well."""


ALONE = Crew()


def under_torchrun() -> bool:
    """Whether somebody has started several processes, of which this is one."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined() -> Iterator[Crew]:
    """Meet the other processes that torchrun has started, if any. An error that ends the block ends all."""
    global _crew
    if not under_torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    _die_with_parent()
    from .torchrun import Several

    _crew = Several()
    try:
        yield _crew
        _crew.any(False)  # the others wait for what the first one has yet to write
    except PeerLost as lost:
        print(f"process {_crew.rank}: {lost}", file=sys.stderr, flush=True)
        sys.exit(LOST)
    except BaseException as error:
        _crew.tell(error)
        raise
    _crew.over = True


_crew = ALONE


def speaks() -> bool:
    """Whether this process says on the terminal how the training ended; else the first one does."""
    return _crew.main or not _crew.over


def leave(code: int) -> int:
    """The exit code for whoever started this process.

    torchrun starts all processes again when one ends with another code than 0, and passes none on: what all
    have agreed on is left in a file where our own launcher asks for it, and a stop is no failure.
    """
    if not _crew.over:
        return code
    if file := os.environ.get(CODE_FILE):
        if _crew.main:
            Path(file).write_text(str(code), encoding="utf-8")
        return 0
    return 0 if code == STOPPED else code


def _die_with_parent() -> None:
    """A process of torchrun's has a session of its own: what kills torchrun must not leave it behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
