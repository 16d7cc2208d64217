"""Cases of the rules on folders, buckets and augmentation."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts

CASES = [
    Case(
        "a_folder_cannot_be_used",
        {},
        {},
        Facts(folders_problem="the folder /x does not exist"),
        Facts(),
        ("The folder /x",),
    ),
]
