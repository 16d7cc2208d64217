"""diffusers' training scripts for LoRAs (``train_dreambooth_lora_sdxl.py --…``), as guides use them.

Their own defaults, which are not ours: rank 4 with alpha as the rank, a normal start, attention alone, batch
4, 512 px (SDXL 1024), a constant schedule with 500 steps of warm-up where it has one, one epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..families import CATALOGUE
from .names import effective_rate, family_called, flat, precision, side, take_base
from .prompt_lines import PromptLine, take_prompts
from .report import Imported, Unusable, is_off, number
from .rules import (
    FOLDER,
    GUIDANCE,
    HUB,
    LAYERS,
    LENGTH,
    SECRET,
    SPEED,
    TRACKED,
    Absent,
    Ignored,
    Table,
    To,
    follow,
    words,
)
from .shared import (
    Folder,
    take_alpha,
    take_folders,
    take_optimizer,
    take_optimizer_arguments,
    take_power,
    take_scheduler,
    take_share,
    take_text_rate,
)

PREFIXES = ("train_dreambooth_lora", "train_text_to_image_lora")


@dataclass(frozen=True)
class Script:
    """What a script does where nothing is said.

    ``text_rate`` None is the learning rate. ``levels`` "" are as the family has them here, otherwise those of
    noise.timesteps, with the ``shift`` of the base's scheduler; ``pictures``: it compares estimates of the
    picture instead of velocities.
    """

    batch: int = 4
    side: int = 512
    decay: float = 1e-4
    text_rate: float | None = 5e-6
    drawn_every_epochs: int = 50
    levels: str = ""
    shift: float | None = None
    pictures: bool = False


_SCRIPTS = {
    "train_dreambooth_lora": Script(decay=1e-2, text_rate=None),
    "train_dreambooth_lora_sdxl": Script(side=1024),
    "train_dreambooth_lora_sd3": Script(levels="logit_normal", shift=3.0, pictures=True),
    "train_dreambooth_lora_flux": Script(levels="uniform"),
}
_TEXT_TO_IMAGE = Script(batch=16, decay=1e-2, text_rate=None, drawn_every_epochs=1)


def _defaults(script: str) -> Script:
    known = script.removesuffix("_advanced").removesuffix("_legacy")
    return _TEXT_TO_IMAGE if script.startswith(PREFIXES[1]) else _SCRIPTS.get(known, Script())


_TABLE: Table = {
    "revision": To("model.revision"),
    "variant": Ignored("weights are read in the number format of model.precision"),
    "pretrained_vae_model_name_or_path": To("model.vae"),
    "mixed_precision": To("model.precision", precision, "the LoRA itself stays in adapter.precision"),
    "resolution": To("dataset.resolution", side),
    "random_flip": To("dataset.flip"),
    "center_crop": Ignored("photos are cropped by the face or by what catches the eye"),
    "train_batch_size": To("train.batch_size"),
    "gradient_accumulation_steps": To("train.gradient_accumulation"),
    "gradient_checkpointing": To(
        "train.gradient_checkpointing", lambda value: "off" if is_off(value) else "on"
    ),
    "max_grad_norm": To("train.max_grad_norm"),
    "adam_weight_decay": To("train.weight_decay"),
    "seed": To("train.seed"),
    "snr_gamma": To("loss.min_snr_gamma"),
    "noise_offset": To("noise.offset"),
    "use_dora": To("adapter.dora"),
    "lora_dropout": To("adapter.dropout"),
    "repeats": To("dataset.repeats"),
    "checkpointing_steps": To("checkpoints.every"),
    "checkpoints_total_limit": To("checkpoints.keep"),
    "output_dir": FOLDER,
    "resume_from_checkpoint": Ignored(
        "runs are resumed by their folder here: python -m trainer resume RUN_DIR"
    ),
    "lora_layers": LAYERS,
    "do_edm_style_training": Absent("bases of EDM are not trained"),
    "guidance_scale": GUIDANCE,
    "adam_weight_decay_text_encoder": Absent("one weight decay holds for all: train.weight_decay"),
    "image_interpolation_mode": Ignored("photos are made smaller by area and larger by Lanczos"),
    "aspect_ratio_buckets": Ignored("photos are always sorted into buckets"),
    "lora_blocks": LAYERS,
    "lora_unet_blocks": LAYERS,
    "use_blora": LAYERS,
    "bnb_quantization_config_path": Absent("set model.quantize"),
    "do_fp8_training": Absent("set model.quantize"),
    "system_prompt": Absent("the base's own system prompt is used"),
    "train_text_encoder_ti": Absent("embeddings are not trained"),
    "train_text_encoder_frac": Absent("text encoders are trained to the end, or not at all", (1, "1", "1.0")),
    "skip_final_inference": Ignored("pictures are always drawn at the end"),
    "max_sequence_length": LENGTH,
    "caption_column": Absent("captions are .txt files beside the photos"),
    "image_column": Absent("photos are files in a folder"),
    "dataset_name": Absent("download the data set into a folder, and name that in dataset.path"),
    "dataset_config_name": Absent("download the data set into a folder"),
    "sample_batch_size": Ignored("only for making class pictures"),
    "num_validation_images": Ignored("one picture is drawn of each prompt"),
    "hub_token": SECRET,
    **dict.fromkeys(words("push_to_hub hub_model_id hub_private_repo output_kohya_format"), HUB),
    **dict.fromkeys(words("report_to logging_dir tracker_name"), TRACKED),
    **dict.fromkeys(
        words(
            "allow_tf32 enable_xformers_memory_efficient_attention enable_npu_flash_attention "
            "dataloader_num_workers local_rank cache_latents cache_dir offload "
            "upcast_before_saving prior_generation_precision"
        ),
        SPEED,
    ),
}


def read_diffusers(options: dict[str, Any], script: str) -> Imported:
    found, options = Imported("diffusers' scripts"), dict(options)
    told = script
    for prefix in PREFIXES:
        told = told.removeprefix(prefix)
    told = told.strip("_").removesuffix("_advanced").removesuffix("_legacy")
    base = str(options.pop("pretrained_model_name_or_path", "") or "")
    take_base(
        found, "pretrained_model_name_or_path", base, family_called(told or "sd1"), f"trained by {script}.py"
    )
    rank, alpha = options.pop("rank", None), options.pop("lora_alpha", None)
    if rank is None:
        found.take("adapter.rank", 4, "the scripts' default", "default")
    else:
        found.keep("rank", rank, "adapter.rank", rank)
    take_alpha(found, "lora_alpha", alpha, None)
    found.take("adapter.targets", "attention", "the scripts adapt attention alone", "default")
    usual = _defaults(script)
    _take_rates(found, options, usual)
    steps, epochs = options.pop("max_train_steps", None), options.pop("num_train_epochs", None)
    if not is_off(steps):
        found.keep("max_train_steps", steps, "train.steps", steps)
        if epochs is not None:
            found.leave("num_train_epochs", epochs, "max_train_steps is given, and wins")
    elif not is_off(epochs):
        found.keep("num_train_epochs", epochs, "train.epochs", epochs)
    else:
        found.take("train.epochs", 1, "the scripts' default", "default")
    _take_schedule(found, options)
    _take_optimizer(found, options, usual)
    found.take("adapter.init", "gaussian", "the scripts' LoRA starts so", "default")
    _take_flow(found, options, usual)
    prompt = options.pop("instance_prompt", None)
    folders = []
    for option, trigger in (("instance_data_dir", prompt), ("train_data_dir", None)):
        if path := options.pop(option, None):
            folders.append(Folder({"path": option, "trigger": "instance_prompt"}, path, trigger))
    if prompt is not None:
        found.leave(
            "instance_prompt", prompt, "every photo's caption: the caption of those that have none here"
        )
    _take_prior(found, options)
    take_folders(found, folders)
    if (validation := options.pop("validation_prompt", None)) is not None:
        take_prompts(found, "validation_prompt", [PromptLine(prompt=str(validation))], {})
    if (every := options.pop("validation_epochs", None)) is not None:
        found.keep("validation_epochs", every, "samples.every_epochs", every)
    elif validation is not None:
        found.take("samples.every_epochs", usual.drawn_every_epochs, "the script's default", "default")
    scale = options.pop("scale_lr", None)
    follow(found, options, _TABLE)
    found.unknown(options)
    found.assume("train.batch_size", usual.batch, "the script's default")
    found.assume("dataset.resolution", usual.side, "the script's default")
    if not is_off(scale):
        looks = found.get("train.batch_size") * found.get("train.gradient_accumulation")
        rate = found.get("train.learning_rate") * looks
        found.keep("scale_lr", scale, "train.learning_rate", rate, f"times batch × accumulation, {looks}")
    elif scale is not None:
        found.leave("scale_lr", scale, "off")
    effective_rate(found)
    found.settle()
    return found


_PRIOR = {
    "class_prompt": "prior.class_name",
    "num_class_images": "prior.pictures",
    "prior_loss_weight": "prior.weight",
}


def _take_prior(found: Imported, options: dict[str, Any]) -> None:
    """DreamBooth's prior preservation: pictures of the class, drawn by the base."""
    on, folder = options.pop("with_prior_preservation", None), options.pop("class_data_dir", None)
    given = {option: options.pop(option) for option in _PRIOR if option in options}
    if is_off(on):
        for option, value in (("class_data_dir", folder), *given.items()):
            if value is not None:
                found.leave(option, value, "with_prior_preservation is off")
        return
    found.keep("with_prior_preservation", on, "prior.method", "class_pictures")
    for option, value in given.items():
        found.keep(option, value, _PRIOR[option], value)
    if folder is not None:
        why = "the pictures in it; empty it where there are none yet, and the base draws them"
        found.keep("class_data_dir", folder, "prior.path", folder, why)


