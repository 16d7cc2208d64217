"""kohya_ss, the GUI: its saved JSON has the scripts' options under names of its own."""

from __future__ import annotations

from typing import Any

from .kohya import Beside, read_kohya
from .report import Imported, is_off
from .rules import Ignored, Table, follow, words
from .shell import read_command

_RENAMED = {
    "optimizer": "optimizer_type",
    "epoch": "max_train_epochs",
    "max_resolution": "resolution",
    "lora_network_weights": "network_weights",
    "sdxl_no_half_vae": "no_half_vae",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "flux1_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "flux1_cache_text_encoder_outputs_to_disk": "cache_text_encoder_outputs_to_disk",
    "sd3_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sd3_cache_text_encoder_outputs_to_disk": "cache_text_encoder_outputs_to_disk",
    "stop_text_encoder_training_pct": "stop_text_encoder_training",
}
_NETWORK = words(
    "conv_dim conv_alpha block_dims block_alphas conv_block_dims conv_block_alphas block_lr_zero_threshold "
    "down_lr_weight mid_lr_weight up_lr_weight rank_dropout module_dropout loraplus_lr_ratio "
    "loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio unit factor use_tucker use_cp use_scalar "
    "decompose_both train_norm rescaled rank_dropout_scale bypass_mode dora_wd constraint "
    "split_qkv train_t5xxl"
)
"""What the GUI puts into network_args; empty and zero ones it does not."""
_KINDS = {
    "Standard": ("", ""),
    "Flux1": ("networks.lora_flux", ""),
    "SD3": ("networks.lora_sd3", ""),
    "LoRA-FA": ("networks.lora_fa", ""),
    "Kohya DyLoRA": ("networks.dylora", ""),
    "Kohya LoCon": ("", ""),
    "Flux1 OFT": ("networks.oft_flux", ""),
    "LyCORIS/LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoHa": ("lycoris.kohya", "loha"),
    "LyCORIS/LoKr": ("lycoris.kohya", "lokr"),
    "LyCORIS/DyLoRA": ("lycoris.kohya", "dylora"),
    "LyCORIS/iA3": ("lycoris.kohya", "ia3"),
    "LyCORIS/GLoRA": ("lycoris.kohya", "glora"),
    "LyCORIS/Diag-OFT": ("lycoris.kohya", "diag-oft"),
    "LyCORIS/BOFT": ("lycoris.kohya", "boft"),
    "LyCORIS/Native Fine-Tuning": ("lycoris.kohya", "full"),
}
_ONLY_FOR = {"conv_": ("LoCon", "LoHa", "LoKr"), "unit": ("DyLoRA",), "factor": ("LoKr",)}
"""Beginnings of options that the GUI always saves, and the kinds of adapters that they are for."""
_PAGE = Ignored("a setting of the GUI itself")
_LAUNCH = Ignored("how the process is launched; it does not change the result")
_GUI: Table = {
    "noise_offset_type": Ignored("noise_offset and multires_noise_iterations say it"),
    **dict.fromkeys(
        words(
            "model_list metadata_author metadata_description metadata_license metadata_tags metadata_title "
            "save_as_bool dataset_config_checkbox additional_parameters_checkbox lowvram mem_eff_save "
            "train_on_input no_token_padding loha_checkbox skip_cache_check constrain conv_alphas conv_dims "
            "flux1_checkbox sd3_checkbox flux_fused_backward_pass sd3_fused_backward_pass"
        ),
        _PAGE,
    ),
    **dict.fromkeys(
        words(
            "dynamo_mode dynamo_use_dynamic dynamo_use_fullgraph extra_accelerate_launch_args gpu_ids "
            "main_process_port multi_gpu num_cpu_threads_per_process num_machines num_processes"
        ),
        _LAUNCH,
    ),
}


def read_kohya_gui(options: dict[str, Any], beside: Beside) -> Imported:
    options = dict(options)
    opening = Imported()
    options = {name: value for name, value in options.items() if not _blank(opening, name, value)}
    chosen = []
    for box, name in (("sdxl", "sdxl"), ("flux1_checkbox", "flux"), ("sd3_checkbox", "sd3")):
        if (value := options.pop(box, None)) is not None:
            opening.leave(box, value, "it names the family")
            chosen += [] if is_off(value) else [name]
    kind = str(options.pop("LoRA_type", "Standard"))
    preset = options.pop("LyCORIS_preset", None)
    chosen += ["flux"] if kind.startswith("Flux1") else ["sd3"] if kind == "SD3" else []
    script = f"{chosen[-1]}_train_network" if chosen else "train_network"
    module, algorithm = _KINDS.get(kind, (kind, ""))
    arguments = {"algo": algorithm} if algorithm else {}
    if algorithm and preset:
        arguments["preset"] = preset
    elif preset is not None:
        opening.leave("LyCORIS_preset", preset, "only LyCORIS has presets")
    for name in _NETWORK:
        value = options.pop(name, None)
        if value is None:
            continue
        kinds = next((kinds for start, kinds in _ONLY_FOR.items() if name.startswith(start)), None)
        if is_off(value) or (kinds is not None and not kind.endswith(kinds)):
            opening.leave(name, value, "off, or for other kinds of adapters")
        else:
            arguments[name] = value
    if (warmup := options.pop("lr_warmup", None)) is not None:
        options.setdefault("lr_warmup_steps", 0 if is_off(warmup) else f"{warmup}%")
    if not is_off(options.get("max_train_steps")) and is_off(options.get("max_train_epochs")):
        if (epoch := options.pop("epoch", None)) is not None:
            opening.leave("epoch", epoch, "max_train_steps is given, and wins")
    elif not is_off(options.get("max_train_epochs")) and (epoch := options.pop("epoch", None)) is not None:
        opening.leave("epoch", epoch, "max_train_epochs is given, and wins")
    if extra := str(options.pop("additional_parameters", "") or "").strip():
        options.update(read_command(extra, "additional_parameters").options)
        opening.leave("additional_parameters", extra, "read like the other options")
    attention = options.pop("xformers", None)
    if attention is not None:
        opening.leave("xformers", attention, "speed only: it does not change the result")
    written = {
        "network_module": "LoRA_type",
        "network_module algo": "LoRA_type",
        "lr_warmup_steps": "lr_warmup",
    }
    written |= {f"network_args {name}": name for name in _NETWORK}
    written["network_args preset"] = "LyCORIS_preset"
    for old, new in _RENAMED.items():
        if old in options:
            value = options.pop(old)
            if new in options:
                opening.leave(old, value, f"{new} is given")
            else:
                options[new], written[new] = value, old
    follow(opening, options, _GUI)
    if not module:
        opening.leave("LoRA_type", kind, "a LoRA, of the kind that suits the base")
    else:
        options["network_module"] = module
    options["network_args"] = arguments
    found = read_kohya(options, beside, script)
    found.program = "kohya_ss"
    found.renamed(written)
    found.lines = opening.lines + found.lines
    return found


def _blank(opening: Imported, name: str, value: Any) -> bool:
    """Empty boxes of the GUI are not given to the script."""
    blank = value is None or value == ""
    if blank:
        opening.leave(name, value, "empty, so that the default holds")
    return blank
