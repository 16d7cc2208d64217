"""ai-toolkit: a job's YAML (or the JSON of its page), and the snippets of it that guides print.

Its own defaults, which are not ours: rate 1e-6, 1000 steps, rank 4, a constant schedule, 512 px, a
checkpoint every 1000 steps. Transformers are scaled by 1 whatever linear_alpha says (the format it saves
in has no alpha); the U-Nets are scaled by alpha / rank, with alpha 1.
"""

from __future__ import annotations

from typing import Any

from ..families import CATALOGUE
from . import ai_toolkit_tables as tables
from .kohya import Base, Beside, flattened, read_kohya
from .names import effective_rate, family_called, layers_regex, quantization, sides, take_base
from .prompt_lines import PromptLine, take_prompts
from .reading import refuse
from .report import Imported, Unusable, is_off
from .rules import follow
from .shared import (
    Folder,
    safe_name,
    take_alpha,
    take_folders,
    take_optimizer,
    take_optimizer_arguments,
    take_scheduler,
    take_sizes,
    take_text_rate,
    tell_differences,
    with_own,
    with_sizes,
)


def read_ai_toolkit(data: dict[str, Any], name: str, beside: Beside, into: Base | None = None) -> Imported:
    """``into`` as in :func:`read_kohya`. Raises ConfigError for a job that is no training of one LoRA."""
    config = data.get("config")
    if not isinstance(config, dict):
        return _read_snippet(dict(data), name, beside, into)
    processes = config.get("process")
    if not isinstance(processes, list) or not processes or not isinstance(processes[0], dict):
        raise refuse(name, "has no process in its config; it is no training job of ai-toolkit")
    found = Imported("ai-toolkit")
    process = dict(processes[0])
    if len(processes) > 1:
        found.miss("process", f"{len(processes)} of them", "the first is read")
    found.leave("job", data.get("job"), "the kind of job")
    if "meta" in data:
        found.leave("meta", data["meta"], "a note in the file")
    found.unknown({key: value for key, value in data.items() if key not in ("job", "config", "meta")})
    if title := config.get("name"):
        try:
            found.keep("config.name", title, "output.name", safe_name(str(title)))
        except Unusable as problem:
            found.miss("config.name", title, str(problem))
    found.unknown({f"config.{key}": value for key, value in config.items() if key not in ("name", "process")})
    _take_process(found, process, whole=True)
    found.settle()
    return found


def _read_snippet(data: dict[str, Any], name: str, beside: Beside, into: Base | None) -> Imported:
    """What guides print: a part of a job, or kohya's options written as YAML, or both in one."""
    data = _indented(data)
    training = data.pop("training", None)
    network = data.get("network")
    kohya = {key: value for key, value in data.items() if not isinstance(value, (dict, list))}
    if isinstance(training, dict):
        kohya = flattened(training) | kohya
    if not kohya:
        if not any(key in data for key in ("model", "network", "train", "datasets", "sample")):
            raise refuse(name, "is neither a job of ai-toolkit nor a part of one")
        found = Imported("ai-toolkit")
        _take_process(found, data, whole=False)
        found.settle()
        return found
    for key in kohya:
        data.pop(key, None)
    renamed = {
        "linear": "network_dim",
        "rank": "network_dim",
        "linear_alpha": "network_alpha",
        "alpha": "network_alpha",
    }
    arguments = {key: kohya.pop(key) for key in list(kohya) if key.startswith("loraplus_")}
    kohya = {renamed.get(key, key): value for key, value in kohya.items() if value is not None}
    if kohya.get("type") == "lora":
        del kohya["type"]
    for options in (network, data.pop("network_args", None)):
        for key, value in (options if isinstance(options, dict) else {}).items():
            if key in renamed:
                kohya[renamed[key]] = value
            elif key == "network_args" and isinstance(value, dict):
                arguments |= value
            elif key.startswith("loraplus_"):
                arguments[key] = value
    kohya["network_args"] = arguments
    data.pop("network", None)
    model = data.pop("model", None) or {}
    part = Imported()
    if isinstance(model, dict) and model:
        _take_model(part, dict(model), whole=False)
        kohya.pop("pretrained_model_name_or_path", None)
        kohya["pretrained_model_name_or_path"] = part.get("model.base")
    found = read_kohya(kohya, beside, into=into)
    found.program = "a guide's mixture of kohya's and ai-toolkit's names"
    for section, table in part.tables.items():
        found.tables.setdefault(section, {}).update(table)
    found.lines = part.lines + found.lines
    if data:
        _take_process(found, data, whole=False)
    found.settle()
    return found