def _take_optimizer(found: Imported, options: dict[str, Any], usual: Script) -> None:
    """AdamW or Prodigy; the scripts name their options one by one."""
    name, small = options.pop("optimizer", None), options.pop("use_8bit_adam", None)
    if is_off(small) or flat(str(name or "adamw")) != "adamw":
        if small is not None:
            found.leave("use_8bit_adam", small, "only for AdamW" if not is_off(small) else "off")
        take_optimizer(found, "optimizer", name)
    else:
        if name is not None:
            found.leave("optimizer", name, "see use_8bit_adam")
        found.keep("use_8bit_adam", small, "train.optimizer", "adamw8bit")
    if "adam_weight_decay" not in options:
        found.take("train.weight_decay", usual.decay, "the script's default", "default")
    betas = [options.pop(f"adam_beta{place}", None) for place in (1, 2)]
    arguments = {"eps": options.pop("adam_epsilon", None)}
    if betas != [None, None]:
        arguments["betas"] = f"{betas[0] or 0.9},{betas[1] or 0.999}"
    for option in ("beta3", "decouple", "use_bias_correction", "safeguard_warmup"):
        value = options.pop(f"prodigy_{option}", None)
        if found.get("train.optimizer") == "prodigy" and option in (
            "use_bias_correction",
            "safeguard_warmup",
        ):
            arguments[option] = "True" if value is None else value  # the scripts' default
        elif value is not None:
            arguments[option] = value
    arguments = {option: value for option, value in arguments.items() if value is not None}
    if found.get("train.optimizer") != "prodigy":
        for option in [option for option in arguments if option not in ("eps", "betas")]:
            found.leave(f"prodigy_{option}", arguments.pop(option), "only for Prodigy")
    take_optimizer_arguments(found, "optimizer", arguments)


