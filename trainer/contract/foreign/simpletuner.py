"""SimpleTuner: config.json, and the multidatabackend.json that it names.

Its own defaults, which are not ours: rate 4e-7, rank 16 with alpha as the rank and a dropout of 0.1, clipping
at 2, batch 4, a constant schedule with warm-up. Repeats count the repetitions: 0 there is once, 1 here.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from ..families import CATALOGUE
from ..sizes import sides_text
from . import simpletuner_tables as tables
from .kohya import Beside
from .names import effective_rate, family_called, quantization, side, take_base
from .prompt_lines import PromptLine, take_prompts
from .reading import parse_json, read_text, refuse
from .report import Imported, Unusable, is_off, number, shown
from .rules import follow
from .shared import (
    Folder,
    leave_off,
    number_or,
    take_alpha,
    take_folders,
    take_optimizer,
    take_optimizer_arguments,
    take_power,
    take_scheduler,
    take_share,
    take_text_rate,
    tell_differences,
    with_sizes,
)


def read_simpletuner(data: dict[str, Any], name: str, beside: Beside) -> Imported:
    """Raises ConfigError for a training of something else than a LoRA."""
    found = Imported("SimpleTuner")
    options = {re.sub(r"^-+", "", key): value for key, value in data.items()}
    written = {}
    for old, new in tables.ALIASES.items():
        if old in options and new not in options:
            options[new], written[new] = options.pop(old), old
    told = "model_type" in options
    kind = str(options.pop("model_type", "lora") or "lora")
    if kind != "lora":
        raise refuse(name, f"has model_type = {shown(kind)}; only LoRAs are trained here")
    if told:
        found.leave("model_type", kind, "a LoRA")
    _take_model(found, options, name)
    _take_adapter(found, options, beside)
    _take_training(found, options)
    _take_flow(found, options)
    _take_data(found, options, beside)
    _take_samples(found, options, beside)
    follow(found, options, tables.CONFIG)
    found.unknown(options)
    found.renamed(written)
    effective_rate(found)
    found.settle()
    return found


def _take_model(found: Imported, options: dict[str, Any], name: str) -> None:
    family = str(options.pop("model_family", "") or "")
    ours = family_called(family)
    if family:
        found.leave("model_family", family, "it names the family")
    if family and not ours:
        raise refuse(name, f"has model_family = {shown(family)}, a family that cannot be trained here")
    base = str(options.pop("pretrained_model_name_or_path", "") or "")
    flavour = options.pop("model_flavour", None)
    if not (base or ours):
        found.part = True
        found.note("The file says nothing of the base; set model.base.")
    else:
        try:
            take_base(found, "pretrained_model_name_or_path", base, ours, f"model_family is {family}")
        except Unusable as problem:
            raise refuse(name, f"names a base of which {problem}") from None
    if flavour is not None:
        chosen = found.get("model.base")
        found.miss("model_flavour", flavour, f"the base is {chosen}; choose another in model.base")
    for option, setting in (
        ("base_model_precision", "model.quantize"),
        ("text_encoder_1_precision", "model.quantize_text"),
    ):
        value = options.pop(option, None)
        if value is not None:
            plain = str(value) in ("no_change", "bf16", "fp16", "fp32")
            found.keep(option, value, setting, "none" if plain else quantization(value))


def _take_adapter(found: Imported, options: dict[str, Any], beside: Beside) -> None:
    told = "lora_type" in options
    kind = str(options.pop("lora_type", "standard") or "standard")
    settings = options.pop("lycoris_config", None)
    if kind == "lycoris":
        _take_lycoris(found, settings, beside)
    else:
        if told:
            found.leave("lora_type", kind, "a LoRA")
        if settings is not None:
            found.leave("lycoris_config", settings, "lora_type is standard")
    rank, alpha = options.pop("lora_rank", None), options.pop("lora_alpha", None)
    if not found.has("adapter.rank"):
        if is_off(rank):
            found.take("adapter.rank", 16, "SimpleTuner's default", "default")
        else:
            found.keep("lora_rank", rank, "adapter.rank", rank)
        take_alpha(found, "lora_alpha", alpha, None)
    else:
        for option, value in (("lora_rank", rank), ("lora_alpha", alpha)):
            if value is not None:
                found.leave(option, value, "the LyCORIS file says it")
    if kind == "standard" and "lora_dropout" not in options:
        found.take("adapter.dropout", 0.1, "SimpleTuner's default", "default")


def _take_lycoris(found: Imported, settings: Any, beside: Beside) -> None:
    file = beside(str(settings)) if settings else None
    if file is None:
        found.miss("lycoris_config", settings, "it is not there; a LoRA is trained")
        return
    table = parse_json(read_text(file), file.name)
    if not isinstance(table, dict):
        raise refuse(file.name, "holds no options")
    found.leave("lycoris_config", settings, "read, see below")
    algorithm = str(table.pop("algo", "lora"))
    if algorithm in ("lora", "loha", "lokr"):
        found.keep("lycoris algo", algorithm, "adapter.type", algorithm)
    else:
        found.miss("lycoris algo", algorithm, "this kind of adapter is not offered; a LoRA is trained")
    rank = table.pop("linear_dim", None)
    if rank is not None:
        whole = number_or(found, "lycoris linear_dim", rank, 0) > 1024
        found.keep(
            "lycoris linear_dim", rank, "adapter.rank", 1024 if whole else rank, "full rank" if whole else ""
        )
        take_alpha(found, "lycoris linear_alpha", table.pop("linear_alpha", None), 1)
    follow(found, table, tables.LYCORIS, "lycoris ")
    found.unknown({f"lycoris {key}": value for key, value in table.items()})


def _take_training(found: Imported, options: dict[str, Any]) -> None:
    rate = options.pop("learning_rate", None)
    if rate is None:
        found.take("train.learning_rate", 4e-7, "SimpleTuner's default", "default")
    else:
        found.keep("learning_rate", rate, "train.learning_rate", rate)
    text, own = options.pop("train_text_encoder", None), options.pop("text_encoder_lr", None)
    if is_off(text):
        for option, value in (("train_text_encoder", text), ("text_encoder_lr", own)):
            if value is not None:
                found.leave(option, value, "text encoders are left alone, as here")
    else:
        given = own if own is not None else found.get("train.learning_rate")
        take_text_rate(found, "train_text_encoder", text, given)
        if own is not None:
            found.leave("text_encoder_lr", own, "see train_text_encoder")
    steps, epochs = options.pop("max_train_steps", None), options.pop("num_train_epochs", None)
    if not is_off(steps):
        found.keep("max_train_steps", steps, "train.steps", steps)
        if epochs is not None:
            found.leave("num_train_epochs", epochs, "max_train_steps is given, and wins")
    else:
        if epochs is None:
            found.take("train.epochs", 1, "SimpleTuner's default", "default")
        else:
            found.keep("num_train_epochs", epochs, "train.epochs", epochs)
        if steps is not None:
            found.leave("max_train_steps", steps, "0: the epochs count")
    for option, setting in (
        ("checkpoint_epoch_interval", "checkpoints.every_epochs"),
        ("validation_epoch_interval", "samples.every_epochs"),
        ("eval_epoch_interval", "validation.every_epochs"),
    ):
        if not is_off(every := options.pop(option, None)):
            found.keep(option, every, setting, every)
    if "train_batch_size" not in options:
        found.take("train.batch_size", 4, "SimpleTuner's default", "default")
    name = options.pop("lr_scheduler", None)
    take_scheduler(found, "lr_scheduler", name, "constant", "SimpleTuner")
    take_power(found, "lr_power", options.pop("lr_power", None))
    warmup = options.pop("lr_warmup_steps", None)
    if is_off(warmup):
        found.take("train.warmup", 0, "SimpleTuner warms up only where told to", "default")
    elif str(name) == "constant":
        found.put("train.warmup", 0)
        found.leave("lr_warmup_steps", warmup, "the constant scheduler does not warm up")
    else:
        take_share(found, "lr_warmup_steps", warmup, "train.warmup")
    cycles = options.pop("lr_num_cycles", None)
    if found.get("train.scheduler") == "cosine_with_restarts":
        found.keep("lr_num_cycles", cycles or 1, "train.restarts", cycles or 1)
    elif cycles is not None:
        found.leave("lr_num_cycles", cycles, "only cosine_with_restarts has cycles")
    take_optimizer(found, "optimizer", options.pop("optimizer", None))
    arguments = dict(
        pair.partition("=")[::2]
        for pair in str(options.pop("optimizer_config", None) or "").split(",")
        if pair
    )
    if decay := options.pop("adam_weight_decay", None):
        arguments.setdefault("weight_decay", str(decay))
    take_optimizer_arguments(found, "optimizer_config", arguments)
    if "max_grad_norm" not in options:
        found.take("train.max_grad_norm", 2.0, "SimpleTuner's default", "default")
    ema, decay = options.pop("use_ema", None), options.pop("ema_decay", None)
    if is_off(ema):
        for option, value in (("use_ema", ema), ("ema_decay", decay)):
            if value is not None:
                found.leave(option, value, "off, as it is here")
    else:
        found.keep("use_ema", ema, "train.ema_decay", decay or 0.995)


def _take_flow(found: Imported, options: dict[str, Any]) -> None:
    """Noise levels: a sigmoid of a normal number, or uniform, and a shift of 3 where nothing else is said."""
    names = (
        "flow_use_uniform_schedule",
        "flow_schedule_auto_shift",
        "flow_schedule_shift",
        "flow_sigmoid_scale",
    )
    uniform, auto, shift, scale = (options.pop(name, None) for name in names)
    row = CATALOGUE[found.get("model.family")]
    if row.process != "flow":
        for name, value in zip(names, (uniform, auto, shift, scale), strict=True):
            if value is not None:
                found.leave(name, value, f"only for flow models, which {row.label} is not")
        return
    leave_off(found, flow_use_uniform_schedule=uniform, flow_schedule_auto_shift=auto)
    if not is_off(auto):
        found.keep(
            "flow_schedule_auto_shift", auto, "noise.timesteps", "flux_shift", "it grows with the picture"
        )
        if shift is not None:
            found.leave("flow_schedule_shift", shift, "the shift follows from the size of the picture")
        return
    if not is_off(uniform):
        found.keep("flow_use_uniform_schedule", uniform, "noise.timesteps", "uniform")
    else:
        found.take("noise.timesteps", "shift", "SimpleTuner's default: a sigmoid, shifted", "default")
        if scale is not None:
            found.keep("flow_sigmoid_scale", scale, "noise.sigmoid_scale", scale)
    if shift is None:
        found.take("noise.shift", 3.0, "SimpleTuner's default", "default")
    elif is_off(shift):
        found.keep("flow_schedule_shift", shift, "noise.shift", 1, "no shift")
    else:
        found.keep("flow_schedule_shift", shift, "noise.shift", shift)


def _take_data(found: Imported, options: dict[str, Any], beside: Beside) -> None:
    pixels, kind = options.pop("resolution", None), options.pop("resolution_type", None)
    _take_resolution(found, "resolution", pixels, kind)
    if kind is not None:
        found.leave("resolution_type", kind, "read with resolution")
    name = options.pop("data_backend_config", None)
    prompt = str(options.pop("instance_prompt", "") or "")
    if name is None:
        return
    file = beside(str(name))
    if file is None:
        found.miss("data_backend_config", name, "it is not there; put it beside, or name your photos")
        return
    found.leave("data_backend_config", name, "read, see below")
    data = parse_json(read_text(file), file.name)
    rows = [dict(row) for row in data if isinstance(row, dict)] if isinstance(data, list) else []
    folders: list[Folder] = []
    sizes: dict[Any, list[int]] = {}
    seen: dict[Any, tuple[str, dict[str, Any]]] = {}
    own_path: Any = None
    usual = found.get("dataset.resolution") or 0
    own: dict[str, Any] = {}
    where = ""
    for row in rows:
        prefix = f"{row.pop('id', 'backend')} "
        kind, dataset = str(row.pop("type", "local")), str(row.pop("dataset_type", "image"))
        if dataset != "image" or not is_off(row.get("disabled")):
            found.leave(prefix.strip(), dataset, "it is disabled, or a cache, which this program has anyway")
            continue
        if kind != "local":
            found.miss(prefix + "type", kind, "photos are files in a folder; download them first")
            continue
        repeats = row.pop("repeats", None)
        regular = not is_off(row.pop("is_regularisation_data", row.pop("is_regularization_data", None)))
        word = str(row.pop("instance_prompt", "") or prompt)
        folder = row.pop("instance_data_dir", "")
        size = (row.pop("resolution", None), row.pop("resolution_type", None))
        if (pixels := _pixels(*size)) == 0:
            found.miss(f"{prefix}resolution", size[0], "it is no resolution")
        sizes.setdefault(folder, []).append(pixels or usual)
        if len(sizes[folder]) > 1:
            again = len(set(sizes[folder])) < len(sizes[folder])
            if not again and own_path == folder:
                more = sides_text(sizes[folder][1:])
                why = "the same photos at another size: each is shown at each of them"
                found.keep(f"{prefix}resolution", size[0], "dataset.more_resolutions", more, why)
            else:
                why = "they are shown once" if again else "at another size, in that subset"
                found.leave(f"{prefix}resolution", size[0], f"the same photos again; {why}")
            name, before = seen[folder]
            tell_differences(found, prefix, {"repeats": repeats, **row}, before, name, tables.BACKEND)
            continue
        seen[folder] = (prefix.strip(), {"repeats": repeats, **row})
        more = number_or(found, f"{prefix}repeats", repeats, None)
        count = None if more is None else int(more) + 1
        names = {"path": "instance_data_dir", "trigger": "instance_prompt", "repeats": "repeats"}
        names = {ours: prefix + option for ours, option in names.items()}
        folders.append(Folder(names, folder, word, count, regularisation=regular))
        if count is not None:
            found.note(f"{prefix}repeats = {repeats}: 0 is once there, so it is {count} here.")
        if where or regular:
            tell_differences(found, prefix, row, own, where, tables.BACKEND)
            if size[0] is not None and (not where or pixels == sizes[own_path][0]):
                found.leave(f"{prefix}resolution", size[0], f"as in {where}" if where else "in that subset")
            continue
        own, own_path, where = dict(row), folder, prefix.strip()
        _take_resolution(found, f"{prefix}resolution", *size)
        follow(found, row, tables.BACKEND, prefix)
        found.unknown({prefix + option: value for option, value in row.items()})
    first = next((one for one in folders if not one.regularisation), None)
    for place, each in enumerate(folders):
        if first and each is not first:
            told = each.names["path"].replace("instance_data_dir", "resolution")
            folders[place] = with_sizes(each, told, sizes[each.path], sizes[first.path])
    take_folders(found, folders)


def _take_resolution(found: Imported, option: str, value: Any, kind: Any) -> None:
    """In pixels, or in megapixels where resolution_type is "area"."""
    if (pixels := _pixels(value, kind)) is None:
        return
    if pixels:
        megapixels = str(kind) == "area" or pixels != number_or(found, option, value, pixels)
        found.keep(option, value, "dataset.resolution", pixels, "megapixels" if megapixels else "")
    else:
        found.miss(option, value, f"{shown(value)} is no resolution")


def _pixels(value: Any, kind: Any) -> int | None:
    """None where nothing is said, 0 for what is no resolution."""
    if value is None or is_off(value):
        return None
    with suppress(Unusable):
        megapixels = str(kind) == "area" or 0 < number(value) < 16
        return round((abs(number(value)) * 2**20) ** 0.5 / 64) * 64 if megapixels else side(value)
    return 0


def _take_samples(found: Imported, options: dict[str, Any], beside: Beside) -> None:
    prompt, library = options.pop("validation_prompt", None), options.pop("user_prompt_library", None)
    size = str(options.pop("validation_resolution", "") or "")
    sizes = [int(part) for part in re.findall(r"\d+", size.partition(",")[0])]
    shared: dict[str, Any] = {
        "negative": options.pop("validation_negative_prompt", None),
        "seed": _integer(options.pop("validation_seed", None)),
        "steps": _integer(options.pop("validation_num_inference_steps", None)),
        "guidance": _float(options.pop("validation_guidance", None)),
        "width": sizes[0] if sizes and sizes[0] >= 64 else None,
        "height": sizes[-1] if sizes and sizes[-1] >= 64 else None,
    }
    prompts = [str(prompt)] if prompt else []
    if library:
        file = beside(str(library))
        data = parse_json(read_text(file), file.name) if file else None
        if isinstance(data, dict):
            found.leave("user_prompt_library", library, "read")
            prompts += [str(value["prompt"] if isinstance(value, dict) else value) for value in data.values()]
        else:
            found.miss("user_prompt_library", library, "it is not there, or holds no prompts")
    lines = [PromptLine(prompt=text, **shared) for text in prompts or [""]]
    take_prompts(found, "validation_prompt", lines, _SAMPLE_NAMES)


_SAMPLE_NAMES = {
    "negative": "validation_negative_prompt",
    "width": "validation_resolution",
    "height": "validation_resolution",
    "seed": "validation_seed",
    "steps": "validation_num_inference_steps",
    "guidance": "validation_guidance",
}


def _integer(value: Any) -> int | None:
    try:
        return None if value in (None, "") else int(number(value))
    except Unusable:
        return None


def _float(value: Any) -> float | None:
    try:
        return None if value in (None, "") else number(value)
    except Unusable:
        return None
