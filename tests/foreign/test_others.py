"""ai-toolkit, OneTrainer, SimpleTuner, kohya's GUI and diffusers' scripts; and a line for every option."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.contract.errors import ConfigError
from trainer.contract.fields import RECORDS, parse
from trainer.contract.foreign import (
    ai_toolkit_tables,
    diffusers_scripts,
    kohya_tables,
    onetrainer_tables,
    simpletuner_tables,
)
from trainer.contract.foreign.importing import read_foreign
from trainer.contract.foreign.rules import To

from .helpers import HERE, leaves, line, read, said

EXAMPLES = HERE / "examples"
TABLES: dict[str, dict[str, Any]] = {
    f"{module.__name__.rpartition('.')[2]}.{name}": table
    for module in (
        ai_toolkit_tables,
        diffusers_scripts,
        kohya_tables,
        onetrainer_tables,
        simpletuner_tables,
    )
    for name, table in vars(module).items()
    if isinstance(table, dict) and any(isinstance(rule, To) for rule in table.values())
}


@pytest.mark.parametrize("name", TABLES)
def test_every_target_exists(name: str) -> None:
    targets = {rule.setting for rule in TABLES[name].values() if isinstance(rule, To)}
    assert targets and not targets - set(RECORDS)


def options_of(file: Path) -> set[str]:
    """The names of all options in a file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        names = leaves(yaml.safe_load(text))
    elif file.suffix == ".json":
        names = leaves(json.loads(re.sub(r",\s*}\s*$", "}", text)))
    else:
        names = re.findall(r"--([a-z_0-9]+)", text) + re.findall(r'"([a-z_0-9]+)=', text)
    return {name.rpartition(".")[2].lstrip("-") for name in names}


@pytest.mark.parametrize(
    "name",
    [
        "kohya.sh",
        "kohya_gui.json",
        "ai_toolkit.yaml",
        "onetrainer.json",
        "simpletuner/config.json",
        "diffusers.sh",
    ],
)
def test_every_option_of_the_examples_has_a_line(name: str) -> None:
    file = EXAMPLES / name
    imported = read_foreign(file)
    parse(imported.tables)
    assert not [each.option for each in imported.lines if each.outcome == "unknown"]
    told = {word for each in imported.lines for word in re.findall(r"\w+", f"{each.option} {each.value}")}
    silent = options_of(file) - told
    assert not silent


def test_ai_toolkit(tmp_path: Path) -> None:
    imported = read_foreign(EXAMPLES / "ai_toolkit.yaml")
    config = parse(imported.tables)
    assert (config.model.family, config.model.base) == ("flux", "black-forest-labs/FLUX.1-dev")
    assert (config.model.quantize, config.model.quantize_text) == ("int8", "int8")
    # Transformers have no alpha in ai-toolkit: 16 / 32 is what the file says, 1 what it does.
    assert (config.adapter.rank, config.adapter.alpha) == (32, 32.0)
    assert "scaled by 1" in line(imported, "network.linear_alpha").why
    train = config.train
    assert (train.learning_rate, train.steps, train.batch_size) == (2e-4, 3000, 2)
    assert (train.scheduler, train.warmup, train.weight_decay) == ("constant", 0, 1e-4)
    assert config.dataset.path == "/data/dog" and config.dataset.resolution == 1024
    assert config.dataset.more_resolutions == "512, 768"
    assert config.dataset.repeats == 3 and config.dataset.flip
    assert [(one.path, one.regularisation) for one in config.dataset.subsets] == [("/data/dogs", True)]
    assert config.dataset.trigger == "zwx dog"
    assert config.samples.prompts == ("zwx dog in the snow", "a house by the sea --d 7")
    assert (config.samples.steps, config.samples.guidance, config.samples.seed) == (25, 4.0, 42)
    assert (config.checkpoints.every, config.checkpoints.keep, config.output.name) == (200, 6, "dog_v1")


