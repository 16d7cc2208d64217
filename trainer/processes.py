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
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .contract import agent

if TYPE_CHECKING:
    from .contract.config import TrainConfig
    from .contract.runs import RunFolder

STOPPED = 3
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
"""Environment: which process this is, of how many, and which of this machine; and what Open MPI, MPICH and
Intel's call it, with which accelerate starts several on processors."""
LOST = 75
"""Exit code (EX_TEMPFAIL) of a process that has lost another one: torchrun starts all of them again."""
CODE_FILE = "TRAINER_EXIT_CODE_FILE"
"""Environment: where a machine's first process leaves the exit code that torchrun has no way to pass on."""
SIGNALLED = "signalled"
"""The file beside it that is there once our launcher was told to stop."""

T = TypeVar("T")


@dataclass(frozen=True)
class Machines:
    """The machines of one training: how many, which of them this is (from 0), and where the first one is to
    be met (host:port)."""

    count: int = 1
    number: int = 0
    endpoint: str = ""


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

    def share(self, batches: Sequence[Sequence[T]], at_once: int = 0) -> list[tuple[list[T], float]]:
        """This process's part of a step, in parts of one batch and of at most ``at_once`` samples (0: any
        number), and what each part counts: 0 where it only keeps the others company. Samples are dealt out in
        turn over the whole step, so that nobody has more than one too many, whatever the batches' sizes."""
        return [(part, 1.0) for part in self._parts(batches, at_once, self.rank)]

    def _parts(self, batches: Sequence[Sequence[T]], at_once: int, rank: int) -> list[list[T]]:
        parts: list[list[T]] = []
        dealt = 0
        for batch in batches:
            own = [one for at, one in enumerate(batch, dealt) if at % self.world == rank]
            size = at_once or len(own) or 1
            parts += [own[start : start + size] for start in range(0, len(own), size)]
            dealt += len(batch)
        return parts

    def split(self, denoiser: Any, base: Collection[Any], device: Any) -> None:
        """Split the parameters ``base`` of a denoiser that is in RAM over all processes."""
        denoiser.to(device)

    def require(self, config: TrainConfig) -> None:
        """Anywhere: raise RunError(config) for a recipe that so many cannot train together."""

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
    return {*TORCHRUN, "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined() -> Iterator[Crew]:
    """Meet the other processes that torchrun has started, if any. An error that ends the block ends all."""
    global _crew
    for names in MPI:
        if "RANK" not in os.environ and set(names) <= os.environ.keys():
            os.environ.update({ours: os.environ[name] for ours, name in zip(TORCHRUN, names, strict=True)})
    if not under_torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    _die_with_parent()
    from .torchrun import Several

    if (file := _code_file()) and os.environ["LOCAL_RANK"] == "0":
        file.unlink(missing_ok=True)  # of those before
    _crew = Several()
    try:
        yield _crew
        _crew.any(False)  # the others wait for what the first one has yet to write
    except PeerLost as lost:
        if (file := _code_file()) and file.exists():  # it has ended, for all of them
            sys.exit(0)
        print(f"process {_crew.rank}: {lost}", file=sys.stderr, flush=True)
        sys.exit(LOST)
    except BaseException as error:
        _crew.tell(error)
        raise
    _crew.over = True


_crew = ALONE


@contextmanager
def announced(run: RunFolder, crew: Crew) -> Iterator[None]:
    """While a torchrun that is not ours has started these processes: it is noted as the one that starts them
    again, until the training has ended in order."""
    if not crew.main or "TORCHELASTIC_RUN_ID" not in os.environ or _code_file():
        yield
        return
    agent.note(run.agent, os.getppid())
    try:
        yield
    except PeerLost:
        raise
    except BaseException:
        run.agent.unlink(missing_ok=True)
        raise
    run.agent.unlink(missing_ok=True)


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
    if file := _code_file():
        with suppress(Exception):  # the first one may want to begin again where the others have failed
            code = _crew.same(code)
        if _crew.local_rank == 0:
            file.write_text(str(code), encoding="utf-8")
        return 0
    return 0 if code == STOPPED else code


def leave_now(code: int) -> NoReturn:
    """End this process in the middle of what it does, and the others as soon as they notice."""
    file = _code_file()
    if file and _crew.main:
        file.write_text(str(code), encoding="utf-8")
    # Without restarts torchrun ends the others at once where one fails; with them it would begin again.
    os._exit(0 if file and os.environ.get("TORCHELASTIC_MAX_RESTARTS") != "0" else code)


def is_for_the_run() -> bool:
    """Whether SIGTERM has come from outside: torchrun sends it to those who are left when one has died."""
    file = _code_file()
    return not file or file.with_name(SIGNALLED).exists()


def _code_file() -> Path | None:
    file = os.environ.get(CODE_FILE)
    return Path(file) if file else None


def _die_with_parent() -> None:
    """A process of torchrun's has a session of its own: what kills torchrun must not leave it behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
