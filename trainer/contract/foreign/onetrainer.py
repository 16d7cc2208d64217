"""OneTrainer: a preset's or a backup's JSON, with the concepts and samples that it holds or names.

Its own defaults, which are not ours: rate 3e-6, rank 16 with alpha 1, 100 epochs, 200 steps of warm-up, a
constant schedule, 512 px.
"""

from __future__ import annotations

from typing import Any

from ..config import TEXT_RATES
from ..families import CATALOGUE
from ..optimizers import OPTIMIZERS
from . import onetrainer_tables as tables
from .kohya import Beside
from .names import effective_rate, family_called, layers_regex, quantization, sides, take_base
from .onetrainer_concepts import rows_of, take_concepts
from .prompt_lines import PromptLine, take_prompts
from .reading import refuse
from .report import Imported, Unusable, is_off, number, shown
from .rules import follow
from .shared import (
    leave_off,
    number_or,
    safe_name,
    take_alpha,
    take_optimizer,
    take_optimizer_arguments,
    take_scheduler,
    take_share,
    take_sizes,
)

_DENOISERS = ("unet", "transformer", "prior")
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")


def read_onetrainer(data: dict[str, Any], name: str, beside: Beside) -> Imported:
    """Raises ConfigError for a training of something else than an adapter."""
    found, options = Imported("OneTrainer"), dict(data)
    method = str(options.pop("training_method", "LORA"))
    if method != "LORA":
        raise refuse(name, f"has training_method = {method}; only LoRAs are trained here")
    kind = str(options.pop("model_type", "STABLE_DIFFUSION_15"))
    family = family_called(kind)
    if not family:
        raise refuse(name, f"has model_type = {shown(kind)}, a family that cannot be trained here")
    base = str(options.pop("base_model_name", "") or "")
    found.leave("training_method", method, "a LoRA")
    found.leave("model_type", kind, "it names the family")
    take_base(found, "base_model_name", base, family, f"model_type is {kind}")
    _take_adapter(found, options)
    _take_parts(found, options)
    _take_duration(found, options)
    _take_optimizer(found, options)
    _take_loss(found, options)
    _take_timesteps(found, options)
    take_concepts(found, options, beside)
    _take_samples(found, options, beside)
    _take_saving(found, options)
    follow(found, options, tables.CONFIG)
    found.unknown(options)
    effective_rate(found)
    found.settle()
    return found


def _take_adapter(found: Imported, options: dict[str, Any]) -> None:
    kind = str(options.pop("peft_type", "LORA"))
    ours = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr", "OFT_2": "oft"}.get(kind, "")
    if ours:
        found.keep("peft_type", kind, "adapter.type", ours)
    else:
        found.miss("peft_type", kind, "this kind of adapter is not offered; a LoRA is trained")
    option = {"LOKR": "lokr_dim", "OFT_2": "oft_block_size"}.get(kind, "lora_rank")
    option = option if option in options else "lora_rank"
    rank = options.pop(option, None)
    if rank is None:
        found.take("adapter.rank", 16, "OneTrainer's default", "default")
    else:
        found.keep(option, rank, "adapter.rank", rank)
    take_alpha(found, "lora_alpha", options.pop("lora_alpha", None), 1)
    preset = options.pop("layer_filter_preset", None)
    convolutions = CATALOGUE[found.get("model.family")].file_parts[0] == "unet"
    targets = {"attn-only": "attention", "attn-mlp": "transformer", "full": "transformer"}
    if convolutions:
        targets["full"] = "transformer+conv"
    if preset is None:
        found.take("adapter.targets", targets["full"], 'OneTrainer\'s default, "full"', "default")
    elif str(preset) in targets:
        found.keep("layer_filter_preset", preset, "adapter.targets", targets[preset])
        if (layers := options.pop("layer_filter", None)) is not None:
            found.leave("layer_filter", layers, "what the preset stands for")
    elif layers := str(options.pop("layer_filter", None) or ""):
        regex = not is_off(options.get("layer_filter_regex"))
        found.leave("layer_filter_preset", preset, "see layer_filter")
        chosen = layers_regex([layers] if regex else layers.split(","), as_regex=regex)
        found.keep("layer_filter", layers, "adapter.target_regex", chosen)
    else:
        found.miss(
            "layer_filter_preset", preset, "set adapter.target_regex; all transformer layers are taken"
        )


