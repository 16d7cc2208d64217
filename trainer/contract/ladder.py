"""What is changed when GPU memory runs out, the cheapest first, and what each change costs.

A recipe is frozen when its run is made. What memory made necessary since is an *amendment*, kept beside it
in the run folder (ladder.json): a run is trained, resumed, sampled and exported as :func:`amended`. Every
rung is climbed once, and each halving of the batch is a rung, so there is an end to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .config import TrainConfig
from .errors import ConfigError, RunError
from .fields import flatten, merge, nest, parse, to_tables
from .files import read_json, write_json

Phase = Literal["photos", "captions", "load", "train", "class", "draw"]
"""What the run was doing: encoding photos, encoding captions, loading, training, drawing class pictures,
drawing samples (which goes on in the same process, so that only a smaller decoding helps)."""

Changes = dict[str, Any]
"""{dotted setting: its new value}"""

FREE = "free"
"""The rung that changes no setting: a fresh process, with an allocator that leaves fewer gaps."""

SMALLER_OPTIMIZER = {
    "adamw": "adamw8bit",
    "paged_adamw": "paged_adamw8bit",
    "lion": "lion8bit",
}


@dataclass(frozen=True)
class Amendment:
    """A change that was made, and what was said of it."""

    rung: str
    changes: Changes
    sentence: str

    def without(self, settings: Collection[str]) -> Amendment:
        """The same, but that these settings are left as they are."""
        return replace(self, changes={path: to for path, to in self.changes.items() if path not in settings})


@dataclass(frozen=True)
class Rung:
    """One kind of change.

    Attributes:
        name: what ladder.json and the event call it.
        phases: those that it brings memory to.
        changes: what it makes of a recipe; None where there is nothing left to change.
        sentence: what it does and what it costs, for people.
        needs: a package that it cannot do without.
    """

    name: str
    phases: tuple[Phase, ...]
    changes: Callable[[TrainConfig], Changes | None]
    sentence: Callable[[TrainConfig], str]
    needs: str = ""


def at_once(config: TrainConfig) -> int:
    """How many pictures go through the model together."""
    batch, limit = config.train.batch_size, config.machine.pictures_at_once
    return min(batch, limit) if limit else batch


def _store_less(config: TrainConfig) -> Changes | None:
    # "auto" is on with a GPU, and without one its memory does not run out.
    on = config.train.gradient_checkpointing != "off"
    return None if on else {"train.gradient_checkpointing": "on"}


def _halve(config: TrainConfig) -> Changes | None:
    now = -(-at_once(config) // max(1, config.machine.gpus))  # of one process, which has its share
    return {"machine.pictures_at_once": now // 2} if now > 1 else None


def _smaller_optimizer(config: TrainConfig) -> Changes | None:
    smaller = SMALLER_OPTIMIZER.get(config.train.optimizer)
    return {"train.optimizer": smaller} if smaller else None


def _quantise(setting: str, to: str) -> Callable[[TrainConfig], Changes | None]:
    finer = ("none",) if to == "int8" else ("none", "int8")
    return lambda config: {setting: to} if flatten(config)[setting] in finer else None


def _switch_on(setting: str) -> Callable[[TrainConfig], Changes | None]:
    return lambda config: None if flatten(config)[setting] else {setting: True}


def _says(sentence: str) -> Callable[[TrainConfig], str]:
    return lambda config: sentence


def _fewer_at_once(config: TrainConfig) -> str:
    count, train = at_once(config), config.train
    return (
        f"{count} picture{'' if count == 1 else 's'} at once from here; a step sees the same "
        f"{train.batch_size * train.gradient_accumulation} and takes longer, and the LoRA is the same but "
        "for rounding"
    )


RUNGS: tuple[Rung, ...] = (
    Rung(
        FREE,
        ("photos", "captions", "load", "train", "class"),
        lambda config: {},
        _says(
            "it begins again in an empty GPU, with an allocator that leaves fewer gaps; this costs the start "
            "alone, and the LoRA is the same"
        ),
    ),
    Rung(
        "checkpointing",
        ("train",),
        _store_less,
        _says(
            "gradient checkpointing is on from here; a step takes about a third longer, and the LoRA is the "
            "same"
        ),
    ),
    Rung("batch", ("train",), _halve, _fewer_at_once),
    Rung(
        "optimizer",
        ("train",),
        _smaller_optimizer,
        lambda config: (
            f"{config.train.optimizer} keeps what the optimizer remembers in 8 bits from here, and takes "
            "over what there is; a step takes as long, at a little rounding"
        ),
        "bitsandbytes",
    ),
    Rung(
        "tiling",
        ("class", "draw"),
        lambda config: None if config.samples.tiling == "on" else {"samples.tiling": "on"},
        _says(
            "pictures are decoded in tiles from here; large ones may show faint seams, and the LoRA is the "
            "same"
        ),
    ),
    Rung(
        "captions in int8",
        ("captions",),
        _quantise("model.quantize_text", "int8"),
        _says("the text encoders are in 8 bits from here, with hardly any difference in what they say"),
        "torchao",
    ),
    Rung(
        "captions in nf4",
        ("captions",),
        _quantise("model.quantize_text", "nf4"),
        _says("the text encoders are in 4 bits from here, with some rounding in what they say"),
        "bitsandbytes",
    ),
    Rung(
        "base in int8",
        ("load", "train", "class"),
        _quantise("model.quantize", "int8"),
        _says(
            "the base is in 8 bits from here, half its memory; hardly anything is lost, and the LoRA learns "
            "over the rounded weights"
        ),
        "torchao",
    ),
    Rung(
        "base in nf4",
        ("load", "train", "class"),
        _quantise("model.quantize", "nf4"),
        _says(
            "the base is in 4 bits from here, a quarter of its memory; the LoRA learns over weights that are "
            "visibly rounded"
        ),
        "bitsandbytes",
    ),
    Rung(
        "offload",
        ("load", "train", "class"),
        _switch_on("machine.offload"),
        _says(
            "the base's blocks lie in RAM from here and each layer is fetched when it is needed; a step "
            "takes several times as long, and the LoRA is the same"
        ),
    ),
)
"""The cheapest first. Where a library is not installed, or a recipe cannot have a change, the next one is
taken."""


def next_amendment(
    config: TrainConfig,
    tried: Sequence[Amendment],
    phase: Phase,
    installed: Callable[[str], bool],
) -> Amendment | None:
    """The next change of a recipe, ``config`` being the one in use with what was ``tried``; None where there
    is none left."""
    for rung in RUNGS:
        if phase not in rung.phases or (rung.name == FREE and any(one.rung == FREE for one in tried)):
            continue
        if rung.needs and not installed(rung.needs):
            continue
        changes = rung.changes(config)
        if changes is None:
            continue
        try:
            after = _with(config, changes)
        except ConfigError:
            continue  # this recipe cannot have it
        return Amendment(rung.name, changes, rung.sentence(after))
    return None


def amended(config: TrainConfig, amendments: Sequence[Amendment]) -> TrainConfig:
    """The recipe with what was changed since it was frozen."""
    for amendment in amendments:
        config = _with(config, amendment.changes)
    return config


def _with(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    return parse(merge(to_tables(config), nest(dict(changes))))


def read_ladder(file: Path) -> list[Amendment]:
    """What was changed in a run so far, oldest first. Raises RunError for a file that is none."""
    if not file.exists():
        return []
    try:
        return [Amendment(**row) for row in read_json(file)["amendments"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{file} cannot be read ({error}); delete it to go on with the recipe as it was written", "config"
        ) from None


def write_ladder(file: Path, amendments: Sequence[Amendment]) -> None:
    write_json(file, {"version": 1, "amendments": [asdict(one) for one in amendments]})


def tried_in_words(amendments: Sequence[Amendment]) -> str:
    """ "checkpointing, batch and offload"; what came of nothing is not named."""
    known = [rung.name for rung in RUNGS if rung.name != FREE]  # and not what was changed by hand
    names = list(dict.fromkeys(one.rung for one in amendments if one.rung in known))
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