def _take_flow(found: Imported, options: dict[str, Any], usual: Script) -> None:
    """Noise levels of flow models: a density over the scheduler's levels, or a weight on their loss."""
    names = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "precondition_outputs")
    given = {name: options.pop(name) for name in names if name in options}
    row = CATALOGUE[found.get("model.family")]
    if row.process != "flow":
        for name, value in given.items():
            found.leave(name, value, f"only for flow models, which {row.label} is not")
        return
    scheme = str(given.pop("weighting_scheme", "") or "")
    if not scheme and usual.levels:
        found.take("noise.timesteps", usual.levels, "the script's default", "default")
    elif scheme in ("sigma_sqrt", "cosmap"):
        found.take("noise.timesteps", "uniform", f"as weighting_scheme = {scheme} has it", "default")
        found.keep("weighting_scheme", scheme, "noise.weighting", scheme)
    elif scheme:
        found.keep("weighting_scheme", scheme, "noise.timesteps", "uniform" if scheme == "none" else scheme)
    if usual.shift and found.has("noise.timesteps"):
        found.take("noise.shift", usual.shift, "that of the base's scheduler", "default")
    drawn = found.get("noise.timesteps")
    for name in ("logit_mean", "logit_std"):
        if (value := given.pop(name, None)) is not None and drawn == "logit_normal":
            found.keep(name, value, f"noise.{name}", value)
        elif value is not None:
            found.leave(name, value, "only for weighting_scheme = logit_normal")
    if (value := given.pop("mode_scale", None)) is not None:
        found.leave("mode_scale", value, "the mode distribution has its usual scale, 1.29")
    pictures = given.pop("precondition_outputs", usual.pictures)
    if not is_off(pictures):
        why = "the script compares estimates of the picture, which counts noise level s by s²"
        found.take("noise.kohya_flow", True, why, "default")