def _take_parts(found: Imported, options: dict[str, Any]) -> None:
    """The denoiser's and the text encoders' own rates and number formats."""
    rate = options.pop("learning_rate", None)
    if rate is None:
        rate = 3e-6
        found.take("train.learning_rate", rate, "OneTrainer's default", "default")
    else:
        found.keep("learning_rate", rate, "train.learning_rate", rate)
    trainable = CATALOGUE[found.get("model.family")].trainable_text
    for part in (*_DENOISERS, *_TEXT_PARTS):
        table = options.pop(part, None)
        text = part in _TEXT_PARTS
        if not isinstance(table, dict):
            if text and _TEXT_PARTS.index(part) < len(trainable):
                found.take(
                    f"train.{TEXT_RATES[_TEXT_PARTS.index(part)]}",
                    rate,
                    f"OneTrainer trains {part} along unless told otherwise",
                    "default",
                )
            continue
        table = dict(table)
        own, train = table.pop("learning_rate", None), table.pop("train", True)
        if text:
            _take_text_rate(found, part, train, own if own is not None else rate, len(trainable))
        elif own is not None:
            found.keep(f"{part}.learning_rate", own, "train.learning_rate", own)
        elif is_off(train):
            found.miss(f"{part}.train", train, "the denoiser is always trained")
        form = table.pop("weight_dtype", None)
        if form is not None:
            setting = "model.quantize_text" if text else "model.quantize"
            ours = quantization(form) if "8" in str(form) or "4" in str(form) else "none"
            if ours != "none" or not found.has(setting):
                found.keep(f"{part}.weight_dtype", form, setting, ours)
            else:
                found.leave(f"{part}.weight_dtype", form, "read with the other text encoders")
        if not text and "gradient_checkpointing" in table:
            value = table.pop("gradient_checkpointing")
            ours = "off" if is_off(value) else "on"
            found.keep(f"{part}.gradient_checkpointing", value, "train.gradient_checkpointing", ours)
        follow(found, table, tables.PART, f"{part}.")
        found.unknown({f"{part}.{key}": value for key, value in table.items()})


def _take_text_rate(found: Imported, part: str, train: Any, rate: Any, trainable: int) -> None:
    place = _TEXT_PARTS.index(part)
    if is_off(train):
        found.leave(f"{part}.train", train, "it is left alone, as here")
    elif place < trainable:
        found.keep(f"{part}.train", train, f"train.{TEXT_RATES[place]}", rate, "the rate it is trained with")
    else:
        found.miss(f"{part}.train", train, "this text encoder is not trained here")


def _take_duration(found: Imported, options: dict[str, Any]) -> None:
    epochs = options.pop("epochs", None)
    if epochs is None:
        found.take("train.epochs", 100, "OneTrainer's default", "default")
    else:
        found.keep("epochs", epochs, "train.epochs", epochs)
    name = options.pop("learning_rate_scheduler", None)
    take_scheduler(found, "learning_rate_scheduler", name, "constant", "OneTrainer")
    warmup = options.pop("learning_rate_warmup_steps", None)
    if warmup is None:
        take_share(found, "learning_rate_warmup_steps", 200, "train.warmup", "OneTrainer's default")
    elif is_off(warmup):
        found.keep("learning_rate_warmup_steps", warmup, "train.warmup", 0)
    else:
        take_share(found, "learning_rate_warmup_steps", warmup, "train.warmup")
    cycles = options.pop("learning_rate_cycles", None)
    if found.get("train.scheduler") == "cosine_with_restarts":
        found.keep("learning_rate_cycles", cycles or 1, "train.restarts", cycles or 1)
    elif cycles is not None:
        found.leave("learning_rate_cycles", cycles, "only cosine_with_restarts has cycles")
    resolution = options.pop("resolution", None)
    if resolution is None:
        found.take("dataset.resolution", 512, "OneTrainer's default", "default")
        return
    try:
        several = sides(str(resolution).split(","))
    except Unusable as problem:
        found.miss("resolution", resolution, str(problem))
        return
    take_sizes(found, "resolution", resolution, several)
    if len(several) > 1:
        found.note(
            f"OneTrainer draws one of {len(several)} resolutions for each look at a photo; here a photo is "
            f"shown at each of them, so that an epoch is {len(several)} times as long."
        )
        if found.has("train.epochs"):
            given = found.get("train.epochs")
            fewer = max(1, round(given / len(several)))
            found.take("train.epochs", fewer, f"as many looks as {given} epochs there", "converted")


