"""The Hugging Face Hub, for all that fetches from it: one way to ask, to report and to fail.

The address, the token and the cache folder are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN or a saved
login, HF_HOME). What is complete in the cache is never asked for again, and is used without a network.
Nothing is imported before something is fetched.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .errors import RunError

Tell = Callable[[str], None]


def fetch(
    repo: str,
    revision: str = "",
    *,
    tell: Tell,
    first: Sequence[str],
    choose: Callable[[Path, dict[str, int]], list[str]],
) -> Path:
    """The folder of a Hub repository in the local cache, with the files that ``choose`` picks in it.

    ``first`` come before the others are chosen; ``choose`` gets the folder that they are in and {file: bytes}
    of the repository, and raises where it is not wanted. ``tell`` gets the progress at most once a second;
    what it raises ends the download.
    Raises RunError(model_missing | gated_model | disk_full).
    """
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download

    tell(f"Looking for {repo}")
    with told(repo, revision):
        offline = not reachable(repo, revision)
        pinned = HfApi().resolve_revision(repo, revision=revision or None, local_files_only=offline)
        download = partial(snapshot_download, repo, revision=pinned, local_files_only=offline)
        folder = Path(download(allow_patterns=list(first), tqdm_class=progress_bar(lambda done: None)))
        sizes = {file.path: file.size for file in get_cached_repo_tree(repo, revision=pinned)}
        wanted = choose(folder, sizes)
        there = sum(sizes[name] for name in wanted if (folder / name).exists())
        total = sum(sizes[name] for name in wanted)
        _check_space(repo, folder, total - there)
        bar = progress_bar(lambda done: tell(f"Downloading {repo}: {_amount(there + done, total)}"))
        return Path(download(allow_patterns=[_literal(name) for name in wanted], tqdm_class=bar))


def local_path(text: str, beside: Path | None = None) -> Path | None:
    """The existing file or folder that ``text`` names, tried beside the recipe and then as it stands."""
    for candidate in ([beside / text] if beside else []) + [Path(os.path.expanduser(text))]:
        if os.path.exists(candidate):  # pathlib's raises for a name that is too long for a file
            return Path(os.path.abspath(candidate))  # not resolve(): the Hub's cache is made of links
    return None


def looks_like_hub_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    return (
        bool(slash and owner and name)
        and "/" not in name
        and not text.startswith((".", "~"))
        and "\\" not in text
    )


def here_or_hub(text: str, what: str, beside: Path | None = None) -> Path | None:
    """Where a model is on this machine; None where it is the Hub's. ``what`` it is, to begin a sentence with.
    Raises RunError(model_missing) for what is neither."""
    path = local_path(text, beside)
    if path is None and not looks_like_hub_id(text):
        raise RunError(
            f"{what} {text} does not exist on this machine and is no Hub id (owner/name); check the spelling",
            "model_missing",
        )
    return path


@contextmanager
def told(repo: str, revision: str) -> Iterator[None]:
    """What goes wrong with the Hub, as one sentence with its cause."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
        XetDownloadError,
    )

    page = f"{constants.ENDPOINT}/{repo}"
    try:
        yield
    except GatedRepoError:
        raise RunError(
            f"{repo} asks you to accept its licence: do so at {page}, then give an access token (HF_TOKEN)",
            "gated_model",
        ) from None
    except RevisionNotFoundError:
        raise RunError(
            f"{repo} has no revision {revision}; leave it empty for the main one", "model_missing"
        ) from None
    except RepositoryNotFoundError:
        raise RunError(
            f"{repo} does not exist on the Hub, or is private; check the spelling or give an access token "
            "(HF_TOKEN)",
            "model_missing",
        ) from None
    except (RevisionResolutionError, LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise RunError(
            f"{repo} is not (completely) on this machine and the Hub cannot be reached; "
            "check the network, or name a local folder or file",
            "model_missing",
        ) from None
    except (httpx2.HTTPError, HfHubHTTPError, XetDownloadError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"downloading {repo} failed ({reason}); start again, what is complete is kept", "model_missing"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(
                f"the disk is full while downloading {repo}; free some space and start again", "disk_full"
            ) from None
        if "Consistency check failed" in str(error):
            raise RunError(
                f"a file of {repo} arrived with another size than announced; start again", "model_missing"
            ) from None
        raise


def reachable(repo: str, revision: str) -> bool:
    """Whether the Hub answers in time; huggingface_hub's other calls would wait for ever."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().model_info(repo, revision=revision or None, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (httpx2.TransportError, OfflineModeIsEnabled):
        return False
    return True


def _literal(name: str) -> str:
    """A file name as a pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _check_space(repo: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{repo} needs {needed / 2**30:.1f} GiB more and the disk of {folder.parents[2]} has "
            f"{free / 2**30:.1f} GiB left; free some space, or set HF_HOME to another disk",
            "disk_full",
        )


def _amount(done: int, total: int) -> str:
    """ "3.1 of 6.9 GiB" """
    unit, name = (2**30, "GiB") if total >= 2**30 else (2**20, "MiB")
    return f"{min(done, total) / unit:.1f} of {total / unit:.1f} {name}"


def progress_bar(report: Callable[[int], None]) -> type:
    """A tqdm class that draws nothing and reports bytes since the start, at most once a second.

    huggingface_hub makes several bars, of which two count bytes: what came over the network and what was
    written. Without deduplication the two are equal; the larger is the progress.
    """
    from tqdm.auto import tqdm

    lock = threading.Lock()
    counts: dict[int, int] = {}
    reported = 0.0

    class Bytes(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counted = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal reported
            if not self._counted:
                return
            with lock:
                counts[id(self)] = counts.get(id(self), 0) + int(n or 0)
                if time.monotonic() - reported < 1:
                    return
                reported = time.monotonic()
                report(max(counts.values()))

    return Bytes
