"""[storage]: a copy of the run somewhere else."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import field_validator

from .section import Section, setting

RUN = "{run}"
"""Stands in a URL for the run's id."""
_NO_KEYS = "leave the credentials out of it, a recipe is handed on; they come from the environment"


class StorageSettings(Section):
    """A copy of the run in a bucket, on the Hub or on another disk, kept up while it trains: a machine may be
    lost. docs/storage.md shows how."""

    url: str = setting("", label="Store the run at", max_length=1000)
    """Where to: s3://bucket/folder (also R2, MinIO and others), hf://buckets/you/name, gs://bucket/folder, or
    file:///mnt/disk/folder. {run} stands for the run's name, which keeps runs apart. Empty: nowhere. Keys and
    tokens come from the environment."""
    endpoint: str = setting("", label="Address of the S3 server", max_length=500)
    """For s3:// that is not Amazon's: https://….r2.cloudflarestorage.com for R2, http://nas:9000 for MinIO.
    Empty takes AWS_ENDPOINT_URL of the environment, or Amazon."""
    keep: int = setting(2, label="Keep there", unit="checkpoints", ge=1, le=1000)
    """How many of the newest checkpoints stay there; the oldest goes once a newer one has arrived whole. Two
    are enough: the second is for the day that the newest cannot be read. Milestones, the best and the starred
    stay there as they do here."""
    photos: bool = setting(True, label="Store the photos too")
    """Photos, masks and class pictures go along, so that a new machine needs nothing but the address. Switch
    it off where they must not leave this machine; a new one then wants them in dataset.path."""

    @field_validator("url")
    @classmethod
    def _url_is_a_place(cls, url: str) -> str:
        if not url:
            return url
        scheme, separator, place = url.partition("://")
        if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
            raise ValueError(
                f"{url!r} is no URL; give one such as s3://bucket/{RUN} or file:///mnt/disk/{RUN}"
            )
        if _has_keys(url):
            raise ValueError(f"{scheme}://… holds credentials; {_NO_KEYS}")
        if scheme in ("http", "https"):
            raise ValueError(
                f"{url!r} can only be read; for an S3 server write s3://bucket/{RUN} here, and this address "
                "into storage.endpoint"
            )
        if scheme == "file" and not re.match(r"/|[A-Za-z]:[/\\]", place):
            raise ValueError(f"{url!r} names no folder from the root; write file:///mnt/disk/{RUN}")
        if not place.strip("/"):
            raise ValueError(f"{url!r} names no bucket or folder; write {scheme}://bucket/{RUN}")
        return url.rstrip("/")

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_an_address(cls, endpoint: str) -> str:
        if not endpoint:
            return endpoint
        if _has_keys(endpoint):
            raise ValueError(f"the address holds credentials; {_NO_KEYS}")
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"{endpoint!r} is no address of a server; it begins with https:// or http://")
        return endpoint.rstrip("/")

    def for_run(self, run_id: str) -> StorageSettings:
        """With the run's id in the URL."""
        return self.model_copy(update={"url": self.url.replace(RUN, run_id)})


def _has_keys(url: str) -> bool:
    """Whether a URL holds a password, or a query, which signatures and keys are given in. A name alone is no
    secret, but some write S3's keys there."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    named = "@" in parts.netloc and parts.scheme in ("s3", "s3a", "http", "https")
    return named or parts.password is not None or bool(parts.query)