def _take_optimizer(found: Imported, options: dict[str, Any]) -> None:
    table = options.pop("optimizer", None)
    options.pop("optimizer_defaults", None)
    table = dict(table) if isinstance(table, dict) else {"optimizer": table}
    take_optimizer(found, "optimizer", table.pop("optimizer", None))
    if (fused := table.pop("fused_back_pass", None)) is not None:
        found.leave("optimizer.fused_back_pass", fused, "memory only: a LoRA's gradients are small")
    follow(found, table, tables.OPTIMIZER, "optimizer.")
    betas = [table.get(f"beta{place}") for place in (1, 2)]
    if None not in betas:
        for place in (1, 2):
            table.pop(f"beta{place}")
        if betas == [0.9, 0.999]:
            found.leave("optimizer beta1, beta2", betas, "as it is here")
        else:
            table["betas"] = ",".join(shown(beta) for beta in betas)
    own = OPTIMIZERS[found.get("train.optimizer")].options
    known = [name for name in table if name in own or name in ("weight_decay", "decouple")]
    take_optimizer_arguments(found, "optimizer", {name: table.pop(name) for name in known})
    for name, value in table.items():
        if value is None or is_off(value):
            found.leave(f"optimizer.{name}", value, "off, as it is here")
        else:
            found.miss(f"optimizer.{name}", value, "no option of the optimizer here")
    ema, decay = options.pop("ema", None), options.pop("ema_decay", None)
    if ema is None or str(ema) == "OFF":
        for option, value in (("ema", ema), ("ema_decay", decay)):
            if value is not None:
                found.leave(option, value, "off, as it is here")
    else:
        option = "ema" if decay is None else "ema, ema_decay"
        found.keep(option, ema, "train.ema_decay", 0.999 if decay is None else decay)


def _take_loss(found: Imported, options: dict[str, Any]) -> None:
    """A weighted sum of losses there, one loss here; and what weighs the timesteps."""
    usual = {"mse": 1.0, "mae": 0.0, "log_cosh": 0.0, "huber": 0.0, "vb_loss": 1.0}
    given = {name: options.pop(f"{name}_strength", None) for name in usual}
    strengths = {
        name: number_or(found, f"{name}_strength", value, usual[name]) for name, value in given.items()
    }
    told = {f"{name}_strength": value for name, value in given.items() if value is not None}
    on = [name for name in ("mse", "mae", "log_cosh", "huber") if strengths[name]]
    if told and on in (["mse"], ["mae"]) and strengths[on[0]] == 1:
        found.keep(" ".join(told), list(told.values()), "loss.type", "l2" if on == ["mse"] else "l1")
    elif told:
        found.miss(" ".join(told), list(told.values()), "one loss is taken here, not a sum of several; l2 is")
    delta = options.pop("huber_delta", None)
    if delta is not None:
        found.leave("huber_delta", delta, "only for the huber loss")
    weight, strength = options.pop("loss_weight_fn", None), options.pop("loss_weight_strength", None)
    if weight == "MIN_SNR_GAMMA":
        found.keep("loss_weight_fn", weight, "loss.min_snr_gamma", 5 if strength is None else strength)
    elif weight == "DEBIASED_ESTIMATION":
        found.keep("loss_weight_fn", weight, "loss.debiased", True)
    elif weight in (None, "CONSTANT"):
        if weight:
            found.leave("loss_weight_fn", weight, "every timestep counts the same, as it is here")
    else:
        found.miss("loss_weight_fn", weight, "this weighting is not offered")
    if strength is not None:
        found.leave("loss_weight_strength", strength, "goes with loss_weight_fn")
    masked = options.pop("masked_training", None)
    normal, floor = options.pop("normalize_masked_area_loss", None), options.pop("unmasked_weight", None)
    if is_off(masked):
        for option, value in (
            ("masked_training", masked),
            ("normalize_masked_area_loss", normal),
            ("unmasked_weight", floor),
        ):
            if value is not None:
                found.leave(option, value, "off, as it is here")
        if "unmasked_probability" in options:
            found.leave("unmasked_probability", options.pop("unmasked_probability"), "off, as it is here")
    else:
        found.keep("masked_training", masked, "loss.mask", "kohya" if is_off(normal) else "normalised")
        if normal is not None:
            found.leave("normalize_masked_area_loss", normal, "read with masked_training")
        given_floor = 0.1 if floor is None else floor
        found.keep("unmasked_weight", given_floor, "loss.mask_floor", given_floor)


_DISTRIBUTIONS = {
    "UNIFORM": "uniform",
    "SIGMOID": "sigmoid",
    "LOGIT_NORMAL": "logit_normal",
    "HEAVY_TAIL": "mode",
}


