"""What trainers call the same thing: families, optimizers, schedulers, number formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..families import CATALOGUE, family_of, first_base
from ..fields import RECORDS
from .report import Imported, Unusable, is_off, number, shown


def flat(name: str) -> str:
    """Names without case and punctuation: "STABLE_DIFFUSION_35" and "stable-diffusion-3.5" are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


# Families and bases ------------------------------------------------------------------------------------

_FAMILY_NAMES = {flat(name): row.key for row in CATALOGUE.values() for name in (row.key, *row.known_as)}


def family_called(name: str) -> str:
    """The family that another trainer calls so, "" for none. What stands behind a colon is a variant."""
    return _FAMILY_NAMES.get(flat(name.partition(":")[0]), "")


def family_in(path: str) -> str:
    """The family that a file's or repository's name tells of, "" where it tells of none."""
    name = flat(re.split(r"[/\\]", path.rstrip("/\\"))[-1])
    told = [known for known in _FAMILY_NAMES if len(known) >= 4 and known in name]
    return _FAMILY_NAMES[max(told, key=len)] if told else ""


def take_base(found: Imported, option: str, base: str, family: str, why: str) -> None:
    """model.family and model.base. ``family`` is what the file says of it, or "" where it says nothing.

    A base of the catalogue brings its family. Raises Unusable for a base of no family known here.
    """
    base = base.strip()
    known = family_of(base)
    key = known or family or family_in(base)
    if not key:
        which = shown(base) if base else "the base"
        raise Unusable(f"nothing tells which family {which} is of; set model.family")
    source = "the catalogue has this base" if known else why if family else "by the base's name"
    found.take("model.family", key, f"{CATALOGUE[key].label}: {source}")
    if base:
        local = not known and (base.count("/") != 1 or base.endswith((".safetensors", ".ckpt")))
        found.keep(
            option, base, "model.base", base, "a path; it must be there on this machine" if local else ""
        )
    else:
        found.take(
            "model.base", first_base(CATALOGUE[key]).id, "none is named: the family's first", "default"
        )


# Optimizers and schedulers ------------------------------------------------------------------------------

_OPTIMIZERS = {
    "adamw": "adamw",
    "adam": "adamw",
    "adamwbf16": "adamw",
    "adamwfused": "adamw",
    "pagedadamw": "paged_adamw",
    "pagedadamw32bit": "paged_adamw",
    "adamwpaged": "paged_adamw",
    "adamw8bit": "adamw8bit",
    "adam8bit": "adamw8bit",
    "adamw8": "adamw8bit",
    "adam8": "adamw8bit",
    "adamwfp8": "adamw8bit",
    "adamw4bit": "adamw8bit",
    "pagedadamw8bit": "paged_adamw8bit",
    "adamw8bitpaged": "paged_adamw8bit",
    "ademamix": "ademamix8bit",
    "ademamix8bit": "ademamix8bit",
    "ademamixpaged": "paged_ademamix8bit",
    "pagedademamix8bit": "paged_ademamix8bit",
    "ademamix8bitpaged": "paged_ademamix8bit",
    "adafactor": "adafactor",
    "lion": "lion",
    "lionpaged": "lion",
    "lion8bit": "lion8bit",
    "pagedlion8bit": "lion8bit",
    "lion8bitpaged": "lion8bit",
    "prodigy": "prodigy",
    "prodigy8bit": "prodigy",
    "prodigyadv": "prodigy",
    "adamwschedulefree": "schedulefree_adamw",
    "schedulefreeadamw": "schedulefree_adamw",
    "came": "came",
    "came8bit": "came",
}
_MAKERS = ("bnb", "torch", "ao", "optimi", "sdnq")
"""Beginnings of SimpleTuner's names."""


