"""Lint rules on the copy of a run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from .addresses import is_private
from .config import TrainConfig
from .findings import Facts, Finding, rule
from .settings.storage import RUN


@rule
def storage_cannot_be_used(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.storage.url and facts.storage_problem:
        sentence = f"{facts.storage_problem}."
        yield Finding("error", "storage.url", sentence, {"storage.url": ""}, "Store it nowhere")


@rule
def storage_is_of_one_run(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    url = config.storage.url
    if url and RUN not in url:
        yield Finding(
            "hint",
            "storage.url",
            f"Without {RUN} this is the place of one run: its recipe goes on there, another is refused.",
            {"storage.url": f"{url}/{RUN}"},
            f"Add /{RUN}",
        )


@rule
def storage_over_an_open_line(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    endpoint = config.storage.endpoint
    host = urlsplit(endpoint).hostname or ""
    if endpoint.startswith("http://") and not is_private(host):
        yield Finding(
            "warning",
            "storage.endpoint",
            f"Photos go to {host} in the clear over http, where anybody on the way can read them.",
            {"storage.endpoint": endpoint.replace("http://", "https://", 1)},
            "Use https",
        )


@rule
def photos_are_not_stored(config: TrainConfig, facts: Facts) -> Iterator[Finding]:
    if config.storage.url and not config.storage.photos:
        yield Finding(
            "hint",
            "storage.photos",
            "The photos are not stored: a new machine can go on only with the same photos in dataset.path.",
        )
