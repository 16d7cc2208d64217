"""Where a base model comes from: a Hub id, a diffusers folder, a single .safetensors file, or "demo"."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract.errors import RunError
from .contract.families import CATALOGUE, DEMO_BASE

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "model"

# Whole pipelines carry the same weights several times; these are all that loading needs.
_PATTERNS = ("*.json", "*.txt", "*.model", "*/*.json", "*/*.txt", "*/*.model")


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine.

    ``weights`` is a diffusers pipeline folder, or a single checkpoint in the architecture's original
    layout. ``config`` is the folder of its configuration and tokenizer files: the same folder, or for a
    single file, which has none, that of the family's reference model. ``name`` is what the user called
    it, fit for metadata (never a path).
    """

    name: str
    weights: Path
    config: Path
    vae: Path | None = None

    @property
    def single_file(self) -> bool:
        return self.weights.is_file()

    def read_json(self, *parts: str) -> dict[str, Any]:
        """A configuration file. Raises RunError(model_missing) when it is not there or damaged."""
        try:
            content: dict[str, Any] = json.loads(self.config.joinpath(*parts).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"the base model {self.name} has no {'/'.join(parts)}; it is not a complete diffusers model",
                "model_missing",
            ) from None
        except ValueError:
            raise RunError(
                f"{'/'.join(parts)} of the base model {self.name} is damaged; fetch it again", "model_missing"
            ) from None
        return content


def resolve(
    family: str,
    base: str,
    revision: str = "",
    vae: str = "",
    *,
    beside: Path | None = None,
    on_download: Callable[[str], None] = lambda text: None,
) -> BaseModel:
    """Find the base model, fetching it from the Hub if that is where it is.

    ``beside`` is a folder that relative paths are tried in first (the recipe's). A path wins over a Hub
    id of the same text. Raises RunError(model_missing | gated_model | disk_full).
    """
    if base == DEMO_BASE:
        return BaseModel(base, DEMO_FOLDER, DEMO_FOLDER, _resolve_vae(vae, beside, on_download))
    path = local_path(base, beside)
    if path is None:
        if not _looks_like_hub_id(base):
            raise RunError(
                f"the base model {base} does not exist on this machine and is no Hub id (owner/name); "
                "check the spelling",
                "model_missing",
            )
        folder = _download(base, revision, on_download)
        return BaseModel(base, folder, folder, _resolve_vae(vae, beside, on_download))
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise RunError(
                f"the folder {base} is not a diffusers model (no model_index.json); "
                "name a diffusers folder, a .safetensors file or a Hub id",
                "model_missing",
            )
        return BaseModel(path.name, path, path, _resolve_vae(vae, beside, on_download))
    if path.suffix != ".safetensors":
        raise RunError(
            f"{path.name} is not a .safetensors file; other checkpoint formats can hide code and are refused",
            "model_missing",
        )
    config = _reference_config(family, on_download)
    return BaseModel(path.stem, path, config, _resolve_vae(vae, beside, on_download))


def _reference_config(family: str, on_download: Callable[[str], None]) -> Path:
    """The configuration and tokenizer files of the family's first real base."""
    reference = next(row.id for row in CATALOGUE[family].bases if row.id != DEMO_BASE)
    return _download(reference, "", on_download, weights=False)


def local_path(text: str, beside: Path | None) -> Path | None:
    """The existing file or folder that ``text`` names, tried beside the recipe and then as it stands."""
    for candidate in ([beside / text] if beside else []) + [Path(text).expanduser()]:
        if candidate.exists():
            return candidate.resolve()
    return None


def _looks_like_hub_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    return (
        bool(slash and owner and name)
        and "/" not in name
        and not text.startswith((".", "~"))
        and "\\" not in text
    )


def _resolve_vae(vae: str, beside: Path | None, on_download: Callable[[str], None]) -> Path | None:
    if not vae:
        return None
    path = local_path(vae, beside)
    if path is None and not _looks_like_hub_id(vae):
        raise RunError(f"the VAE {vae} does not exist on this machine and is no Hub id", "model_missing")
    return path or _download(vae, "", on_download)


def _download(repo: str, revision: str, on_download: Callable[[str], None], *, weights: bool = True) -> Path:
    """The repo's snapshot folder; from the local cache where the Hub cannot be reached."""
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    token = os.environ.get("HF_TOKEN") or None
    which: dict[str, Any] = {"repo_id": repo, "revision": revision or None}
    on_download(f"Looking for {repo}")
    try:
        files = [
            file.rfilename
            for file in HfApi(token=token).model_info(repo, revision=revision or None).siblings or []
        ]
        wanted = [*_PATTERNS, *(_weight_files(files) if weights else ())]
        on_download(f"Downloading {repo}")
        return Path(snapshot_download(**which, allow_patterns=wanted, token=token))
    except GatedRepoError:
        raise RunError(
            f"{repo} asks you to accept its licence: do so at https://huggingface.co/{repo}, "
            "then give an access token (HF_TOKEN)",
            "gated_model",
        ) from None
    except RevisionNotFoundError:
        raise RunError(
            f"{repo} has no revision {revision}; leave it empty for the main one", "model_missing"
        ) from None
    except RepositoryNotFoundError:
        raise RunError(
            f"{repo} does not exist on the Hub, or is private; check the spelling or give an access token",
            "model_missing",
        ) from None
    except (httpx.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled):
        pass  # no network: what was fetched before will do
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(
                f"the disk is full while downloading {repo}; free some space", "disk_full"
            ) from None
        raise
    try:
        return Path(snapshot_download(**which, local_files_only=True))
    except LocalEntryNotFoundError:
        raise RunError(
            f"{repo} is not on this machine and the Hub cannot be reached; "
            "check the network, or name a local folder or file",
            "model_missing",
        ) from None


def _weight_files(files: list[str]) -> list[str]:
    """The safetensors files to fetch: the fp16 variant of each folder where there is one, else the plain."""
    weights = [
        file for file in files if file.endswith((".safetensors", ".safetensors.index.json")) and "/" in file
    ]
    chosen: list[str] = []
    for folder in sorted({file.rpartition("/")[0] for file in weights}):
        inside = [file for file in weights if file.rpartition("/")[0] == folder]
        half = [file for file in inside if ".fp16" in file]
        chosen += half or inside
    return chosen or [file for file in files if file.endswith(".safetensors")]


def fingerprint(*files: Path) -> str:
    """A short hash that tells weight files apart without reading gigabytes: size and 16 spread blocks."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as stream:
            for block in range(16):
                stream.seek(size * block // 16)
                digest.update(stream.read(65536))
    return digest.hexdigest()[:16]
