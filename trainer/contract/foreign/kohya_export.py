"""Our recipe for kohya's sd-scripts: a --config_file, the dataset file and the prompts that it names.

The tables that import reads (:mod:`.kohya_tables`) say it backwards too: whatever is one option and one
setting with the same values. The rest is here. What kohya cannot do is told, never left out in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from ..blocks import block_values
from ..config import TEXT_RATES, TrainConfig
from ..errors import ConfigError
from ..families import CATALOGUE, DEMO_BASE, Family, block_maps, known_base
from ..fields import RECORDS, flatten
from ..files import write_text
from ..prompt import prompts_of
from ..settings.dataset import NOTHING_OWN, all_resolutions, resolutions_of
from . import kohya_tables
from .kohya_flow import SCRIPTS, flow_options
from .prompt_lines import parse_prompt_line
from .report import Line
from .rules import Table, To

_OPTIMIZERS = {
    "adamw": "AdamW",
    "adamw8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW32bit",
    "paged_adamw8bit": "PagedAdamW8bit",
    "adafactor": "AdaFactor",
    "came": "pytorch_optimizer.CAME",
    "lion": "Lion",
    "lion8bit": "Lion8bit",
    "prodigy": "Prodigy",
    "schedulefree_adamw": "AdamWScheduleFree",
    "ademamix8bit": "bitsandbytes.optim.AdEMAMix8bit",
    "paged_ademamix8bit": "bitsandbytes.optim.PagedAdEMAMix8bit",
}
_FIXED_RATE = ("relative_step=False", "scale_parameter=False", "warmup_init=False")
"""What Adafactor has to be told in kohya's scripts to follow the learning rate."""


def _inverse(*tables: Table) -> dict[str, str]:
    """{our setting: option} where both have the same values."""
    return {
        rule.setting: option
        for table in tables
        for option, rule in table.items()
        if isinstance(rule, To) and rule.convert is None
    }


_COMMAND = _inverse(kohya_tables.MODEL, kohya_tables.TRAINING, kohya_tables.NETWORK, kohya_tables.LOSS)
_SAVING = _inverse(kohya_tables.SAVING)
_ARGUMENTS = _inverse(kohya_tables.NETWORK_ARGS)
_PICTURES = _inverse(kohya_tables.CAPTIONS, kohya_tables.IMAGES)


_NOT_FOR_CLASS_PICTURES = ("captions.prefix", "captions.suffix")


@dataclass
class Exported:
    """Sections of the settings file, the dataset file, the prompts, and a line for every setting."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    script: str = ""
    told: set[str] = field(default_factory=set)

    def put(
        self, section: str, option: str, value: Any, setting: str = "", ours: Any = None, why: str = ""
    ) -> None:
        """``setting`` and ``ours`` are where it is from; without them it is kohya's own affair."""
        self.sections.setdefault(section, {})[option] = value
        self.tell(setting, ours, option, value, why)

    def tell(self, setting: str, ours: Any, option: str, value: Any, why: str = "") -> None:
        if setting:
            self.told.add(setting)
            self.lines.append(
                Line("kept" if ours == value else "converted", setting, ours, option, value, why)
            )

    def miss(self, setting: str, ours: Any, why: str) -> None:
        self.told.add(setting)
        self.lines.append(Line("missing", setting, ours, why=why))


def export_kohya(config: TrainConfig, out: Path) -> Exported:
    """Write the files; ``out`` is the settings file. Raises ConfigError where kohya cannot train it."""
    if out.exists():
        raise ConfigError({"--out": f"{out} is there already; choose another name"})
    made = to_kohya(config, out.stem)
    for name, text in texts(made, out.stem).items():
        write_text(out.parent / name.replace(f"{out.stem}.toml", out.name), text)
    return made


def texts(made: Exported, stem: str) -> dict[str, str]:
    """{file name: its text}."""
    document = tomlkit.document()
    document.add(tomlkit.comment(f"accelerate launch {made.script} --config_file {stem}.toml"))
    for section, table in made.sections.items():
        document.add(section, tomlkit.item(table))
    files = {f"{stem}.toml": tomlkit.dumps(document), f"{stem}.dataset.toml": tomlkit.dumps(made.dataset)}
    if made.prompts:
        files[f"{stem}.prompts.txt"] = "\n".join(made.prompts) + "\n"
    return files


