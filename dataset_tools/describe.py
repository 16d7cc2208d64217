"""Captions by a vision-language model of transformers' own: BLIP, Florence-2, SmolVLM, Qwen-VL, LLaVA, ….

This imports torch: it is imported by a caption job alone, when there is a photo for it. Weights are read from
.safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from dataset_tools.captioners import CAPTIONERS, PROMPT, label_of, model_of
from dataset_tools.device import pick_device, pick_dtype
from dataset_tools.pretrained import be_quiet, enough_memory, find_model, loads, read_config, read_model
from trainer.contract.errors import RunError
from trainer.contract.hub import Tell

TASK = "<MORE_DETAILED_CAPTION>"
"""What Florence-2 calls a description of a few sentences."""
FITS = f"choose a conversion that does, such as {CAPTIONERS[0].model}"
PIXELS = 1024 * 1024
"""Larger pictures are made smaller first, as a training would. Models that take any size (Qwen-VL) spend
minutes and gigabytes on a photo of a telephone."""


class Describer:
    """A model that is ready. ``prompt`` is what it is asked, "" for the default of its kind."""

    def __init__(self, folder: Path, name: str, prompt: str, max_tokens: int) -> None:
        self.name = name
        self.max_tokens = max_tokens
        self.device = pick_device()
        self.dtype = pick_dtype("auto", self.device)
        config = read_config(folder, name, FITS)
        with enough_memory(name, self.device), loads(name):
            self.processor = _processor(folder, config)
            auto: Any = transformers.AutoModelForImageTextToText
            self.model = read_model(auto, folder, name, self.dtype, FITS).to(self.device).eval()
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
    be_quiet()
    name = label_of(text)
    folder = find_model(model_of(text), name, tell, _require_captioner)
    tell(f"Loading {name}")
    return Describer(folder, name, prompt.strip(), max_tokens)


def _require_captioner(folder: Path, name: str) -> None:
    """Raise RunError(config) for what transformers does not know as a model that answers to a picture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    such = f"choose one that describes pictures, such as {CAPTIONERS[0].model}"
    if (folder / "model_index.json").exists():
        raise RunError(f"{name} makes pictures and does not describe them; {such}", "config")
    config = read_config(folder, name, such)
    kind = config.get("model_type", "")
    own = config.get("architectures") or [f"model of the kind {kind!r}"]
    wanted = KNOWN.get(kind)
    if wanted is None and config.get("auto_map"):
        raise RunError(f"{name} wants code of its own to be run, which is never done; {such}", "config")
    if wanted is None or not {*own} & {wanted if isinstance(wanted, str) else "", *wanted}:
        raise RunError(f"{name} is a {own[0]}, not a captioning model; {such}", "config")


def _processor(folder: Path, config: dict[str, Any]) -> Any:
    """The model's processor, its pictures made ready by Pillow: torchvision is not installed.

    Kinds that read videos too have a part for them that wants torchvision; it is left out.
    """
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
