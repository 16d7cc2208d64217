"""Programs of ours that have nothing left to import: forks of a process that has it all.

A new interpreter takes six seconds of a processor until torch and its kin are there. A :class:`Program` is a
process like any other in all but that: number, group, signals, exit code, folder, environment, streams. What
tests the start itself, or what is read from the environment on import, takes :class:`subprocess.Popen`, which
this is otherwise the same as.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import gc
import importlib
import json
import logging
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

READ_ON_IMPORT = ("OMP_", "PYTHONWARNINGS")
"""How variables begin that have been read by now: a program has them as they were."""
READERS = ("huggingface_hub", "diffusers.utils", "gradio")
"""Packages that hold what huggingface_hub has read of its variables: a program reads them again."""


class Order(NamedTuple):
    """What a fork is to become: ``python -m`` with these words, in this folder, with this environment."""

    words: list[str]
    folder: str
    environment: dict[str, str]
    new_session: bool
    sets_aside: bool = False


class Forked(subprocess.Popen[Any]):
    """``python -m …`` as a fork of this process."""

    def _execute_child(self, args: Sequence[str], *more: Any) -> None:
        # As subprocess has it since Python 3.11: the order of what it passes on to itself.
        cwd, env, new_session, pipes = more[4], more[5], more[-2], more[9:15]
        words = [str(word) for word in args]
        if words[0] != sys.executable or "-m" not in words[1:3]:
            return super()._execute_child(args, *more)  # type: ignore[misc]
        order = Order(
            words[words.index("-m") + 1 :],
            os.path.abspath(os.fspath(cwd) if cwd else "."),
            dict(os.environ if env is None else env),
            new_session,
        )
        child_ends = (pipes[0], pipes[3], pipes[5])
        self.pid = self._fork(order, [own if end < 0 else end for own, end in enumerate(child_ends)])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _fork(self, order: Order, streams: list[int]) -> int:
        _flush()
        return os.fork() or _become(order, streams)


def read_already(environment: Mapping[str, str]) -> str:
    """The variable that keeps a program from being a fork, "" where there is none."""
    names = {*environment, *os.environ}
    read = [name for name in names if name.startswith(READ_ON_IMPORT)]
    return next((n for n in read if (environment.get(n) or None) != (_as_prepared.get(n) or None)), "")


class ForkedAside(Forked):
    """``python -m …`` as a fork of the process that :func:`prepare` has set aside: for those that have
    threads by now, which do not outlive a fork. What else is to be started is as ever."""

    _server: _Server | None = None  # that has forked it
    _sets_aside = False

    def _fork(self, order: Order, streams: list[int]) -> int:
        if name := read_already(order.environment):
            raise ValueError(f"{name} has been read already: start a new interpreter")
        assert _server is not None
        self._server = _server
        return _server.fork(order._replace(sets_aside=self._sets_aside), streams)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._server is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        return self._server.wait(self.pid, forever=not wait_flags & os.WNOHANG)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self._server is None:
            return super()._internal_poll()  # type: ignore[misc,no-any-return]
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode


class Program(ForkedAside):
    """The same, by its words alone. One that ``sets_aside`` a process of its own forks what it starts."""

    def __init__(self, *words: object, sets_aside: bool = False, **options: Any) -> None:
        self._sets_aside = sets_aside
        super().__init__([sys.executable, "-m", *map(str, words)], **options)

    def _execute_child(self, args: Sequence[str], *more: Any) -> None:
        if _server is None:  # there is no fork on this system
            return subprocess.Popen._execute_child(self, args, *more)  # type: ignore[attr-defined]
        super()._execute_child(args, *more)


def run(*words: object, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
    """What the program said, and its exit code."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Program(*words, **{**pipes, **options}) as program:
        try:
            out, err = program.communicate(timeout=timeout)
        except BaseException:
            program.kill()
            raise
    return subprocess.CompletedProcess(program.args, program.returncode, out, err)


class Door:
    """Where processes that are no children of this one have programs forked: :mod:`tests.fork_client`."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(path))
        self._socket.listen()
        client = Path(__file__).with_name("fork_client.py")
        self.python = f'#!/bin/sh\nexec "{sys.executable}" -ISE "{client}" "{path}" "$@"\n'
        """A shell script that does as ``python -m …``."""
        self._programs: set[int] = set()
        threading.Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._socket.accept()[:1], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        order = json.loads(message)
        own = dict(zip(("stdin", "stdout", "stderr"), streams, strict=True))
        self._programs.add(client.fileno())
        program = Program(*order["words"], cwd=order["folder"], env=order["environment"], **own)
        for stream in streams:
            os.close(stream)
        while program.poll() is None:
            if select.select([client], [], [], 0.02)[0]:
                program.send_signal(int(client.recv(64) or signal.SIGKILL))
        with suppress(OSError):
            client.send(str(program.wait()).encode())
        self._programs.discard(client.fileno())
        client.close()

    def idle(self) -> None:
        """Wait until no program is left."""
        while self._programs:
            time.sleep(0.01)

    def close(self) -> None:
        self._socket.close()


# The process that is forked -----------------------------------------------------------------------------


class _Server:
    """This end of the process that is forked. It says when a fork of its own has ended."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self._ended: dict[int, int] = {}

    def fork(self, order: Order, streams: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._channel, [pickle.dumps(order)], streams)
            while (pid := self._hear()) is None:
                pass
            return pid

    def _hear(self) -> int | None:
        """A fork's number; None when it was told of one that has ended."""
        message = self._channel.recv(1 << 10)
        assert message, "the process that is forked has died"
        pid, status = pickle.loads(message)
        if status is None:
            return int(pid)
        self._ended[pid] = status
        return None

    def wait(self, pid: int, forever: bool) -> tuple[int, int]:
        """As os.waitpid."""
        while True:
            with self._lock:
                while select.select([self._channel], [], [], 0)[0]:
                    self._hear()
                if pid in self._ended:
                    return pid, self._ended[pid]
            if not forever:
                return 0, 0
            select.select([self._channel], [], [], 0.02)


