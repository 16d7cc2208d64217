"""How many tokens a caption has, told by the base's own tokenizers where they are on this machine.

``tokenizers`` reads them without torch. Everywhere else there is an estimate, to be labelled as such.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.contract.families import CATALOGUE, DEMO_BASE

DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo" / "model"
PARTS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
"""What a base's tokenizers are called, as are its text encoders: text_encoder, text_encoder_2, …"""


@dataclass(frozen=True)
class Counter:
    """A tokenizer and how many tokens its text encoder sees, with start and end."""

    tokenizer: Any
    limit: int

    def count(self, text: str) -> int:
        """Tokens of a text, with start and end, uncut."""
        return len(self.tokenizer.encode(text).ids)


def counters_for(family: str, base: str) -> dict[str, Counter]:
    """{text encoder: counter} of the tokenizers that are on this machine. The last is that of the encoder
    that reads most, which the trainer goes by."""
    limit = CATALOGUE[family].token_limit
    counters = {}
    for folder in _folders(base):
        if counter := _load(folder):
            name = folder.name.replace("tokenizer", "text_encoder")
            counters[name] = replace(counter, limit=min(limit, counter.limit))
    return counters


def estimated_tokens(text: str) -> int:
    """About so many tokens, with start and end: English words are one each, longer ones more."""
    return 2 + sum(math.ceil(len(word) / 8) for word in re.findall(r"\w+|[^\w\s]", text))


def _folders(base: str) -> Iterator[Path]:
    for part in PARTS:
        folder = _folder(base, part)
        if folder and any((folder / file).exists() for file in ("tokenizer.json", "vocab.json")):
            yield folder


def _folder(base: str, part: str) -> Path | None:
    if base == DEMO_BASE:
        return DEMO_MODEL / part
    local = Path(base).expanduser()
    if local.is_dir():
        return local / part
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(base, f"{part}/tokenizer_config.json")
    except HFValidationError:  # a file, or a name that no repository has
        return None
    return Path(cached).parent if isinstance(cached, str) else None


@functools.lru_cache(maxsize=8)
def _load(folder: Path) -> Counter | None:
    """Read ``tokenizer.json``, or the older pair of vocabulary and merges that CLIP repositories hold."""
    from tokenizers import Tokenizer

    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        limit = int(settings.get("model_max_length", 77))  # 10^30 where the file names none
        whole = folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else _clip(folder)
    except (OSError, ValueError):
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Counter(tokenizer, limit if limit > 0 else 77)


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
    if tokenizer.token_to_id(start) is None:
        raise ValueError("not CLIP's")
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
