"""Which settings of [adapter] cannot go together: recipes that could never work, or that train nothing."""

from __future__ import annotations

from collections.abc import Iterator

from .families import CATALOGUE, assistant_of, block_maps
from .placing import block_map, by_block, of_a_guide, placing
from .settings.adapter import AdapterSettings
from .settings.model import ModelSettings

Problem = tuple[str, str]
"""A dotted setting, and a sentence."""


def adapter_problems(model: ModelSettings, adapter: AdapterSettings, trains_text: bool) -> Iterator[Problem]:
    """What is wrong, if anything."""
    yield from _kind(adapter)
    yield from _beginning(adapter)
    yield from _base(model, adapter)
    yield from _blocks(model, adapter, trains_text)


def _kind(adapter: AdapterSettings) -> Iterator[Problem]:
    kind = adapter.type
    if not adapter.plain:
        for name, nothing in (("dropout", 0.0), ("rslora", False), ("dora", False), ("start_from", "")):
            if getattr(adapter, name) != nothing:
                instead = "; rank_dropout works" if name == "dropout" else ""
                shown = "" if nothing == "" else f"{nothing}".lower()
                yield (
                    f"adapter.{name}",
                    f"it works for lora and dylora, not for {kind}{instead}; set it to {shown or 'nothing'}",
                )
    if kind == "dylora":
        if adapter.rank % adapter.dylora_unit:
            unit = adapter.dylora_unit
            yield (
                "adapter.dylora_unit",
                f"rank {adapter.rank} is no multiple of {unit}; give one that divides it",
            )
        for name in ("conv_rank", "block_ranks"):
            if getattr(adapter, name):
                sentence = "a dylora has the same rank everywhere, so that it can be cut; empty it"
                yield f"adapter.{name}", sentence
        if adapter.dora:
            yield "adapter.dora", "a dylora that is cut would need other magnitudes; set it to false"
    if kind == "oft":
        if adapter.rank < 2:
            yield (
                "adapter.rank",
                "an oft turns blocks of this size, and 1 cannot turn; give 2 or more",
            )
        if adapter.max_norm:
            yield "adapter.max_norm", "an oft only turns, so there is no norm to limit; set it to 0"


def _beginning(adapter: AdapterSettings) -> Iterator[Problem]:
    if adapter.init == "default":
        return
    if adapter.type != "lora":
        yield "adapter.init", f"{adapter.init} is a start for lora, not for {adapter.type}; set it to default"
    elif adapter.init != "gaussian":
        reasons = {
            "start_from": "what it goes on from is its beginning",
            "dora": "a DoRA's magnitudes are those of a base that stays as it is",
            "max_norm": "the norm that is limited would be that of the base's own directions",
        }
        for name, reason in reasons.items():
            if getattr(adapter, name):
                yield "adapter.init", f"with adapter.{name} it has to be default: {reason}"
                return


def _base(model: ModelSettings, adapter: AdapterSettings) -> Iterator[Problem]:
    if not adapter.plain and assistant_of(model.family, model.base, model.assistant):
        yield (
            "adapter.type",
            f"this base is trained with an assistant LoRA, beside which no {adapter.type} can stand; "
            "use lora, or set model.assistant to none",
        )
    if adapter.type in ("loha", "lokr") and model.quantize == "nf4":
        yield "model.quantize", f"a {adapter.type} cannot be trained over nf4; use int8 or none, or a lora"


def _blocks(model: ModelSettings, adapter: AdapterSettings, trains_text: bool) -> Iterator[Problem]:
    if not by_block(adapter):
        return
    trains = []
    for blocks in block_maps(model.family, model.base):
        told = of_a_guide(adapter, blocks)  # the linter converts them; a run refuses them
        plain = adapter.model_copy(update={name: each for name, (each, _) in told.items()})
        try:
            placing(plain, blocks)
        except ValueError as error:
            problem = error.args
        else:
            trains.append(any(row.can and row.rank for row in block_map(plain, blocks)))
    label = CATALOGUE[model.family].label
    if not trains:
        name, sentence = problem
        yield f"adapter.{name}", f"{sentence} ({label})"
    elif not any(trains) and not trains_text and not adapter.target_regex:
        lists = [name for name in ("block_weights", "block_ranks") if getattr(adapter, name)]
        yield (
            f"adapter.{lists[0]}",
            "it leaves out every block that the targets are in, so there is nothing to train; "
            "give at least one of them more than 0",
        )
