"""ai-toolkit: the options of a job, and what they are here. Its readers are in :mod:`.ai_toolkit`."""

from __future__ import annotations

from typing import Any

from .names import precision, side
from .report import Unusable, is_off, number, shown
from .rules import (
    CACHED,
    EXPORTED,
    FOLDER,
    GUIDANCE,
    HUB,
    LAYERS,
    NOT_OFFERED,
    SCHEDULER,
    SPEED,
    TRACKED,
    Absent,
    Ignored,
    Only,
    Table,
    To,
    one,
    switched,
    v_prediction,
)


def _extension(value: Any) -> None:
    if str(value).strip().lstrip(".").lower() not in ("txt", "caption"):
        raise Unusable("captions are read from .txt files here, or .caption ones; rename yours")


def _loss(value: Any) -> str:
    names = {"mse": "l2", "mae": "l1", "pseudo_huber": "huber"}
    if str(value) not in names:
        raise Unusable(f"the loss {shown(value)} is not offered; l2 is taken")
    return names[str(value)]


JOB: Table = {
    "type": Ignored("the kind of job"),
    "training_folder": FOLDER,
    "sqlite_db_path": TRACKED,
    "performance_log_every": TRACKED,
    "device": SPEED,
    "logging": TRACKED,
    "meta": Ignored("a note in the file"),
    "slider": Absent("sliders are not offered"),
    "adapter": Absent("only LoRAs are trained"),
    "embedding": Absent("embeddings are not trained"),
}
NETWORK: Table = {
    "dropout": To("adapter.dropout"),
    "transformer_only": Ignored("only the denoiser is adapted unless a text encoder's rate is set"),
    "lokr_factor": To("adapter.lokr_factor"),
    "lokr_full_rank": Ignored("only for LoKr"),
    "old_lokr_format": Ignored("only for LoKr"),
    "pretrained_lora_path": To("adapter.start_from"),
    "network_kwargs": Absent("layers are chosen by adapter.targets and adapter.target_regex", ({},)),
    "all_layers": Absent("only linear layers and convolutions are adapted"),
    "layer_offloading": SPEED,
    "split_multistage_loras": SPEED,
}
SAVE: Table = {
    "dtype": EXPORTED,
    "save_every": To("checkpoints.every"),
    "max_step_saves_to_keep": To("checkpoints.keep"),
    "save_format": EXPORTED,
    "push_to_hub": HUB,
    "hf_repo_id": HUB,
    "hf_private": HUB,
}
OWN = {
    "shuffle": "shuffle_tokens",
    "keep_tokens": "keep_tokens",
    "dropout": "caption_dropout_rate",
    "flip": "flip_x",
}
"""What a folder can have of its own, by our field."""
DATASET: Table = {
    "type": Ignored("pictures"),
    "caption_ext": Only(_extension, "such files are read here"),
    "caption_dropout_rate": To("captions.dropout"),
    "shuffle_tokens": To("captions.shuffle"),
    "token_dropout_rate": To("captions.tag_dropout"),
    "keep_tokens": To(
        "captions.keep_tokens", None, "ai-toolkit shuffles the kept ones along; here they stay in front"
    ),
    "default_caption": Absent("a photo without a caption gets the trigger word"),
    "trigger_word": To("dataset.trigger"),
    "resolution": To("dataset.resolution", side),
    "flip_x": To("dataset.flip"),
    "flip_y": Absent("pictures are not turned upside down"),
    "random_crop": To("dataset.random_crop", switched(0.1)),
    "random_scale": NOT_OFFERED,
    "square_crop": Absent("photos are cropped to the bucket that fits them"),
    "scale": Only(one),
    "buckets": Ignored("photos are always sorted into buckets; square photos need none"),
    "bucket_tolerance": Ignored("the step of the buckets follows from the resolution"),
    "standardize_images": NOT_OFFERED,
    "prior_reg": NOT_OFFERED,
    "network_weight": Only(one),
    "loss_multiplier": Only(one),
    "alpha_mask": To("loss.mask", lambda value: None if is_off(value) else "batch"),
    "mask_path": Absent("masks are found in masks/ beside the photos"),
    "mask_min_value": To("loss.mask_floor"),
    "invert_mask": Absent("invert the masks themselves"),
    "augments": NOT_OFFERED,
    "augmentations": NOT_OFFERED,
    "controls": Absent("control pictures are not used"),
    "control_path": Absent("control pictures are not used"),
    "cache_latents": CACHED,
    "cache_latents_to_disk": CACHED,
    "cache_text_embeddings": CACHED,
    "cache_tensors_to_disk": CACHED,
    "num_workers": SPEED,
    "prefetch_factor": SPEED,
    "cache_latents_num_workers": SPEED,
    "fast_image_size": SPEED,
    "num_frames": Ignored("only for video"),
    "shrink_video_to_frames": Ignored("only for video"),
    "fps": Ignored("only for video"),
    "do_i2v": Ignored("only for video"),
    "do_audio": Ignored("only for video"),
}
TRAIN: Table = {
    "batch_size": To("train.batch_size"),
    "steps": To("train.steps"),
    "gradient_accumulation": To("train.gradient_accumulation"),
    "gradient_accumulation_steps": To("train.gradient_accumulation"),
    "train_unet": Ignored("the denoiser is always trained"),
    "train_refiner": Ignored("only for bases with a refiner"),
    "gradient_checkpointing": To(
        "train.gradient_checkpointing", lambda value: "off" if is_off(value) else "on"
    ),
    "noise_scheduler": SCHEDULER,
    "max_grad_norm": To("train.max_grad_norm"),
    "dtype": To("model.precision", precision, "the LoRA itself stays in adapter.precision"),
    "linear_timesteps": Absent("a weight per timestep is not offered"),
    "linear_timesteps2": Absent("a weight per timestep is not offered"),
    "content_or_style": Absent("noise levels are drawn as noise.timesteps says", ("balanced",)),
    "content_or_style_reg": Absent("noise levels are drawn as noise.timesteps says", ("balanced",)),
    "loss_type": To("loss.type", _loss),
    "min_snr_gamma": To("loss.min_snr_gamma"),
    "snr_gamma": To("loss.min_snr_gamma"),
    "noise_offset": To("noise.offset"),
    "min_denoising_steps": To("noise.t_min", lambda value: number(value) / 1000, "a share of 1000"),
    "max_denoising_steps": To(
        "noise.t_max", lambda value: min(1.0, (number(value) + 1) / 1000), "a share of 1000"
    ),
    "prompt_dropout_prob": To("captions.dropout"),
    "diff_output_preservation_multiplier": To("prior.weight"),
    "diff_output_preservation_class": To("prior.class_name"),
    "blank_prompt_preservation": Absent("prior.method has what keeps other prompts as they were"),
    "blank_prompt_preservation_multiplier": Ignored("goes with blank_prompt_preservation"),
    "inverted_mask_prior": NOT_OFFERED,
    "inverted_mask_prior_multiplier": Ignored("goes with inverted_mask_prior"),
    "bypass_guidance_embedding": GUIDANCE,
    "do_differential_guidance": NOT_OFFERED,
    "differential_guidance_scale": Ignored("goes with do_differential_guidance"),
    "skip_first_sample": Ignored("pictures are always drawn before the first step"),
    "force_first_sample": Ignored("pictures are always drawn before the first step"),
    "disable_sampling": Ignored("leave samples.prompts empty"),
    "unload_text_encoder": CACHED,
    "cache_text_embeddings": CACHED,
    "xformers": SPEED,
    "sdp": SPEED,
    "attention_backend": SPEED,
    "switch_boundary_every": Ignored("only for video"),
    "audio_loss_multiplier": Ignored("only for sound"),
    "learnable_snr_gos": NOT_OFFERED,
    "weight_jitter": NOT_OFFERED,
    "optimal_noise_pairing_samples": Only(one),
    "do_fft_loss": NOT_OFFERED,
}
MODEL: Table = {
    "quantize": Ignored("read with qtype"),
    "quantize_te": Ignored("read with qtype_te"),
    "is_v_pred": To("noise.prediction", v_prediction),
    "dtype": To("model.precision", precision),
    "vae_path": To("model.vae"),
    "assistant_lora_path": To("model.assistant"),
    "lora_path": Absent(
        "no LoRA is merged into the base; merge it first, or go on from it (adapter.start_from)"
    ),
    "inference_lora_path": Absent("samples are drawn with the base and the LoRA alone"),
    "low_vram": Ignored("memory only: model.quantize and gradient checkpointing are what saves it here"),
    "layer_offloading": SPEED,
    "layer_offloading_transformer_percent": SPEED,
    "layer_offloading_text_encoder_percent": SPEED,
    "auto_memory": SPEED,
    "accuracy_recovery_adapter": NOT_OFFERED,
    "compile": SPEED,
    "block_compile": SPEED,
    "te_name_or_path": Ignored("the text encoders come with the base here"),
    "extras_name_or_path": Ignored("the other parts come with the base here"),
    "unet_path": Absent("give model.base the file"),
    "model_kwargs": Absent("not offered", ({},)),
    "model_paths": Absent("not offered", ({},)),
    "use_flux_cfg": NOT_OFFERED,
    "only_if_contains": LAYERS,
    "ignore_if_contains": LAYERS,
    "attn_masking": Absent("the base's own way is used"),
}
FLAGS = {
    "is_v2": "sd2",
    "is_v3": "sd3",
    "is_xl": "sdxl",
    "is_flux": "flux",
    "is_lumina2": "lumina2",
    "is_pixart": "pixart",
    "is_pixart_sigma": "pixart_sigma",
    "is_auraflow": "auraflow",
    "is_ssd": "ssd",
    "is_vega": "vega",
}


SAMPLE: Table = {
    "sampler": Ignored("pictures are drawn with the base's own sampler"),
    "sample_every": To("samples.every"),
    "sample_start_step": Ignored("pictures are drawn from the beginning on"),
    "walk_seed": Ignored("every prompt has noise of its own, which stays the same"),
    "network_multiplier": Only(one),
    "guidance_rescale": NOT_OFFERED,
    "format": Ignored("samples are WebP files"),
    "adapter_conditioning_scale": Ignored("only for adapters"),
    "num_frames": Ignored("only for video"),
    "fps": Ignored("only for video"),
}
