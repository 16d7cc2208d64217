"""Cases of the rules on memory and disk."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts

RTX_3070 = Facts(gpu="RTX 3070", vram_gib=8)
RTX_3060 = Facts(gpu="RTX 3060", vram_gib=12)
DEV = {"model.family": "flux", "model.base": "black-forest-labs/FLUX.1-dev", "samples.guidance": 3.5}
LARGE = {"samples.width": 1536, "samples.height": 1536}

CASES = [
    Case(
        "training_does_not_fit",
        {"train.batch_size": 4},
        {"train.batch_size": 1, "samples.tiling": "on"},
        RTX_3070,
        says=("Training needs about", "this GPU has 8."),
    ),
    Case("training_does_not_fit", DEV, {}, RTX_3070, says=("no saving is enough",)),
    Case("drawing_does_not_fit", LARGE | {"samples.tiling": "off"}, LARGE, RTX_3070, says=("drawing needs",)),
    Case("drawing_does_not_fit", LARGE | {"samples.tiling": "off"}, {"train.batch_size": 4}, RTX_3070),
    Case(
        "base_in_ram_for_nothing",
        {"machine.offload": True},
        {"machine.offload": True, "train.batch_size": 32},
        RTX_3060,
    ),
    Case(
        "full_precision_of_a_full_size_base",
        {"model.precision": "fp32"},
        {"model.precision": "fp32"},
        silent_facts=Facts(gpu=""),
    ),
    Case(
        "checkpoints_fill_the_disk",
        {"adapter.rank": 768, "adapter.alpha": 768, "checkpoints.every": 10, "checkpoints.keep": 60},
        {"adapter.rank": 768, "adapter.alpha": 768, "checkpoints.every": 300, "checkpoints.keep": 60},
        says=("60 checkpoints",),
    ),
    Case(
        "checkpoints_fill_the_disk",
        {"adapter.rank": 768, "adapter.alpha": 768, "checkpoints.every": 10, "checkpoints.keep_every": 10},
        {"adapter.rank": 768, "adapter.alpha": 768, "checkpoints.every": 10},
        says=("150 checkpoints",),
    ),
    Case(
        "milestones_fall_between_checkpoints",
        {"checkpoints.every": 250, "checkpoints.keep_every": 600},
        {"checkpoints.every": 250, "checkpoints.keep_every": 500},
        says=("each multiple of 600 only each of 3000",),
    ),
    Case(
        "best_checkpoints_cannot_be_told",
        {"checkpoints.keep_best": 1, "samples.every": 0},
        {"checkpoints.keep_best": 1, "samples.every": 250},
    ),
    Case(
        "more_gpus_than_there_are",
        {"machine.gpus": 4, "train.batch_size": 4},
        {"machine.gpus": 2, "train.batch_size": 4},
        Facts(gpu="H100", gpus=2),
        says=("has 2 GPUs", "wants 4"),
    ),
    Case(
        "several_processes_of_one_processor",
        {"machine.gpus": 2, "train.batch_size": 4},
        {"machine.gpus": 2, "train.batch_size": 4},
        Facts(gpu="", gpus=0),
        Facts(),
        says=("2 processes",),
    ),
    Case(
        "more_gpus_than_pictures",
        {"machine.gpus": 8, "train.batch_size": 2, "train.gradient_accumulation": 3},
        {"machine.gpus": 8, "train.batch_size": 2, "train.gradient_accumulation": 4},
        says=("6 pictures", "2 of 8 GPUs"),
    ),
    Case(
        "more_gpus_than_pictures",
        {"machine.gpus": 0, "train.batch_size": 1},
        {"machine.gpus": 0, "train.batch_size": 1},
        Facts(gpu="H100", vram_gib=80, gpus=2),
        Facts(gpu="H100", vram_gib=80, gpus=1),
        says=("one picture, so 1 of 2",),
    ),
    Case(
        "nobody_to_split_with",
        {"machine.shard": True},
        {"machine.shard": True, "machine.gpus": 2, "train.batch_size": 2},
    ),
]