def test_ai_toolkits_unets_have_alpha_1(tmp_path: Path) -> None:
    job = {"model": {"name_or_path": "stabilityai/stable-diffusion-xl-base-1.0", "is_xl": True}}
    process = {"type": "sd_trainer", "network": {"type": "lora", "linear": 16}, **job}
    text = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process]}})
    config, imported = read(tmp_path, "j.yaml", text)
    assert (config.adapter.rank, config.adapter.alpha) == (16, 1.0)
    assert config.train.learning_rate == 1e-6 and line(imported, "train.learning_rate").outcome == "default"


def test_layers_by_parts_of_their_names(tmp_path: Path) -> None:
    """What guides for FLUX do: single blocks alone."""

    def regex(**kwargs: Any) -> str:
        process = {"model": {"name_or_path": "black-forest-labs/FLUX.1-dev"}}
        process["network"] = {"type": "lora", "linear": 16, "network_kwargs": kwargs}  # type: ignore[dict-item]
        text = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process]}})
        return read(tmp_path, "j.yaml", text)[0].adapter.target_regex

    only = ["transformer.single_transformer_blocks.7.proj_out", "transformer.single_transformer_blocks.20."]
    chosen = regex(only_if_contains=only)
    assert re.search(chosen, "single_transformer_blocks.7.proj_out")
    assert not re.search(chosen, "single_transformer_blocks.7.attn.to_k")
    assert not re.search(chosen, "single_transformer_blocks.2.attn.to_k"), "a dot is a dot"
    without = regex(ignore_if_contains=["single_transformer_blocks"])
    assert re.search(without, "transformer_blocks.0.attn.to_q")
    assert not re.search(without, "single_transformer_blocks.0.attn.to_q")
    assert regex() == ""
    recipe = {"training_method": "LORA", "model_type": "FLUX_DEV_1", "layer_filter_preset": "custom"}
    config, _ = read(tmp_path, "p.json", json.dumps({**recipe, "layer_filter": "attn,ff.net"}))
    assert config.adapter.target_regex == r"attn|ff\.net"
    own = {**recipe, "layer_filter": r"blocks\.\d+\.attn", "layer_filter_regex": True}
    assert read(tmp_path, "p.json", json.dumps(own))[0].adapter.target_regex == r"blocks\.\d+\.attn"


GUIDE_SD15 = """
network:
  type: "lora"
  linear: 64
  linear_alpha: 32
  network_args:
    loraplus_lr_ratio: 16
training:
  learning_rate: 2e-4
  max_train_epochs: 15
  optimizer_type: "AdamW8bit"
  lr_scheduler: "cosine_with_restarts"
  mixed_precision: "bf16"
"""
GUIDE_SDXL = """
network:
  type: "lora"
  linear: 128
  linear_alpha: 64
  network_args:
    loraplus_lr_ratio: 16
training:
  learning_rate: 1e-4
  fused_backward_pass: true
  optimizer_type: "adafactor"
  mixed_precision: "no" # Uses less memory than bf16/fp16
  max_train_epochs: 10
"""
GUIDE_FLUX = """
model:
  name_or_path: "black-forest-labs/FLUX.1-dev"
  is_flux: true
  quantize: true
  low_vram: true # If using monitors
network:
  type: "lora"
  linear: 128
  linear_alpha: 128
training:
  learning_rate: 1e-4
  max_train_steps: 2000
  optimizer_type: "adamw8bit"
  mixed_precision: "bf16"
"""
GUIDE_SCHNELL = """
model:
  name_or_path: "black-forest-labs/FLUX.1-schnell"
  assistant_lora_path: "ostris/FLUX.1-schnell-training-adapter"
  is_flux: true
  quantize: true
sample:
  guidance_scale: 1 # schnell doesn't use guidance
  sample_steps: 4 # 1-4 works well
"""
GUIDE_NEW = """
learning_rate: 1e-4
network:
  linear: 64
  linear_alpha: 32
  network_args:
    loraplus_lr_ratio: 16
optimizer_type: "AdamW8bit"
fused_backward_pass: true # For SDXL
loss_type: "smooth_l1"
huber_schedule: "snr"
"""
GUIDE_OLD = """
learning_rate: 1e-4
network_dim: 64
network_alpha: 32
optimizer_type: "AdamW"
"""


