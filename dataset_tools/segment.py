"""Masks by CLIPSeg (Lüddecke and Ecker, CVPR 2022): what a prompt names, found in a photo.

This imports torch: it is imported by a mask job alone, when there is a photo for it. Weights are read from
.safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from dataset_tools.captioners import label_of
from dataset_tools.device import pick_device
from dataset_tools.masking import MODELS
from dataset_tools.pretrained import be_quiet, enough_memory, find_model, loads, read_config, read_model
from trainer.contract.errors import RunError
from trainer.contract.hub import Tell

KIND = "clipseg"
"""transformers' model type."""
SUCH = f"choose one such as {MODELS['clipseg']}"


class Segmenter:
    """A model that is ready. In 32 bits everywhere: it is small, and its threshold is of small numbers."""

    def __init__(self, folder: Path, name: str, prompt: str, threshold: float) -> None:
        self.name, self.prompt, self.threshold = name, prompt, threshold
        self.device = pick_device()
        with enough_memory(name, self.device), loads(name):
            self.processor = _processor(folder)
            own: Any = transformers.CLIPSegForImageSegmentation
            self.model = read_model(own, folder, name, torch.float32, SUCH).to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> Image.Image:
        """White where the model is more certain than the threshold."""
        inputs = self.processor(
            text=[self.prompt], images=[image], padding=True, truncation=True, return_tensors="pt"
        )
        with enough_memory(self.name, self.device):
            logits = self.model(**inputs.to(self.device)).logits
        # Of one photo, transformers gives (h, w) or (1, h, w). The processor has squeezed it to a square.
        chances_11HW = logits.float().sigmoid().reshape(1, 1, *logits.shape[-2:])
        size = (image.height, image.width)
        grown_HW = F.interpolate(chances_11HW, size, mode="bilinear", align_corners=False)[0, 0]
        return Image.fromarray((grown_HW > self.threshold).mul(255).byte().cpu().numpy())


def load_segmenter(text: str, prompt: str, threshold: float, tell: Tell) -> Segmenter:
    """The model of a key, a Hub id or a folder. Raises RunError in one sentence."""
    be_quiet()
    model = MODELS.get(text.strip(), text.strip())
    name = label_of(model)
    folder = find_model(model, name, tell, _require_clipseg)
    tell(f"Loading {name}, to look for {prompt!r}")
    return Segmenter(folder, name, prompt, threshold)


def _require_clipseg(folder: Path, name: str) -> None:
    kind = read_config(folder, name, SUCH).get("model_type", "")
    if kind != KIND:
        raise RunError(f"{name} is a {kind or 'model of no kind'}, not a CLIPSeg; {SUCH}", "config")


def _processor(folder: Path) -> Any:
    """Its pictures are made ready by Pillow: torchvision is not installed."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    own: Any = transformers
    pictures: Any = ViTImageProcessorPil
    return own.CLIPSegProcessor(
        image_processor=pictures.from_pretrained(folder, local_files_only=True),
        tokenizer=own.AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )
