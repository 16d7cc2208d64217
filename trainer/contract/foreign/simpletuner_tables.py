"""SimpleTuner: the options of config.json, and what they are here. Its reader is in :mod:`.simpletuner`."""

from __future__ import annotations

from typing import Any

from .names import precision
from .report import Unusable, is_off
from .rules import (
    CACHED,
    EXPORTED,
    FOLDER,
    GUIDANCE,
    HUB,
    LAYERS,
    LENGTH,
    NOT_OFFERED,
    SPEED,
    TRACKED,
    Absent,
    Ignored,
    Only,
    Table,
    To,
    on,
    one,
    words,
)
from .shared import safe_name

ALIASES = {
    "validation_steps": "validation_step_interval",
    "checkpointing_steps": "checkpoint_step_interval",
    "checkpointing_limit": "checkpoints_total_limit",
    "rank": "lora_rank",
    "noise_offset": "offset_noise",
    "custom_text_encoder": "text_encoder",
}
"""Older names, which guides have."""


def _loss(value: Any) -> str:
    if str(value) not in ("l2", "huber", "smooth_l1"):
        raise Unusable(f"the loss {value} is not offered; l2 is taken")
    return str(value)


def _prediction(value: Any) -> str | None:
    return str(value) if str(value) in ("epsilon", "v_prediction") else None


def _textfile(value: Any) -> None:
    if str(value) == "instanceprompt":
        return
    if str(value) != "textfile":
        raise Unusable("captions are .txt files; python -m dataset_tools caption writes them")


def _crop_whole(value: Any) -> None:
    if str(value) not in ("center", "random", "face", "preserve"):
        raise Unusable("photos are cropped by the face or by what catches the eye, to the bucket that fits")


CONFIG: Table = {
    "revision": To("model.revision"),
    "variant": Ignored("weights are read in the number format of model.precision"),
    "pretrained_vae_model_name_or_path": To("model.vae"),
    "assistant_lora_path": To("model.assistant"),
    "disable_assistant_lora": Absent('set model.assistant = "none"'),
    "mixed_precision": To("model.precision", precision, "the LoRA itself stays in adapter.precision"),
    "base_model_default_dtype": Ignored("model.precision holds for the base"),
    "prediction_type": To("noise.prediction", _prediction),
    "rescale_betas_zero_snr": To("noise.zero_terminal_snr", on),
    "seed": To("train.seed"),
    "train_batch_size": To("train.batch_size"),
    "gradient_accumulation_steps": To("train.gradient_accumulation"),
    "gradient_checkpointing": To(
        "train.gradient_checkpointing", lambda value: "off" if is_off(value) else "on"
    ),
    "max_grad_norm": To("train.max_grad_norm"),
    "grad_clip_method": Ignored("the length of the whole gradient is what train.max_grad_norm holds"),
    "lr_end": Absent("schedulers end at 0"),
    "lr_scale": Absent("the learning rate is taken as it is given"),
    "lora_dropout": To("adapter.dropout"),
    "lora_init_type": To("adapter.init"),
    "use_dora": To("adapter.dora"),
    "init_lora": To("adapter.start_from"),
    "lora_format": EXPORTED,
    "peft_lora_target_modules": LAYERS,
    "flux_lora_target": LAYERS,
    "slider_lora_target": Absent("sliders are not offered"),
    "singlora_ramp_up_steps": NOT_OFFERED,
    "peft_lora_mode": Only(lambda value: _require(str(value) == "standard")),
    "caption_dropout_probability": To("captions.dropout"),
    "loss_type": To("loss.type", _loss),
    "huber_c": To("loss.huber_c"),
    "huber_schedule": To("loss.huber_schedule"),
    "snr_gamma": To("loss.min_snr_gamma"),
    "use_soft_min_snr": NOT_OFFERED,
    "offset_noise": To("noise.offset"),
    "noise_offset_probability": Only(one),
    "input_perturbation": To("noise.input_perturbation"),
    "input_perturbation_steps": Absent("noise.input_perturbation stays the same over the run"),
    "flow_use_beta_schedule": NOT_OFFERED,
    "flow_custom_timesteps": NOT_OFFERED,
    "masked_loss_probability": Only(one),
    "checkpoint_step_interval": To("checkpoints.every"),
    "checkpoints_total_limit": To("checkpoints.keep"),
    "tracker_run_name": Ignored("a run is named by output.name"),
    "hub_model_id": To("output.name", lambda value: safe_name(str(value).rpartition("/")[2])),
    "output_dir": FOLDER,
    "resume_from_checkpoint": Ignored(
        "runs are resumed by their folder here: python -m trainer resume RUN_DIR"
    ),
    "validation_step_interval": To("samples.every"),
    "validation_on_startup": Ignored("pictures are always drawn before the first step"),
    "validation_disable": Ignored("leave samples.prompts empty"),
    "validation_disable_unconditional": Ignored("pictures are drawn of the prompts alone"),
    "validation_prompt_library": Absent("write the prompts that you want into samples.prompts"),
    "validation_randomize": Absent("every prompt has the same noise each time"),
    "validation_guidance_real": Absent("samples.guidance is the only one"),
    "validation_guidance_rescale": NOT_OFFERED,
    "validation_guidance_skip_layers": NOT_OFFERED,
    "validation_noise_scheduler": Ignored("pictures are drawn with the base's own sampler"),
    "validation_lycoris_strength": Only(one),
    "num_validation_images": Ignored("one picture is drawn of each prompt"),
    "eval_steps_interval": To("validation.every"),
    "eval_dataset_id": Absent("validation.path names a folder, validation.share a share of the photos"),
    "eval_timesteps": Ignored("the noise levels of the validation loss are fixed here too"),
    "evaluation_type": Absent("likeness is looked at when the run ends"),
    **dict.fromkeys(
        words(
            "validation_guidance_skip_layers_start validation_guidance_skip_layers_stop "
            "validation_guidance_skip_scale validation_torch_compile validation_image_format "
            "validation_image_quality validation_seed_source validation_multigpu "
            "validation_preview validation_preview_steps validation_method num_eval_images "
            "flow_beta_schedule_alpha flow_beta_schedule_beta flow_timesteps_mode model_card_note "
            "model_card_private model_card_safe_for_work modelspec_comment tracker_image_layout "
            "disk_low_action disk_low_threshold webhook_config webhook_reporting_interval "
            "disable_benchmark configs_dir"
        ),
        Ignored("the program's own way is used"),
    ),
    **dict.fromkeys(words("report_to tracker_project_name logging_dir print_filenames"), TRACKED),
    **dict.fromkeys(
        words("push_to_hub push_checkpoints_to_hub push_to_hub_background publishing_config"), HUB
    ),
    **dict.fromkeys(
        words(
            "text_encoder_2_precision text_encoder_3_precision text_encoder_4_precision "
            "quantize_via gradient_checkpointing_interval gradient_checkpointing_backend "
            "fuse_qkv_projections fused_qkv_projections fuse_optimizer attention_mechanism "
            "allow_tf32 disable_tf32 dataloader_prefetch dataloader_prefetch_qlen max_workers "
            "read_batch_size write_batch_size image_processing_batch_size text_encoder_batch_size "
            "vae_batch_size vae_dtype vae_enable_slicing vae_enable_tiling vae_enable_patch_conv "
            "aspect_bucket_worker_count torch_num_threads dynamo_backend dynamo_mode "
            "enable_group_offload group_offload_type group_offload_blocks_per_group "
            "group_offload_use_stream offload_during_startup offload_during_save "
            "delete_model_after_load keep_vae_loaded unet_attention_slice num_processes "
            "num_machines accelerate_extra_args gradient_precision quantize_activations "
            "ema_device ema_cpu_only ema_foreach_disable ema_update_interval ema_warmup_steps "
            "ema_validation optimizer_release_gradients musubi_blocks_to_swap ramtorch "
            "deepspeed_config set_grads_to_none i_know_what_i_am_doing"
        ),
        SPEED,
    ),
    **dict.fromkeys(
        words(
            "compress_disk_cache preserve_data_backend_cache skip_file_discovery "
            "vae_cache_scan_behaviour vae_cache_ondemand cache_dir cache_dir_text cache_dir_vae "
            "metadata_update_interval override_dataset_config ignore_missing_files "
            "delete_problematic_images delete_unwanted_images"
        ),
        CACHED,
    ),
    **dict.fromkeys(
        words(
            "aspect_bucket_rounding aspect_bucket_alignment aspect_bucket_disable_rebuild "
            "disable_bucket_pruning"
        ),
        Ignored("photos are sorted into buckets by their shape, and none is left out"),
    ),
    "allow_dataset_oversubscription": Ignored("small buckets are never left out here"),
    "minimum_image_size": Absent("the Photos page tells of small photos", (0,)),
    "maximum_image_size": Absent("photos are made smaller to their bucket"),
    "target_downsample_size": Absent("photos are made smaller to their bucket"),
    "max_upscale_threshold": Absent("the Photos page tells of small photos"),
    "data_backend_sampling": Ignored("every folder's photos are mixed"),
    "caption_strategy": Only(_textfile),
    "prepend_instance_prompt": Absent("put the trigger into the captions: captions.prefix"),
    "only_instance_prompt": Absent("leave the captions out; the trigger is then every photo's caption"),
    "controlnet": Absent("ControlNets are not trained"),
    "control": Absent("control pictures are not used"),
    "tread_config": NOT_OFFERED,
    "distillation_method": NOT_OFFERED,
    "user_prompt_library": Ignored("read with the prompts"),
    "num_train_epochs": Ignored("max_train_steps is given"),
    "strict_epoch_limit": Ignored("a run ends with its last step"),
    "tokenizer_max_length": LENGTH,
    "flux_attention_masked_training": Absent("the base's own way is used"),
    "flux_fast_schedule": Absent("noise levels are drawn as noise.timesteps says"),
    "flux_guidance_mode": GUIDANCE,
    "flux_guidance_value": GUIDANCE,
    "sd3_clip_uncond_behaviour": Ignored("an empty caption is encoded like any other"),
    "sd3_t5_uncond_behaviour": Ignored("an empty caption is encoded like any other"),
    "t5_padding": Ignored("the base's own way is used"),
}


def _require(fits: bool) -> None:
    if not fits:
        raise Unusable("not offered")


LYCORIS: Table = {
    "factor": To("adapter.lokr_factor"),
    "multiplier": Only(one),
    "full_matrix": NOT_OFFERED,
    "use_scalar": NOT_OFFERED,
    "bypass_mode": Ignored("how it is computed; the result is the same"),
    "apply_preset": LAYERS,
    "conv_dim": To("adapter.conv_rank"),
    "conv_alpha": To("adapter.conv_alpha"),
    "dropout": To("adapter.dropout"),
    "rank_dropout": To("adapter.rank_dropout"),
    "module_dropout": To("adapter.module_dropout"),
}

BACKEND: Table = {
    "crop": Only(lambda value: None, "photos are cropped to the bucket that fits them"),
    "crop_style": Only(_crop_whole, "photos are cropped by the face or by what catches the eye"),
    "crop_aspect": Only(_crop_whole, "photos keep their shape as far as the buckets allow"),
    "crop_aspect_buckets": Ignored("the buckets are the usual ones"),
    "minimum_image_size": Absent("the Photos page tells of small photos", (0,)),
    "maximum_image_size": Ignored("photos are made smaller to their bucket"),
    "target_downsample_size": Ignored("photos are made smaller to their bucket"),
    "minimum_aspect_ratio": Absent("the Photos page shows every crop"),
    "maximum_aspect_ratio": Absent("the Photos page shows every crop"),
    "caption_strategy": Only(_textfile),
    "prepend_instance_prompt": Absent("put the trigger into the captions: captions.prefix"),
    "only_instance_prompt": Absent("leave the captions out; the trigger is then every photo's caption"),
    "caption_shuffle": Absent("set captions.shuffle"),
    "disable_multiline_split": Absent("set captions.wildcards for one line at random"),
    "probability": Only(one),
    "max_num_samples": Absent("put fewer photos into the folder"),
    "disabled": Ignored("off"),
    "ignore_epochs": Ignored("the program's own way is used"),
    "metadata_backend": Ignored("the program's own way is used"),
    "dataset_name": Absent("photos are files in a folder"),
    **dict.fromkeys(
        words(
            "cache_dir_vae cache_dir vae_cache_clear_each_epoch text_embeds image_embeds "
            "skip_file_discovery preserve_data_backend_cache hash_filenames write_batch_size "
            "text_encoder_batch_size default"
        ),
        CACHED,
    ),
}