@pytest.mark.parametrize(
    ("text", "rank", "alpha", "rate", "optimizer"),
    [
        (GUIDE_SD15, 64, 32.0, 2e-4, "adamw8bit"),
        (GUIDE_SDXL, 128, 64.0, 1e-4, "adafactor"),
        (GUIDE_FLUX, 128, 128.0, 1e-4, "adamw8bit"),
        (GUIDE_NEW, 64, 32.0, 1e-4, "adamw8bit"),
        (GUIDE_OLD, 64, 32.0, 1e-4, "adamw"),
    ],
)
def test_the_guides_mixtures(
    tmp_path: Path, text: str, rank: int, alpha: float, rate: float, optimizer: str
) -> None:
    config, imported = read(tmp_path, "guide.yaml", text)
    assert (config.adapter.rank, config.adapter.alpha, config.train.learning_rate) == (rank, alpha, rate)
    assert config.train.optimizer == (
        optimizer if optimizer in RECORDS["train.optimizer"].choices else "adamw"
    )
    assert not [each.option for each in imported.lines if each.outcome == "unknown"]


@pytest.mark.parametrize("guide", [GUIDE_SD15, GUIDE_SDXL, GUIDE_FLUX, GUIDE_SCHNELL, GUIDE_NEW])
def test_a_guide_without_its_indentation_is_read_the_same(guide: str, tmp_path: Path) -> None:
    """As pages are often copied."""
    flat = "\n".join(map(str.strip, guide.splitlines()))
    config, imported = read(tmp_path, "guide.yaml", flat)
    assert config == read(tmp_path, "guide.yaml", guide)[0]
    assert not [each.option for each in imported.lines if each.outcome == "unknown"]


def test_a_guide_that_lost_its_indentation(tmp_path: Path) -> None:
    flat = "\n".join(map(str.strip, GUIDE_SD15.splitlines()))
    config, imported = read(tmp_path, "guide.yaml", flat)
    assert (config.adapter.rank, config.adapter.alpha, config.train.loraplus_ratio) == (64, 32, 16)
    assert not [each.option for each in imported.lines if each.outcome == "unknown"]
    apart = "learning_rate: 1e-4\nnetwork:\n  linear: 64\nnetwork_args:\n  loraplus_lr_ratio: 16\n"
    config, imported = read(tmp_path, "guide.yaml", apart)
    assert (config.adapter.rank, config.train.loraplus_ratio) == (64, 16)


def test_the_guides_flux(tmp_path: Path) -> None:
    config, _ = read(tmp_path, "guide.yaml", GUIDE_FLUX)
    assert config.model.base == "black-forest-labs/FLUX.1-dev" and config.model.quantize == "int8"
    assert (config.train.steps, config.model.precision, config.train.scheduler) == (2000, "bf16", "constant")
    assert config.train.text_encoder_lr == 0
    schnell, _ = read(tmp_path, "guide.yaml", GUIDE_SCHNELL)
    assert schnell.model.assistant == "ostris/FLUX.1-schnell-training-adapter"
    assert (schnell.samples.guidance, schnell.samples.steps) == (1, 4)


def test_the_guides_simpletuner(tmp_path: Path) -> None:
    """Guide for Stable Diffusion 3.5: rank 768, 24,000 steps, cosine with 10 % of warm-up."""
    imported = read_foreign(EXAMPLES / "simpletuner" / "config.json")
    config = parse(imported.tables)
    assert config.model.base == "stabilityai/stable-diffusion-3.5-large"
    assert (config.adapter.rank, config.adapter.alpha) == (768, 768.0)
    train = config.train
    assert (train.learning_rate, train.steps, train.batch_size) == (1.5e-3, 24000, 6)
    assert train.scheduler == "cosine" and train.warmup == 2400
    assert (config.checkpoints.every, config.checkpoints.keep) == (400, 60)
    samples = config.samples
    assert samples.prompts == ("k4s4, a waist up view of a beautiful blonde woman, green eyes",)
    assert (samples.guidance, samples.every, samples.steps, samples.seed) == (7.5, 200, 30, 42)
    assert samples.negative == "blurry, cropped, ugly" and (samples.width, samples.height) == (1024, 1024)
    # 5 repeats on top of the first showing; the same folder at 512 px too
    assert config.dataset.repeats == 6 and config.dataset.path == "/data/fantasy"
    assert (config.dataset.resolution, config.dataset.more_resolutions) == (1024, "512")
    assert not config.dataset.subsets
    assert (train.max_grad_norm, config.adapter.dropout) == (2.0, 0.1), (
        "its defaults, which change the result"
    )