def to_kohya(config: TrainConfig, stem: str) -> Exported:
    row = CATALOGUE[config.model.family]
    if row.kohya is None:
        able = ", ".join(each.label for each in CATALOGUE.values() if each.kohya)
        raise ConfigError(
            {"model.family": f"kohya's scripts train no LoRA for {row.label}; they do for {able}"}
        )
    if config.model.base == DEMO_BASE:
        said = "kohya cannot load the included demo model; set model.base to a full-size one"
        raise ConfigError({"model.base": said})
    made = Exported(script=row.kohya[0])
    _put_model(made, config, row)
    _put_network(made, config, row.kohya[1])
    _put_rates(made, config, row)
    _put_training(made, config)
    _put_noise(made, config, row)
    _put_dataset(made, config, row)
    _put_samples(made, config, row, stem)
    _put_saving(made, config)
    made.put("dataset", "dataset_config", f"{stem}.dataset.toml")
    _put_plain(made, config)
    return made


def _put_plain(made: Exported, config: TrainConfig) -> None:
    """Settings that are an option by the same values; all others that are set have no counterpart."""
    values = flatten(config)
    arguments = made.sections["network"].setdefault("network_args", [])
    datasets = made.dataset["datasets"]
    for setting, record in RECORDS.items():
        value = values[setting]
        if setting in made.told or value == record.default:
            continue
        if option := _COMMAND.get(setting):
            made.put("training", option, value, setting, value)
        elif option := _SAVING.get(setting):
            made.put("saving", option, value, setting, value)
        elif option := _ARGUMENTS.get(setting):
            arguments.append(f"{option}={value}")
            made.tell(setting, value, f"network_args {option}", value)
        elif option := _PICTURES.get(setting):
            if setting in _NOT_FOR_CLASS_PICTURES:
                for subset in (each for dataset in datasets for each in dataset["subsets"]):
                    if not subset.get("is_reg"):
                        subset.setdefault(option, value)
            else:
                for dataset in datasets:
                    dataset[option] = value
            made.tell(setting, value, option, value)
        else:
            made.miss(setting, value, "kohya's scripts have nothing like it")
    if not arguments:
        del made.sections["network"]["network_args"]


def _put_model(made: Exported, config: TrainConfig, row: Family) -> None:
    model = config.model
    base = model.base
    made.told.update(("model.family",))
    one_file = row.kohya is not None and row.kohya[0] not in ("train_network.py", "sdxl_train_network.py")
    why = ""
    if one_file and not base.endswith(".safetensors"):
        why = "kohya wants one .safetensors file here, with text encoders and VAE as files of their own"
    made.put("model", "pretrained_model_name_or_path", base, "model.base", base, why)
    names = {"auto": "bf16", "bf16": "bf16", "fp16": "fp16", "fp32": "no"}
    why = "where the GPU has it: RTX 30 or newer" if model.precision == "auto" else ""
    made.put("model", "mixed_precision", names[model.precision], "model.precision", model.precision, why)
    if model.quantize == "int8":
        made.put("model", "fp8_base", True, "model.quantize", model.quantize, "8 bits are fp8 there")
    elif model.quantize != "none":
        made.miss("model.quantize", model.quantize, "kohya has 8 bits (fp8_base) and no fewer")
    assistant = known_base(model.family, base)
    if assistant and assistant.assistant and model.assistant != "none":
        why = "kohya has no assistant LoRA; a distilled base loses its speed"
        made.miss("model.assistant", assistant.assistant, why)


_PRESETS = {"attention": "attn-only", "transformer": "attn-mlp", "transformer+conv": "full"}
"""LyCORIS' names of our targets."""


def _put_network(made: Exported, config: TrainConfig, module: str) -> None:
    adapter = config.adapter
    # What kohya's own network has not, LyCORIS has, which kohya's scripts load.
    lycoris = adapter.type in ("loha", "lokr") or (
        adapter.type == "lora" and (adapter.dora or adapter.rslora)
    )
    if lycoris:
        module = "lycoris.kohya"
    elif adapter.type != "lora":
        module = f"networks.{adapter.type}"
    arguments = [f"algo={adapter.type}", f"preset={_PRESETS[adapter.targets]}"] if lycoris else []
    made.put("network", "network_module", module)
    made.put("network", "network_dim", adapter.rank, "adapter.rank", adapter.rank)
    made.put("network", "network_alpha", adapter.alpha, "adapter.alpha", adapter.alpha)
    made.tell("adapter.type", adapter.type, "network_module", " ".join([module, *arguments]))
    made.told.update(("adapter.targets", "adapter.conv_rank", "adapter.conv_alpha"))
    if adapter.targets == "transformer+conv":
        rank = adapter.conv_rank or adapter.rank
        arguments += [f"conv_dim={rank}", f"conv_alpha={adapter.conv_alpha or adapter.alpha}"]
        made.tell("adapter.targets", adapter.targets, "network_args conv_dim", rank, "LoCon")
    elif adapter.targets == "attention" and not lycoris:
        made.miss("adapter.targets", adapter.targets, "kohya's LoRA adapts all linear layers of the blocks")
    _put_blocks(made, config, arguments)
    made.sections["network"]["network_args"] = arguments
    if adapter.precision == "bf16":
        made.put("network", "full_bf16", True, "adapter.precision", "bf16")


