"""Cases of the rules on validation."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts

ON = {"validation.every": 250}

CASES = [
    Case("nothing_is_held_out", ON, ON, Facts(images=1, held_out=0), Facts(images=20, held_out=2)),
    Case("nothing_is_held_out", ON, {}, Facts(images=1, held_out=0)),
    Case(
        "one_photo_is_held_out",
        ON,
        {**ON, "validation.share": 0.17},
        Facts(images=11, held_out=1),
        Facts(images=10, held_out=2),
        says=("One of 12 photos", "two or more"),
    ),
    Case("one_photo_is_held_out", ON, {}, Facts(images=5, held_out=1), says=("train on all of them",)),
    Case("one_photo_is_held_out", {**ON, "validation.path": "others"}, {}, Facts(images=9, held_out=1)),
    Case("much_is_held_out", {**ON, "validation.share": 0.4}, {"validation.share": 0.4}, says=("40%",)),
    Case(
        "checkpoints_without_a_validation_loss",
        {"validation.every": 100},
        {"validation.every": 125},
        says=("every 250 steps", "every 100"),
    ),
    Case("validation_is_off", {"validation.share": 0.2}, {**ON, "validation.share": 0.2}),
    Case("validation_is_off", {"validation.path": "others"}, {}),
    Case(
        "validation_costs_time",
        {"validation.every": 25},
        {"validation.every": 250},
        Facts(images=80, held_out=20),
    ),
]