def _indented(data: dict[str, Any]) -> dict[str, Any]:
    """What stands behind "model:" or "sample:" belongs to it, up to the next head: pages lose the indentation
    of what they print, and then all of it stands at the top. Options of other sections are known there."""
    tables: dict[str, Any] = {}
    section = tables
    for key, value in data.items():
        if value is None and key in ("model", "sample"):
            section = tables.setdefault(key, {})
        elif value is None or isinstance(value, (dict, list)):
            section, tables[key] = tables, value
        else:
            section[key] = value
    return tables


def _table(found: Imported, data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.pop(name, None)
    if value is not None and not isinstance(value, dict):
        found.miss(name, value, "it should be a table of options")
    return dict(value) if isinstance(value, dict) else {}


def _take_process(found: Imported, process: dict[str, Any], whole: bool) -> None:
    """``whole``: a job, whose missing options have ai-toolkit's defaults; else a part of one."""
    if (word := process.pop("trigger_word", None)) is not None:
        found.keep("trigger_word", word, "dataset.trigger", word)
    model = _table(found, process, "model")
    if model or whole:
        _take_model(found, model, whole)
    network, train = _table(found, process, "network"), _table(found, process, "train")
    _take_network(found, network, whole)
    reg_weight = train.pop("reg_weight", None)
    if reg_weight is not None:
        found.leave("train.reg_weight", reg_weight, "the weight of the regularisation sets (is_reg)")
    _take_train(found, train, whole)
    _take_datasets(found, process.pop("datasets", None), whole, reg_weight)
    save = _table(found, process, "save")
    follow(found, save, tables.SAVE, "save.")
    found.unknown({f"save.{key}": value for key, value in save.items()})
    _take_samples(found, _table(found, process, "sample"))
    follow(found, process, tables.JOB)
    found.unknown(process)
    if whole or network or train:
        effective_rate(found)


def _take_model(found: Imported, model: dict[str, Any], whole: bool) -> None:
    arch = str(model.pop("arch", "") or "")
    family, why = family_called(arch), f"arch {arch}"
    if arch:
        found.leave("model.arch", arch, "it names the family")
    for flag, name in tables.FLAGS.items():
        if (value := model.pop(flag, None)) is not None:
            found.leave(f"model.{flag}", value, "it names the family")
            if not is_off(value):
                family, why, arch = family or family_called(name), flag, arch or name
    base = str(model.pop("name_or_path", "") or "")
    if arch and not family:
        raise refuse(f"arch {arch}:", "is a family that cannot be trained here")
    try:
        take_base(found, "model.name_or_path", base, family, why)
    except Unusable as problem:
        if whole:
            raise refuse("model.name_or_path:", str(problem)) from None
        found.miss("model.name_or_path", base, str(problem))
    for option, kind, setting in (
        ("quantize", "qtype", "model.quantize"),
        ("quantize_te", "qtype_te", "model.quantize_text"),
    ):
        on, format_ = model.pop(option, None), model.pop(kind, None)
        if on is None and format_ is None:
            continue
        ours = "none" if is_off(on) else quantization(format_ or "qfloat8")
        found.keep(f"model.{option}", on, setting, ours, f"{format_ or 'qfloat8'}" if ours != "none" else "")
        if format_ is not None:
            found.leave(f"model.{kind}", format_, f"read with {option}")
    follow(found, model, tables.MODEL, "model.")
    found.unknown({f"model.{key}": value for key, value in model.items()})


def _take_network(found: Imported, network: dict[str, Any], whole: bool) -> None:
    if not network and not whole:
        return
    kind = str(network.pop("type", "lora") or "lora").lower()
    if kind == "dora":
        found.keep("network.type", kind, "adapter.dora", True)
    elif kind in ("lora", "locon", "lokr"):
        found.keep("network.type", kind, "adapter.type", "lokr" if kind == "lokr" else "lora")
    else:
        found.miss("network.type", kind, "this kind of adapter is not offered; a LoRA is trained")
    rank, linear = network.pop("rank", None), network.pop("linear", None)
    for option, value in (("rank", rank), ("linear", linear)):
        if value is not None and (option == "rank" or rank is None):
            found.keep(f"network.{option}", value, "adapter.rank", value)
        elif value is not None:
            found.leave("network.linear", value, "rank is given, and wins")
    if rank is None and linear is None:
        found.take("adapter.rank", 4, "ai-toolkit's default", "default")
    alpha = network.pop("alpha", None)
    option, given = "network.linear_alpha", network.pop("linear_alpha", None)
    if given is None:
        option, given = "network.alpha", alpha
    elif alpha is not None:
        found.leave("network.alpha", alpha, "linear_alpha is given, and wins")
    ours = found.get("adapter.rank")
    if CATALOGUE[found.get("model.family")].file_parts[0] != "unet":
        why = "transformers are scaled by 1 in ai-toolkit, whatever alpha says"
        if given is None:
            found.take("adapter.alpha", ours, why, "default")
        else:
            found.keep(option, given, "adapter.alpha", ours, "" if given == ours else why)
    else:
        take_alpha(found, option, given, 1)
    conv, conv_alpha = network.pop("conv", None), network.pop("conv_alpha", None)
    if not is_off(conv) and CATALOGUE[found.get("model.family")].file_parts[0] == "unet":
        found.keep("network.conv", conv, "adapter.conv_rank", conv)
        found.take("adapter.targets", "transformer+conv", "conv adapts the convolutions too", "converted")
        found.keep("network.conv_alpha", conv_alpha or conv, "adapter.conv_alpha", conv_alpha or conv)
    else:
        for option, value in (("conv", conv), ("conv_alpha", conv_alpha)):
            if value is not None:
                found.leave(f"network.{option}", value, "there are no convolutions to adapt")
    _take_layers(found, network)
    follow(found, network, tables.NETWORK, "network.")
    found.unknown({f"network.{key}": value for key, value in network.items()})


def _take_layers(found: Imported, network: dict[str, Any]) -> None:
    """network_kwargs: parts of the names of the layers that are adapted, or left out."""
    given = network.get("network_kwargs")
    if not isinstance(given, dict) or not given:
        return
    rest = dict(network.pop("network_kwargs"))
    only, ignored = rest.pop("only_if_contains", None), rest.pop("ignore_if_contains", None)
    lists = [words if isinstance(words, list) else [words] if words else [] for words in (only, ignored)]
    told = {"only_if_contains": only, "ignore_if_contains": ignored}
    if any(lists):
        option = ", ".join(f"network.network_kwargs.{name}" for name, value in told.items() if value)
        found.keep(
            option,
            [value for value in told.values() if value],
            "adapter.target_regex",
            layers_regex(lists[0], lists[1]),
        )
    follow(found, rest, tables.NETWORK, "network.network_kwargs.")
    found.unknown({f"network.network_kwargs.{name}": value for name, value in rest.items()})


def _take_train(found: Imported, train: dict[str, Any], whole: bool) -> None:
    if not train and not whole:
        return
    rate, own = train.pop("lr", None), train.pop("unet_lr", None)
    if own is not None:
        found.keep("train.unet_lr", own, "train.learning_rate", own)
        if rate is not None:
            found.leave("train.lr", rate, "unet_lr is given, and wins")
    elif rate is not None:
        found.keep("train.lr", rate, "train.learning_rate", rate)
    else:
        found.take("train.learning_rate", 1e-6, "ai-toolkit's default", "default")
    text, text_rate = train.pop("train_text_encoder", None), train.pop("text_encoder_lr", None)
    if is_off(text):
        for option, value in (("train_text_encoder", text), ("text_encoder_lr", text_rate)):
            if value is not None:
                found.leave(f"train.{option}", value, "text encoders are left alone, as here")
    else:
        given = text_rate if text_rate is not None else found.get("train.learning_rate")
        take_text_rate(found, "train.train_text_encoder", text, given)
        if text_rate is not None:
            found.leave("train.text_encoder_lr", text_rate, "see train_text_encoder")
    _take_schedule(found, train)
    take_optimizer(found, "train.optimizer", train.pop("optimizer", None))
    parameters = train.pop("optimizer_params", None)
    take_optimizer_arguments(
        found, "train.optimizer_params", parameters if isinstance(parameters, dict) else {}
    )
    ema = _table(found, train, "ema_config")
    if ema:
        if is_off(ema.get("use_ema")):
            found.leave("train.ema_config", ema, "off, as it is here")
        else:
            found.keep("train.ema_config", ema, "train.ema_decay", ema.get("ema_decay", 0.999))
    preserve = train.pop("diff_output_preservation", None)
    if preserve is not None and is_off(preserve):
        found.leave("train.diff_output_preservation", preserve, "off, as it is here")
        for option in ("diff_output_preservation_multiplier", "diff_output_preservation_class"):
            if option in train:
                found.leave(f"train.{option}", train.pop(option), "goes with diff_output_preservation")
    elif preserve is not None:
        found.keep("train.diff_output_preservation", preserve, "prior.method", "output")
    _take_timesteps(found, train, whole)
    follow(found, train, tables.TRAIN, "train.")
    found.unknown({f"train.{key}": value for key, value in train.items()})


_DISTRIBUTIONS = {"sigmoid": "sigmoid", "linear": "uniform", "shift": "flux_shift"}


def _take_timesteps(found: Imported, train: dict[str, Any], whole: bool) -> None:
    name = train.pop("timestep_type", None)
    row = CATALOGUE[found.get("model.family")]
    if row.process != "flow":
        if name is not None:
            found.leave("train.timestep_type", name, f"only for flow models, which {row.label} is not")
    elif name is None:
        if whole:
            found.take("noise.timesteps", "sigmoid", "ai-toolkit's default", "default")
    elif str(name) in _DISTRIBUTIONS:
        ours = _DISTRIBUTIONS[str(name)]
        why = "it grows with the picture; shifted is a sigmoid here" if ours == "flux_shift" else ""
        found.keep("train.timestep_type", name, "noise.timesteps", ours, why)
    else:
        found.miss("train.timestep_type", name, "not offered; the family's own distribution is taken")


def _take_schedule(found: Imported, train: dict[str, Any]) -> None:
    name, parameters = train.pop("lr_scheduler", None), train.pop("lr_scheduler_params", None)
    take_scheduler(found, "train.lr_scheduler", name, "constant", "ai-toolkit")
    found.assume("train.warmup", 0, "ai-toolkit warms up only where told to")
    if parameters:
        found.miss("train.lr_scheduler_params", parameters, "set train.warmup and train.restarts")


def _sizes(row: dict[str, Any]) -> tuple[int, ...]:
    """The resolutions of a dataset, the largest first; none where they cannot be read."""
    given = row.get("resolution")
    try:
        return sides(given if isinstance(given, list) else [512 if given is None else given])
    except Unusable:
        return ()


def _take_datasets(found: Imported, datasets: Any, whole: bool, reg_weight: Any) -> None:
    rows = [dict(row) for row in datasets if isinstance(row, dict)] if isinstance(datasets, list) else []
    if not rows:
        if whole:
            found.note("No datasets: name your photos in dataset.path.")
        return
    folders: list[Folder] = []
    own: dict[str, Any] | None = None
    where = ""
    for place, row in enumerate(rows):
        prefix = f"datasets[{place}]."
        name = "folder_path" if "folder_path" in row else "dataset_path"
        names = {"path": name, "trigger": "trigger_word", "repeats": "num_repeats", "masks": "mask_path"}
        names |= {"weight": "loss_multiplier"} | ({"regularisation": "is_reg"} if "is_reg" in row else {})
        regular = not is_off(row.pop("is_reg", None))
        folders.append(
            Folder(
                {ours: prefix + option for ours, option in names.items()},
                row.pop(name, ""),
                row.pop("trigger_word", None),
                row.pop("num_repeats", None),
                row.pop("loss_multiplier", reg_weight if regular else None),
                regular,
                masks=None if is_off(row.get("mask_path")) else row.pop("mask_path"),
            )
        )
        if own is not None:
            folders[-1] = with_own(folders[-1], prefix, row, own, tables.OWN)
            folders[-1] = with_sizes(folders[-1], f"{prefix}resolution", _sizes(row), _sizes(own))
            told = [*(tables.OWN[ours] for ours in folders[-1].own if ours in tables.OWN), "resolution"]
            if _sizes(row) == _sizes(own) and "resolution" in row:
                found.leave(f"{prefix}resolution", row["resolution"], f"as in {where}")
            mine, theirs = (
                {name: value for name, value in level.items() if name not in told} for level in (row, own)
            )
            tell_differences(found, prefix, mine, theirs, where, tables.DATASET)
            continue
        if regular:
            for option, value in row.items():
                found.miss(prefix + option, value, "the first folder of photos' holds for all")
            continue
        own, where = dict(row), prefix.rstrip(".")
        if row.get("resolution") is None:
            found.take("dataset.resolution", 512, "ai-toolkit's default", "default")
        elif isinstance(row["resolution"], list) and (several := _sizes(row)):
            take_sizes(found, f"{prefix}resolution", row.pop("resolution"), several)
        follow(found, row, tables.DATASET, prefix)
        found.unknown({prefix + option: value for option, value in row.items()})
    if any(not is_off(folder.masks) for folder in folders):
        found.take("loss.mask", "batch", "mask_path: ai-toolkit weighs masks so")
    take_folders(found, folders)


_SAMPLE_NAMES = {
    "negative": "sample.neg",
    "width": "sample.width",
    "height": "sample.height",
    "seed": "sample.seed",
    "steps": "sample.sample_steps",
    "guidance": "sample.guidance_scale",
}


def _shared(sample: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """What a prompt has: its own values, else the section's."""
    values = {field: row.get(name[7:], sample.get(name[7:])) for field, name in _SAMPLE_NAMES.items()}
    sides = {field: _integer(values[field]) for field in ("width", "height", "seed", "steps")}
    negative = values["negative"]
    return {**values, **sides, "negative": negative if isinstance(negative, str) else None}


def _take_samples(found: Imported, sample: dict[str, Any]) -> None:
    if not sample:
        return
    rows = sample.pop("samples", None) or sample.pop("prompts", None) or []
    prompts = []
    for row in rows if isinstance(rows, list) else []:
        row = {"prompt": row} if isinstance(row, str) else row
        if isinstance(row, dict) and row.get("prompt"):
            text = str(row["prompt"]).replace("[trigger]", found.get("dataset.trigger")).strip()
            prompts.append(PromptLine(prompt=text, **_shared(sample, row)))
    if not prompts:
        prompts = [PromptLine(**_shared(sample, {}))]
    take_prompts(found, "sample.prompts prompt", prompts, _SAMPLE_NAMES)
    for option in ("neg", "width", "height", "seed", "sample_steps", "guidance_scale"):
        sample.pop(option, None)
    follow(found, sample, tables.SAMPLE, "sample.")
    found.unknown({f"sample.{key}": value for key, value in sample.items()})


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
