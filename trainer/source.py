"""Where a base model comes from: a Hub id, a diffusers folder, a single .safetensors file, or "demo"."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .contract.errors import RunError
from .contract.families import CATALOGUE, DEMO_BASE, first_base
from .contract.hub import Tell, here_or_hub
from .families.identify import (
    VAE,
    Header,
    Kind,
    kind_of_file,
    kind_of_pipeline,
    read_header,
    require,
    require_weights,
    rounded,
)
from .hub import fetch_pipeline

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "model"


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine.

    ``weights`` is a diffusers pipeline folder, or a single checkpoint in the architecture's original
    layout. ``config`` is the folder of its configuration and tokenizer files: the same folder, or for a
    single file, which has none, that of the family's reference model. ``vae`` is a VAE to use instead
    of the base's own: a folder with config.json, or a single file. ``name`` is what the user called the
    base, fit for metadata (never a path). ``borrowed`` are the folders of parts that come from elsewhere.
    ``schedule`` is what the recipe knows better than the base's scheduler configuration.
    """

    name: str
    weights: Path
    config: Path
    vae: Path | None = None
    borrowed: Mapping[str, Path] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, part: str) -> Path:
        """Where a part's configuration or tokenizer is."""
        return self.borrowed.get(part, self.config / part)

    @property
    def single_file(self) -> bool:
        return self.weights.is_file()

    @cached_property
    def header(self) -> Header:
        """Of a single file."""
        return read_header(self.weights)

    @property
    def remark(self) -> str:
        """What to mind about a single file, as a sentence; empty for most."""
        return rounded(self.header, self.name) if self.single_file else ""

    def read_json(self, *parts: str) -> dict[str, Any]:
        """A configuration file. Raises RunError(model_missing) when it is not there or damaged."""
        return read_config(self.config.joinpath(*parts), self.name, "/".join(parts))


def read_config(file: Path, model: str, label: str) -> dict[str, Any]:
    """A configuration file of a model. Raises RunError(model_missing) when it is not there or damaged."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"the base model {model} has no {label}; it is not a complete diffusers model "
            "(a single-file model is downloaded by hand, and its .safetensors file named)",
            "model_missing",
        ) from None
    except ValueError:
        raise RunError(
            f"{label} of the base model {model} is damaged; fetch it again", "model_missing"
        ) from None
    return content


def resolve(
    family: str,
    base: str,
    revision: str = "",
    vae: str = "",
    *,
    beside: Path | None = None,
    on_download: Tell = lambda text: None,
) -> BaseModel:
    """Find the base model, fetching it from the Hub if that is where it is.

    ``beside`` is a folder that relative paths are tried in first (the recipe's). A path wins over a Hub
    id of the same text. ``on_download`` gets the progress of a download, at most once a second.
    Raises RunError(model_missing | gated_model | disk_full), for a model of another family before its
    weights are loaded or fetched.
    """
    found = _find(family, base, revision, vae, beside, on_download)
    lacking = {
        part: repo for part, repo in CATALOGUE[family].borrowed.items() if not found.folder(part).exists()
    }
    fetched = {repo: fetch_pipeline(repo, tell=on_download) for repo in dict.fromkeys(lacking.values())}
    return replace(found, borrowed={part: fetched[repo] for part, repo in lacking.items()})


def _find(
    family: str, base: str, revision: str, vae: str, beside: Path | None, on_download: Tell
) -> BaseModel:
    def check(folder: Path, name: str = base) -> None:
        index = read_config(folder / "model_index.json", name, "model_index.json")
        require(kind_of_pipeline(str(index.get("_class_name", ""))), family, name)

    own_vae = _resolve_vae(vae, beside, on_download) if vae else None
    if base == DEMO_BASE:
        check(DEMO_FOLDER)
        return BaseModel(base, DEMO_FOLDER, DEMO_FOLDER, own_vae)
    path = here_or_hub(base, "the base model", beside)
    if path is None:
        folder = fetch_pipeline(base, revision, tell=on_download, check=check)
        return BaseModel(base, folder, folder, own_vae)
    if path.is_dir():
        if not (path / "model_index.json").exists():
            raise RunError(
                f"the folder {base} is not a diffusers model (no model_index.json); "
                "name a diffusers folder, a .safetensors file or a Hub id",
                "model_missing",
            )
        check(path, path.name)
        return BaseModel(path.name, path, path, own_vae)
    _refuse_pickle(path)
    header = read_header(path)
    require_weights(header, path.name)
    kind = kind_of_file(header)
    require(kind, family, path.name)
    return BaseModel(path.stem, path, _reference(family, kind, path.name, on_download), own_vae)


def _reference(family: str, kind: Kind, name: str, on_download: Tell) -> Path:
    """What a single file lacks: configuration and tokenizers, and the weights of the parts not in it."""
    row = CATALOGUE[family]
    reference = kind.reference or first_base(row).id
    try:
        return fetch_pipeline(reference, tell=on_download, without_weights=row.file_parts)
    except RunError as error:
        raise RunError(
            f"{name} needs what it does not hold itself (configuration, tokenizers) from "
            f"{reference}: {error}",
            error.cause,
        ) from None


def _refuse_pickle(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise RunError(
            f"{path.name} is not a .safetensors file; other checkpoint formats can hide code and are refused",
            "model_missing",
        )


def _resolve_vae(vae: str, beside: Path | None, on_download: Tell) -> Path:
    """A folder with config.json, or a single file that holds a VAE, alone or in a checkpoint."""
    path = here_or_hub(vae, "the VAE", beside)
    if path is None:
        path = fetch_pipeline(vae, tell=on_download, parts=("vae",))
    if path.is_file():
        _refuse_pickle(path)
        header = read_header(path)
        if kind_of_file(header) != VAE and not header.has(r"first_stage_model\."):
            raise RunError(
                f"{path.name} is {kind_of_file(header).phrase}, the recipe names it as the VAE; "
                "name a VAE, or leave model.vae empty for the base's own",
                "model_missing",
            )
        return path
    for folder in (path, path / "vae"):
        if (folder / "config.json").exists():
            return folder
    raise RunError(
        f"the folder {vae} holds no VAE (no config.json, no vae/config.json); name the folder that does",
        "model_missing",
    )


def fingerprint(*files: Path, prefix: str = "") -> str:
    """A short hash that tells weights apart without reading gigabytes: of every tensor whose name begins
    with ``prefix``, its name, its shape and its first 4 KiB. The file's own name does not count."""
    digest = hashlib.sha256()
    for file in files:
        rows = read_header(file).tensors.items()
        with file.open("rb") as stream:
            for name, tensor in sorted(rows):
                if name.startswith(prefix):
                    digest.update(f"{name}{tensor.shape};".encode())
                    stream.seek(tensor.start)
                    digest.update(stream.read(min(4096, tensor.end - tensor.start)))
    return digest.hexdigest()[:16]
