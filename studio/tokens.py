"""How many tokens a caption has, and whether a trigger word is rare: told only where the base's own
tokenizer is on this machine. A guess by words or characters would be wrong where it matters.

``tokenizers`` reads them without torch.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract.families import DEMO_BASE

DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"


@dataclass(frozen=True)
class Counter:
    """A tokenizer and how many tokens its text encoder sees, with start and end."""

    tokenizer: Any
    limit: int

    def count(self, text: str) -> int:
        """Tokens of a text, with start and end, uncut."""
        return len(self.tokenizer.encode(text).ids)


def counter_for(base: str) -> Counter | None:
    """The first tokenizer of a base model, or None where it is not on this machine."""
    folder = _folder(base)
    return _load(folder) if folder else None


def _folder(base: str) -> Path | None:
    if base == DEMO_BASE:
        return _existing(DEMO_MODEL / "tokenizer")
    local = Path(base).expanduser()
    if local.is_dir():
        return _existing(local / "tokenizer")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(base, "tokenizer/tokenizer_config.json")
    except HFValidationError:  # a file, or a name that no repository has
        return None
    return _existing(Path(cached).parent) if isinstance(cached, str) else None


def _existing(folder: Path) -> Path | None:
    has = (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists()
    return folder if has else None


@functools.lru_cache(maxsize=4)
def _load(folder: Path) -> Counter | None:
    """Read ``tokenizer.json``, or the older pair of vocabulary and merges that CLIP repositories hold."""
    from tokenizers import Tokenizer

    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        limit = int(settings.get("model_max_length", 77))
        whole = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else _clip(folder)
    except (OSError, ValueError):
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Counter(tokenizer, limit if 0 < limit < 10_000 else 77)


def _clip(folder: Path) -> Any:
    """CLIP's byte-level BPE: words lower-cased, split by its pattern, ended by ``</w>``."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer = Tokenizer(
        models.BPE.from_file(
            str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=end, end_of_word_suffix="</w>"
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return tokenizer