def _take_rates(found: Imported, options: dict[str, Any], usual: Script) -> None:
    rate, text = options.pop("learning_rate", None), options.pop("train_text_encoder", None)
    if rate is None:
        found.take("train.learning_rate", 1e-4, "the scripts' default", "default")
    else:
        found.keep("learning_rate", rate, "train.learning_rate", rate)
    own = options.pop("text_encoder_lr", None)
    if is_off(text):
        for option, value in (("train_text_encoder", text), ("text_encoder_lr", own)):
            if value is not None:
                found.leave(option, value, "text encoders are left alone, as here")
        return
    given = own or usual.text_rate or found.get("train.learning_rate")
    take_text_rate(found, "train_text_encoder", text, given)
    if own is not None:
        found.leave("text_encoder_lr", own, "see train_text_encoder")


def _take_schedule(found: Imported, options: dict[str, Any]) -> None:
    name = options.pop("lr_scheduler", None)
    take_scheduler(found, "lr_scheduler", name, "constant", "the script")
    take_power(found, "lr_power", options.pop("lr_power", None))
    warmup, cycles = options.pop("lr_warmup_steps", None), options.pop("lr_num_cycles", None)
    if found.get("train.scheduler") == "constant" and name != "constant_with_warmup":
        found.put("train.warmup", 0)
        if warmup is not None:
            found.leave("lr_warmup_steps", warmup, "the constant scheduler does not warm up")
    elif warmup is None:
        take_share(found, "lr_warmup_steps", 500, "train.warmup")
    elif is_off(warmup):
        found.keep("lr_warmup_steps", warmup, "train.warmup", 0)
    else:
        take_share(found, "lr_warmup_steps", warmup, "train.warmup")
    if found.get("train.scheduler") == "cosine_with_restarts":
        try:
            found.keep("lr_num_cycles", cycles, "train.restarts", number(cycles if cycles is not None else 1))
        except Unusable as problem:
            found.miss("lr_num_cycles", cycles, str(problem))
    elif cycles is not None:
        found.leave("lr_num_cycles", cycles, "only cosine_with_restarts has cycles")
