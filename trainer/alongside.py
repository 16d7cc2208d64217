"""What goes on beside the loop while a run trains; the loop knows nothing of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .budget import Budget
from .contract.config import TrainConfig
from .contract.runs import RunFolder
from .grace import gone_at, guarded, last_moment
from .notices import Notice, Notices
from .processes import PeerLost
from .report import Reporter
from .requests import Asks, Requests
from .restart import Restart
from .storage import Mirror
from .webhooks import Webhooks, open_webhooks

UPLOADS_S, MESSAGES_S = 600.0, 30.0
"""For what is left to upload at the end, and for the last messages, where the machine stays."""
MESSAGES_BETWEEN_S = 1.0
"""For messages where another process goes on with the run, and with them."""
BEFORE_MESSAGES_S = 1.0
"""Where it goes, uploads end so much earlier: the last message tells of them."""


@contextmanager
def alongside(
    run: RunFolder, config: TrainConfig, report: Reporter, requests: Asks, main: bool = True
) -> Iterator[None]:
    """Start what goes on beside the loop, and let it finish when the block ends, however it ends; of several
    processes, for the ``main`` one.

    It is left after the run's last event, in the reverse order of being entered: what others wait for
    (an upload that a message tells of) is entered last. Nothing in here may keep a training from going
    on or from ending.
    """
    machine = config.machine
    if not main:
        with guarded(run, machine.grace_s, report, requests, None):
            yield
        return
    mirror = Mirror(run, config, report) if config.storage.url else None
    with ExitStack() as beside:
        if machine.price_per_hour is not None:
            report.listeners.append(Budget(run, machine, report, requests).hear)
        if hooks := open_webhooks(run, config, report.warning, mirror):
            report.listeners.append(hooks.hear)
            beside.enter_context(_told(hooks, requests, machine.grace_s))
        if machine.notices != "off" and isinstance(requests, Requests):
            beside.callback(_notices(machine.notices, report, requests).close)
        if mirror:
            beside.enter_context(_mirrored(mirror, requests, machine.grace_s))
        with guarded(run, machine.grace_s, report, requests, beside.close):
            yield


@contextmanager
def _told(hooks: Webhooks, requests: Asks, grace_s: float) -> Iterator[None]:
    stays_s = MESSAGES_S
    try:
        yield
    except (Restart, PeerLost):
        stays_s = MESSAGES_BETWEEN_S
        raise
    finally:
        hooks.close(last_moment(requests, grace_s, stays_s))


@contextmanager
def _mirrored(mirror: Mirror, requests: Asks, grace_s: float) -> Iterator[None]:
    mirror.start()
    try:
        yield
    except (Restart, PeerLost):
        mirror.abandon()  # the process that goes on with the run does so with its storage
        raise
    except BaseException:
        _flush(mirror, requests, grace_s)
        raise
    else:
        _flush(mirror, requests, grace_s)


def _flush(mirror: Mirror, requests: Asks, grace_s: float) -> None:
    end = time.monotonic() + UPLOADS_S

    def until() -> float:
        gone = gone_at(requests, grace_s)
        return end if gone is None else last_moment(requests, grace_s, 0) - BEFORE_MESSAGES_S

    mirror.close(until)


def _notices(cloud: str, report: Reporter, requests: Requests) -> Notices:
    def heed(notice: Notice) -> None:
        requests.machine_goes(notice.why, notice.in_s)
        report.warning(notice.why)

    return Notices(cloud, heed, report.warning)