def _put_blocks(made: Exported, config: TrainConfig, arguments: list[str]) -> None:
    """Lists by block, which kohya has for U-Nets: a value for every block, and weights for each part."""
    adapter = config.adapter
    blocks = block_maps(config.model.family, config.model.base)[0]
    parts = list(dict.fromkeys(block.part for block in blocks if block.part))
    usual = {"block_ranks": adapter.rank, "block_alphas": adapter.alpha, "block_weights": 1.0}
    options = {"block_ranks": "block_dims", "block_alphas": "block_alphas", "block_weights": "*_lr_weight"}
    for name, option in options.items():
        text = getattr(adapter, name)
        if not text:
            continue
        if parts != ["down", "mid", "up"]:
            made.miss(f"adapter.{name}", text, "kohya has such lists for U-Nets only")
            continue
        values = [usual[name] if value is None else value for value in block_values(text, blocks)]
        if name == "block_weights":
            for part in parts:
                given = zip(values, blocks, strict=True)
                row = ",".join(f"{value:g}" for value, block in given if block.part == part)
                arguments.append(f"{part}_lr_weight={row}")
        else:
            arguments.append(f"{option}={','.join(f'{value:g}' for value in values)}")
        made.tell(f"adapter.{name}", text, f"network_args {option}", "a value for each block")


def _put_rates(made: Exported, config: TrainConfig, row: Family) -> None:
    train = config.train
    made.put("training", "learning_rate", train.learning_rate, "train.learning_rate", train.learning_rate)
    rates = [getattr(train, name) for name in TEXT_RATES[: len(row.trainable_text)]]
    made.told.update(f"train.{name}" for name in TEXT_RATES)
    if not any(rates):
        made.put("training", "network_train_unet_only", True)
        return
    several = row.kohya is not None and row.kohya[1] != "networks.lora"
    if several or len(set(rates)) == 1:
        value = rates if several else rates[0]
        made.put("training", "text_encoder_lr", value, "train.text_encoder_lr", rates[0])
        return
    made.put("training", "text_encoder_lr", rates[0] or rates[1], "train.text_encoder_lr", rates[0])
    made.miss(f"train.{TEXT_RATES[1]}", rates[1], "kohya's network takes one rate for both text encoders")


def _put_training(made: Exported, config: TrainConfig) -> None:
    train = config.train
    if train.epochs:
        made.put("training", "max_train_epochs", train.epochs, "train.epochs", train.epochs)
        made.told.add("train.steps")
    else:
        made.put("training", "max_train_steps", train.steps, "train.steps", train.steps)
    name: str = train.scheduler
    if name == "constant" and train.warmup:
        name = "constant_with_warmup"
    made.put("training", "lr_scheduler", name, "train.scheduler", train.scheduler)
    if train.warmup:
        made.put("training", "lr_warmup_steps", train.warmup, "train.warmup", train.warmup)
    made.told.update(("train.warmup", "train.restarts", "train.power"))
    if train.scheduler == "polynomial":
        made.put("training", "lr_scheduler_power", train.power, "train.power", train.power)
    if train.scheduler == "cosine_with_restarts":
        made.put("training", "lr_scheduler_num_cycles", train.restarts, "train.restarts", train.restarts)
    if train.scheduler == "warmup_stable_decay":
        made.put("training", "lr_decay_steps", train.decay, "train.decay", train.decay)
    _put_optimizer(made, config)
    made.put("training", "gradient_checkpointing", train.gradient_checkpointing != "off")
    made.told.add("train.gradient_checkpointing")
    made.put("training", "seed", train.seed, "train.seed", train.seed)


def _put_optimizer(made: Exported, config: TrainConfig) -> None:
    train = config.train
    name = _OPTIMIZERS.get(train.optimizer)
    if name is None:
        made.miss("train.optimizer", train.optimizer, "kohya has no name for it; AdamW is written")
        name = "AdamW"
    else:
        made.put("training", "optimizer_type", name, "train.optimizer", train.optimizer)
    made.sections["training"]["optimizer_type"] = name
    arguments = [
        f"weight_decay={train.weight_decay}",
        *train.optimizer_args.split(),
    ]
    made.told.update(("train.weight_decay", "train.optimizer_args"))
    if name == "AdaFactor":
        arguments += [each for each in _FIXED_RATE if each.split("=")[0] not in " ".join(arguments)]
    made.put("training", "optimizer_args", arguments)