def test_the_guides_snippets_of_simpletuner(tmp_path: Path) -> None:
    text = '{\n  "--lora_rank": 768,\n  "--lora_alpha": 768,\n  "--lora_type": "standard"\n}\n'
    config, _ = read(tmp_path, "c.json", text)
    assert (config.adapter.rank, config.adapter.alpha) == (768, 768)
    text = '{"--validation_prompt": "k4s4", "--validation_steps": 200, "--lr_warmup_steps": 2400,\n}'
    config, _ = read(tmp_path, "c.json", text)
    assert config.samples.every == 200 and config.samples.prompts == ("k4s4",)
    with pytest.raises(ConfigError, match="only LoRAs are trained here"):
        read(tmp_path, "c.json", '{"--model_type": "full", "--model_family": "sd3"}')


def test_onetrainer() -> None:
    imported = read_foreign(EXAMPLES / "onetrainer.json")
    config = parse(imported.tables)
    assert (config.model.family, config.adapter.rank, config.adapter.alpha) == ("sdxl", 16, 1.0)
    assert "= 0.0003 × 1 / 16 = 1.87e-05" in said(imported)
    train = config.train
    assert (train.learning_rate, train.text_encoder_lr, train.text_encoder_2_lr) == (3e-4, 0, 5e-5)
    assert (train.scheduler, train.optimizer, train.weight_decay) == ("cosine", "adamw", 0.02)
    assert config.adapter.targets == "transformer" and config.loss.min_snr_gamma == 5
    assert config.dataset.path == "/data/dog" and config.dataset.repeats == 5 and config.dataset.flip
    assert [one.path for one in config.dataset.subsets] == ["/data/more"]
    assert (config.samples.prompts, config.samples.width) == (("zwx dog at sea",), 768)
    assert (config.samples.steps, config.samples.guidance, config.samples.seed) == (28, 6.5, 3)
    assert (config.checkpoints.every, config.checkpoints.keep, config.output.name) == (100, 4, "zwx-dog")


def test_onetrainers_defaults(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "p.json", '{"training_method": "LORA", "model_type": "FLUX_DEV_1"}')
    assert (config.adapter.rank, config.adapter.alpha, config.train.learning_rate) == (16, 1.0, 3e-6)
    assert config.dataset.resolution == 512 and config.train.scheduler == "constant"
    assert line(imported, "adapter.alpha").outcome == "default"
    with pytest.raises(ConfigError, match="only LoRAs are trained here"):
        read(tmp_path, "p.json", '{"training_method": "EMBEDDING", "model_type": "FLUX_DEV_1"}')
    with pytest.raises(ConfigError, match="cannot be trained here"):
        read(tmp_path, "p.json", '{"training_method": "LORA", "model_type": "HUNYUAN_VIDEO"}')


def test_the_gui_of_kohya() -> None:
    imported = read_foreign(EXAMPLES / "kohya_gui.json")
    config = parse(imported.tables)
    assert (config.model.family, config.adapter.rank, config.adapter.alpha) == ("sdxl", 32, 16.0)
    train = config.train
    assert (train.learning_rate, train.text_encoder_lr, train.weight_decay) == (1e-4, 5e-5, 0.1)
    assert train.scheduler == "cosine" and train.warmup == 0.1
    assert config.dataset.path == "C:\\photos\\dog" and config.output.name == "my-dog"
    assert config.loss.min_snr_gamma == 5 and config.dataset.resolution == 1024


