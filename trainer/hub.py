"""Fetching models from the Hugging Face Hub: the files that loading needs, no others.

The address, the token and the cache folder are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN or a saved
login, HF_HOME). What is complete in the cache is never asked for again, and is used without a network.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .contract.errors import RunError

Tell = Callable[[str], None]

_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.fp16|\.bf16)?(-\d+-of-\d+)?\.safetensors")
VARIANTS = ("bf16", "fp16")
"""Weights in 16 bits beside others, the preferred first: of what was trained in bf16 it loses nothing."""
_SMALL = (".json", ".txt", ".model", ".jinja")  # configurations, tokenizers, chat templates


def fetch_pipeline(
    repo: str,
    revision: str = "",
    *,
    tell: Tell,
    check: Callable[[Path], None] = lambda folder: None,
    parts: Collection[str] | None = None,
    without_weights: Collection[str] = (),
) -> Path:
    """The folder of a diffusers model in the local cache, fetched if need be.

    ``check`` sees the folder as soon as its model_index.json is there and raises where the rest is not
    wanted; ``parts`` are the pipeline's folders to fetch (default: all); of those in ``without_weights``
    only the configuration comes. ``tell`` gets the progress at most once a second; what it raises ends the
    download.
    Raises RunError(model_missing | gated_model | disk_full).
    """
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download

    tell(f"Looking for {repo}")
    with _told(repo, revision):
        offline = not _reachable(repo, revision)
        pinned = HfApi().resolve_revision(repo, revision=revision or None, local_files_only=offline)
        fetch = partial(snapshot_download, repo, revision=pinned, local_files_only=offline)
        quiet = _progress_bar(lambda done: None)
        folder = Path(fetch(allow_patterns=["model_index.json", "config.json"], tqdm_class=quiet))
        check(folder)
        sizes = {file.path: file.size for file in get_cached_repo_tree(repo, revision=pinned)}
        wanted = wanted_files(sizes, _components(folder), parts, without_weights)
        if not wanted:
            raise RunError(
                f"{repo} holds no diffusers model with .safetensors weights; "
                "download a single .safetensors file by hand and name that, or choose another base model",
                "model_missing",
            )
        there = sum(sizes[name] for name in wanted if (folder / name).exists())
        total = sum(sizes[name] for name in wanted)
        _check_space(repo, folder, total - there)
        bar = _progress_bar(lambda done: tell(f"Downloading {repo}: {_amount(there + done, total)}"))
        return Path(fetch(allow_patterns=[_literal(name) for name in wanted], tqdm_class=bar))


def fetch_lora(repo: str, file: str = "", *, tell: Tell) -> Path:
    """A .safetensors file of a Hub repository; without a name, its only one. Raises like fetch_pipeline."""
    from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir

    tell(f"Looking for {repo}")
    with _told(repo, ""):
        offline = not _reachable(repo, "")
        if not file:
            if offline:
                cached = (row for row in scan_cache_dir().repos if row.repo_id == repo)
                names = {f.file_name for row in cached for r in row.revisions for f in r.files}
            else:
                names = set(HfApi().list_repo_files(repo))
            files = sorted(name for name in names if name.endswith(".safetensors"))
            if len(files) != 1:
                raise RunError(
                    f"{repo} holds {len(files)} .safetensors files; name one as {repo}:file.safetensors",
                    "model_missing",
                )
            file = files[0]
        bar = _progress_bar(lambda done: tell(f"Downloading {repo}: {done / 2**20:.0f} MiB"))
        return Path(hf_hub_download(repo, file, local_files_only=offline, tqdm_class=bar))


@contextmanager
def _told(repo: str, revision: str) -> Iterator[None]:
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


def _reachable(repo: str, revision: str) -> bool:
    """Whether the Hub answers in time; huggingface_hub's other calls would wait for ever."""
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().model_info(repo, revision=revision or None, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (httpx2.TransportError, OfflineModeIsEnabled):
        return False
    return True


def _components(folder: Path) -> list[str] | None:
    """The pipeline's folders; None for a repo that is one part by itself (a VAE), empty for neither."""
    index = folder / "model_index.json"
    if not index.exists():
        return None if (folder / "config.json").exists() else []
    rows: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    return [name for name, row in rows.items() if isinstance(row, list) and row[0]]


def wanted_files(
    files: Collection[str],
    components: list[str] | None,
    parts: Collection[str] | None = None,
    without_weights: Collection[str] = (),
) -> list[str]:
    """The files to fetch: of each component its configuration, and its weights in 16 bits where there are
    such, else the plain ones. No pickles, no ONNX, no whole checkpoint beside them."""
    folders = [""] if components is None else [c for c in components if parts is None or c in parts]
    wanted: list[str] = []
    for folder in folders:
        inside = [f for f in files if f.rpartition("/")[0] == folder]
        wanted += [f for f in inside if f.endswith(_SMALL)]
        tensors = [f for f in inside if _WEIGHTS.fullmatch(f.rpartition("/")[2])]
        if folder not in without_weights:
            variants = ([f for f in tensors if f".{variant}" in f] for variant in VARIANTS)
            wanted += next(filter(None, variants), tensors)
    if wanted and components is not None:
        wanted.append("model_index.json")
    if not without_weights and not any(f.endswith(".safetensors") for f in wanted):
        return []
    return wanted


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


def _progress_bar(report: Callable[[int], None]) -> type:
    """A tqdm class that draws nothing and reports bytes since the start, at most once a second.

    huggingface_hub makes several bars, of which two count bytes: what came over the network and what was
    written. Without deduplication the two are equal; the larger is the progress.
    """
    from tqdm.auto import tqdm

    lock = threading.Lock()
    counts: dict[int, int] = {}
    reported = 0.0

    class Bytes(tqdm):  # type: ignore[type-arg]
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
