"""kohya's sd-scripts: the options of a training command or of its --config_file, as our recipe.

The scripts' own defaults, which are not ours, are made explicit: rank 4, alpha 1, learning rate 2e-6, 1600
steps, a constant schedule without warm-up, captions in .caption files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import TEXT_RATES
from ..families import CATALOGUE
from . import kohya_tables
from .kohya_dataset import take_buckets, take_dataset
from .kohya_flow import take_flow
from .kohya_network import take_network
from .names import effective_rate, family_called, flat, side, take_base
from .prompt_lines import prompt_lines, prompts_in, sampler, take_prompts
from .reading import parse_toml, read_text
from .report import Imported, Unusable, is_off, number
from .rules import follow
from .shared import (
    Folder,
    is_true,
    key_values,
    leave_off,
    safe_name,
    take_folders,
    take_optimizer,
    take_optimizer_arguments,
    take_power,
    take_scheduler,
    take_share,
)

Beside = Callable[[str], Path | None]
"""A file that a recipe names -> where it is, or None where it is not to be had."""

Base = tuple[str, str]
"""(family, base)"""

PLAIN_SCRIPT = "train_network"


def read_kohya(
    options: dict[str, Any], beside: Beside, script: str = "", into: Base | None = None
) -> Imported:
    """``into``: the base of the recipe that options go into which name none. Raises ConfigError for a file
    beside it that is damaged."""
    found = Imported("kohya sd-scripts")
    options = dict(options)
    if config := options.pop("config_file", None):
        options = _with_config(found, str(config), beside) | options
    _take_model(found, options, script, into)
    take_network(found, options)
    _take_rates(found, options)
    _take_duration(found, options)
    _take_schedule(found, options)
    _take_optimizer(found, options)
    take_flow(found, options)
    _take_loss(found, options)
    _take_photos(found, options, beside)
    _take_samples(found, options, beside)
    _take_saving(found, options)
    follow(found, options, kohya_tables.ALL)
    if found.has("loss.mask"):
        found.assume("loss.mask_floor", 0, "kohya's masks hide all that lies outside")
    if not found.has("model.precision") and not found.part:
        found.note("No mixed_precision: kohya then trains in fp32; here model.precision chooses by the GPU.")
    if not found.has("dataset.resolution") and not found.part:
        found.note("kohya has no usual resolution; the base's own is taken.")
    found.unknown(options)
    if not found.part:
        effective_rate(found)
    found.settle()
    return found


def flattened(tables: dict[str, Any]) -> dict[str, Any]:
    """A --config_file: its sections are for people only."""
    options: dict[str, Any] = {}
    for name, value in tables.items():
        options.update(value if isinstance(value, dict) else {name: value})
    return options


def _with_config(found: Imported, name: str, beside: Beside) -> dict[str, Any]:
    file = beside(name) or beside(name + ".toml")
    if file is None:
        found.miss("config_file", name, "it is not there; its settings are not in this recipe")
        return {}
    found.leave("config_file", name, "read; options of the command win over it")
    return flattened(parse_toml(read_text(file), file.name))


def _take_model(found: Imported, options: dict[str, Any], script: str, into: Base | None) -> None:
    family, why = "", ""
    if script:
        named = script.removesuffix("_train_network")
        family = family_called(named)
        if script == PLAIN_SCRIPT:
            family = next(
                row.key for row in CATALOGUE.values() if row.kohya and row.kohya[0] == f"{script}.py"
            )
        if chosen := family_called(str(options.get("model_type", ""))):
            family = chosen
        why = f"trained by {script}.py"
        if not family:
            found.note(f"{script}.py trains nothing that can be trained here; the base's name has to tell.")
    elif module := str(options.get("network_module", "")):
        told = module.rpartition("lora_")[2]
        family, why = family_called(told) or family_called(told.replace("_", "")), f"its network is {module}"
    if not family and not is_off(options.get("v2")):
        family, why = family_called("sd2"), "v2 is on"
    base = str(options.pop("pretrained_model_name_or_path", "") or "")
    found.part = into is not None and not (family or base)
    if into and found.part:
        found.put("model.family", into[0])
        found.put("model.base", into[1])
        return
    try:
        take_base(found, "pretrained_model_name_or_path", base, family, why)
    except Unusable as problem:
        # Without a word on the family, the plain script is what people use.
        found.note(
            f"{problem}; it is taken for the plain train_network.py's. Change model.family if it is not."
        )
        plain = next(
            row.key for row in CATALOGUE.values() if row.kohya and row.kohya[0] == "train_network.py"
        )
        take_base(found, "pretrained_model_name_or_path", base, plain, "assumed")


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _take_rates(found: Imported, options: dict[str, Any]) -> None:
    """learning_rate, unet_lr, text_encoder_lr: the special ones win; a negative one unlearns."""
    rate = options.pop("learning_rate", None)
    unet, text = options.pop("unet_lr", None), options.pop("text_encoder_lr", None)
    apart: dict[str, Any] = {
        name: options.pop(name) for name in ("text_encoder_lr1", "text_encoder_lr2") if name in options
    }
    denoiser_only = not is_off(options.pop("network_train_unet_only", None))
    blank = (None, "")
    own = ("unet_lr", unet) if unet not in blank and not is_off(unet) else ("learning_rate", rate)
    if own[1] in blank:
        found.take("train.learning_rate", 2e-6, "kohya's default", "default")
    else:
        _take_rate(found, *own)
        if own[0] == "unet_lr" and rate not in blank:
            found.leave("learning_rate", rate, "unet_lr is given, and wins")
    row = CATALOGUE[found.get("model.family")]
    texts = text if isinstance(text, list) else [] if text in blank else str(text).split()
    option, given = (
        ("text_encoder_lr", texts) if texts else ("learning_rate", [rate] if rate not in blank else [])
    )
    if denoiser_only:
        found.leave("network_train_unet_only", True, "the text encoders' rates stay 0")
        for name, value in {**({"text_encoder_lr": text} if texts else {}), **apart}.items():
            found.leave(name, value, "network_train_unet_only is on")
    elif not row.trainable_text:
        for name, value in {**({"text_encoder_lr": texts} if texts else {}), **apart}.items():
            if not all(is_off(each) for each in (value if isinstance(value, list) else [value])):
                found.miss(name, value, f"{row.label}'s text encoders are not trained here")
            else:
                found.leave(name, value, "off, as it is here")
    else:
        if len(texts) > 1 and row.kohya and row.kohya[1] == "networks.lora":
            found.note(
                f"text_encoder_lr = {' '.join(map(str, texts))}: kohya's network takes the first for both "
                "text encoders, and so does this recipe."
            )
            given = texts[:1]
        for place, name in enumerate(TEXT_RATES[: len(row.trainable_text)]):
            if (value := apart.get(f"text_encoder_lr{place + 1}")) is not None:
                why = (
                    "kohya's manual has this option and its scripts refuse it; here it is that encoder's rate"
                )
                found.keep(f"text_encoder_lr{place + 1}", value, f"train.{name}", value, why)
                continue
            if found.part and not texts:
                continue
            value = given[min(place, len(given) - 1)] if given else 2e-6
            why = (
                "" if texts else "kohya trains the text encoders with the learning rate unless told otherwise"
            )
            try:
                value = abs(number(value))
            except Unusable as problem:
                found.miss(option, value, str(problem))
                continue
            if given:
                found.keep(option, value, f"train.{name}", value, why)
            else:
                found.take(f"train.{name}", value, why, "default")


def _take_rate(found: Imported, option: str, value: Any) -> None:
    try:
        rate = number(_first(value))
    except Unusable as problem:
        found.miss(option, value, str(problem))
        return
    if rate >= 0:
        found.keep(option, value, "train.learning_rate", rate)
        return
    found.keep(option, value, "train.learning_rate", -rate, "a negative rate unlearns: train.unlearn below")
    found.take(
        "train.unlearn",
        True,
        "optimizers refuse a negative rate, and the loss has no bound that way; here unlearning is a mode "
        "of its own, which is held within bounds",
        "converted",
    )


def _take_duration(found: Imported, options: dict[str, Any]) -> None:
    """max_train_epochs beats max_train_steps, whose default is 1600."""
    steps, epochs = options.pop("max_train_steps", None), options.pop("max_train_epochs", None)
    leave_off(found, max_train_steps=steps, max_train_epochs=epochs)
    if not is_off(epochs):
        found.keep("max_train_epochs", epochs, "train.epochs", epochs)
        if not is_off(steps):
            found.leave("max_train_steps", steps, "max_train_epochs is given, and wins")
    elif not is_off(steps):
        found.keep("max_train_steps", steps, "train.steps", steps)
    else:
        found.take("train.steps", 1600, "kohya's default where neither steps nor epochs are given", "default")


def _take_schedule(found: Imported, options: dict[str, Any]) -> None:
    name = options.pop("lr_scheduler", None)
    if custom := options.pop("lr_scheduler_type", None):
        found.miss("lr_scheduler_type", custom, "code of others is not run")
    take_scheduler(found, "lr_scheduler", name, "constant", "kohya")
    warmup = options.pop("lr_warmup_steps", None)
    if is_off(warmup):
        found.take("train.warmup", 0, "kohya warms up only where told to", "default")
    elif flat(str(name)) == "constant":
        found.leave("lr_warmup_steps", warmup, "kohya's constant scheduler does not warm up")
        found.put("train.warmup", 0)
    else:
        take_share(found, "lr_warmup_steps", warmup, "train.warmup")
    cycles = options.pop("lr_scheduler_num_cycles", None)
    if found.get("train.scheduler") == "cosine_with_restarts":
        if is_off(cycles):
            found.take("train.restarts", 1, "kohya's default: a single cycle", "default")
        else:
            found.keep("lr_scheduler_num_cycles", cycles, "train.restarts", cycles)
    elif cycles is not None:
        found.leave("lr_scheduler_num_cycles", cycles, "only cosine_with_restarts has cycles")
    decay = options.pop("lr_decay_steps", None)
    if not is_off(decay):
        take_share(found, "lr_decay_steps", decay, "train.decay")
    elif decay is not None:
        found.leave("lr_decay_steps", decay, "off, as it is here")
    take_power(found, "lr_scheduler_power", options.pop("lr_scheduler_power", None))
    for option in ("lr_scheduler_min_lr_ratio", "lr_scheduler_timescale", "lr_scheduler_args"):
        if (value := options.pop(option, None)) is not None:
            if is_off(value):
                found.leave(option, value, "off, as it is here")
            else:
                found.miss(option, value, "schedulers have no further settings here")


def _take_optimizer(found: Imported, options: dict[str, Any]) -> None:
    name = options.pop("optimizer_type", None)
    for old, means in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if (value := options.pop(old, None)) is not None:
            found.leave(old, value, f"an old way to say optimizer_type = {means}" if value else "off")
            name = name or (means if not is_off(value) else None)
    take_optimizer(found, "optimizer_type", name)
    arguments = key_values(options.pop("optimizer_args", None))
    if flat(str(name)) == "adafactor" and is_true(arguments.get("relative_step", "True")):
        arguments.pop("relative_step", None)
        found.note(
            "kohya's Adafactor sets its own rate (relative_step) and ignores learning_rate unless told "
            "relative_step=False; here the learning rate holds."
        )
    take_optimizer_arguments(found, "optimizer_args", arguments)
    for option in ("optimizer_schedulefree_wrapper", "schedulefree_wrapper_args"):
        if not is_off(value := options.pop(option, None)):
            found.miss(option, value, "a wrapper around any optimizer is not offered")


def _take_loss(found: Imported, options: dict[str, Any]) -> None:
    """The Huber border, which matters to two losses alone, and whose "snr" kohya has not for flow models."""
    if str(options.get("loss_type")) not in ("huber", "smooth_l1"):
        for name in ("huber_schedule", "huber_c", "huber_scale"):
            if (value := options.pop(name, None)) is not None:
                found.leave(name, value, "only for the losses huber and smooth_l1")
    elif CATALOGUE[found.get("model.family")].process == "flow" and options.get("huber_schedule") in (
        None,
        "snr",
    ):
        found.note(
            "The Huber schedule is snr, kohya's default: its scripts stop there with flow models. Here snr "
            "has a form of its own for them (loss.huber_schedule)."
        )


def _take_photos(found: Imported, options: dict[str, Any], beside: Beside) -> None:
    dataset, file = options.pop("dataset_config", None), None
    folder, regular = options.pop("train_data_dir", None), options.pop("reg_data_dir", None)
    weight = options.pop("prior_loss_weight", None)
    if dataset not in (None, "") and (file := beside(str(dataset))) is None:
        found.miss("dataset_config", dataset, "it is not there; import it by itself, or put it beside")
    folders = []
    for option, path in (("train_data_dir", folder), ("reg_data_dir", regular)):
        if path in (None, ""):
            continue
        if file is not None:
            found.leave(option, path, "dataset_config is given, and wins")
        elif option == "train_data_dir":
            names = {"path": option, "repeats": "dataset_repeats"}
            folders.append(Folder(names, path, repeats=options.pop("dataset_repeats", None)))
        else:
            names = {"path": option, "weight": "prior_loss_weight"}
            folders.append(Folder(names, path, weight=weight, regularisation=True))
    if weight is not None and file is None and not any(one.regularisation for one in folders):
        found.leave("prior_loss_weight", weight, "there are no regularisation pictures that it could be of")
    take_folders(found, folders)
    if file is not None:
        found.leave("dataset_config", dataset, "read, see below")
        take_dataset(found, parse_toml(read_text(file), file.name), weight, options)
    elif not found.part and "caption_extension" not in options and "caption_extention" not in options:
        found.note(
            "No caption_extension: kohya then reads .caption files, so that .txt captions have no effect "
            "there. Here .txt is read, and .caption where there is none."
        )
    if (repeats := options.pop("dataset_repeats", None)) is not None:
        found.leave("dataset_repeats", repeats, "there is no train_data_dir that it could be of")
    take_buckets(found, options)
    if "resolution" in options and not isinstance(options["resolution"], list):
        try:
            side(options["resolution"])
        except Unusable as problem:
            found.miss("resolution", options.pop("resolution"), str(problem))


def _take_samples(found: Imported, options: dict[str, Any], beside: Beside) -> None:
    prompts = options.pop("sample_prompts", None)
    steps = options.pop("sample_every_n_steps", None)
    epochs = options.pop("sample_every_n_epochs", None)
    if prompts not in (None, ""):
        text = str(prompts)
        file = beside(text) if len(text) < 500 and "\n" not in text else None
        if file is not None and file.suffix.lower() in (".txt", ".toml", ".json"):
            take_prompts(found, "sample_prompts", prompts_in(read_text(file), file.name))
        elif text.lower().endswith((".txt", ".toml", ".json")):
            found.miss(
                "sample_prompts",
                text,
                "it is not there; kohya would only log an error and go on",
            )
        else:
            take_prompts(found, "sample_prompts", list(prompt_lines(text)))
    leave_off(found, sample_every_n_steps=steps, sample_every_n_epochs=epochs)
    if name := options.pop("sample_sampler", None):
        if (ours := sampler(found, "sample_sampler", name)) and not found.has("samples.sampler"):
            found.keep("sample_sampler", name, "samples.sampler", ours)
        elif ours:
            found.leave("sample_sampler", name, "the prompts name theirs")
    elif found.has("samples.prompts") and CATALOGUE[found.get("model.family")].process != "flow":
        found.note("No sample_sampler: kohya then draws with ddim, which is samples.sampler = ddim here.")
    if not is_off(epochs):
        found.keep("sample_every_n_epochs", epochs, "samples.every_epochs", epochs)
        if not is_off(steps):
            found.leave("sample_every_n_steps", steps, "sample_every_n_epochs is given, and wins")
    elif not is_off(steps):
        found.keep("sample_every_n_steps", steps, "samples.every", steps)
    elif prompts not in (None, ""):
        found.take("samples.every", 0, "no interval is given", "default")


def _take_saving(found: Imported, options: dict[str, Any]) -> None:
    if name := options.pop("output_name", None):
        try:
            found.keep("output_name", name, "output.name", safe_name(str(name)))
        except Unusable as problem:
            found.miss("output_name", name, str(problem))
    steps, epochs = options.pop("save_every_n_steps", None), options.pop("save_every_n_epochs", None)
    last = options.pop("save_last_n_steps", None)
    leave_off(found, save_every_n_steps=steps, save_every_n_epochs=epochs, save_last_n_steps=last)
    if not is_off(steps):
        found.keep("save_every_n_steps", steps, "checkpoints.every", steps)
    if not is_off(epochs):
        found.keep("save_every_n_epochs", epochs, "checkpoints.every_epochs", epochs)
    if not is_off(last):
        try:
            every = found.get("checkpoints.every")
            kept = max(1, int(number(last) // every) + 1)
        except Unusable as problem:
            found.miss("save_last_n_steps", last, str(problem))
        else:
            found.keep("save_last_n_steps", last, "checkpoints.keep", kept, "kohya counts steps, not files")
    elif is_off(options.get("save_last_n_epochs")) and not (is_off(steps) and is_off(epochs)):
        keep = found.get("checkpoints.keep")
        found.note(
            f"kohya keeps every file it saves; here the last {keep} checkpoints stay (checkpoints.keep)."
        )
