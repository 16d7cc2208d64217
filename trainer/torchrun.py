"""Several processes that torchrun has started, and how we start them ourselves.

Two kinds of traffic. What is agreed (losses, a stop, an error, files) goes by gloo between processors, where
a process that dies is noticed at once. The gradients go by NCCL where there are GPUs, and only after all
have said that they are well. They are added up in one piece after the backward passes, and not by
DistributedDataParallel: a LoRA's are small, so there is nothing to overlap; the wrapper would stand between
the model and those who call its parts by name; it would wait for parameters that a step leaves out, and for
a process whose share of a step is empty.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from .contract.config import TrainConfig
from .contract.errors import RunError
from .contract.files import write_bytes
from .contract.runs import LOCK_HOLDER, RunFolder
from .failures import explain
from .processes import CODE_FILE, LOST, SIGNALLED, Crew, Machines, PeerLost
from .requests import Stopped
from .restart import AGAIN
from .shards import placed, split_weights

PATIENCE = timedelta(days=7)
"""How long a process waits for another that lives: encoding and drawing take hours, and one that has died is
noticed otherwise."""

RESTARTS = 3
"""How often all processes are started again after one of them has died."""

T = TypeVar("T")


class Elsewhere(RunError):
    """What another process failed with."""

    def __init__(self, message: str, cause: str, evidence: str) -> None:
        super().__init__(message, cause)
        self.evidence = evidence


class Several(Crew):
    """A crew of more than one. Every meeting begins with the same exchange, so that a process that fails,
    wherever it is, can come to the next meeting and say so."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ["LOCAL_RANK"])
        cuda = torch.cuda.is_available()
        if cuda and self.local_rank >= torch.cuda.device_count():
            raise RunError(
                f"this machine has {torch.cuda.device_count()} GPUs, and process {self.local_rank + 1} none; "
                "start no more processes than there are GPUs",
                "config",
            )
        if cuda:
            torch.cuda.set_device(self.local_rank)
        self._device = torch.device("cuda", self.local_rank) if cuda else torch.device("cpu")
        self._shared: nn.Module | None = None
        self._stepping = False
        """Whether all are computing gradients, in as many passes."""
        store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        # torchrun keeps its store over restarts: addresses of those that are gone are not to be found there.
        own = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=PATIENCE)

    def require(self, config: TrainConfig) -> None:
        if config.train.fused_backward:
            raise RunError(
                f"train.fused_backward cannot be had in {self.world} processes: each has a part of the "
                "gradients; switch it off",
                "config",
            )

    def _meet(
        self,
        loss: float = 0.0,
        asked: bool = False,
        error: BaseException | None = None,
        calls: bool = False,
    ) -> Tensor:
        """The sums over all of ``loss`` and ``asked``. Raises what one of them has failed with.

        ``calls``: the first one does not come to this meeting yet, it needs the others for a pass.
        """
        mine = torch.tensor([loss, asked, error is not None, calls], dtype=torch.float64)
        while True:
            told = mine.clone()
            self._with_others(dist.all_reduce, told)
            if told[2] or calls or not told[3]:
                break
            self._follow()
        if told[2]:
            errors: list[Any] = [None] * self.world
            self._with_others(dist.all_gather_object, errors, _told(error, self.rank))
            self.over = True
            raise _as_error(next(one for one in errors if one))
        return told

    def _with_others(self, exchange: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        try:
            exchange(*arguments, **options)
        except RuntimeError as error:
            self.over = False
            raise PeerLost(f"another process is gone ({str(error).splitlines()[0][:200]})") from error

    def split(self, denoiser: nn.Module, base: Collection[nn.Parameter], device: torch.device) -> None:
        self._shared = denoiser
        split_weights(denoiser, base, self.world, device)
        if self.main:
            here = sum(one.to_local().numel() for one in denoiser.parameters() if isinstance(one, DTensor))
            whole = sum(one.numel() for one in base)
            print(f"the base is split: {here / whole:.0%} of it is on each", file=sys.stderr, flush=True)
            denoiser.register_forward_pre_hook(self._call_the_others, with_kwargs=True, prepend=True)

    def _call_the_others(self, module: nn.Module, inputs: Any, options: Any) -> None:
        """Before a pass of a split denoiser that the first process makes by itself."""
        if not self._stepping:
            self._meet(calls=True)
            told = [placed((inputs, options), torch.device("cpu"))]
            self._with_others(dist.broadcast_object_list, told, src=0)

    def _follow(self) -> None:
        """Make the pass that the first process makes, which needs the weights that are here."""
        assert self._shared is not None
        told: list[Any] = [None]
        self._with_others(dist.broadcast_object_list, told, src=0)
        inputs, options = placed(told[0], self._device)
        dtype = next(self._shared.parameters()).dtype  # the base's own, which comes first
        with torch.no_grad(), torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            self._shared(*inputs, **options)

    def share(self, batches: Sequence[Sequence[T]], at_once: int = 0) -> list[tuple[list[T], float]]:
        parts = super().share(batches, at_once)
        if self._shared is not None:
            self._stepping = True
            most = max(len(self._parts(batches, at_once, rank)) for rank in range(self.world))
            parts += [(list(batches[0][:1]), 0.0)] * (most - len(parts))
        return parts

    def any(self, asked: bool) -> bool:
        return bool(self._meet(asked=asked)[1])

    def add_up(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        trained = list(parameters)
        there = [float(one.grad is not None) for one in trained]
        pieces = [
            (torch.zeros_like(one) if one.grad is None else one.grad).flatten().float() for one in trained
        ]
        self._stepping = False
        flat = torch.cat([*pieces, torch.tensor(there, device=pieces[0].device)])
        summed = float(self._meet(loss=loss)[0])
        self._with_others(dist.all_reduce, flat)
        *grads, counts = flat.split([*(one.numel() for one in trained), len(trained)])
        for one, grad, count in zip(trained, grads, counts.tolist(), strict=True):
            # A gradient that nobody has stays none: an optimizer passes over it.
            one.grad = grad.view_as(one).to(one.dtype) if count else None
        return summed

    def same(self, value: T) -> T:
        self._meet()
        told = [value]
        self._with_others(dist.broadcast_object_list, told, src=0)
        return told[0]

    def delivered(self, path: Path | None) -> Path | None:
        path = self.same(path)
        if path:
            lacking: list[Any] = [None] * self.world
            self._with_others(dist.all_gather_object, lacking, not path.exists())
            if any(lacking):
                content = self.same(_content(path) if self.main else {})
                if not path.exists() and self.local_rank == 0:
                    _write(path, content)
                self._meet()
        return path

    @contextmanager
    def in_turn(self, *files: Path) -> Iterator[None]:
        turn = 0 if self.main else 1 if self.local_rank == 0 else 2
        for now in range(3):
            if now == turn:
                yield
            self._meet()
            if now == 0:
                for file in files:
                    self.delivered(file)

    def tell(self, error: BaseException) -> None:
        if self.over or (self._stepping and self._shared is not None):
            return  # the others wait in a pass, which cannot end without this one: torchrun starts all again
        # Those who are gone, or have heard of it, raise here; the error itself is what the caller raises.
        with suppress(Exception):
            self._meet(error=error)


def _told(error: BaseException | None, rank: int) -> tuple[bool, str, str, str] | None:
    """An error for the others: (whether it is a stop, sentence, cause, evidence)."""
    if error is None:
        return None
    if isinstance(error, Stopped):
        return True, str(error), "", ""
    origin = error.__cause__ if isinstance(error, RunError) and error.__cause__ else error
    message, cause, evidence = explain(origin)
    return False, message, cause, f"process {rank}: {evidence}"


def _as_error(told: tuple[bool, str, str, str]) -> Exception:
    stopped, message, cause, evidence = told
    return Stopped(message) if stopped else Elsewhere(message, cause, evidence)


def _content(path: Path) -> dict[str, bytes]:
    """The bytes of a file (under ""), or of the files in a folder by name."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


def _write(path: Path, content: dict[str, bytes]) -> None:
    if "" in content:
        write_bytes(path, content[""])
        return
    staging = path.with_name(f".{path.name}.tmp")
    for name, data in content.items():
        write_bytes(staging / name, data)
    staging.rename(path)


# Starting them ------------------------------------------------------------------------------------------


def wanted(gpus: int) -> int:
    """How many processes a recipe's ``machine.gpus`` makes on this machine. Raises RunError(config)."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there and gpus > there:
        have = "1 GPU" if there == 1 else f"{there} GPUs"
        raise RunError(f"machine.gpus is {gpus} and this machine has {have}; set it to {there}", "config")
    return gpus or there or 1


def launch(run: RunFolder, processes: int, machines: Machines, asked: Callable[[], bool]) -> int:
    """Train the run in that many processes of this machine, and return the exit code that all agree on.

    This process is torchrun's agent: it starts all again, from the newest checkpoint, when one has died
    without a word; of several machines, it ends with LOST then, and whoever has started them does. A signal
    to it is passed on to them, and they decide how it ends; ``asked`` says whether one came before. It holds
    the run's lock for them, so that nobody takes the run, or its GPUs, while they are started again.
    """
    # Elsewhere they outlive it when it is killed (processes._die_with_parent): the first one holds the lock.
    holds = sys.platform == "linux" and machines.number == 0
    with run.hold() if holds else nullcontext(), tempfile.TemporaryDirectory(prefix="trainer-") as folder:
        code = Path(folder) / "code"
        os.environ |= {CODE_FILE: str(code), LOCK_HOLDER: str(os.getpid() if holds else "")}
        try:
            return _launch(run, processes, machines, asked, code)
        finally:
            del os.environ[CODE_FILE], os.environ[LOCK_HOLDER]


def _launch(run: RunFolder, processes: int, machines: Machines, asked: Callable[[], bool], code: Path) -> int:
    _pass_signals_on(run, code.with_name(SIGNALLED))
    if asked():
        run.send("stop")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if machines.count == 1 and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        start = elastic_launch(_launch_config(run, processes, machines), sys.executable)
        while True:
            code.unlink(missing_ok=True)
            start("-m", "trainer", "resume", str(run.path))
            agreed = int(code.read_text(encoding="utf-8"))
            if agreed != AGAIN:
                return agreed
            if machines.count > 1:  # they do not begin again by themselves
                return LOST
    except ChildFailedError as error:
        if code.exists():  # it has ended all the same
            return int(code.read_text(encoding="utf-8"))
        rank, failure = error.get_first_failure()
        how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        if machines.count > 1:
            print(f"process {rank} died ({how}), or one of another machine", file=sys.stderr)
            return LOST
        raise RunError(
            f"process {rank} of {processes} died ({how}), {RESTARTS + 1} times in a row; trainer.log has "
            "the details",
            "killed",
        ) from None


def _launch_config(run: RunFolder, processes: int, machines: Machines) -> LaunchConfig:
    alone = machines.count == 1
    return LaunchConfig(
        min_nodes=machines.count,
        max_nodes=machines.count,
        nproc_per_node=processes,
        run_id=run.id,
        # The first machine has the first process, which writes: it must not become another one.
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="127.0.0.1:0" if alone else machines.endpoint,
        rdzv_configs={} if alone else {"rank": machines.number},
        local_addr="127.0.0.1" if alone else None,
        max_restarts=RESTARTS if alone else 0,
        signals_to_handle="SIGQUIT",  # not those that we pass on
    )


def _pass_signals_on(run: RunFolder, signalled: Path) -> None:
    """Ctrl-C and SIGTERM reach every process that torchrun has started, or will start."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        signalled.touch()
        run.send("stop")  # for those that are only just starting, and do not listen yet
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
