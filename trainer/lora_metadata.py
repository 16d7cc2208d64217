"""What a LoRA's file says of itself, and the bytes that it is written as.

Loaders and model pages read kohya's words (``ss_…``, its hashes) and Stability's (``modelspec.…``, version
1.0.1). Never a path, a user name, a token or a caption.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

from .contract.config import TrainConfig
from .contract.lora_header import trigger_in
from .contract.settings.adapter import AdapterSettings
from .contract.settings.dataset import all_resolutions
from .families.base import ModelFamily


def training_metadata(
    family: ModelFamily,
    config: TrainConfig,
    trigger: str,
    step: int,
    base_name: str,
    rank: int | None,
    made: float | None = None,
) -> dict[str, str]:
    """Of a run's LoRA; ``rank`` is what a DyLoRA was cut to, ``made`` its date in Unix seconds.

    SOURCE_DATE_EPOCH, as reproducible builds have it, comes before that.
    """
    date = float(os.environ.get("SOURCE_DATE_EPOCH") or made or time.time())
    width = height = all_resolutions(config.dataset, family.resolution)[0]
    return {
        **family.metadata(),
        **network_metadata(
            config.adapter, rank, family.row.kohya[1] if family.row.kohya else "networks.lora"
        ),
        "ss_output_name": config.output.name,
        "ss_sd_model_name": base_name,
        "ss_resolution": f"({width}, {height})",
        "ss_steps": str(step),
        "ss_learning_rate": f"{config.train.learning_rate:g}",
        "ss_optimizer": config.train.optimizer,
        "ss_lr_scheduler": config.train.scheduler,
        "ss_seed": str(config.train.seed),
        "ss_training_comment": f"trigger: {trigger}" if trigger else "",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": config.output.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(date)),
        "modelspec.trigger_phrase": trigger,
    }


def network_metadata(
    adapter: AdapterSettings, cut: int | None = None, plain: str = "networks.lora"
) -> dict[str, str]:
    """Kind and size, in kohya's words; ``cut`` is the rank that a DyLoRA was cut to, ``plain`` kohya's module
    for LoRAs of the family."""
    modules = {"lora": plain, "dylora": "networks.dylora", "oft": "lycoris.kohya"}
    module = "lycoris.kohya" if adapter.dora else modules.get(adapter.type, "lycoris.kohya")
    arguments: dict[str, str] = {}
    if module == "lycoris.kohya":
        arguments["algo"] = {"lora": "lora", "oft": "diag-oft"}.get(adapter.type, adapter.type)
    if adapter.dora:
        arguments |= {"dora_wd": "True", "wd_on_output": "False"}
    if adapter.type == "lokr":
        arguments["factor"] = str(adapter.lokr_factor)
    if adapter.type == "dylora":
        arguments["unit"] = str(adapter.dylora_unit)
    if adapter.targets == "transformer+conv":
        arguments["conv_dim"] = str(adapter.conv_rank or adapter.rank)
        arguments["conv_alpha"] = f"{adapter.conv_alpha or adapter.alpha:g}"
    for name, ours in (("block_dims", "block_ranks"), ("block_alphas", "block_alphas")):
        if text := getattr(adapter, ours):
            arguments[name] = text
    for name in ("rank_dropout", "module_dropout"):
        if value := getattr(adapter, name):
            arguments[name] = f"{value:g}"
    # The file's alpha is such that alpha / rank is the scale, whatever the recipe's rule for it.
    rank = cut or adapter.rank * (2 if adapter.init in ("pissa", "olora") else 1)
    scale = adapter.alpha / (adapter.rank**0.5 if adapter.rslora else adapter.rank)
    found = {
        "ss_network_module": module,
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{scale * rank:g}",
    }
    if adapter.max_norm:
        found["ss_scale_weight_norms"] = f"{adapter.max_norm:g}"
    if arguments:
        found["ss_network_args"] = json.dumps(arguments)
    return found


_KEPT = re.compile(
    r"ss_(base_model_version|v2|v_parameterization|zero_terminal_snr|guidance_scale|timestep_sampling"
    r"|model_prediction_type|network_(module|dim|alpha|args)|scale_weight_norms|output_name|sd_model_name"
    r"|resolution|steps|num_epochs|epoch|learning_rate|unet_lr|text_encoder_lr|optimizer|lr_scheduler|seed"
    r"|clip_skip)"
    r"|modelspec\.(sai_model_spec|architecture|implementation|title|resolution|date|trigger_phrase"
    r"|prediction_type|encoder_layer|license)"
)
_PATH = re.compile(r"(^|[\s\"'=(,:])(~|\.{1,2})?[/\\](?!/)|(?<![A-Za-z])[A-Za-z]:[/\\]|\\\\")


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Of a file that is converted, what is said in the new one: what loaders read, whoever wrote it, and the
    trigger words. A base's file is named without its folder; what else has a path in it is left out."""
    kept = {}
    for key, value in metadata.items():
        if not _KEPT.fullmatch(key):
            continue
        if key == "ss_sd_model_name" and (_PATH.search(value) or value.count("/") > 1):
            value = re.split(r"[/\\]", value)[-1]
        if not _PATH.search(value):
            kept[key] = value
    if trigger := trigger_in(metadata):
        kept |= {"modelspec.trigger_phrase": trigger, "ss_training_comment": f"trigger: {trigger}"}
    return kept


def file_of(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes, with the hashes that A1111, its extensions and model pages look it up by.

    As kohya computes them: of a file with its ``ss_`` metadata alone, SHA-256 of all behind the header, and
    the first eight digits of that of 64 KiB from 1 MiB on.
    """
    data = save(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")})
    end = 8 + int.from_bytes(data[:8], "little")
    whole = hashlib.sha256(memoryview(data)[end:]).hexdigest()
    hashes = {
        "sshs_model_hash": whole,
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{whole}",
    }
    return with_metadata(data, {**metadata, **hashes, "format": "pt"})


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with these metadata in alphabetical order: the library writes them in another one
    each time, so that the same LoRA would never be the same file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8:end]), "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[end:]))
