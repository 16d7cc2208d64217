"""kohya's sd-scripts: every option of the training scripts for LoRAs, and what it is here.

Options that need each other (rates, duration, optimizer, network, prompts) are read in
:mod:`trainer.contract.foreign.kohya`; all others are in these tables.
"""

from __future__ import annotations

from typing import Any

from .names import precision, side
from .report import Unusable, is_off, number
from .rules import (
    CACHED,
    CHECKPOINTING,
    EXPORTED,
    FOLDER,
    HUB,
    NOT_OFFERED,
    RESUME,
    SECRET,
    SPEED,
    TRACKED,
    Absent,
    Ignored,
    Only,
    Table,
    To,
    on,
    switched,
    v_prediction,
)

_FULL = Ignored("only for full fine-tuning; it has no effect on a LoRA")
_OWN_FILE = Ignored("that part of the base comes with it here")


def _clip_skip(value: Any) -> None:
    if number(value) > 1:
        raise Unusable("captions are encoded as the base was trained; clip skip is not offered")


def _token_length(value: Any) -> None:
    if number(value) > 75:
        raise Unusable("captions are cut at the length that the base's text encoders read")


def _extension(value: Any) -> None:
    if str(value).strip().lstrip(".").lower() not in ("txt", "caption"):
        raise Unusable("captions are read from .txt files here, or .caption ones; rename yours")


def _guidance(value: Any) -> None:
    if number(value) != 1:
        raise Unusable(
            "distilled bases are trained with the guidance that fits them; kohya's own advice is 1"
        )


MODEL: Table = {
    "v2": Ignored("the base's own files say so"),
    "v_parameterization": To("noise.prediction", v_prediction),
    "zero_terminal_snr": To("noise.zero_terminal_snr", on),
    "vae": To("model.vae"),
    "mixed_precision": To("model.precision", precision, "the LoRA itself stays in adapter.precision"),
    "full_fp16": Absent("a LoRA in fp16 cannot be scaled safely; adapter.precision = bf16 halves it"),
    "no_half_vae": Ignored("the VAE runs in a number format that it does not overflow in"),
    "clip_skip": Only(_clip_skip),
    "max_token_length": Only(_token_length),
    "weighted_captions": Absent("weights in captions, like (word:1.2), are not offered"),
    "tokenizer_cache_dir": Ignored("downloads have one place: HF_HOME"),
    "clip_l": _OWN_FILE,
    "clip_g": _OWN_FILE,
    "t5xxl": _OWN_FILE,
    "gemma2": _OWN_FILE,
    "ae": _OWN_FILE,
    "text_encoder": _OWN_FILE,
    "byt5": _OWN_FILE,
    "t5xxl_max_token_length": Ignored("the base's own length is used"),
    "gemma2_max_token_length": Ignored("the base's own length is used"),
    "t5xxl_device": SPEED,
    "t5xxl_dtype": SPEED,
    "apply_t5_attn_mask": Absent("the base's own way is used"),
    "apply_lg_attn_mask": Absent("the base's own way is used"),
    "clip_l_dropout_rate": Absent("captions.dropout empties a caption for all text encoders together"),
    "clip_g_dropout_rate": Absent("captions.dropout empties a caption for all text encoders together"),
    "t5_dropout_rate": Absent("captions.dropout empties a caption for all text encoders together"),
    "enable_scaled_pos_embed": Absent("the base's own positions are used"),
    "pos_emb_random_crop_rate": Absent("the base's own positions are used"),
    "system_prompt": Absent("the base's own system prompt is used"),
    "model_type": Ignored("it names the family"),
    "guidance_scale": Only(_guidance),
    "fp8_base": To("model.quantize", lambda value: "none" if is_off(value) else "int8", "8 bits: int8 here"),
    "fp8_base_unet": To(
        "model.quantize", lambda value: "none" if is_off(value) else "int8", "8 bits: int8 here"
    ),
    "fp8_scaled": To(
        "model.quantize", lambda value: "none" if is_off(value) else "int8", "8 bits: int8 here"
    ),
    "blocks_to_swap": Ignored(
        "memory only: where it runs out a run takes the next saving by itself (machine.on_oom), at last the "
        "base in RAM (machine.offload)"
    ),
    "split_mode": Ignored("outdated, in kohya's scripts too"),
    "vae_batch_size": SPEED,
    "disable_mmap_load_safetensors": SPEED,
    "lowram": SPEED,
    "highvram": SPEED,
    "text_encoder_batch_size": SPEED,
}


