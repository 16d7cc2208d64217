"""Cases of the rules on folders, buckets and variants."""

from __future__ import annotations

from dataclasses import replace

from lint_case import Case

from trainer.contract.findings import Facts
from trainer.contract.steps import Folder

SQUARE, WIDE = (1024, 1024), (1216, 832)


def folders(*counts: tuple[str, int], regular: int = 0, wide: int = 0) -> Facts:
    """Folders of so many square photos by name, a regularisation set, and wide photos in the first folder."""
    made = [Folder(name, ((SQUARE, 1),) * count) for name, count in counts]
    if wide:
        made[0] = Folder(made[0].name, made[0].pictures + ((WIDE, 1),) * wide)
    if regular:
        made.append(Folder("dog", ((SQUARE, 1),) * regular, regularisation=True))
    return Facts(images=sum(count for _, count in counts) + wide, folders=tuple(made))


TWO = {"dataset.subsets": ["../mia | trigger = qrt cat"]}
CLASS = "../dogs | trigger = dog | regularisation"

CASES = [
    Case(
        "a_folder_cannot_be_used",
        {},
        {},
        Facts(folders_problem="the folder /x does not exist"),
        Facts(),
        ("The folder /x",),
    ),
    Case(
        "trigger_missing_in_captions",
        TWO,
        TWO,
        replace(folders(("zwx cat", 9), ("qrt cat", 9)), captions_missing_trigger=2),
        folders(("zwx cat", 9), ("qrt cat", 9)),
        ("2 captions lack the trigger word of their folder",),
    ),
    Case(
        "resolution_above_native",
        {"dataset.subsets": ["../mia | resolution = 1536 | more_resolutions = 512"]},
        {"dataset.subsets": ["../mia | resolution = 512"]},
        says=("1536 px",),
    ),
    Case(
        "resolution_above_native",
        {"dataset.more_resolutions": "512, 1600"},
        {"dataset.more_resolutions": "512, 768"},
        says=("1600 px",),
    ),
    Case(
        "resolution_is_rounded",
        {"dataset.more_resolutions": "500, 768"},
        {"dataset.more_resolutions": "512, 768"},
        says=("500 px is no multiple of 32",),
    ),
    Case(
        "resolution_said_twice",
        {"dataset.more_resolutions": "512, 1024"},
        {"dataset.more_resolutions": "512, 768"},
        says=("1024 px",),
    ),
    Case(
        "resolution_is_never_reached",
        {"dataset.more_resolutions": "512, 768"},
        {"dataset.more_resolutions": "512, 768"},
        Facts(folders=(Folder("zwx cat", (((768, 768), 2), ((512, 512), 1))),), images=1),
        Facts(folders=(Folder("zwx cat", (((1024, 1024), 1), ((768, 768), 2), ((512, 512), 1))),), images=1),
        says=("large enough for 1024 px",),
    ),
    Case(
        "concepts_of_very_different_size",
        TWO,
        TWO,
        folders(("zwx cat", 40), ("qrt cat", 10)),
        folders(("zwx cat", 30), ("qrt cat", 10)),
        ("“zwx cat” is shown 40 times", "“qrt cat” 10"),
    ),
    Case(
        "concepts_with_the_same_trigger",
        {"dataset.subsets": ["../mia | trigger = Zwx Cat"]},
        TWO,
        says=("../mia",),
    ),
    Case(
        "regularisation_without_a_class",
        {"dataset.subsets": ["../dogs | regularisation"]},
        {"dataset.subsets": [CLASS]},
        says=("../dogs",),
    ),
    Case(
        "regularisation_has_the_trigger",
        {"dataset.subsets": [CLASS]},
        {"dataset.subsets": [CLASS]},
        Facts(class_captions_with_trigger=2),
        Facts(),
        ("2 captions", "zwx cat"),
    ),
    Case(
        "regularisation_larger_than_the_rest",
        {"dataset.subsets": [CLASS]},
        {"dataset.subsets": [CLASS]},
        folders(("zwx cat", 20), regular=50),
        folders(("zwx cat", 20), regular=20),
        ("30 regularisation pictures", "20 times"),
    ),
    Case(
        "regularisation_counts_more",
        {"dataset.subsets": [f"{CLASS} | weight = 2"]},
        {"dataset.subsets": [f"{CLASS} | weight = 1", "../mia | weight = 2 | trigger = qrt"]},
        says=("2 times as much",),
    ),
    Case(
        "batch_above_buckets",
        {"train.batch_size": 12, "train.steps": 200},
        {"train.batch_size": 10, "train.steps": 200},
        folders(("zwx cat", 10), wide=6),
        says=("more than 10 times", "batch of 12"),
    ),
    Case(
        "batches_half_empty",
        {"train.batch_size": 8, "train.steps": 200},
        {"train.batch_size": 3, "train.steps": 200},
        folders(("zwx cat", 9), wide=3),
        says=("50% full", "2 shapes"),
    ),
    Case(
        "longest_side_cuts_shapes",
        {"dataset.buckets": "all", "dataset.bucket_max": 1024},
        {"dataset.buckets": "all", "dataset.bucket_max": 1536},
        says=("1024 px at 1024 px",),
    ),
    Case(
        "bucket_settings_do_nothing",
        {"dataset.bucket_step": 32},
        {"dataset.bucket_step": 32, "dataset.buckets": "no_upscale"},
        says=("standard buckets",),
    ),
    Case(
        "bucket_step_coarse",
        {"dataset.buckets": "all", "dataset.bucket_step": 256},
        {"dataset.buckets": "all", "dataset.bucket_step": 128},
        says=("256 px",),
    ),
    Case(
        "faces_are_mirrored",
        {"dataset.flip": True},
        {"dataset.flip": True},
        Facts(images=20, faces=15),
        Facts(images=20, faces=5),
        ("15 of 20",),
    ),
    Case("turned_far", {"dataset.rotate": 30}, {"dataset.rotate": 15}, says=("30 degrees",)),
    Case("reframed_far", {"dataset.random_crop": 0.4}, {"dataset.random_crop": 0.25}, says=("40%",)),
    Case("hues_of_what_is_learnt", {"dataset.hue": 40}, {"dataset.hue": 15}, says=("40 degrees",)),
    Case("light_varies_much", {"dataset.colour": 0.4}, {"dataset.colour": 0.25}, says=("40%",)),
    Case(
        "more_variants_than_looks",
        {"dataset.rotate": 3, "dataset.variants": 64, "train.steps": 800},
        {"dataset.rotate": 3, "dataset.variants": 32, "train.steps": 800},
        Facts(images=20),
        says=("40 times", "64 variants"),
    ),
]
