"""Models of transformers' own classes: found or fetched, read, and what goes wrong with them in one sentence.

This imports torch: it is imported where a model is about to be used. Weights are read from .safetensors only,
and no code that comes with a model is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from trainer.contract.errors import RunError
from trainer.contract.hub import Tell, fetch, here_or_hub

MAY_LACK = 0.05
"""Of a model's tensors, so many may be missing in its file: a few are made anew without harm. More, and the
file is of another model, or of another code's model of the same name."""
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SMALL = (".json", ".txt", ".model", ".jinja")
_LOADING = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


def be_quiet() -> None:
    """No warnings and bars of transformers: what matters is told as an error."""
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def find_model(model: str, name: str, tell: Tell, require: Callable[[Path, str], None]) -> Path:
    """The folder of a model of transformers, here or fetched. ``require`` gets the folder with its
    config.json and the model's name, and raises where it is of another kind.
    Raises RunError in one sentence."""
    path = here_or_hub(model, "The model")
    if path is not None:
        if not path.is_dir():
            raise RunError(f"{name} is a file; name the folder of a model, or a Hub id", "model_missing")
        require(path, name)
        _require_weights([file.name for file in path.iterdir()], name)
        return path

    def choose(folder: Path, sizes: dict[str, int]) -> list[str]:
        require(folder, name)
        own = [file for file in sizes if "/" not in file]
        return [file for file in own if file.endswith(_SMALL)] + _require_weights(own, name)

    return fetch(model, tell=tell, first=("config.json", "model_index.json"), choose=choose)


def _require_weights(files: list[str], name: str) -> list[str]:
    weights = [file for file in files if _WEIGHTS.fullmatch(file)]
    if not weights:
        raise RunError(
            f"{name} has no .safetensors weights; other formats can hide code and are refused: choose "
            "another model",
            "model_missing",
        )
    return weights


def read_config(folder: Path, name: str, such: str) -> dict[str, Any]:
    """Its config.json. Raises RunError where none can be read; ``such`` is what to do then."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{name} is no model of transformers (it has no config.json); {such}", "config"
        ) from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise RunError(f"config.json of {name} is damaged; fetch it again", "model_missing")
    return config


def read_model(auto: Any, folder: Path, name: str, dtype: torch.dtype, such: str) -> Any:
    """The model of a class of transformers. Raises RunError(config) where the weights are not of that class;
    ``such`` is what to do then."""
    model, told = auto.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if len(told["missing_keys"]) > MAY_LACK * len(model.state_dict()):
        lacks = f"{len(told['missing_keys'])} of its {len(model.state_dict())} tensors"
        raise RunError(
            f"The weights of {name} do not fit transformers' own model ({lacks} are missing); {such}",
            "config",
        )
    return model


@contextmanager
def loads(name: str) -> Iterator[None]:
    """What goes wrong while a model is read, in one sentence."""
    try:
        yield
    except ImportError as error:
        line = str(error).strip().splitlines()[0]
        raise RunError(f"{name} needs a package that is not installed: {line}", "config") from None
    except _LOADING as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise RunError(
            f"{name} cannot be loaded ({line}); fetch it again, or choose another", "model_missing"
        ) from error


@contextmanager
def enough_memory(name: str, device: torch.device) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise RunError(
            f"The GPU has too little memory for {name}; choose a smaller model, or end what else uses it",
            "gpu_oom",
        ) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "not enough memory" not in str(error):
            raise
        sentence = f"The computer has too little memory for {name}; choose a smaller model"
        raise RunError(sentence, "host_oom") from None