def optimizer(name: Any) -> str:
    """Our name of an optimizer. Raises Unusable for those that are not offered."""
    plainly = flat(str(name).rpartition(".")[2])
    for maker in _MAKERS:
        rest = plainly.removeprefix(maker)
        plainly = rest if rest in _OPTIMIZERS else plainly
    if plainly in _OPTIMIZERS:
        return _OPTIMIZERS[plainly]
    offered = ", ".join(RECORDS["train.optimizer"].choices)
    raise Unusable(f"the optimizer {shown(name)} is not offered; {offered} are, and adamw is taken")


_SCHEDULERS = {
    "constant": "constant",
    "constantwithwarmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosinewithrestarts": "cosine_with_restarts",
    "cosinewithhardrestarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "warmupstabledecay": "warmup_stable_decay",
}


def scheduler(name: Any) -> str:
    ours = _SCHEDULERS.get(flat(str(name)), "")
    if ours in RECORDS["train.scheduler"].choices:
        return ours
    raise Unusable(f"the scheduler {shown(name)} is not offered; constant is nearest, and is taken")


# Number formats, sizes ----------------------------------------------------------------------------------

_PRECISIONS = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "tfloat32": "fp32",
    "no": "fp32",
}


def precision(name: Any) -> str:
    try:
        return _PRECISIONS[flat(str(name))]
    except KeyError:
        raise Unusable(f"the number format {shown(name)} is not offered") from None


def layers_regex(only: Any = (), ignored: Any = (), as_regex: bool = False) -> str:
    """Layers whose names contain one of ``only`` and none of ``ignored``, as adapter.target_regex has them.

    >>> layers_regex(["transformer.single_transformer_blocks.7."], [])
    'single_transformer_blocks\\\\.7\\\\.'
    """

    def either(words: Any) -> str:
        texts = [str(word).strip().removeprefix("transformer.") for word in words or () if str(word).strip()]
        return "|".join(text if as_regex else re.escape(text) for text in texts)

    wanted, unwanted = either(only), either(ignored)
    return f"^(?!.*(?:{unwanted})).*(?:{wanted})" if unwanted else wanted


def quantization(name: Any) -> str:
    """int8 for formats of 8 bits, nf4 for those of 4 and fewer, none for the rest."""
    if is_off(name):
        return "none"
    text = flat(str(name))
    if re.search(r"nf4|nfloat4|int4|uint[2-7]|int[2-7]|fp4|float4", text):
        return "nf4"
    return "int8" if re.search(r"8", text) else "none"


def side(value: Any) -> int:
    """ "1024", "1024,1024", "512x650", [512, 768] -> the side of the square of the same area, in 64ths.

    A list of several resolutions gives its largest. Raises Unusable.
    """
    if isinstance(value, list):
        return max(side(each) for each in value) if value else side("")
    numbers = [number(part) for part in re.split(r"[,x×]", str(value).strip("()[] ")) if part.strip()]
    if not numbers or len(numbers) > 2 or min(numbers) <= 0:
        raise Unusable(f"{shown(value)} is no resolution")
    if len(set(numbers)) == 1:
        return int(numbers[0])
    return max(64, int((numbers[0] * numbers[-1]) ** 0.5 / 64 + 0.5) * 64)


def sides(values: Sequence[Any]) -> tuple[int, ...]:
    """Several resolutions, each as :func:`side` reads it, the largest first. Raises Unusable."""
    if not values:
        raise Unusable("it names no resolution")
    return tuple(sorted({side(each) for each in values}, reverse=True))


def effective_rate(found: Imported) -> None:
    """The line that makes recipes of different alpha conventions comparable."""
    rate, alpha, rank = (
        found.get(f"{name}") for name in ("train.learning_rate", "adapter.alpha", "adapter.rank")
    )
    found.note(
        f"The learning rate acts as {rate:g} × alpha / rank = {rate:g} × {shown(float(alpha))} / {rank} = "
        f"{rate * alpha / rank:.3g}: compare recipes of different programs by this number."
    )
