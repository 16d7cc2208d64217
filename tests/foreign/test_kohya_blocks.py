"""Lists by block: the guide's lists of 12 and 25 values for SDXL, kohya's way with wrong lengths, FLUX."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.contract.config import TrainConfig
from trainer.contract.foreign.report import Imported

from .helpers import line, read

GUIDE = """
--network_args \\
"down_lr_weight=0,0,0,0,0,0,1,1,1,1,1,1" \\
"mid_lr_weight=1" \\
"up_lr_weight=1,1,1,1,1,1,0,0,0,0,0,0"
"""
DIMS = "2,2,2,2,4,4,4,4,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8,8"
ALPHAS = "1,1,1,1,2,2,2,2,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4,4"


def sdxl(folder: Path, arguments: str) -> tuple[TrainConfig, Imported]:
    words = " ".join(arguments.replace("\\\n", " ").split()).removeprefix("--network_args")
    command = f"accelerate launch sdxl_train_network.py --network_train_unet_only --network_args {words}"
    return read(folder, "t.sh", command)


def test_the_guides_twelve_weights_for_sdxl(tmp_path: Path) -> None:
    config, imported = sdxl(tmp_path, GUIDE)
    assert config.adapter.block_weights == "0,0,0,0,0,0,1,1,1 / 1,1,1 / 1,1,1,1,1,1,0,0,0"
    told = next(each for each in imported.lines if each.setting == "adapter.block_weights")
    assert told.outcome == "converted" and "first nine" in told.why and "down_lr_weight" in told.option


def test_the_guides_25_ranks_for_sdxl(tmp_path: Path) -> None:
    config, imported = sdxl(tmp_path, f'"block_dims={DIMS}" "block_alphas={ALPHAS}"')
    assert len(config.adapter.block_ranks.split(",")) == len(config.adapter.block_alphas.split(",")) == 23
    assert "25 values" in line(imported, "network_args block_dims").why


def test_23_ranks_are_kept(tmp_path: Path) -> None:
    dims = ",".join(["4"] * 23)
    config, imported = sdxl(tmp_path, f"block_dims={dims}")
    assert config.adapter.block_ranks == dims
    assert line(imported, "network_args block_dims").outcome == "kept"


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        ("down_lr_weight=0,0,0,0,1,1,0,1,1", "0,0,0,0,1,1,0,1,1 / 1,1,1 / 1,1,1,1,1,1,1,1,1"),
        ("up_lr_weight=1,1", "1,1,1,1,1,1,1,1,1 / 1,1,1 / 1,1,1,1,1,1,1,1,1"),
        ("mid_lr_weight=0,1,0,1,1", "1,1,1,1,1,1,1,1,1 / 0,1,0 / 1,1,1,1,1,1,1,1,1"),
        ("down_lr_weight=cosine+.25", "cosine+.25 / 1,1,1 / 1,1,1,1,1,1,1,1,1"),
        ("down_lr_weight=,,,,-1,1,1,1,1", "0,0,0,0,0,1,1,1,1 / 1,1,1 / 1,1,1,1,1,1,1,1,1"),
    ],
)
def test_lists_as_kohya_completes_them(tmp_path: Path, arguments: str, weights: str) -> None:
    assert sdxl(tmp_path, f'"{arguments}"')[0].adapter.block_weights == weights


def test_weights_up_to_the_threshold_train_nothing(tmp_path: Path) -> None:
    arguments = "down_lr_weight=.05,0.1,0.1001,1,1e-2,1,1,1,1 mid_lr_weight=zeros+0.05"
    config, imported = sdxl(tmp_path, f"{arguments} block_lr_zero_threshold=0.1")
    assert config.adapter.block_weights.startswith("0,0,0.1001,1,0,1,1,1,1 / zeros+0.05 / ")
    assert line(imported, "network_args block_lr_zero_threshold").outcome == "ignored"
    alone = sdxl(tmp_path, "block_lr_zero_threshold=0.1")[1]
    assert line(alone, "network_args block_lr_zero_threshold").outcome == "ignored"


def test_blocks_of_flux(tmp_path: Path) -> None:
    def ranks(arguments: str) -> str:
        command = f"accelerate launch flux_train_network.py --network_args {arguments}"
        return read(tmp_path, "t.sh", command)[0].adapter.block_ranks

    assert ranks("train_blocks=all") == ""
    assert ranks("train_blocks=single") == "0-18: 0"
    assert ranks("train_blocks=double") == "19-56: 0"
    assert ranks("train_double_block_indices=none train_single_block_indices=0-19,37") == "0-18: 0, 39-55: 0"


def test_a_list_that_trains_nothing_is_left_out_and_told(tmp_path: Path) -> None:
    config, imported = sdxl(tmp_path, "down_lr_weight=zeros mid_lr_weight=zeros up_lr_weight=zeros")
    assert config.adapter.block_weights == ""
    told = line(imported, ", ".join(f"network_args {part}_lr_weight" for part in ("down", "mid", "up")))
    assert told.outcome == "missing" and "nothing to train" in told.why
