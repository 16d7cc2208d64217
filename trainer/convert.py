"""A LoRA's file in another program's names: ``python -m trainer export FILE.safetensors --format …``.

Without its base model: the file tells the family, and the names of the modules are those of the published
denoisers, which cost nothing on the meta device. Numbers stay as they are, in the file's own precision; where
a folded alpha would round them, in 32 bits. So the way there and back gives the same tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapters import LoraWeights, adaptable
from .contract.errors import ConfigError, RunError
from .contract.families import CATALOGUE, DEMO_BASE
from .contract.files import write_bytes
from .contract.headers import Header
from .contract.lora_header import (
    DORA,
    DOWN,
    UP,
    families_of,
    module_and_ending,
    other_kind,
    read_adapter_header,
    told_families,
)
from .export import FOLDED, Format, format_metadata, lycoris_name, only_plain, original_name, tensors_in
from .families.base import ModelFamily, Native, family_class
from .lora_file import ADAPTER, differing, layers_in, lost, modules_in, read_tensors, told
from .lora_metadata import file_of, kept_metadata
from .source import DEMO_FOLDER

# CLIP's modules that LoRAs are for; the largest encoder, SDXL's second, has 32 layers.
_CLIP = [
    f"text_model.encoder.layers.{layer}.{module}"
    for layer in range(32)
    for module in (*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
]

_ARCHITECTURE = (
    "ss_base_model_version",
    "ss_v2",
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
)
"""What the names of a file's modules tell, where the file itself does not say it."""

Layers = dict[str, list[tuple[str, Native]]]


def convert(file: Path, format: Format, out: Path) -> None:
    """Write the LoRA in ``file`` to ``out`` in another format.

    Raises ConfigError or RunError in a sentence for a file that is no LoRA, that is for no family here or
    does not fit it, and for a kind that the format cannot say.
    """
    if not file.is_file():
        raise ConfigError({"file": f"{file} does not exist; name the LoRA's file to convert"})
    if out.suffix != ".safetensors":
        raise ConfigError({"--out": f"--out {out} has to end in .safetensors; there is no other format"})
    if out.exists() and out.samefile(file):
        raise ConfigError({"--out": f"--out {out} is the file itself; choose another name"})
    header = read_adapter_header(file)
    kind = other_kind(header) or ("a DoRA" if any(key.endswith(DORA) for key in header.tensors) else "")
    if kind and format == "diffusers":
        raise only_plain(kind)
    if kind.endswith("peft's kind"):
        raise RunError(f"{file.name} is {kind}, for which the other formats have no names", "config")
    names = _names(file, header)
    tensors = read_tensors(file)
    said = {key: value for key, value in names.family.metadata().items() if key in _ARCHITECTURE}
    metadata = {**said, **kept_metadata(header.metadata)}
    if kind:
        made = _respelt(tensors, names, format)
    else:
        weights = _weights(file, tensors, names, header)
        number = Counter(tensor.dtype for key, tensor in tensors.items() if key.endswith(DOWN))
        made = {
            key: _exact(tensor, number.most_common(1)[0][0])
            for key, tensor in tensors_in(format, weights, names.family).items()
        }
        metadata |= format_metadata(format, weights, names.family)
    made = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in made.items()}
    write_bytes(out, file_of(made, metadata))  # which refuses tensors that share their memory
    wrong = differing(read_tensors(out), made) if kind else lost(out, weights, names.family, None, format)
    if wrong:
        raise RunError(f"{out.name} was written, but is not what {file.name} is: {wrong}", "unknown")


# Which family, of which size ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """A denoiser of the family whose modules are those of a file: key stem -> modules."""

    family: ModelFamily
    layers: Layers


def _names(file: Path, header: Header) -> Names:
    keys = families_of(header)
    if not keys:
        raise RunError(
            f"{file.name} is a LoRA for no family that is known here, so it cannot be converted",
            "model_missing",
        )
    left: list[str] = []
    loose: Names | None = None
    for key in keys:
        for config in _configurations(key, header.metadata.get("ss_sd_model_name", "")):
            cls = family_class(key)
            denoiser = cls.without_weights(config)
            family: ModelFamily = cls.for_names(denoiser.config)
            shapes = {
                f"{family.denoiser_part}.{name}": tuple(denoiser.get_parameter(f"{name}.weight").shape)
                for name in adaptable(denoiser)
            }
            texts = [f"{part}.{module}" for part in family.clip_names for module in _CLIP]
            stems = {module_and_ending(name)[0] for name in header.tensors}
            names = Names(family, layers_in(stems, family, [*shapes, *texts]))
            if over := stems - names.layers.keys():
                left = left or sorted(over)
            elif _fits(header, names.layers, shapes, strictly=True):
                return names
            elif key in told_families(header) and _fits(header, names.layers, shapes, strictly=False):
                loose = loose or names
    if loose:
        return loose
    label = CATALOGUE[keys[0]].label
    what = (
        f"has {len(left)} modules that {label} has not (such as {left[0]})" if left else "is of another size"
    )
    raise RunError(
        f"{file.name} is a LoRA for {label}, but {what}, so it cannot be converted whole", "model_missing"
    )