TRAINING: Table = {
    "train_batch_size": To("train.batch_size"),
    "gradient_accumulation_steps": To("train.gradient_accumulation"),
    "max_grad_norm": To("train.max_grad_norm"),
    "gradient_checkpointing": CHECKPOINTING,
    "cpu_offload_checkpointing": Absent("activations are not moved to RAM; gradient_checkpointing is on"),
    "seed": To("train.seed", lambda value: int(number(value)) % 2**63),
    "fused_backward_pass": Ignored(
        "it does nothing for a LoRA in kohya's scripts either: only full fine-tuning reads it, and the "
        "guides' 24 → 10 GB are numbers of full fine-tuning. What saves memory for a LoRA: gradient "
        "checkpointing, cached captions, model.quantize; train.fused_backward, which frees gradients"
    ),
    "fused_optimizer_groups": Ignored(
        "kohya's scripts for LoRAs refuse it (unrecognized arguments): it belongs to full fine-tuning. A "
        "LoRA's gradients are small; model.quantize saves more"
    ),
    "full_bf16": To("adapter.precision", lambda value: "fp32" if is_off(value) else "bf16"),
    "xformers": SPEED,
    "sdpa": SPEED,
    "mem_eff_attn": SPEED,
    "use_flash_attn": SPEED,
    "use_sage_attn": SPEED,
    "torch_compile": SPEED,
    "dynamo_backend": SPEED,
    "max_data_loader_n_workers": SPEED,
    "persistent_data_loader_workers": SPEED,
    "ddp_timeout": SPEED,
    "ddp_gradient_as_bucket_view": SPEED,
    "ddp_static_graph": SPEED,
    "deepspeed": Absent("DeepSpeed is not offered"),
    "debug_dataset": Ignored("the Photos page shows what will be trained on"),
    "skip_until_initial_step": RESUME,
    "initial_step": RESUME,
    "initial_epoch": RESUME,
    "resume": RESUME,
    "resume_from_huggingface": RESUME,
    "stop_text_encoder_training": Absent("text encoders are trained to the end, or not at all"),
}

NETWORK: Table = {
    "network_dropout": To(
        "adapter.dropout", None, "here of a layer's inputs, in kohya's scripts of the LoRA's inner values"
    ),
    "network_weights": To("adapter.start_from"),
    "dim_from_weights": Absent("set adapter.rank to the file's rank; where they differ it is changed by SVD"),
    "base_weights": Absent(
        "no LoRA is merged into the base; merge it first, or go on from it (adapter.start_from)"
    ),
    "base_weights_multiplier": Absent("no LoRA is merged into the base"),
    "scale_weight_norms": To("adapter.max_norm"),
    "network_train_text_encoder_only": Absent("the denoiser is always trained"),
}

NETWORK_ARGS: Table = {
    "rank_dropout": To("adapter.rank_dropout"),
    "module_dropout": To("adapter.module_dropout"),
    "loraplus_lr_ratio": To("train.loraplus_ratio"),
    "loraplus_unet_lr_ratio": To("train.loraplus_denoiser_ratio"),
    "loraplus_text_encoder_lr_ratio": To("train.loraplus_text_ratio"),
    "unit": To("adapter.dylora_unit"),
    "factor": To("adapter.lokr_factor"),
    "dora_wd": To("adapter.dora"),
    "rs_lora": To("adapter.rslora"),
    "block_lr_zero_threshold": Ignored("only weights that are given by block are cut off by it"),
    "split_qkv": Ignored("queries, keys and values are adapted apart wherever the base has them apart"),
    "train_t5xxl": Absent("T5 is not trained"),
    "use_tucker": Absent("Tucker decomposition of convolutions is not offered"),
    "use_cp": Absent("CP decomposition of convolutions is not offered"),
    "use_scalar": Absent("a trained scale per layer is not offered"),
    "decompose_both": Absent("LoKr's second factor alone is decomposed"),
    "train_norm": Absent("norms are not trained"),
    "rescaled": NOT_OFFERED,
    "constraint": NOT_OFFERED,
    "rank_dropout_scale": Absent("the rank dropout is always compensated, as kohya's own LoRA does"),
    "bypass_mode": Ignored("how it is computed; the result is the same"),
    "verbose": Ignored("the log has it"),
    "ggpo_beta": Absent("GGPO is not offered"),
    "ggpo_sigma": Absent("GGPO is not offered"),
}

LOSS: Table = {
    "loss_type": To("loss.type"),
    "huber_schedule": To("loss.huber_schedule"),
    "huber_c": To("loss.huber_c"),
    "huber_scale": To("loss.huber_scale"),
    "min_snr_gamma": To("loss.min_snr_gamma"),
    "debiased_estimation_loss": To("loss.debiased"),
    "v_pred_like_loss": To("loss.v_pred_like"),
    "scale_v_pred_loss_like_noise_pred": To("loss.scale_v_like_noise"),
    "noise_offset": To("noise.offset"),
    "noise_offset_random_strength": To("noise.offset_random"),
    "adaptive_noise_scale": To("noise.offset_adaptive"),
    "multires_noise_iterations": To("noise.multires_iterations"),
    "multires_noise_discount": To("noise.multires_discount"),
    "ip_noise_gamma": To("noise.input_perturbation"),
    "ip_noise_gamma_random_strength": Absent("the strength of noise.input_perturbation is fixed"),
    "perlin_noise": Absent("not offered, and in kohya's scripts neither"),
    "min_timestep": To("noise.t_min", lambda value: number(value) / 1000, "a share of the 1000 timesteps"),
    "max_timestep": To("noise.t_max", lambda value: number(value) / 1000, "a share of the 1000 timesteps"),
}

