"""A function of a test module in a process of its own, which is forked of the one that was set aside before
tests had filled their memory: what a process has is copied with every fork of it."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

from .forks import run


def apart(function: Callable[..., None], *arguments: Any) -> None:
    """Call it there. What it raises fails the test."""
    done = run("tests.apart", pickle.dumps((function, arguments)).hex(), cwd=os.getcwd())
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    work, given = pickle.loads(bytes.fromhex(sys.argv[1]))
    work(*given)