def test_diffusers_scripts_as_the_guide_to_spot_gpus_uses_them() -> None:
    imported = read_foreign(EXAMPLES / "diffusers.sh")
    config = parse(imported.tables)
    assert (config.train.steps, config.checkpoints.every) == (500, 50)
    assert config.model.base == "stabilityai/stable-diffusion-xl-base-1.0"
    assert config.model.vae == "madebyollin/sdxl-vae-fp16-fix"
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.targets) == (4, 4.0, "attention")
    assert (config.train.batch_size, config.train.gradient_accumulation) == (1, 4)
    assert config.train.text_encoder_lr == 0 and config.train.warmup == 0
    assert config.dataset.trigger == "a photo of timber dog"


def test_masks_as_each_program_has_them(tmp_path: Path) -> None:
    def mask(name: str, text: str) -> tuple[str, float]:
        loss = read(tmp_path, name, text)[0].loss
        return loss.mask, loss.mask_floor

    assert mask("t.sh", "accelerate launch train_network.py --masked_loss") == ("kohya", 0.0)
    assert mask("t.sh", "accelerate launch train_network.py") == ("off", 0.1)
    onetrainer = parse(read_foreign(EXAMPLES / "onetrainer.json").tables).loss
    assert (onetrainer.mask, onetrainer.mask_floor) == ("normalised", 0.1)
    process = {"model": {"name_or_path": "black-forest-labs/FLUX.1-dev"}}
    process["datasets"] = [{"folder_path": "x", "alpha_mask": True, "mask_min_value": 0.2}]  # type: ignore[assignment]
    text = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process]}})
    assert mask("j.yaml", text) == ("batch", 0.2)


@pytest.mark.parametrize(
    ("masks", "outcome"),
    [("x/masks", "ignored"), ("x\\Mask", "ignored"), ("y/masks", "missing"), ("x/depth", "missing")],
)
def test_a_folder_of_masks_is_found_or_is_to_be_moved(tmp_path: Path, masks: str, outcome: str) -> None:
    process = {"model": {"name_or_path": "black-forest-labs/FLUX.1-dev"}}
    process["datasets"] = [{"folder_path": "x", "mask_path": masks}]  # type: ignore[assignment]
    text = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process]}})
    config, imported = read(tmp_path, "j.yaml", text)
    assert config.loss.mask == "batch"
    found = line(imported, "datasets[0].mask_path")
    assert found.outcome == outcome and (outcome == "ignored" or "x/masks" in str(found))
    subset = f"[[datasets.subsets]]\nimage_dir = 'x'\nconditioning_data_dir = '{masks}'\n"
    _, imported = read(tmp_path, "d.toml", f"[[datasets]]\n{subset}")
    assert line(imported, "subsets[0] conditioning_data_dir").outcome == outcome


def test_prior_preservation_of_dreambooth(tmp_path: Path) -> None:
    command = "accelerate launch train_dreambooth_lora_sdxl.py --max_train_steps=500 --class_data_dir=cats "
    command += '--class_prompt="a photo of a cat" --num_class_images=200 --prior_loss_weight=0.5'
    prior = read(tmp_path, "t.sh", command + " --with_prior_preservation")[0].prior
    assert (prior.method, prior.class_name, prior.pictures, prior.weight, prior.path) == (
        "class_pictures",
        "a photo of a cat",
        200,
        0.5,
        "cats",
    )
    assert read(tmp_path, "t.sh", command)[0].prior.method == "none"


def test_a_dataset_file_of_kohya() -> None:
    imported = read_foreign(EXAMPLES / "kohya_dataset.toml")
    config = parse(imported.tables)
    assert config.dataset.path == "./images" and config.dataset.repeats == 5 and config.dataset.flip
    assert config.train.batch_size == 3 and config.dataset.resolution == 1024
    assert [(one.path, one.trigger, one.repeats, one.regularisation) for one in config.dataset.subsets] == [
        ("./more", "qrt cat", 2, False),
        ("./dogs", "dog", 1, True),
    ]
    assert line(imported, "subsets[1] random_crop").outcome == "missing"