SAVING: Table = {
    "output_dir": FOLDER,
    "save_model_as": EXPORTED,
    "save_precision": EXPORTED,
    "use_safetensors": EXPORTED,
    "save_n_epoch_ratio": Absent("set checkpoints.every"),
    "save_state": Ignored("every checkpoint here can be resumed"),
    "save_state_on_train_end": Ignored("every checkpoint here can be resumed"),
    "save_last_n_epochs": To("checkpoints.keep"),
    "save_last_n_epochs_state": Absent("checkpoints.keep counts checkpoints"),
    "save_last_n_steps_state": Absent("checkpoints.keep counts checkpoints"),
    "no_metadata": Ignored("files always tell how they were made, without paths of this machine"),
    "training_comment": Ignored("the trigger word is in the file's metadata anyway"),
    "logging_dir": TRACKED,
    "log_with": TRACKED,
    "log_prefix": TRACKED,
    "log_config": TRACKED,
    "log_tracker_name": TRACKED,
    "log_tracker_config": TRACKED,
    "wandb_run_name": TRACKED,
    "wandb_api_key": SECRET,
    "huggingface_token": SECRET,
    "huggingface_repo_id": HUB,
    "huggingface_repo_type": HUB,
    "huggingface_path_in_repo": HUB,
    "huggingface_repo_visibility": HUB,
    "save_state_to_huggingface": HUB,
    "async_upload": HUB,
    "output_config": Ignored("every run keeps its recipe"),
    "sample_at_first": Ignored("pictures are always drawn before the first step"),
    "sample_batch_size": SPEED,
    "validation_split": To("validation.share"),
    "validation_seed": Ignored("which photos are held out follows from their content"),
    "validate_every_n_steps": To("validation.every"),
    "validate_every_n_epochs": To("validation.every_epochs"),
    "max_validation_steps": Absent("all photos that are held out are looked at"),
}

BUCKETS: Table = {
    "min_bucket_reso": To("dataset.bucket_min"),
    "max_bucket_reso": To("dataset.bucket_max"),
    "bucket_reso_steps": To("dataset.bucket_step"),
}
"""What matters where enable_bucket is on."""

CAPTIONS: Table = {
    "caption_dropout_rate": To("captions.dropout"),
    "caption_dropout_every_n_epochs": To("captions.dropout_every_epochs"),
    "caption_tag_dropout_rate": To("captions.tag_dropout"),
    "shuffle_caption": To("captions.shuffle"),
    "caption_separator": To("captions.separator"),
    "keep_tokens": To("captions.keep_tokens"),
    "keep_tokens_separator": To(
        "captions.keep_tokens_separator",
        None,
        "it is always taken out of the caption here; kohya trains on the separator itself where nothing is "
        "shuffled or dropped",
    ),
    "secondary_separator": To("captions.secondary_separator"),
    "enable_wildcard": To("captions.wildcards"),
    "caption_prefix": To(
        "captions.prefix",
        None,
        "kohya shuffles it along unless keep_tokens covers it; here it stays in front (captions.protect)",
    ),
    "caption_suffix": To("captions.suffix", None, "it stays at the end, out of the shuffle"),
    "token_warmup_min": To("captions.warmup_min"),
    "token_warmup_step": To("captions.warmup_steps"),
}
"""Subsets have these too."""

IMAGES: Table = {
    "flip_aug": To("dataset.flip"),
    "resolution": To("dataset.resolution", side),
    "caption_extension": Only(_extension, "such files are read here"),
    "caption_extention": Only(_extension, "such files are read here"),
    "color_aug": To("dataset.colour", switched(0.1)),
    "random_crop": To("dataset.random_crop", switched(0.1)),
    "face_crop_aug_range": Absent("photos are cropped by the face when they are taken in"),
    "resize_interpolation": Ignored(
        "photos are made smaller by area and larger by Lanczos, kohya's default too"
    ),
    "cache_latents": CACHED,
    "cache_latents_to_disk": CACHED,
    "cache_text_encoder_outputs": CACHED,
    "cache_text_encoder_outputs_to_disk": CACHED,
    "skip_cache_check": CACHED,
    "cache_info": CACHED,
    "masked_loss": To("loss.mask", lambda value: None if is_off(value) else "kohya"),
    "alpha_mask": To("loss.mask", lambda value: None if is_off(value) else "kohya"),
    "in_json": Absent("captions are .txt files; a metadata JSON is not read"),
    "dataset_class": Absent("code of others is not run"),
    "conditioning_data_dir": Absent("put masks beside the photos"),
}
"""Options of photos that subsets and datasets have too."""

OWN = {
    "prefix": "caption_prefix",
    "suffix": "caption_suffix",
    "shuffle": "shuffle_caption",
    "keep_tokens": "keep_tokens",
    "dropout": "caption_dropout_rate",
    "flip": "flip_aug",
}
"""What a folder can have of its own, by our field."""

ALL: Table = {**MODEL, **TRAINING, **NETWORK, **LOSS, **SAVING, **CAPTIONS, **IMAGES}
