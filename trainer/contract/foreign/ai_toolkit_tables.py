"""ai-toolkit: the options of a job, and what they are here. Its readers are in :mod:`.ai_toolkit`."""

from __future__ import annotations

from typing import Any

from .names import precision, side
from .report import Unusable, is_off, number, shown
from .rules import Absent, Ignored, Only, Table, To

_SPEED = Ignored("speed or memory only: it does not change the result")
_SHOWN = Ignored("the studio keeps and draws the course of a run itself")
_HUB = Ignored("publishing is done from the Results page")
_CACHED = Ignored("latents and captions are always cached here, keyed by their content")


def _extension(value: Any) -> None:
    if str(value).strip().lstrip(".").lower() != "txt":
        raise Unusable("captions are read from .txt files here; rename yours")


def _one(value: Any) -> None:
    if number(value) != 1:
        raise Unusable("not offered; it is 1 here")


def _timesteps(value: Any) -> str:
    names = {"sigmoid": "sigmoid", "linear": "uniform", "shift": "shift"}
    if str(value) not in names:
        raise Unusable(f"the distribution {shown(value)} is not offered; the family's usual one is taken")
    return names[str(value)]


def _loss(value: Any) -> str:
    names = {"mse": "l2", "mae": "l1", "pseudo_huber": "huber"}
    if str(value) not in names:
        raise Unusable(f"the loss {shown(value)} is not offered; l2 is taken")
    return names[str(value)]


