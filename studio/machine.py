"""What the machine has: GPU and free disk for the header line, the GPUs that jobs are given."""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

GIB = 2**30


def disk_free_gib(folder: Path) -> float:
    return round(shutil.disk_usage(folder).free / GIB, 2)


@functools.cache
def gpus() -> tuple[str, ...]:
    """The GPUs that jobs may be given, as CUDA_VISIBLE_DEVICES names them; () where there is none.

    A studio that was itself started with CUDA_VISIBLE_DEVICES gives out those and no others.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return tuple(name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1"))
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
        return tuple(str(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:  # no driver, or no card
        return ()


class Gpu:
    """The first NVIDIA GPU by NVML, asked at most every two seconds; None on a machine without one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._handle: Any = None
        self._absent = False
        self._state: dict[str, Any] | None = None

    def state(self) -> dict[str, Any] | None:
        """``{"name", "used_gib", "total_gib", "load" (percent), "celsius", "count"}``, or None."""
        with self._lock:
            if not self._absent and time.monotonic() - self._asked > 2.0:
                self._asked = time.monotonic()
                self._state = self._ask()
            return self._state

    def _ask(self) -> dict[str, Any] | None:
        try:
            import pynvml
        except ImportError:
            self._absent = True
            return None
        try:
            if self._handle is None:
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            name = pynvml.nvmlDeviceGetName(self._handle)
        except pynvml.NVMLError:
            # No driver, no card, or one that fell off the bus: it will not come back by asking.
            self._absent = True
            return None
        return {
            "name": name if isinstance(name, str) else name.decode(),
            "used_gib": round(memory.used / GIB, 2),
            "total_gib": round(memory.total / GIB, 2),
            "count": len(gpus()),
            "load": self._optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
            "celsius": self._optional(lambda: pynvml.nvmlDeviceGetTemperature(self._handle, 0)),
        }

    @staticmethod
    def _optional(ask: Any) -> int | None:
        """A reading that some cards do not offer."""
        import pynvml

        try:
            return int(ask())
        except pynvml.NVMLError:
            return None
