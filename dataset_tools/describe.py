"""Captions by a vision-language model of transformers' own: BLIP, Florence-2, SmolVLM, Qwen-VL, LLaVA, ….

This imports torch: it is imported by a caption job alone, when there is a photo for it. Weights are read from
.safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from dataset_tools.captioners import CAPTIONERS, PROMPT, label_of, model_of
from dataset_tools.device import pick_device, pick_dtype
from trainer.contract.errors import RunError
from trainer.contract.hub import Tell, fetch, local_path, looks_like_hub_id

TASK = "<MORE_DETAILED_CAPTION>"
"""What Florence-2 calls a description of a few sentences."""
MAY_LACK = 0.05
"""Of a model's tensors, so many may be missing in its file: a few are made anew without harm. More, and the
file is of another model, or of another code's model of the same name."""
PIXELS = 1024 * 1024
"""Larger pictures are made smaller first, as a training would. Models that take any size (Qwen-VL) spend
minutes and gigabytes on a photo of a telephone."""
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_SMALL = (".json", ".txt", ".model", ".jinja")
_LOADING = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


class Describer:
    """A model that is ready. ``prompt`` is what it is asked, "" for the default of its kind."""

    def __init__(self, folder: Path, name: str, prompt: str, max_tokens: int) -> None:
        self.name = name
        self.max_tokens = max_tokens
        self.device = pick_device()
        self.dtype = pick_dtype("auto", self.device)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with enough_memory(name, self.device), loads(name):
            self.processor = _processor(folder, config)
            self.model = _model(folder, name, self.dtype).to(self.device).eval()
        self.text = self._question(prompt, config["model_type"])

    def __call__(self, image: Image.Image, seed: int) -> str:
        torch.manual_seed(seed % 2**63)  # some models draw lots, as their makers advise
        asked = {"text": [self.text]} if self.text else {}
        inputs = self.processor(images=[_shrunk(image)], return_tensors="pt", **asked).to(
            self.device, self.dtype
        )
        with enough_memory(self.name, self.device):
            ids = self.model.generate(**inputs, max_new_tokens=self.max_tokens)[0]
        question = inputs.get("input_ids")
        if question is not None and torch.equal(ids[: question.shape[1]], question[0]):
            ids = ids[question.shape[1] :]  # models that go on writing give the question back
        said: str = self.processor.batch_decode(ids[None], skip_special_tokens=True)[0].strip()
        return _whole_sentences(said) if len(ids) >= self.max_tokens else said

    def _question(self, prompt: str, kind: str) -> str:
        """The text that goes in with a photo."""
        tokenizer = self.processor.tokenizer
        template = getattr(self.processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        if not template:
            return prompt or (TASK if kind == "florence2" else "")
        words = prompt or PROMPT
        parts = [{"type": "image"}, {"type": "text", "text": words}]
        asked = self._chat(parts)
        # Templates that know plain text alone print the list as it is.
        return self._chat(words) if "'type'" in asked else asked

    def _chat(self, content: object) -> str:
        message = [{"role": "user", "content": content}]
        text: str = self.processor.apply_chat_template(message, add_generation_prompt=True)
        return text


def load_describer(text: str, prompt: str, max_tokens: int, tell: Tell) -> Describer:
    """The model of a key of the catalogue, a Hub id or a folder. Raises RunError in one sentence."""
    import transformers

    quiet: Any = transformers.utils.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    name = label_of(text)
    folder = find_model(model_of(text), name, tell, _require_captioner)
    tell(f"Loading {name}")
    return Describer(folder, name, prompt.strip(), max_tokens)


def find_model(model: str, name: str, tell: Tell, require: Callable[[Path, str], None]) -> Path:
    """The folder of a model of transformers, here or fetched. ``require`` gets the folder with its
    config.json and the model's name, and raises where it is of another kind.
    Raises RunError in one sentence."""
    path = local_path(model)
    if path is not None:
        if not path.is_dir():
            raise RunError(f"{name} is a file; name the folder of a model, or a Hub id", "model_missing")
        require(path, name)
        _require_weights([file.name for file in path.iterdir()], name)
        return path
    if not looks_like_hub_id(model):
        raise RunError(
            f"The model {model} does not exist on this machine and is no Hub id (owner/name); check the "
            "spelling",
            "model_missing",
        )

    def choose(folder: Path, sizes: dict[str, int]) -> list[str]:
        require(folder, name)
        own = [file for file in sizes if "/" not in file]
        return [file for file in own if file.endswith(_SMALL)] + _require_weights(own, name)

    return fetch(model, tell=tell, first=("config.json", "model_index.json"), choose=choose)


def _require_captioner(folder: Path, name: str) -> None:
    """Raise RunError(config) for what transformers does not know as a model that answers to a picture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    such = f"choose one that describes pictures, such as {CAPTIONERS[0].model}"
    if (folder / "model_index.json").exists():
        raise RunError(f"{name} makes pictures and does not describe them; {such}", "config")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{name} is no model of transformers (it has no config.json); {such}", "config"
        ) from None
    except ValueError:
        raise RunError(f"config.json of {name} is damaged; fetch it again", "model_missing") from None
    kind = config.get("model_type", "")
    own = config.get("architectures") or [f"model of the kind {kind!r}"]
    wanted = KNOWN.get(kind)
    if wanted is None and config.get("auto_map"):
        raise RunError(f"{name} wants code of its own to be run, which is never done; {such}", "config")
    if wanted is None or not {*own} & {wanted if isinstance(wanted, str) else "", *wanted}:
        raise RunError(f"{name} is a {own[0]}, not a captioning model; {such}", "config")


def _require_weights(files: list[str], name: str) -> list[str]:
    weights = [file for file in files if _WEIGHTS.fullmatch(file)]
    if not weights:
        raise RunError(
            f"{name} has no .safetensors weights; other formats can hide code and are refused: choose "
            "another model",
            "model_missing",
        )
    return weights


def _processor(folder: Path, config: dict[str, Any]) -> Any:
    """The model's processor, its pictures made ready by Pillow: torchvision is not installed.

    Kinds that read videos too have a part for them that wants torchvision; it is left out.
    """
    import transformers
    from transformers.models.auto.processing_auto import (
        PROCESSOR_MAPPING_NAMES,
        processor_class_from_name,
    )

    auto: Any = transformers
    own: Any = processor_class_from_name(PROCESSOR_MAPPING_NAMES.get(config["model_type"], ""))
    if own is None or "video_processor" not in own.get_attributes():
        return auto.AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True)

    class OfPictures(own):  # type: ignore[misc]
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return (
                None if name == "video_processor" else super().check_argument_for_proper_class(name, argument)
            )

    parts = {
        "image_processor": auto.AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True
        ),
        "tokenizer": auto.AutoTokenizer.from_pretrained(folder, local_files_only=True),
    }
    settings, _ = own.get_processor_dict(folder)
    return OfPictures.from_args_and_dict([parts.get(part) for part in own.get_attributes()], settings)


def _model(folder: Path, name: str, dtype: torch.dtype) -> Any:
    import transformers

    auto: Any = transformers.AutoModelForImageTextToText
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
            f"The weights of {name} do not fit transformers' own model ({lacks} are missing); choose a "
            f"conversion that does, such as {CAPTIONERS[0].model}",
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


def _shrunk(image: Image.Image) -> Image.Image:
    scale = math.sqrt(PIXELS / (image.width * image.height))
    if scale >= 1:
        return image
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _whole_sentences(text: str) -> str:
    """A text that was cut off, up to its last whole sentence if it has one."""
    end = max(text.rfind(mark) for mark in ".!?")
    return text[: end + 1] if end > 0 else text
