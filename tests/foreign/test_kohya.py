"""kohya's commands and files: the guide's own, alpha and rates, traps."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.fields import RECORDS
from trainer.contract.settings.adapter import AdapterSettings

from .helpers import HERE, line, read, said

FUSED = """
# SDXL training with fused backward pass
accelerate launch --num_cpu_threads_per_process 8 sdxl_train_network.py \\
--pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0" \\
--train_data_dir="./your_training_images" \\
--output_dir="./output" \\
--fused_backward_pass \\
--optimizer_type="adafactor" \\
--mixed_precision="no" \\
--learning_rate=1e-4 \\
--max_train_epochs=10 \\
--save_every_n_epochs=2
"""
GROUPS = """
accelerate launch --num_cpu_threads_per_process 8 sdxl_train_network.py \\
--pretrained_model_name_or_path="stabilityai/stable-diffusion-xl-base-1.0" \\
--train_data_dir="./your_training_images" \\
--output_dir="./output" \\
--fused_optimizer_groups=8 \\
--optimizer_type="adamw8bit" \\
--learning_rate=1e-4
"""
LORAPLUS = """
accelerate launch train_network.py \\
--network_module="networks.lora" \\
--network_args "loraplus_lr_ratio=16" \\
--learning_rate=1e-4 \\
--train_data_dir="./dataset"
"""


def test_the_guides_fused_command(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "train.sh", FUSED)
    assert (config.model.family, config.model.base) == ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0")
    assert (config.adapter.rank, config.adapter.alpha) == (4, 1.0)
    train = config.train
    assert (train.learning_rate, train.optimizer, train.scheduler, train.warmup) == (
        1e-4,
        "adafactor",
        "constant",
        0,
    )
    assert train.text_encoder_lr == train.text_encoder_2_lr == 1e-4, (
        "kohya trains them along unless told not to"
    )
    assert config.dataset.path == "./your_training_images"
    fused = line(imported, "fused_backward_pass")
    assert (
        fused.outcome == "ignored"
        and "does nothing for a LoRA" in fused.why
        and "full fine-tuning" in fused.why
    )
    assert line(imported, "adapter.rank").outcome == line(imported, "adapter.alpha").outcome == "default"
    assert "relative_step" in said(imported) and ".caption files" in said(imported)
    assert "1 / 4 = 2.5e-05" in said(imported)


def test_the_guides_optimizer_groups(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "train.sh", GROUPS)
    assert config.train.steps == 1600, "kohya's default, which people are surprised by"
    assert line(imported, "train.steps").outcome == "default"
    groups = line(imported, "fused_optimizer_groups")
    assert groups.outcome == "ignored" and "unrecognized arguments" in groups.why


def test_the_guides_loraplus_command(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "train.sh", LORAPLUS)
    assert config.model.family == "sd15", "the plain script is for Stable Diffusion 1 and 2"
    assert line(imported, "model.base").outcome == "default"
    assert line(imported, "network_args loraplus_lr_ratio").value == "16"


@pytest.mark.parametrize(
    ("options", "rank", "alpha", "scale"),
    [
        ("", 4, 1.0, "0.25"),
        ("--network_dim=32", 32, 1.0, "0.031"),
        ("--network_dim=32 --network_alpha=16", 32, 16.0, ""),
        ("--network_dim=8 --network_alpha=0", 8, 8.0, ""),
    ],
)
def test_alpha_as_kohya_means_it(tmp_path: Path, options: str, rank: int, alpha: float, scale: str) -> None:
    config, imported = read(
        tmp_path, "t.sh", f"accelerate launch train_network.py --learning_rate=1e-4 {options}"
    )
    assert (config.adapter.rank, config.adapter.alpha) == (rank, alpha)
    if scale:
        assert f"alpha / rank = {scale}" in line(imported, "adapter.alpha").why
    assert f"= {1e-4 * alpha / rank:.3g}: compare" in said(imported)


def test_rates_of_the_parts(tmp_path: Path) -> None:
    def rates(options: str) -> tuple[float, float, float]:
        train = read(tmp_path, "t.sh", f"accelerate launch sdxl_train_network.py {options}")[0].train
        return train.learning_rate, train.text_encoder_lr, train.text_encoder_2_lr

    assert rates("") == (2e-6, 2e-6, 2e-6)
    assert rates("--learning_rate 1e-4 --network_train_unet_only") == (1e-4, 0, 0)
    assert rates("--learning_rate 1e-4 --unet_lr 3e-4 --text_encoder_lr 5e-5") == (3e-4, 5e-5, 5e-5)
    # the network for SDXL takes the first of several for both encoders
    assert rates("--learning_rate 1e-4 --text_encoder_lr 1e-5 2e-5") == (1e-4, 1e-5, 1e-5)
    told = read(tmp_path, "t.sh", "accelerate launch sdxl_train_network.py --text_encoder_lr 1e-5 2e-5")[1]
    assert "takes the first for both" in said(told)
    sd3 = read(tmp_path, "t.sh", "accelerate launch sd3_train_network.py --text_encoder_lr 1e-5 2e-5")[0]
    assert (sd3.train.text_encoder_lr, sd3.train.text_encoder_2_lr) == (1e-5, 2e-5)
    flux = read(tmp_path, "t.sh", "accelerate launch flux_train_network.py --text_encoder_lr 1e-5")[1]
    assert line(flux, "text_encoder_lr").outcome == "missing"
    # as in the command of kohya's own manual, which its script does not take
    assert rates("--unet_lr=1e-4 --text_encoder_lr1=1e-5 --text_encoder_lr2=5e-6") == (1e-4, 1e-5, 5e-6)


def test_a_file_of_settings_and_the_command_over_it(tmp_path: Path) -> None:
    (tmp_path / "lora.toml").write_text(
        "[basics]\nnetwork_dim = 16\nlearning_rate = 3e-4\nmax_train_steps = 700\n[more]\nseed = 7\n"
    )
    config, _ = read(
        tmp_path,
        "t.sh",
        "accelerate launch sdxl_train_network.py --config_file lora.toml --max_train_steps 900",
    )
    assert (config.adapter.rank, config.train.learning_rate, config.train.seed) == (16, 3e-4, 7)
    assert config.train.steps == 900
    alone, _ = read(tmp_path, "lora.toml", (tmp_path / "lora.toml").read_text())
    assert alone.train.steps == 700 and alone.model.family == "sd15"


def test_scripts_are_read_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    script = f"""
export RATE=2e-4
NAME="my cat"
accelerate launch sdxl_train_network.py --learning_rate=$RATE --output_name "${{NAME}}" \\
  --seed=$(touch {mark}) --max_train_steps `touch {mark}` --train_data_dir=$HOME/photos; touch {mark}
