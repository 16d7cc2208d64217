"""Which files of a Hub repository a training needs: those that loading takes, no others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from .contract.errors import RunError
from .contract.hub import Tell, fetch, progress_bar, reachable, told

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

    def choose(folder: Path, sizes: dict[str, int]) -> list[str]:
        check(folder)
        wanted = wanted_files(sizes, _components(folder), parts, without_weights)
        if not wanted:
            raise RunError(
                f"{repo} holds no diffusers model with .safetensors weights; "
                "download a single .safetensors file by hand and name that, or choose another base model",
                "model_missing",
            )
        return wanted

    return fetch(repo, revision, tell=tell, first=("model_index.json", "config.json"), choose=choose)


def fetch_lora(repo: str, file: str = "", *, tell: Tell) -> Path:
    """A .safetensors file of a Hub repository; without a name, its only one. Raises like fetch_pipeline."""
    from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir

    tell(f"Looking for {repo}")
    with told(repo, ""):
        offline = not reachable(repo, "")
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
        bar = progress_bar(lambda done: tell(f"Downloading {repo}: {done / 2**20:.0f} MiB"))
        return Path(hf_hub_download(repo, file, local_files_only=offline, tqdm_class=bar))


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