def _take_timesteps(found: Imported, options: dict[str, Any]) -> None:
    """Noise levels: uniform where nothing is said, for flow models too."""
    name, shift = options.pop("timestep_distribution", None), options.pop("timestep_shift", None)
    dynamic = options.pop("dynamic_timestep_shifting", None)
    weight, bias = options.pop("noising_weight", None), options.pop("noising_bias", None)
    flow = CATALOGUE[found.get("model.family")].process == "flow"
    ours = _DISTRIBUTIONS.get(str(name or "UNIFORM"), "")
    leave_off(found, dynamic_timestep_shifting=dynamic)
    if flow and not is_off(dynamic) and ours == "logit_normal":
        told = "timestep_distribution, dynamic_timestep_shifting"
        found.keep(told, [name, dynamic], "noise.timesteps", "flux_shift", "a sigmoid, shifted by the size")
    else:
        if not is_off(dynamic):
            found.miss("dynamic_timestep_shifting", dynamic, "only flux_shift follows the size")
        if not ours:
            found.miss("timestep_distribution", name, "not offered; the family's own distribution is taken")
        elif name is not None:
            found.keep("timestep_distribution", name, "noise.timesteps", ours)
        elif flow:
            found.take("noise.timesteps", ours, "OneTrainer's default", "default")
    if shift is not None and number_or(found, "timestep_shift", shift, None) is not None:
        if flow and number(shift) != 1 and is_off(dynamic):
            found.keep("timestep_shift", shift, "noise.shift", shift)
        else:
            found.leave("timestep_shift", shift, "no shift")
    for option, value, setting, usual in (
        ("noising_weight", weight, "noise.logit_std", 1.0),
        ("noising_bias", bias, "noise.logit_mean", 0.0),
    ):
        if number_or(found, option, value, None) is None:
            continue
        if ours == "logit_normal" and is_off(dynamic):
            found.keep(option, value, setting, number(value) + usual, "OneTrainer adds 1" if usual else "")
        elif is_off(value):
            found.leave(option, value, "off, as it is here")
        else:
            found.miss(option, value, "only logit_normal has a width and a centre here")


_SAMPLE_NAMES = {
    "negative": "samples negative_prompt",
    "width": "samples width",
    "height": "samples height",
    "seed": "samples seed",
    "steps": "samples diffusion_steps",
    "guidance": "samples cfg_scale",
}


def _take_samples(found: Imported, options: dict[str, Any], beside: Beside) -> None:
    prompts = []
    for row in rows_of(found, options, "samples", "sample_definition_file_name", beside):
        if isinstance(row, dict) and row.get("prompt") and not is_off(row.get("enabled", True)):
            steps, seed = row.get("diffusion_steps"), row.get("seed")
            prompts.append(
                PromptLine(
                    prompt=str(row["prompt"]),
                    negative=str(row.get("negative_prompt") or "") or None,
                    width=row.get("width"),
                    height=row.get("height"),
                    seed=seed if isinstance(seed, int) and seed >= 0 else None,
                    steps=steps,
                    guidance=row.get("cfg_scale"),
                    sampler=row.get("noise_scheduler"),
                )
            )
    if prompts:
        take_prompts(found, "samples prompt", prompts, _SAMPLE_NAMES)
    _take_interval(found, options, "sample_after", "samples.every")


def _take_interval(found: Imported, options: dict[str, Any], option: str, setting: str) -> None:
    """N of a unit: steps and epochs are counted here, minutes are not."""
    every, unit = options.pop(option, None), options.pop(f"{option}_unit", None)
    if every is None and unit is None:
        return
    told = f"{every} {unit or 'MINUTE'}"
    if unit is not None:
        option = f"{option}, {option}_unit"
    if unit == "STEP":
        found.keep(option, told, setting, every)
    elif unit == "EPOCH":
        found.keep(option, told, f"{setting}_epochs", every)
    elif unit == "NEVER":
        found.leave(option, told, "off")
    else:
        found.leave(option, told, f"it is counted in steps here: {setting}")


def _take_saving(found: Imported, options: dict[str, Any]) -> None:
    if (destination := options.pop("output_model_destination", None)) is not None:
        stem = str(destination).replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or str(destination)
        try:
            found.keep("output_model_destination", destination, "output.name", safe_name(stem))
        except Unusable as problem:
            found.miss("output_model_destination", destination, str(problem))
    _take_interval(found, options, "backup_after", "checkpoints.every")
    if not found.has("checkpoints.every"):
        _take_interval(found, options, "save_every", "checkpoints.every")
    else:
        for option in ("save_every", "save_every_unit"):
            if option in options:
                found.leave(option, options.pop(option), "every checkpoint can be exported")
    rolling, count = options.pop("rolling_backup", None), options.pop("rolling_backup_count", None)
    if count is not None and not is_off(rolling):
        found.leave("rolling_backup", rolling, "checkpoints.keep says how many stay")
        found.keep("rolling_backup_count", count, "checkpoints.keep", count)
    for option, value in (("rolling_backup", rolling), ("rolling_backup_count", count)):
        if value is not None and is_off(rolling):
            found.leave(option, value, "the last checkpoints.keep ones are kept")
