"""[notify]: messages about a run, sent to an address of one's own."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import field_validator

from ..addresses import address_problem
from .section import Section, setting

Happening = Literal["started", "checkpoint", "sample", "finished", "stopped", "failed"]
HAPPENINGS: tuple[str, ...] = get_args(Happening)


class NotifySettings(Section):
    """Webhooks: a message to an address of yours when something happens in a run, so that nobody has to watch
    it. docs/rented-gpus.md shows what is in a message and how to check that it is genuine."""

    webhook: str = setting("", label="Webhook", max_length=1000)
    """The address that messages are sent to, https://…; empty sends none. Those of Discord and Slack are
    secrets, and a recipe is no place for one: give them as STUDIO_WEBHOOK in the environment, which is used
    where this is empty."""
    events: tuple[str, ...] = setting(("started", "finished", "stopped", "failed"), label="Messages")
    """What is told, one a line: started, checkpoint, sample, finished, stopped, failed. Checkpoints and
    samples come as often as they are saved and drawn."""
    format: Literal["auto", "studio", "discord", "slack", "ntfy"] = setting("auto", label="Format")
    """How a message is written. auto knows Discord, Slack and ntfy.sh by their address; every other gets
    studio, which is JSON for programs. Choose ntfy for a server of your own."""

    @field_validator("webhook")
    @classmethod
    def _address_can_be_used(cls, address: str) -> str:
        if address and (problem := address_problem(address)):
            raise ValueError(problem)
        return address

    @field_validator("events")
    @classmethod
    def _events_are_known(cls, events: tuple[str, ...]) -> tuple[str, ...]:
        for event in events:
            if event not in HAPPENINGS:
                known = ", ".join(HAPPENINGS)
                raise ValueError(f"{event[:40]!r} is nothing that is told; give some of {known}")
        return tuple(dict.fromkeys(events))
