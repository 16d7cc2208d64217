"""diffusers' training scripts for LoRAs (``train_dreambooth_lora_sdxl.py --…``), as guides use them.

Their own defaults, which are not ours: rank 4 with alpha as the rank, attention alone, a constant schedule
with 500 steps of warm-up where it has one, one epoch.
"""

from __future__ import annotations

from typing import Any

from .names import effective_rate, family_called, precision, side, take_base
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
    take_scheduler,
    take_share,
)

PREFIXES = ("train_dreambooth_lora", "train_text_to_image_lora")

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
    "weighting_scheme": To("noise.weighting"),
    "max_sequence_length": LENGTH,
    "lr_power": Ignored("the polynomial scheduler has its usual power"),
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
            "upcast_before_saving prior_generation_precision use_8bit_adam adam_beta1 adam_beta2 "
            "adam_epsilon scale_lr"
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
    _take_rates(found, options)
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
    take_optimizer(found, "optimizer", options.pop("optimizer", None))
    found.assume(
        "train.weight_decay", 1e-4 if "adam_weight_decay" not in options else 0.01, "the scripts' default"
    )
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
    follow(found, options, _TABLE)
    found.unknown(options)
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
        found.leave(
            option="class_data_dir", value=folder, why="they are drawn anew; prior.path takes those there"
        )


def _take_rates(found: Imported, options: dict[str, Any]) -> None:
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
    given = own if own is not None else found.get("train.learning_rate")
    found.keep("train_text_encoder", text, "train.text_encoder_lr", given)


def _take_schedule(found: Imported, options: dict[str, Any]) -> None:
    name = options.pop("lr_scheduler", None)
    take_scheduler(found, "lr_scheduler", name, "constant", "the scripts")
    warmup, cycles = options.pop("lr_warmup_steps", None), options.pop("lr_num_cycles", None)
    if found.get("train.scheduler") == "constant" and name != "constant_with_warmup":
        found.put("train.warmup", 0)
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
