"""OneTrainer: its options, and what they are here. Its reader is in :mod:`.onetrainer`."""

from __future__ import annotations

from typing import Any

from .names import precision
from .report import Unusable, is_off
from .rules import (
    CHECKPOINTING,
    EXPORTED,
    FOLDER,
    GUIDANCE,
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
    switched,
    v_prediction,
    words,
)

_OTHER_PART = Ignored("a part that this family does not have, or that is not trained")


def _from_text_files(value: Any) -> None:
    if str(value) != "sample":
        raise Unusable(
            "captions are .txt files beside the photos; python -m dataset_tools caption writes them"
        )


CONFIG: Table = {
    "batch_size": To("train.batch_size"),
    "gradient_accumulation_steps": To("train.gradient_accumulation"),
    "gradient_checkpointing": CHECKPOINTING,
    "clip_grad_norm": To("train.max_grad_norm"),
    "learning_rate_min_factor": Absent("schedulers end at 0"),
    "learning_rate_scaler": Absent("the learning rate is taken as it is given", ("NONE",)),
    "loss_scaler": Absent("the mean over the batch is the loss", ("NONE",)),
    "custom_learning_rate_scheduler": Absent("code of others is not run"),
    "scheduler_params": Absent("code of others is not run", ([],)),
    "train_dtype": To("model.precision", precision, "the LoRA itself stays in adapter.precision"),
    "fallback_train_dtype": Ignored("model.precision holds everywhere"),
    "lora_weight_dtype": To("adapter.precision", lambda value: precision(value)),
    "lora_model_name": To("adapter.start_from"),
    "dropout_probability": To("adapter.dropout"),
    "lora_decompose": To("adapter.dora"),
    "layer_filter": Absent("set adapter.target_regex"),
    "layer_filter_regex": Ignored("goes with layer_filter"),
    "ema_update_step_interval": Ignored("the average is taken at every step here"),
    "offset_noise_weight": To("noise.offset"),
    "generalized_offset_noise": Absent("the offset does not depend on the timestep here"),
    "perturbation_noise_weight": To("noise.input_perturbation"),
    "rescale_noise_scheduler_to_zero_terminal_snr": To("noise.zero_terminal_snr", on),
    "force_v_prediction": To("noise.prediction", v_prediction),
    "force_epsilon_prediction": To("noise.prediction", lambda value: None if is_off(value) else "epsilon"),
    "min_noising_strength": To("noise.t_min"),
    "max_noising_strength": To("noise.t_max"),
    "masked_prior_preservation_weight": NOT_OFFERED,
    "unmasked_probability": Absent("every photo is shown with its mask"),
    "custom_conditioning_image": Absent("control pictures are not used"),
    "force_circular_padding": NOT_OFFERED,
    "validation": Ignored("read with the concepts"),
    "validate_after": Ignored("read with the concepts"),
    "validate_after_unit": Ignored("read with the concepts"),
    "aspect_ratio_bucketing": Ignored("photos are always sorted into buckets; square photos need none"),
    "latent_caching": Ignored("latents and captions are always cached here, keyed by their content"),
    "clear_cache_before_training": Ignored("what changed in a photo or caption is cached anew by itself"),
    "only_cache": Ignored("caching is a part of training"),
    "text_encoder_layer_skip": Absent("captions are encoded as the base was trained"),
    "text_encoder_2_layer_skip": Absent("captions are encoded as the base was trained"),
    "text_encoder_3_layer_skip": Absent("captions are encoded as the base was trained"),
    "text_encoder_4_layer_skip": Absent("captions are encoded as the base was trained"),
    "text_encoder_sequence_length": LENGTH,
    "text_encoder_2_sequence_length": LENGTH,
    "lokr_decompose_factor": To("adapter.lokr_factor"),
    "secrets": Ignored("secrets never go into a recipe"),
    "cloud": Ignored("where it is trained"),
    "additional_embeddings": Absent("embeddings are not trained", ([],)),
    "embedding": Ignored("embeddings are not trained"),
    "continue_last_backup": Ignored(
        "runs are resumed by their folder here: python -m trainer resume RUN_DIR"
    ),
    "samples_to_tensorboard": TRACKED,
    "output_dtype": EXPORTED,
    "output_model_format": EXPORTED,
    "sample_skip_first": Ignored("pictures are drawn from the beginning on"),
    "non_ema_sampling": Ignored("pictures are drawn with what will be saved"),
    "__version": Ignored("the file's own"),
    **dict.fromkeys(words("vae effnet_encoder decoder decoder_text_encoder decoder_vqgan"), _OTHER_PART),
    **dict.fromkeys(words("unconditional_transformer quantization"), _OTHER_PART),
    **dict.fromkeys(
        words(
            "embedding_learning_rate preserve_embedding_norm embedding_weight_dtype "
            "bundle_additional_embeddings lora_decompose_norm_epsilon lora_decompose_output_axis "
            "oft_block_size oft_block_share oft_scaled lokr_decompose_both lokr_use_tucker "
            "lokr_weight_decompose lokr_dora_on_output lokr_full_matrix lokr_vec_trick"
        ),
        Ignored("only for other kinds of adapters"),
    ),
    **dict.fromkeys(
        words("debug_mode debug_dir tensorboard tensorboard_expose tensorboard_always_on tensorboard_port"),
        TRACKED,
    ),
    **dict.fromkeys(
        words(
            "workspace_dir cache_dir huggingface_cache_dir offline_mode prevent_overwrites "
            "include_train_config sample_image_format sample_video_format sample_audio_format "
            "save_skip_first save_filename_prefix backup_before_save frames"
        ),
        FOLDER,
    ),
    **dict.fromkeys(
        words(
            "multi_gpu device_indexes gradient_reduce_precision fused_gradient_reduce "
            "async_gradient_reduce async_gradient_reduce_buffer async_offloading compile "
            "dataloader_threads train_device temp_device enable_autocast_cache "
            "attention_mechanism enable_activation_offloading enable_async_offloading "
            "layer_offload_fraction"
        ),
        SPEED,
    ),
}