def _put_noise(made: Exported, config: TrainConfig, row: Family) -> None:
    """Which noise levels are trained. Flow scripts are told their prediction too: their default is a trap."""
    noise = config.noise
    names = ("timesteps", "shift", "weighting", "kohya_flow", "sigmoid_scale", "logit_mean", "logit_std")
    made.told.update(f"noise.{name}" for name in names)
    for name, option in (("t_min", "min_timestep"), ("t_max", "max_timestep")):
        value = getattr(noise, name)
        if value != RECORDS[f"noise.{name}"].default:
            made.put("training", option, round(1000 * value), f"noise.{name}", value, "of 1000 timesteps")
    if noise.prediction != "auto":
        made.put(
            "model",
            "v_parameterization",
            noise.prediction == "v_prediction",
            "noise.prediction",
            noise.prediction,
        )
    if noise.zero_terminal_snr == "on":
        made.put("training", "zero_terminal_snr", True, "noise.zero_terminal_snr", "on")
    flow = SCRIPTS.get(row.kohya[0]) if row.kohya else None
    if flow is None:
        if noise.timesteps not in ("auto", "uniform"):
            made.miss("noise.timesteps", noise.timesteps, "kohya draws the timesteps of U-Nets uniformly")
        return
    if flow.sampling:
        made.put("training", "model_prediction_type", "raw")
        if flow.guided:
            made.put("training", "guidance_scale", 1.0)
    written = flow_options(noise, flow)
    why = "the nearest that kohya has to the family's own" if noise.timesteps == "auto" else ""
    for option, value in written.items():
        made.put("training", option, value)
    told = ", ".join(f"{option} {value}" for option, value in written.items())
    made.tell("noise.timesteps", noise.timesteps, "training", told, why)
    if not flow.sampling and not noise.kohya_flow and written.get("weighting_scheme") != "sigma_sqrt":
        made.miss("noise.kohya_flow", False, "kohya's SD3 script counts noise level s by s²")


