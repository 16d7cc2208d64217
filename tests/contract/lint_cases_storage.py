"""Cases of the rules on the copy of a run elsewhere."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts

S3 = {"storage.url": "s3://bucket/{run}"}

CASES = [
    Case(
        "storage_cannot_be_used",
        S3,
        S3,
        Facts(storage_problem="S3 needs s3fs: pip install s3fs"),
        Facts(),
        ("s3fs",),
    ),
    Case("storage_cannot_be_used", S3, {}, Facts(storage_problem="It is not there")),
    Case("storage_is_of_one_run", {"storage.url": "s3://bucket/cat"}, S3, says=("another is refused",)),
    Case(
        "storage_over_an_open_line",
        {**S3, "storage.endpoint": "http://s3.example.org:9000"},
        {**S3, "storage.endpoint": "http://172.20.1.7:9000"},
        says=("s3.example.org",),
    ),
    Case(
        "storage_over_an_open_line",
        {**S3, "storage.endpoint": "http://s3.example.org"},
        {**S3, "storage.endpoint": "http://nas:9000"},
    ),
    Case("photos_are_not_stored", {**S3, "storage.photos": False}, {"storage.photos": False}),
]