def _configurations(key: str, base: str) -> Iterator[Mapping[str, Any]]:
    """Of the family's denoisers: first that of the base which the file names."""
    cls = family_class(key)
    published: dict[str, Mapping[str, Any]] = dict(cls.published)
    if any(each.id == DEMO_BASE for each in CATALOGUE[key].bases):
        config = DEMO_FOLDER / cls.denoiser_part / "config.json"
        published[DEMO_BASE] = json.loads(config.read_text(encoding="utf-8"))
    seen: list[Mapping[str, Any]] = []
    for _, config in sorted(published.items(), key=lambda one: one[0] != base):
        if config not in seen:
            seen.append(config)
            yield config


def _fits(header: Header, layers: Layers, shapes: Mapping[str, tuple[int, ...]], *, strictly: bool) -> bool:
    """Whether the file's matrices have the size of the denoiser's layers; if not ``strictly``, only where the
    original code has several modules in one, whose rows are counted by it."""
    for stem, layer in layers.items():
        _, native = layer[0]
        module = layer[0][0]
        if module not in shapes:
            continue
        out, into = native.total or shapes[module][0], shapes[module][1]
        for endings, dimension, size in ((UP, 0, out), (DOWN, 1, into)):
            key = next((stem + ending for ending in endings if stem + ending in header.tensors), "")
            if (
                key
                and (strictly or native.rows)
                and header.tensors[key].shape[dimension : dimension + 1] != (size,)
            ):
                return False
    return True


# Plain LoRAs: by module ---------------------------------------------------------------------------------


def _weights(
    file: Path, tensors: Mapping[str, Tensor], names: Names, header: Header
) -> dict[str, LoraWeights]:
    """The LoRAs of the file, in 32 bits, with the alpha that one of ours has folded."""
    modules = [module for layer in names.layers.values() for module, _ in layer]
    weights, used = modules_in(tensors, told(header, ADAPTER), names.family, modules, file.name)
    if left := sorted(set(tensors) - used):
        raise RunError(
            f"{file.name} has {len(left)} tensors of no plain LoRA (such as {left[0]}), so it cannot be "
            "converted whole",
            "model_missing",
        )
    folded = {stem: alpha for stem, alpha in told(header, FOLDED).items() if isinstance(alpha, int | float)}
    stems = {module: stem for stem, layer in names.layers.items() for module, _ in layer}
    return {
        module: _unfolded(lora, folded.get(stems[module], folded.get("", 0.0)))
        for module, lora in weights.items()
    }


def _unfolded(lora: LoraWeights, alpha: float) -> LoraWeights:
    """In 32 bits, and with this alpha; in half precision only where the very numbers come back."""
    number, up, scale = lora.down.dtype, lora.up.float(), alpha / lora.rank
    whole = replace(lora, down=lora.down.float(), up=up)
    if not scale or lora.alpha != lora.rank:
        return whole
    before = (up / scale).to(number).float()
    exact = number == torch.float32 or torch.equal(before * scale, up)
    return replace(whole, up=before, alpha=alpha) if exact else whole


def _exact(tensor: Tensor, number: torch.dtype) -> Tensor:
    """In a number format where nothing is lost by that, else as it is; alphas stay as they are."""
    narrow = tensor.to(number)
    return narrow if tensor.ndim and torch.equal(narrow.float(), tensor) else tensor


# Other kinds: by layer, as they are ---------------------------------------------------------------------

_ENDINGS = {
    "lora_A": "lora_down",
    "lora_B": "lora_up",
    "lora_A.default": "lora_down",
    "lora_B.default": "lora_up",
    "lora.down": "lora_down",
    "lora.up": "lora_up",
}


def _respelt(tensors: Mapping[str, Tensor], names: Names, format: Format) -> dict[str, Tensor]:
    """The tensors under the other format's names. A layer that the original code has fused stays fused; one
    that is only a part of such a layer has LyCORIS's name, for all that read it."""
    made = {}
    for key, tensor in tensors.items():
        stem, ending = module_and_ending(key)
        module, place = names.layers[stem][0]
        theirs, native = original_name(format, module, names.family)
        if native != place and (native.rows or native.swapped):
            theirs = lycoris_name(module)
        matrix, _, kind = ending.rpartition(".")
        matrix = _ENDINGS.get(matrix, matrix)
        if format == "comfyui" and not theirs.startswith("lycoris_"):
            matrix = {"lora_down": "lora_A", "lora_up": "lora_B"}.get(matrix, matrix)
        made[f"{theirs}.{matrix}.{kind}" if matrix else f"{theirs}.{kind}"] = tensor
    return made
