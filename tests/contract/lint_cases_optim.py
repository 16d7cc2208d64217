"""Cases of the rules on learning rates, schedules, optimizers and averages."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts

PRODIGY = {"train.optimizer": "prodigy", "train.learning_rate": 1.0, "train.warmup": 0.0}
WSD = {"train.scheduler": "warmup_stable_decay"}

CASES = [
    Case(
        "polynomial_is_linear",
        {"train.scheduler": "polynomial"},
        {"train.scheduler": "polynomial", "train.power": 0.5},
    ),
    *(
        Case("nothing_reads_it", {setting: value}, {setting: value, **read}, says=(said,))
        for setting, value, read, said in (
            ("train.restarts", 5, {"train.scheduler": "cosine_with_restarts"}, "restarts"),
            ("train.decay", 0.3, {"train.scheduler": "warmup_stable_decay"}, "decay"),
            ("train.power", 2, {"train.scheduler": "polynomial"}, "power"),
            ("train.unlearn_limit", 3, {"train.unlearn": True}, "train.unlearn is off"),
            ("loss.huber_schedule", "constant", {"loss.type": "huber"}, "huber"),
            ("loss.mask_floor", 0.2, {"loss.mask": "normalised"}, "loss.mask is off"),
            ("noise.multires_discount", 0.2, {"noise.multires_iterations": 6}, "is 0"),
            ("captions.warmup_min", 3, {"captions.warmup_steps": 0.1}, "warm-up"),
            ("captions.protect", False, {"captions.shuffle": True}, "no tags"),
            ("dataset.variants", 4, {"dataset.rotate": 3}, "neither turned"),
            ("prior.weight", 0.5, {"prior.method": "output", "prior.class_name": "cat"}, "is none"),
            ("prior.share", 0.5, {"prior.method": "output", "prior.class_name": "cat"}, "not output"),
            (
                "prior.pictures",
                50,
                {"prior.method": "class_pictures", "prior.class_name": "cat"},
                "no class pictures",
            ),
        )
    ),
    Case("rate_beside_an_estimate", {**PRODIGY, "train.learning_rate": 1e-4}, PRODIGY, says=("0.0001",)),
    Case(
        "one_rate_beside_text_rates",
        {**PRODIGY, "train.text_encoder_lr": 0.5},
        {**PRODIGY, "train.text_encoder_lr": 1},
        says=("0.5 beside 1",),
    ),
    Case("one_rate_beside_loraplus", {**PRODIGY, "train.loraplus_ratio": 16}, {"train.loraplus_ratio": 16}),
    Case(
        "loraplus_burns",
        {"train.loraplus_ratio": 64},
        {"train.loraplus_ratio": 16},
        says=("64", "0.0064"),
    ),
    Case("loraplus_upside_down", {"train.loraplus_ratio": 0.5}, {"train.loraplus_ratio": 1}),
    Case(
        "loraplus_for_no_text_encoder",
        {"train.loraplus_text_ratio": 4},
        {"train.loraplus_text_ratio": 4, "train.text_encoder_lr": 5e-5},
    ),
    Case("warmup_longer_than_the_run", {"train.warmup": 1500}, {"train.warmup": 100}, says=("1500 steps",)),
    Case("warmup_long", {"train.warmup": 600}, {"train.warmup": 400}, says=("40%",)),
    Case("decay_of_nothing", {**WSD, "train.decay": 0}, WSD),
    Case(
        "decay_meets_the_warmup",
        {**WSD, "train.decay": 1400, "train.warmup": 200},
        {**WSD, "train.decay": 1300, "train.warmup": 200},
        says=("200 and 1400 steps",),
    ),
    Case(
        "schedule_beside_an_average",
        {"train.optimizer": "schedulefree_adamw", "train.scheduler": "cosine"},
        {"train.optimizer": "schedulefree_adamw", "train.scheduler": "constant"},
    ),
    Case(
        "ema_beside_an_average",
        {"train.optimizer": "schedulefree_adamw", "train.ema_decay": 0.99},
        {"train.ema_decay": 0.99},
    ),
    Case("schedule_beside_an_estimate", {**PRODIGY, "train.scheduler": "linear"}, PRODIGY),
    Case(
        "warmup_beside_an_estimate",
        {**PRODIGY, "train.warmup": 0.1},
        {**PRODIGY, "train.warmup": 0.1, "train.optimizer_args": "safeguard_warmup=True"},
    ),
    Case(
        "adafactor_without_warmup",
        {"train.optimizer": "adafactor", "train.warmup": 0},
        {"train.optimizer": "adafactor"},
    ),
    Case(
        "adafactor_scales_by_nothing",
        {"train.optimizer": "adafactor", "train.optimizer_args": "scale_parameter=True decay_rate=-0.7"},
        {"train.optimizer": "adafactor", "train.optimizer_args": "decay_rate=-0.7"},
    ),
    Case(
        "adafactor_clips_twice",
        {"train.optimizer": "adafactor"},
        {"train.optimizer": "adafactor", "train.max_grad_norm": 0},
    ),
    Case(
        "eight_bits_without_a_gpu",
        {"train.optimizer": "paged_adamw8bit"},
        {"train.optimizer": "paged_adamw8bit"},
        Facts(gpu=""),
        Facts(gpu="RTX 4090"),
        ("nothing is paged",),
    ),
    Case(
        "eight_bits_of_small_matrices",
        {"train.optimizer": "lion8bit", "adapter.rank": 4, "adapter.alpha": 4},
        {"train.optimizer": "lion8bit"},
    ),
    Case(
        "one_rate_beside_blocks",
        {"train.optimizer": "prodigy", "train.learning_rate": 1, "adapter.block_weights": "12: 0.5"},
        {"train.optimizer": "prodigy", "train.learning_rate": 1, "adapter.block_weights": "12: 0"},
    ),
    Case("weight_decay_high", {"train.weight_decay": 0.5}, {"train.weight_decay": 0.1}),
    Case("ema_never_reached", {"train.ema_decay": 0.999}, {"train.ema_decay": 0.99}, says=("1000 steps",)),
    Case("ema_too_short", {"train.ema_decay": 0.5}, {"train.ema_decay": 0.9}, says=("over 2 steps",)),
    Case("ema_in_ram_for_nothing", {"train.ema_on_cpu": True}, {}, says=("ema_decay is 0",)),
    Case("unlearning_is_on", {"train.unlearn": True}, {}),
    Case(
        "unlearning_too_much",
        {"train.unlearn": True, "train.unlearn_limit": 10},
        {"train.unlearn": True, "train.unlearn_limit": 3},
        says=("10 times",),
    ),
    Case(
        "fused_clips_each_by_itself",
        {"train.fused_backward": True},
        {"train.fused_backward": True, "train.max_grad_norm": 0},
    ),
    Case(
        "loraplus_without_outer_factors",
        {"train.loraplus_ratio": 16, "adapter.type": "loha"},
        {"train.loraplus_ratio": 16, "adapter.type": "dylora"},
    ),
]
