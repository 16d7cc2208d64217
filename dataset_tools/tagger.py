"""Tags by the WD taggers (SmilingWolf, version 3): an ONNX model and its list of tags, run by onnxruntime.

Pictures are made ready as the taggers' own demo does: padded to a square with white, resized (bicubic), as
float32 of 0 to 255 in the order blue, green, red, height before width before colour. Ratings are left out,
general tags come by their probability, then characters.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_tools.captioners import CHARACTER_THRESHOLD, THRESHOLD, label_of, model_of
from trainer.contract.errors import RunError
from trainer.contract.hub import Tell, fetch, here_or_hub

MODEL, TAGS = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER = "0", "4"
"""The list's numbers for kinds of tags; 9 is the ratings."""
FACES = frozenset(
    [
        "0_0",
        "(o)_(o)",
        "+_+",
        "+_-",
        "._.",
        "<o>_<o>",
        "<|>_<|>",
        "=_=",
        ">_<",
        "3_3",
        "6_9",
        ">_o",
        "@_@",
        "^_^",
        "o_o",
        "u_u",
        "x_x",
        "|_|",
        "||_||",
    ]
)
"""Tags that are drawings; in all others an underscore is a space."""
LACKS = "Tags need the package onnxruntime, which is not installed: pip install -r requirements-tagger.txt"


class Tagger:
    """A tagger that is ready. ``without``: tags that are never written."""

    def __init__(
        self,
        folder: Path,
        name: str,
        threshold: float = THRESHOLD,
        character_threshold: float = CHARACTER_THRESHOLD,
        without: Collection[str] = (),
    ) -> None:
        self.name = name
        self.thresholds = {GENERAL: threshold, CHARACTER: character_threshold}
        self.without = {_words(tag.strip()) for tag in without}
        self.tags = _read_tags(folder / TAGS, name)
        self.session = _session(folder / MODEL, name)
        (self.input,) = self.session.get_inputs()
        shape, outputs = self.input.shape, self.session.get_outputs()[0].shape
        self.size = shape[1] if len(shape) == 4 and isinstance(shape[1], int) else 0
        if not self.size or shape[1:] != [self.size, self.size, 3] or outputs[-1] != len(self.tags):
            raise RunError(
                f"{name} is no WD tagger of version 3 (its pictures are {shape}, its answers {outputs}, its "
                f"tags {len(self.tags)}); choose one that is",
                "config",
            )

    def __call__(self, image: Image.Image, seed: int = 0) -> str:
        try:
            chances = self.session.run(None, {self.input.name: prepared(image, self.size)})[0]
        except Exception as error:  # as in _session
            raise RunError(
                f"{self.name} failed ({_line(error)}); choose another tagger", "unknown"
            ) from error
        found = [
            (kind, float(chance), tag)
            for (tag, kind), chance in zip(self.tags, chances[0], strict=True)
            if chance > self.thresholds.get(kind, 1.0)
        ]
        found.sort(key=lambda one: (one[0] == CHARACTER, -one[1]))
        words = [_words(tag) for _, _, tag in found]
        return ", ".join(tag for tag in words if tag not in self.without)


def prepared(image: Image.Image, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A picture as the taggers take it: [1, size, size, 3], float32 of 0 to 255, blue first."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    if side != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[None, :, :, ::-1])


def installed() -> bool:
    """Whether there is an onnxruntime to run a tagger with."""
    return importlib.util.find_spec("onnxruntime") is not None


def load_tagger(
    text: str, threshold: float, character_threshold: float, without: Collection[str], tell: Tell
) -> Tagger:
    """The tagger of a key of the catalogue, a Hub id or a folder. Raises RunError in one sentence."""
    if not installed():
        raise RunError(LACKS, "config")
    name = label_of(text)
    folder = _find(model_of(text), name, tell)
    tell(f"Loading {name}")
    return Tagger(folder, name, threshold, character_threshold, without)


def _find(model: str, name: str, tell: Tell) -> Path:
    path = here_or_hub(model, "The tagger")

    def choose(folder: Path, sizes: dict[str, int]) -> list[str]:
        _require(sizes, name)
        return [MODEL, TAGS]

    if path is None:
        return fetch(model, tell=tell, first=(TAGS,), choose=choose)
    _require([file.name for file in path.iterdir()] if path.is_dir() else [], name)
    return path


def _require(files: Collection[str], name: str) -> None:
    lacking = [file for file in (MODEL, TAGS) if file not in files]
    if lacking:
        raise RunError(
            f"{name} is no tagger (it has no {lacking[0]}); choose one such as {model_of('wd-vit-v3')}",
            "config",
        )


def _read_tags(file: Path, name: str) -> list[tuple[str, str]]:
    """[(tag, kind), …] in the order of the model's answers."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return [(row["name"], row["category"]) for row in csv.DictReader(lines)]
    except (KeyError, ValueError, csv.Error) as error:
        raise RunError(f"{TAGS} of {name} is damaged; fetch it again", "model_missing") from error


def _session(file: Path, name: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors alone
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first comes with onnxruntime-gpu
    providers = [one for one in wanted if one in ort.get_available_providers()]
    try:
        return ort.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # its errors have no base of their own
        raise RunError(
            f"{MODEL} of {name} cannot be read ({_line(error)}); fetch it again", "model_missing"
        ) from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]


def _words(tag: str) -> str:
    return tag if tag in FACES else tag.replace("_", " ")