JOB: Table = {
    "type": Ignored("the kind of job"),
    "training_folder": Ignored("a run is a folder of its own in the workspace"),
    "sqlite_db_path": _SHOWN,
    "performance_log_every": _SHOWN,
    "device": _SPEED,
    "trigger_word": To("dataset.trigger"),
    "logging": _SHOWN,
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
    "layer_offloading": _SPEED,
    "split_multistage_loras": _SPEED,
}
SAVE: Table = {
    "dtype": Ignored("the exported file has a number format of its own choice"),
    "save_every": To("checkpoints.every"),
    "max_step_saves_to_keep": To("checkpoints.keep"),
    "save_format": Ignored("any format can be exported from the Results page"),
    "push_to_hub": _HUB,
    "hf_repo_id": _HUB,
    "hf_private": _HUB,
}
DATASET: Table = {
    "folder_path": To("dataset.path"),
    "dataset_path": To("dataset.path"),
    "type": Ignored("pictures"),
    "caption_ext": Only(_extension),
    "caption_dropout_rate": To("captions.dropout"),
    "shuffle_tokens": To("captions.shuffle"),
    "token_dropout_rate": To("captions.tag_dropout"),
    "keep_tokens": To(
        "captions.keep_tokens", None, "ai-toolkit shuffles the kept ones along; here they stay in front"
    ),
    "default_caption": Absent("a photo without a caption gets the trigger word"),
    "trigger_word": To("dataset.trigger"),
    "resolution": To("dataset.resolution", side),
    "num_repeats": To("dataset.repeats"),
    "flip_x": To("dataset.flip"),
    "flip_y": Absent("pictures are not turned upside down"),
    "random_crop": To("dataset.random_crop"),
    "random_scale": Absent("not offered"),
    "square_crop": Absent("photos are cropped to the bucket that fits them"),
    "scale": Only(_one),
    "buckets": Ignored("photos are always sorted into buckets; square photos need none"),
    "bucket_tolerance": To("dataset.bucket_step"),
    "standardize_images": Absent("not offered"),
    "is_reg": Ignored("read with the folders"),
    "prior_reg": Absent("not offered"),
    "network_weight": Only(_one),
    "loss_multiplier": Only(_one),
    "alpha_mask": To("loss.mask", lambda value: "off" if is_off(value) else "batch"),
    "mask_path": Absent("put masks into masks/ beside the photos"),
    "mask_min_value": To("loss.mask_floor"),
    "invert_mask": Absent("invert the masks themselves"),
    "augments": Absent("not offered"),
    "augmentations": Absent("not offered"),
    "controls": Absent("control pictures are not used"),
    "control_path": Absent("control pictures are not used"),
    "cache_latents": _CACHED,
    "cache_latents_to_disk": _CACHED,
    "cache_text_embeddings": _CACHED,
    "cache_tensors_to_disk": _CACHED,
    "num_workers": _SPEED,
    "prefetch_factor": _SPEED,
    "cache_latents_num_workers": _SPEED,
    "fast_image_size": _SPEED,
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
    "noise_scheduler": Ignored("the base's own scheduler says how it is trained"),
    "max_grad_norm": To("train.max_grad_norm"),
    "dtype": To("model.precision", precision, "the LoRA itself stays in adapter.precision"),
    "timestep_type": To("noise.timesteps", _timesteps),
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
    "reg_weight": To("prior.weight"),
    "diff_output_preservation_multiplier": To("prior.weight"),
    "diff_output_preservation_class": To("prior.class_name"),
    "blank_prompt_preservation": Absent("prior.method has what keeps other prompts as they were"),
    "blank_prompt_preservation_multiplier": Ignored("goes with blank_prompt_preservation"),
    "inverted_mask_prior": Absent("not offered"),
    "inverted_mask_prior_multiplier": Ignored("goes with inverted_mask_prior"),
    "bypass_guidance_embedding": Ignored("distilled bases are trained with the guidance that fits them"),
    "do_differential_guidance": Absent("not offered"),
    "differential_guidance_scale": Ignored("goes with do_differential_guidance"),
    "skip_first_sample": Ignored("pictures are always drawn before the first step"),
    "force_first_sample": Ignored("pictures are always drawn before the first step"),
    "disable_sampling": Ignored("leave samples.prompts empty"),
    "unload_text_encoder": _CACHED,
    "cache_text_embeddings": _CACHED,
    "xformers": _SPEED,
    "sdp": _SPEED,
    "attention_backend": _SPEED,
    "switch_boundary_every": Ignored("only for video"),
    "audio_loss_multiplier": Ignored("only for sound"),
    "learnable_snr_gos": Absent("not offered"),
    "weight_jitter": Absent("not offered"),
    "optimal_noise_pairing_samples": Only(_one),
    "do_fft_loss": Absent("not offered"),
}
MODEL: Table = {
    "quantize": Ignored("read with qtype"),
    "quantize_te": Ignored("read with qtype_te"),
    "is_v_pred": Ignored("the base's own scheduler says what it predicts"),
    "dtype": To("model.precision", precision),
    "vae_path": To("model.vae"),
    "assistant_lora_path": To("model.assistant"),
    "lora_path": Absent(
        "no LoRA is merged into the base; merge it first, or go on from it (adapter.start_from)"
    ),
    "inference_lora_path": Absent("samples are drawn with the base and the LoRA alone"),
    "low_vram": Ignored("memory only: model.quantize and gradient checkpointing are what saves it here"),
    "layer_offloading": _SPEED,
    "layer_offloading_transformer_percent": _SPEED,
    "layer_offloading_text_encoder_percent": _SPEED,
    "auto_memory": _SPEED,
    "accuracy_recovery_adapter": Absent("not offered"),
    "compile": _SPEED,
    "block_compile": _SPEED,
    "te_name_or_path": Ignored("the text encoders come with the base here"),
    "extras_name_or_path": Ignored("the other parts come with the base here"),
    "unet_path": Absent("give model.base the file"),
    "model_kwargs": Absent("not offered", ({},)),
    "model_paths": Absent("not offered", ({},)),
    "use_flux_cfg": Absent("not offered"),
    "only_if_contains": Absent("layers are chosen by adapter.target_regex"),
    "ignore_if_contains": Absent("layers are chosen by adapter.target_regex"),
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
    "network_multiplier": Only(_one),
    "guidance_rescale": Absent("not offered"),
    "format": Ignored("samples are WebP files"),
    "adapter_conditioning_scale": Ignored("only for adapters"),
    "num_frames": Ignored("only for video"),
    "fps": Ignored("only for video"),
}