def _put_dataset(made: Exported, config: TrainConfig, row: Family) -> None:
    dataset = config.dataset
    base = known_base(config.model.family, config.model.base)
    native = base.resolution if base else row.resolution
    main = dataset.resolution or native
    sides = sorted(
        all_resolutions(dataset, native), key=lambda side: side != main
    )  # what is usual comes first

    def table(side: int) -> dict[str, Any]:
        shortest, longest = dataset.bucket_min or main // 2, dataset.bucket_max or 2 * main
        return {
            "resolution": [side, side],
            "batch_size": config.train.batch_size,
            "enable_bucket": True,
            "bucket_no_upscale": dataset.buckets == "no_upscale",
            "min_bucket_reso": round(shortest * side / main),
            "max_bucket_reso": round(longest * side / main),
            "bucket_reso_steps": dataset.bucket_step or max(8, side // 16),
            "caption_extension": ".txt",
        }

    made.told.update(("dataset.trigger", "dataset.repeats"))
    made.tell("train.batch_size", config.train.batch_size, "batch_size", config.train.batch_size)
    why = "" if dataset.resolution else "the base's own; kohya has no usual one"
    made.tell("dataset.resolution", dataset.resolution, "resolution", [sides[0], sides[0]], why)
    if len(sides) > 1:
        told = dataset.more_resolutions or "of the folders"
        why = "a [[datasets]] for each; kohya enlarges photos for it, unless bucket_no_upscale is on"
        made.tell("dataset.more_resolutions", told, "resolution", list(sides), why)
    made.told.update(f"dataset.bucket_{name}" for name in ("min", "max", "step"))
    if dataset.buckets == "standard":
        made.miss("dataset.buckets", dataset.buckets, "kohya makes its own list, of all shapes of that area")
    else:
        made.tell("dataset.buckets", dataset.buckets, "enable_bucket", True)
    own: dict[str, Any] = {"image_dir": dataset.path, "num_repeats": dataset.repeats}
    if dataset.trigger:
        own["class_tokens"] = dataset.trigger
    made.tell("dataset.path", dataset.path, "image_dir", dataset.path)
    subsets = [own]
    shown_at = [
        {side or native for side in resolutions_of(dataset, one)} for one in (NOTHING_OWN, *dataset.subsets)
    ]
    for one in dataset.subsets:
        other: dict[str, Any] = {"image_dir": one.path, "num_repeats": one.repeats}
        if one.trigger or (dataset.trigger and not one.regularisation):
            other["class_tokens"] = one.trigger or dataset.trigger
        if one.regularisation:
            other["is_reg"] = True
            made.put("training", "prior_loss_weight", one.weight)
        elif one.weight != 1:
            made.miss(
                "dataset.subsets", one.line, "kohya weighs regularisation sets only, by prior_loss_weight"
            )
        for ours, option in kohya_tables.OWN.items():
            if (value := getattr(one, ours)) is not None:
                other[option] = value
        subsets.append(other)
        made.tell("dataset.subsets", one.line, "image_dir", one.path)
    weights = {one.weight for one in dataset.subsets if one.regularisation}
    if len(weights) > 1:
        made.miss("dataset.subsets", sorted(weights), "kohya has one prior_loss_weight for all of them")
    made.told.add("dataset.subsets")
    made.told.update(("loss.mask", "loss.mask_floor"))
    if config.loss.mask != "off":
        for each in subsets:
            each |= {} if each.get("is_reg") else {"alpha_mask": True}
        why = "what is opaque; masks in files of their own go into the photos' transparency first"
        made.tell("loss.mask", config.loss.mask, "alpha_mask", True, why)
        if config.loss.mask != "kohya":
            made.miss("loss.mask", config.loss.mask, "kohya multiplies alone: small subjects learn slower")
        if config.loss.mask_floor:
            made.miss("loss.mask_floor", config.loss.mask_floor, "kohya's masks hide all that lies outside")
    made.dataset = {
        "datasets": [
            table(side)
            | {"subsets": [each for each, at in zip(subsets, shown_at, strict=True) if side in at]}
            for side in sides
        ]
    }


_SAMPLERS = {
    "euler": "euler",
    "euler_ancestral": "euler_a",
    "ddim": "ddim",
    "dpm++_2m": "dpmsolver++",
    "heun": "heun",
}


def _put_samples(made: Exported, config: TrainConfig, row: Family, stem: str) -> None:
    samples = config.samples
    made.told.update(path for path in RECORDS if path.startswith("samples."))
    if not samples.prompts:
        return
    base = known_base(config.model.family, config.model.base)
    side = all_resolutions(config.dataset, base.resolution if base else row.resolution)[0]
    file = f"{stem}.prompts.txt"
    for prompt in prompts_of(samples):
        seed = samples.seed if prompt.seed is None else prompt.seed
        line = f"{' '.join(prompt.text.split())} --w {prompt.width or side} --h {prompt.height or side}"
        line += f" --d {seed} --s {prompt.steps} --l {prompt.guidance:g}"
        if prompt.sampler in _SAMPLERS:
            line += f" --ss {_SAMPLERS[prompt.sampler]}"
        elif prompt.sampler != "auto":
            made.miss("samples.sampler", prompt.sampler, "kohya draws with its own")
        line += f" --n {prompt.negative}" if prompt.negative else ""
        made.prompts.append(line)
        for sentence in parse_prompt_line(line).said:
            made.miss("samples.prompts", prompt.text, sentence)
    made.put("samples", "sample_prompts", file)
    made.tell("samples.prompts", list(samples.prompts), "sample_prompts", file, "with size and seed")
    if epochs := samples.every_epochs:
        made.put("samples", "sample_every_n_epochs", epochs, "samples.every_epochs", epochs)
    elif samples.every:
        made.put("samples", "sample_every_n_steps", samples.every, "samples.every", samples.every)
    made.put("samples", "sample_at_first", True)


def _put_saving(made: Exported, config: TrainConfig) -> None:
    every, keep = config.checkpoints.every, config.checkpoints.keep
    made.put("saving", "output_dir", "output")
    made.put("saving", "output_name", config.output.name, "output.name", config.output.name)
    if epochs := config.checkpoints.every_epochs:
        made.put("saving", "save_every_n_epochs", epochs, "checkpoints.every_epochs", epochs)
        made.put("saving", "save_last_n_epochs", keep, "checkpoints.keep", keep)
        made.told.add("checkpoints.every")
    else:
        made.put("saving", "save_every_n_steps", every, "checkpoints.every", every)
        last = max(1, (keep - 1) * every)  # 0 would keep them all
        made.put("saving", "save_last_n_steps", last, "checkpoints.keep", keep, "steps, not files")
    made.put("saving", "save_state", True)
    made.put("saving", "save_model_as", "safetensors")
