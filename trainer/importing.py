"""Recipes from what other programs wrote: ``python -m trainer import FILE --out RECIPE.toml``.

A finished LoRA is read here, every other program's recipe by :mod:`trainer.contract.foreign`. Each gives
the settings that it found, and a line for everything found, assumed or left out, so that nothing is taken
over silently.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import tomlkit

from .contract.config import TEXT_RATES
from .contract.errors import ConfigError
from .contract.families import CATALOGUE, Family, first_base
from .contract.fields import parse
from .contract.files import write_text
from .contract.foreign.importing import ENDINGS, read_foreign
from .contract.foreign.report import Imported
from .contract.headers import Header
from .contract.lora_header import (
    DORA,
    DOWN,
    encoders_in,
    families_of,
    flat_name,
    read_lora_header,
    trigger_in,
)
from .contract.settings.files import OutputSettings
from .contract.settings.train import TrainSettings

LORA = ".safetensors"


def import_recipe(file: Path, out: Path) -> Imported:
    """Write the recipe; returns the report. Raises ConfigError, or RunError for a damaged file."""
    if not file.is_file():
        there = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError({"file": f"{file} {there}; name the file to import"})
    if out.exists():
        raise ConfigError({"--out": f"{out} is there already; choose another name"})
    if file.suffix.lower() not in (LORA, *ENDINGS):
        known = ", ".join((LORA, *ENDINGS))
        raise ConfigError({"file": f"{file.name} cannot be imported; files ending in {known} can"})
    imported = read_finished_lora(file) if file.suffix.lower() == LORA else read_foreign(file)
    parse(imported.tables)
    document = tomlkit.document()
    document.add(tomlkit.comment(f"From {file.name}. Name your photos in dataset.path, then:"))
    document.add(tomlkit.comment(f"python -m trainer train {out.name}"))
    for section, table in imported.tables.items():
        document.add(section, tomlkit.item(table))
    write_text(out, tomlkit.dumps(document))
    return imported


# A finished LoRA --------------------------------------------------------------------------------------


def read_finished_lora(file: Path) -> Imported:
    """A recipe that goes on from a LoRA: what its keys and its metadata say."""
    header = read_lora_header(file)
    metadata, found = header.metadata, Imported("a finished LoRA")
    keys = families_of(header)
    if not keys:
        raise ConfigError(
            {"file": f"{file.name} is a LoRA for no family that can be trained here; choose another"}
        )
    row = CATALOGUE[keys[0]]
    also = f"; it could be {' or '.join(CATALOGUE[key].label for key in keys[1:])} too" if keys[1:] else ""
    found.take("model.family", row.key, f"{row.label}, by its modules' names and metadata{also}")
    _take_base(found, row, metadata.get("ss_sd_model_name", ""))
    _take_size(found, header)
    found.take("adapter.targets", _targets(header), "the fewest layers that hold all of its modules")
    found.take("adapter.start_from", str(file.resolve()), "the file itself")
    if any(name.endswith(DORA) for name in header.tensors):
        found.take("adapter.dora", True, "it is a DoRA")
    _take_rates(found, row, header)
    if trigger := trigger_in(metadata):
        found.take("dataset.trigger", trigger, "its metadata")
        found.take("samples.prompts", [trigger], "the trigger word")
    else:
        found.note("no trigger word in its metadata; set dataset.trigger")
    if side := _side(metadata.get("ss_resolution", "")):
        found.take("dataset.resolution", side, "its metadata")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:70] or OutputSettings().name
    found.take("output.name", f"{name}-more", "the file's name")
    return found


def _take_base(found: Imported, row: Family, name: str) -> None:
    known = {base.id: base for base in row.bases}
    if name in known:
        found.take("model.base", name, "its metadata")
        return
    base = first_base(row)
    said = f"; its metadata name {name!r}, so use that file where you have it" if name else ""
    found.take("model.base", base.id, f"the family's first base, assumed{said}")


def _take_size(found: Imported, header: Header) -> None:
    """Rank and alpha: metadata first, for layers that were fused have the sum of several ranks."""
    rank, source = _number(header.metadata.get("ss_network_dim", "")), "its metadata"
    if not rank or rank != int(rank):
        downs = Counter(t.shape[0] for name, t in header.tensors.items() if name.endswith(DOWN))
        rank, source = float(downs.most_common(1)[0][0]), "its matrices"
    found.take("adapter.rank", int(rank), source)
    alpha, source = _number(header.metadata.get("ss_network_alpha", "")), "its metadata"
    if not alpha:
        alpha, source = rank, "as the rank; the effect at the start is the file's, whatever its alpha"
    found.take("adapter.alpha", alpha, source)


_CONV = re.compile(
    r"_(resnets_\d+|(down|up)samplers_\d|in_layers_\d|out_layers_\d|emb_layers_\d|skip_connection|op)(_|$)"
)


def _targets(header: Header) -> str:
    modules = [
        flat_name(name)
        for name in header.tensors
        if name.endswith(DOWN) and not name.startswith(("lora_te", "text_encoder"))
    ]
    if any(_CONV.search(name) for name in modules):
        return "transformer+conv"
    return "attention" if all("attn" in name or "attention_" in name for name in modules) else "transformer"


def _take_rates(found: Imported, row: Family, header: Header) -> None:
    rate = _number(header.metadata.get("ss_unet_lr", "")) or _number(
        header.metadata.get("ss_learning_rate", "")
    )
    if rate and rate < 1:
        found.take("train.learning_rate", rate, "its metadata")
    usual = found.tables.get("train", {}).get("learning_rate", TrainSettings().learning_rate) / 2
    for part in encoders_in(header, row.trainable_text):
        setting = TEXT_RATES[row.trainable_text.index(part)]
        found.take(f"train.{setting}", usual, f"it has weights for {part}; half of the learning rate")


def _side(text: str) -> int | None:
    """ "(1024, 1024)" or "1024x1024" -> 1024; None for others."""
    sides = {int(number) for number in re.findall(r"\d+", text)}
    side = sides.pop() if len(sides) == 1 else 0
    return side if 64 <= side <= 2048 else None


def _number(text: str) -> float | None:
    try:
        number = float(json.loads(text))
    except (ValueError, TypeError):
        return None
    return number if 0 < number < 1e6 else None