PART: Table = {
    "model_name": Absent("all parts come with the base here"),
    "include": Ignored("all parts come with the base here"),
    "stop_training_after": Absent("parts are trained to the end, or not at all", (30,)),
    "stop_training_after_unit": Ignored("goes with stop_training_after"),
    "dropout_probability": Absent("captions.dropout empties a caption for all text encoders together"),
    "train_embedding": Ignored("embeddings are not trained"),
    "attention_mask": Absent("the base's own way is used"),
    "guidance_scale": GUIDANCE,
    **dict.fromkeys(words("gradient_checkpointing offload_fraction activation_offloading"), SPEED),
}

OPTIMIZER: Table = {
    **dict.fromkeys(
        words(
            "fused foreach capturable differentiable stochastic_rounding optim_bits min_8bit_size is_paged"
        ),
        SPEED,
    ),
    "relative_step": Ignored("the learning rate is taken as it is given"),
}

CONCEPT: Table = {
    "name": Ignored("a name for people"),
    "seed": Ignored("train.seed fixes the order"),
    "include_subdirectories": Ignored("subfolders are read too"),
    "image_variations": Only(one),
    "text_variations": Only(one),
    "concept_stats": Ignored("the Photos page counts anew"),
    "enable_crop_jitter": To("dataset.random_crop", switched(0.1)),
    "enable_random_flip": To("dataset.flip"),
    "enable_fixed_flip": Absent("mirror the photos themselves"),
    "enable_random_rotate": To("dataset.rotate", switched(5.0)),
    "random_rotate_max_angle": Ignored("goes with enable_random_rotate"),
    "enable_random_brightness": To("dataset.colour", switched(0.1)),
    "enable_random_contrast": To("dataset.colour", switched(0.1)),
    "enable_random_saturation": To("dataset.colour", switched(0.1)),
    "enable_random_hue": To("dataset.hue", switched(10.0)),
    "enable_random_circular_mask_shrink": Absent("masks are used as they are"),
    "enable_random_mask_rotate_crop": Absent("masks are used as they are"),
    "prompt_source": Only(_from_text_files),
    "prompt_path": Ignored("goes with prompt_source"),
    "enable_tag_shuffling": To("captions.shuffle"),
    "tag_delimiter": To("captions.separator"),
    "keep_tags_count": To("captions.keep_tokens"),
    "tag_dropout_enable": Ignored("read with tag_dropout_probability"),
    "tag_dropout_mode": Ignored("read with tag_dropout_probability"),
    "tag_dropout_probability": To("captions.tag_dropout"),
    "tag_dropout_special_tags_mode": NOT_OFFERED,
    "tag_dropout_special_tags": NOT_OFFERED,
    "tag_dropout_special_tags_regex": NOT_OFFERED,
    "caps_randomize_enable": NOT_OFFERED,
    **dict.fromkeys(
        words(
            "enable_fixed_rotate enable_fixed_brightness enable_fixed_contrast "
            "enable_fixed_saturation enable_fixed_hue"
        ),
        Absent("change the photos themselves"),
    ),
    **dict.fromkeys(
        words(
            "random_brightness_max_strength random_contrast_max_strength "
            "random_saturation_max_strength random_hue_max_strength caps_randomize_mode "
            "caps_randomize_probability caps_randomize_lowercase"
        ),
        Ignored("goes with what switches it on"),
    ),
}
