"""What this machine has for a storage: the library for its kind of URL, and credentials if that is known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = {
    **dict.fromkeys(("s3", "s3a"), ("s3fs", "pip install -r requirements-storage.txt")),
    **dict.fromkeys(("gs", "gcs"), ("gcsfs", "pip install gcsfs")),
    **dict.fromkeys(("az", "abfs"), ("adlfs", "pip install adlfs")),
    "sftp": ("paramiko", "pip install paramiko"),
}
"""The package that fsspec needs for a kind of URL, and how to get it."""


def storage_problem(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Why nothing can be stored at ``url`` from here, as a sentence without its full stop; "" where there is
    nothing known against it."""
    protocol = url.partition("://")[0]
    library, command = LIBRARIES.get(protocol, ("", ""))
    if library and not find_spec(library):
        return f"Addresses with {protocol}:// need {library}: {command}"
    if protocol == "hf" and not _hub_token(environment):
        return "The Hub wants to know who writes there: set HF_TOKEN to a token that may write"
    return ""


def _hub_token(environment: Mapping[str, str]) -> bool:
    if environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(environment.get("HF_TOKEN_PATH") or home / "token").exists()
