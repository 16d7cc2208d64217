"""What goes on beside the loop while a run trains; the loop knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .budget import Budget
from .contract.config import TrainConfig
from .contract.runs import RunFolder
from .grace import guarded, last_moment
from .notices import Notice, Notices
from .report import Reporter
from .requests import Asks, Requests
from .webhooks import open_webhooks

MESSAGES_S = 30.0
"""For the last messages, where the machine stays."""


@contextmanager
def alongside(run: RunFolder, config: TrainConfig, report: Reporter, requests: Asks) -> Iterator[None]:
    """Start what goes on beside the loop, and let it finish when the block ends, however it ends.

    It is left after the run's last event, in the reverse order of being entered: what others wait for
    (an upload that a message tells of) is entered last. Nothing in here may keep a training from going
    on or from ending.
    """
    machine = config.machine
    with ExitStack() as beside:
        if machine.price_per_hour is not None:
            report.listeners.append(Budget(run, machine, report, requests).hear)
        if hooks := open_webhooks(run, config, report.warning):
            report.listeners.append(hooks.hear)
            beside.callback(lambda: hooks.close(last_moment(requests, machine.grace_s, MESSAGES_S)))
        if machine.notices != "off" and isinstance(requests, Requests):
            beside.callback(_notices(machine.notices, report, requests).close)
        with guarded(run, machine.grace_s, report, requests, beside.close):
            yield


def _notices(cloud: str, report: Reporter, requests: Requests) -> Notices:
    def heed(notice: Notice) -> None:
        requests.machine_goes(notice.why, notice.in_s)
        report.warning(notice.why)

    return Notices(cloud, heed, report.warning)
