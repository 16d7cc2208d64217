"""Cases of the rules on the kind of adapter (trainer/contract/lint_adapter.py)."""

from __future__ import annotations

from lint_case import Case

FLUX = {"model.family": "flux", "model.base": "black-forest-labs/FLUX.1-dev"}
DIMS = ",".join(["2"] * 4 + ["4"] * 4 + ["8"] * 17)

CASES = [
    Case(
        "blocks_of_another_unet",
        {"adapter.block_ranks": DIMS, "adapter.block_weights": "0,0,0,0,0,0,1,1,1,1,1,1 / 1 / 1"},
        {"adapter.block_ranks": ",".join(["8"] * 23)},
    ),
    Case(
        "block_learns_too_fast",
        {"adapter.block_weights": "5: 8"},
        {"adapter.block_weights": "5: 2"},
        says=("8 times",),
    ),
    Case(
        "no_convolutions_to_adapt",
        {**FLUX, "adapter.targets": "transformer+conv"},
        {"adapter.targets": "transformer+conv"},
    ),
    Case(
        "conv_rank_without_convolutions",
        {"adapter.conv_rank": 8},
        {"adapter.conv_rank": 8, "adapter.targets": "transformer+conv"},
    ),
    Case(
        "conv_rank_above_rank",
        {"adapter.conv_rank": 32, "adapter.targets": "transformer+conv"},
        {"adapter.conv_rank": 8, "adapter.targets": "transformer+conv"},
    ),
    Case("not_read_by_diffusers", {"adapter.type": "lokr"}, {"adapter.type": "dylora"}),
    Case(
        "setting_of_another_kind",
        {"adapter.lokr_factor": 8, "adapter.type": "loha"},
        {"adapter.lokr_factor": 8, "adapter.type": "lokr"},
        says=("only lokr",),
    ),
    Case(
        "loha_rank_high",
        {"adapter.type": "loha", "adapter.rank": 64, "adapter.alpha": 32},
        {"adapter.type": "loha", "adapter.rank": 16},
        says=("4096",),
    ),
    Case(
        "oft_alpha_does_nothing",
        {"adapter.type": "oft", "adapter.alpha": 1},
        {"adapter.type": "oft"},
    ),
    Case("oft_blocks_large", {"adapter.type": "oft", "adapter.rank": 128}, {"adapter.type": "oft"}),
    Case(
        "dora_over_a_quantised_base",
        {"adapter.dora": True, "model.quantize": "nf4"},
        {"adapter.dora": True},
        says=("nf4",),
    ),
    Case(
        "start_over_a_quantised_base",
        {"adapter.init": "pissa", "model.quantize": "nf4"},
        {"adapter.init": "pissa", "model.quantize": "int8"},
    ),
    Case(
        "rslora_with_large_alpha",
        {"adapter.rslora": True, "adapter.rank": 64, "adapter.alpha": 64},
        {"adapter.rslora": True, "adapter.rank": 64, "adapter.alpha": 8},
        says=("by 8", "= 8 is"),
    ),
    Case(
        "start_is_replaced",
        {"adapter.init": "gaussian", "adapter.start_from": "x.safetensors"},
        {"adapter.init": "gaussian"},
    ),
    Case(
        "nested_ranks_learn_little",
        {"adapter.type": "dylora", "adapter.rank": 32},
        {"adapter.type": "dylora", "adapter.rank": 32, "adapter.dylora_unit": 8},
        says=("32 ranks", "47 steps"),
    ),
    Case(
        "dropouts_add_up",
        {"adapter.dropout": 0.3, "adapter.rank_dropout": 0.2, "adapter.module_dropout": 0.2},
        {"adapter.dropout": 0.1, "adapter.rank_dropout": 0.1},
        says=("45%",),
    ),
    Case(
        "rank_dropout_of_few_ranks",
        {"adapter.rank_dropout": 0.2, "adapter.rank": 4},
        {"adapter.rank_dropout": 0.2},
    ),
    Case("module_dropout_high", {"adapter.module_dropout": 0.7}, {"adapter.module_dropout": 0.3}),
    Case("max_norm_small", {"adapter.max_norm": 0.01}, {"adapter.max_norm": 1}),
]
