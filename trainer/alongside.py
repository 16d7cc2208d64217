"""What goes on beside the loop while a run trains; the loop knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .contract.config import TrainConfig
from .contract.runs import RunFolder
from .report import Reporter
from .requests import Asks


@contextmanager
def alongside(run: RunFolder, config: TrainConfig, report: Reporter, requests: Asks) -> Iterator[None]:
    """Start what goes on beside the loop, and let it finish when the block ends, however it ends.

    It is left after the run's last event, in the reverse order of being entered: what others wait for
    (an upload that a message tells of) is entered last. Nothing in here may keep a training from going
    on or from ending.
    """
    with ExitStack():
        yield