"""
    config, imported = read(tmp_path, "t.sh", script)
    assert not mark.exists()
    assert config.train.learning_rate == 2e-4 and config.output.name == "my-cat"
    for option in ("seed", "max_train_steps", "train_data_dir"):
        assert line(imported, option).outcome == "missing" and "only a shell" in line(imported, option).why
    assert config.train.seed == RECORDS["train.seed"].default


def test_windows_scripts(tmp_path: Path) -> None:
    text = (
        "set RATE=2e-4\r\naccelerate launch ^\r\n  sdxl_train_network.py ^\r\n  --learning_rate=%RATE% ^\r\n"
    )
    text += '  --train_data_dir="C:\\photos\\my cat" --network_dim 8\r\n'
    config, _ = read(tmp_path, "train.bat", text)
    assert config.train.learning_rate == 2e-4 and config.adapter.rank == 8
    assert config.dataset.path == "C:\\photos\\my cat"


def test_every_option_has_a_line(tmp_path: Path) -> None:
    _, imported = read(tmp_path, "t.sh", (HERE / "examples" / "kohya.sh").read_text())
    assert not [each.option for each in imported.lines if each.outcome == "unknown"]
    _, imported = read(tmp_path, "t.sh", "accelerate launch train_network.py --brand_new 3 --seed 3")
    assert line(imported, "brand_new").outcome == "unknown" and line(imported, "seed").ours == 3


def test_buckets(tmp_path: Path) -> None:
    def buckets(options: str) -> tuple[str, int | None, str]:
        config, imported = read(tmp_path, "t.sh", f"accelerate launch sdxl_train_network.py {options}")
        return config.dataset.buckets, config.dataset.bucket_max, said(imported)

    size = "--resolution=1024,1024"
    assert buckets(f"{size} --enable_bucket --max_bucket_reso=2048")[:2] == ("all", 2048)
    chosen, longest, told = buckets(f"{size} --enable_bucket --bucket_no_upscale")
    assert (chosen, longest) == ("no_upscale", None) and "1024 would cut the long sides" in told
    assert "crops to squares" in buckets(f"{size} --min_bucket_reso=256")[2]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("AdamW8bit", "adamw8bit"),
        ("PagedAdamW8bit", "paged_adamw8bit"),
        ("bitsandbytes.optim.AdEMAMix8bit", "ademamix8bit"),
        ("Lion", "lion"),
        ("Prodigy", "prodigy"),
        ("AdamWScheduleFree", "schedulefree_adamw"),
    ],
)
def test_optimizers(tmp_path: Path, name: str, ours: str) -> None:
    config, _ = read(tmp_path, "t.sh", f"accelerate launch train_network.py --optimizer_type={name}")
    assert config.train.optimizer == ours


def test_optimizer_options(tmp_path: Path) -> None:
    options = (
        '--optimizer_type=Prodigy --optimizer_args "weight_decay=0.01" "decouple=True" "d_coef=0.8" "foo=1"'
    )
    config, imported = read(tmp_path, "t.sh", f"accelerate launch train_network.py {options}")
    assert config.train.weight_decay == 0.01 and config.train.optimizer_args == "d_coef=0.8"
    assert line(imported, "optimizer_args decouple").outcome == "ignored"
    assert "no option of prodigy" in line(imported, "optimizer_args foo").why
    config, imported = read(tmp_path, "t.sh", "accelerate launch train_network.py --optimizer_type=Lion")
    assert config.train.weight_decay == 0, "AdamW alone has a weight decay where nothing is said"


def test_loraplus_of_the_guide(tmp_path: Path) -> None:
    arguments = '"loraplus_lr_ratio=16" "loraplus_text_encoder_lr_ratio=4"'
    config, _ = read(tmp_path, "t.sh", f"accelerate launch train_network.py --network_args {arguments}")
    assert (config.train.loraplus_ratio, config.train.loraplus_text_ratio) == (16, 4)


TRY_IN_ORDER = """
# Try these in order:
--fused_backward_pass # For SDXL
--fused_optimizer_groups=8 # Alternative
--mixed_precision="bf16" # If not using fused
--train_batch_size=1 # Reduce batch size
--gradient_accumulation_steps=2 # Maintain effective batch size
"""
BLOCKS = """
# Block-wise learning rates
--network_args \\
"down_lr_weight=0,0,0,0,0,0,1,1,1,1,1,1" \\
"mid_lr_weight=1" \\
"up_lr_weight=1,1,1,1,1,1,0,0,0,0,0,0"
"""
HUBER = """
# Scheduled Huber Loss with SNR scheduling
--loss_type="smooth_l1" \\
--huber_schedule="snr" \\
--huber_c=0.1
"""


def test_options_alone_as_the_guide_prints_them(tmp_path: Path) -> None:
    config, imported = read(tmp_path, "t.sh", TRY_IN_ORDER)
    assert config.train.gradient_accumulation == 2, "a comment hides no line but its own"
    assert line(imported, "fused_optimizer_groups").value == "8" and config.model.precision == "bf16"
    blocks = read(tmp_path, "t.sh", BLOCKS)[0].adapter.block_weights
    assert blocks == "0,0,0,0,0,0,1,1,1,1,1,1 / 1 / 1,1,1,1,1,1,0,0,0,0,0,0"
    loss = read(tmp_path, "t.sh", HUBER)[0].loss
    assert (loss.type, loss.huber_schedule, loss.huber_c) == ("smooth_l1", "snr", 0.1)
    config, _ = read(tmp_path, "t.sh", "# Negative learning rate (use = sign)\n--learning_rate=-1e-7\n")
    assert config.train.learning_rate == 1e-7 and config.train.unlearn
    assert read(tmp_path, "t.sh", "# Enable alpha mask training\n--alpha_mask\n")[0].loss.mask == "kohya"


def test_endings_of_captions(tmp_path: Path) -> None:
    for ending, outcome in ((".txt", "ignored"), (".caption", "ignored"), (".tags", "missing")):
        command = f"accelerate launch train_network.py --caption_extension={ending}"
        assert line(read(tmp_path, "t.sh", command)[1], "caption_extension").outcome == outcome


def test_how_many_checkpoints_kohya_keeps(tmp_path: Path) -> None:
    """save_last_n_steps is a window: every 10 and last 30, step 10 goes at step 50 (50 - 30 - 1 = 19)."""
    for last, kept in ((30, [20, 30, 40, 50]), (35, [20, 30, 40, 50]), (9, [50])):
        options = f"--save_every_n_steps=10 --save_last_n_steps={last}"
        config, _ = read(tmp_path, "t.sh", f"accelerate launch train_network.py {options}")
        removed = {(step - last - 1) // 10 * 10 for step in range(10, 51, 10)}
        assert [step for step in range(10, 51, 10) if step not in removed] == kept
        assert config.checkpoints.keep == len(kept)


def test_adapters_of_lycoris(tmp_path: Path) -> None:
    def adapter(module: str, arguments: str) -> AdapterSettings:
        command = (
            f"accelerate launch sdxl_train_network.py --network_module={module} --network_args {arguments}"
        )
        return read(tmp_path, "t.sh", command)[0].adapter

    lokr = adapter("lycoris.kohya", "algo=lokr factor=8 preset=attn-mlp")
    assert (lokr.type, lokr.lokr_factor, lokr.targets) == ("lokr", 8, "transformer")
    assert adapter("lycoris.kohya", "algo=loha").targets == "transformer+conv", 'its default preset is "full"'
    dylora = adapter("networks.dylora", "unit=4")
    assert (dylora.type, dylora.dylora_unit) == ("dylora", 4)
    locon = adapter("networks.lora", "conv_dim=8")
    assert (locon.type, locon.targets, locon.conv_rank, locon.conv_alpha) == (
        "lora",
        "transformer+conv",
        8,
        1.0,
    )
    assert adapter("lycoris.kohya", "algo=locon dora_wd=True").dora


def test_epochs(tmp_path: Path) -> None:
    command = "accelerate launch train_network.py --max_train_epochs=30 --max_train_steps=5 "
    config, imported = read(tmp_path, "t.sh", command + "--save_every_n_epochs=2 --sample_every_n_epochs=3")
    assert config.train.epochs == 30 and line(imported, "max_train_steps").outcome == "ignored"
    assert (config.checkpoints.every_epochs, config.samples.every_epochs) == (2, 3)
