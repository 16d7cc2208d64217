"""The models that write captions: a table, and what a person may type instead of a row of it.

Of each it is known that its publisher offers .safetensors (taggers: .onnx) and that transformers loads it by
its own classes; ``tests/dataset_tools/test_captioners.py`` asks the installed transformers. Left out:
BLIP base, whose repository holds pickles alone, and Microsoft's own Florence-2 repositories, which want code
of their own to be run; the conversions named here do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Style = Literal["sentence", "tags"]

PROMPT = (
    "Describe this picture in one or two plain sentences, for a caption: what is to be seen, what it does, "
    "where it is, the light. Begin with the subject itself, without an introduction."
)
"""What models that talk are asked. BLIP needs no question, and Florence-2 knows its task by a name."""

MAX_TOKENS = 120
THRESHOLD = 0.35
CHARACTER_THRESHOLD = 0.85
"""Those of the taggers' own demo."""


@dataclass(frozen=True)
class Captioner:
    """One model.

    Attributes:
        key: what it is called on a command line.
        model: its Hub id.
        kind: transformers' model type, "onnx" for a tagger.
        gib: memory that its weights take in 16 bits; the download may be twice as large.
    """

    key: str
    label: str
    model: str
    kind: str
    gib: float
    licence: str
    remark: str

    @property
    def style(self) -> Style:
        return "tags" if self.kind == "onnx" else "sentence"


def _of(kind: str, *rows: tuple[str, str, str, float, str, str]) -> list[Captioner]:
    return [Captioner(row[0], row[1], row[2], kind, *row[3:]) for row in rows]


MIT, BSD, APACHE, LLAMA = "MIT", "BSD-3-Clause", "Apache-2.0", "Llama 3.1 Community"
WITHOUT_GPU = "small enough for a computer without a GPU"
ASKS = "answers what you ask"
CAPTIONERS = (
    *_of(
        "florence2",
        ("florence-2-base", "Florence-2 base", "florence-community/Florence-2-base", 0.5, MIT, WITHOUT_GPU),
        (
            "florence-2-large",
            "Florence-2 large",
            "florence-community/Florence-2-large",
            1.5,
            MIT,
            "longer ones",
        ),
    ),
    *_of(
        "blip",
        ("blip-large", "BLIP large", "Salesforce/blip-image-captioning-large", 0.9, BSD, "one short phrase"),
    ),
    *_of(
        "idefics3",
        ("smolvlm-500m", "SmolVLM 500M", "HuggingFaceTB/SmolVLM-500M-Instruct", 1.0, APACHE, ASKS),
    ),
    *_of(
        "qwen3_vl",
        ("qwen3-vl-2b", "Qwen3-VL 2B", "Qwen/Qwen3-VL-2B-Instruct", 4.0, APACHE, ASKS),
        ("qwen3-vl-4b", "Qwen3-VL 4B", "Qwen/Qwen3-VL-4B-Instruct", 8.3, APACHE, ASKS),
    ),
    *_of(
        "llava",
        (
            "joycaption",
            "JoyCaption Beta One",
            "fancyfeast/llama-joycaption-beta-one-hf-llava",
            16.6,
            LLAMA,
            ASKS,
        ),
    ),
    *_of(
        "onnx",
        ("wd-vit-v3", "WD ViT v3", "SmilingWolf/wd-vit-tagger-v3", 0.4, APACHE, WITHOUT_GPU),
        (
            "wd-eva02-large-v3",
            "WD EVA02 v3",
            "SmilingWolf/wd-eva02-large-tagger-v3",
            1.2,
            APACHE,
            "more exact",
        ),
    ),
)
DEFAULT: dict[Style, str] = {"sentence": "florence-2-base", "tags": "wd-vit-v3"}


def known(text: str) -> Captioner | None:
    """The row that a key or a Hub id names, None for any other model."""
    return next((row for row in CAPTIONERS if text in (row.key, row.model)), None)


def model_of(text: str) -> str:
    """The Hub id or folder that a person's word stands for."""
    row = known(text.strip())
    return row.model if row else text.strip()


def label_of(text: str) -> str:
    """A model's name for people; of a folder its last part, so that no path is told."""
    row = known(text)
    return row.label if row else text.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or text