_server: _Server | None = None
_as_prepared: Mapping[str, str] = {}


def prepare() -> None:
    """Set a process aside that has imported what this one has, and has computed nothing yet: what torch
    starts when it computes does not outlive a fork."""
    global _server, _as_prepared
    if not hasattr(os, "fork"):
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _as_prepared = dict(os.environ)
    _flush()
    if os.fork() == 0:
        ours.close()
        try:
            _serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    _server = _Server(ours)


def _serve(channel: socket.socket) -> None:
    """Fork whenever asked, until there is nobody to ask."""
    os.setsid()  # Ctrl-C is for whoever asks
    gc.freeze()
    gc.enable()
    heard, ended = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ended, warn_on_full_buffer=False)
    while True:
        ready = select.select([channel, heard], [], [])[0]
        if channel in ready:
            message, streams, _, _ = socket.recv_fds(channel, 1 << 20, 3)
            if not message:
                return
            pid = os.fork() or _become(pickle.loads(message), streams)
            for stream in streams:
                os.close(stream)
            channel.send(pickle.dumps((pid, None)))
        if heard in ready:
            with suppress(BlockingIOError):
                os.read(heard, 1 << 10)
            with suppress(ChildProcessError):
                while (found := os.waitpid(-1, os.WNOHANG))[0]:
                    channel.send(pickle.dumps(found))


# A fork -------------------------------------------------------------------------------------------------


def _become(order: Order, streams: list[int]) -> NoReturn:
    """In the fork: be what a new interpreter is once it has imported everything."""
    code = 1
    try:
        _be_new(order, streams)
        if order.sets_aside:
            prepare()
            subprocess.Popen = ForkedAside  # type: ignore[misc]
        sys.modules.pop(order.words[0], None)
        sys.modules.pop(f"{order.words[0]}.__main__", None)
        runpy.run_module(order.words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            _flush()
        os._exit(code)


def _be_new(order: Order, streams: list[int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if order.new_session:
        os.setsid()
    faulthandler.disable()
    for number, stream in enumerate([fcntl.fcntl(stream, fcntl.F_DUPFD, 3) for stream in streams]):
        os.dup2(stream, number)
    _lead_nowhere()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = os.fdopen(number, "w" if number else "r", buffering=1, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(order.environment)
    _read_hub_variables()
    os.chdir(order.folder)
    sys.path.insert(0, order.folder)
    sys.argv = list(order.words)
    atexit._clear()
    # What pytest has put in.
    sys.meta_path[:] = [one for one in sys.meta_path if not type(one).__module__.startswith("_pytest")]
    logging.getLogger().handlers.clear()
    for handler in filter(None, (known() for known in logging._handlerList)):  # type: ignore[attr-defined]
        if "stream" in vars(handler):  # (the last resort looks sys.stderr up)
            vars(handler)["stream"] = sys.stderr
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    # What it starts by the same words is a fork of it in turn. Torchrun does.
    subprocess.Popen = Forked  # type: ignore[misc]
    for name in [name for name in sys.modules if name.endswith("subprocess_handler")]:
        sys.modules[name].Popen = Forked  # type: ignore[attr-defined]


def _lead_nowhere() -> None:
    """Close what the parent has open. Its objects still know the numbers: were these given to other files,
    a logger's stream would write into them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/dev/fd"):
        if int(name) > 2 and int(name) != nothing:
            with suppress(OSError):
                os.fstat(int(name))  # what has listed them is closed by now
                os.dup2(nothing, int(name), inheritable=False)


def _read_hub_variables() -> None:
    """HF_HOME and its kin again, wherever their values have been handed on to by now."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is None:
        return
    before = dict(vars(constants))
    importlib.reload(constants)
    others = [module for name, module in sys.modules.items() if name.startswith(READERS)]
    for name, value in vars(constants).items():
        for module in others if name.isupper() and value != before[name] else ():
            if name in vars(module):
                setattr(module, name, value)
    if hub := sys.modules.get("huggingface_hub.hf_api"):
        vars(hub)["api"].endpoint = constants.ENDPOINT


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
