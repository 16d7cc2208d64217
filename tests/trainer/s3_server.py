"""A real S3 server on loopback (rclone's), and a line to it that can be made bad."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

KEY, SECRET = "AKIDSTUDIO", "a-secret-for-tests"
RCLONE = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class S3Server:
    """rclone serve s3 over ``folder``, whose subfolders are buckets. It can be killed, and started again at
    the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "bucket").mkdir(parents=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert RCLONE
        command = [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}"]
        log = (self.folder.parent / "rclone.log").open("ab")
        environment = os.environ | {"RCLONE_CONFIG": os.devnull}
        self._process = subprocess.Popen(
            [*command, str(self.folder)], stdout=log, stderr=log, env=environment
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise AssertionError("rclone serve s3 did not start")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process = None


class Line:
    """A TCP proxy before a server. What it does to a connection is asked of ``treat`` for each piece of data:
    it gets the direction ("up" or "down") and the bytes that went this way so far over all connections, and
    returns whether the piece may pass; where not, the connection is cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.treat: Callable[[str, int], bool] = lambda direction, total: True
        self.pause_s = 0.0
        self.total = {"up": 0, "down": 0}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._socket.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to), timeout=30)
                except OSError:
                    near.close()
                    continue
                for direction, source, target in (("up", near, far), ("down", far, near)):
                    threading.Thread(target=self._pump, args=(direction, source, target), daemon=True).start()

    def _pump(self, direction: str, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(32_768):
                if self.pause_s:
                    time.sleep(self.pause_s)
                if not self.treat(direction, self.total[direction]):
                    break
                self.total[direction] += len(data)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
