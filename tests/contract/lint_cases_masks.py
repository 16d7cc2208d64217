"""Cases of the rules on masks."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts

CASES = [
    Case(
        "masks_and_setting_differ",
        {},
        {"loss.mask": "normalised"},
        Facts(images=20, masks=20),
        says=("All 20 photos have a mask", "loss.mask is off"),
    ),
    Case(
        "masks_and_setting_differ",
        {"loss.mask": "kohya"},
        {},
        Facts(images=20, masks=0),
        says=("No photo has a mask", "kohya"),
    ),
    Case(
        "masks_and_setting_differ",
        {"loss.mask": "batch"},
        {"loss.mask": "batch"},
        Facts(images=20, masks=5),
        Facts(images=20, masks=20),
        says=("5 of 20 photos", "the others are learnt whole"),
    ),
    Case("mask_scales_the_learning_rate", {"loss.mask": "kohya"}, {"loss.mask": "normalised"}),
    Case(
        "mask_shows_everything",
        {"loss.mask": "normalised", "loss.mask_floor": 0.9},
        {"loss.mask": "normalised", "loss.mask_floor": 0.5},
        says=("90%",),
    ),
    Case(
        "nothing_holds_the_surroundings",
        {"loss.mask": "normalised", "loss.mask_floor": 0},
        {"loss.mask": "kohya", "loss.mask_floor": 0},
    ),
]
