"""Cases of the rules on captions."""

from __future__ import annotations

from lint_case import Case

from trainer.contract.findings import Facts
from trainer.contract.steps import Folder


def read(*captions: str) -> Facts:
    return Facts(captions=captions)


SHUFFLE = {"captions.shuffle": True}
KEPT = {**SHUFFLE, "captions.keep_tokens": 1}
TAGS = read("zwx cat, sofa, red", "zwx cat, garden")

CASES = [
    Case(
        "separator_in_no_caption",
        {**SHUFFLE, "captions.separator": ";"},
        {**SHUFFLE, "captions.separator": ","},
        TAGS,
        says=("“;”",),
    ),
    Case("separator_in_no_caption", SHUFFLE, SHUFFLE, read("zwx cat"), read("zwx cat", "zwx cat, a")),
    Case(
        "sentences_are_shuffled",
        KEPT,
        KEPT,
        read("zwx cat, lying on a red sofa beside the window", "a photo of zwx cat in a garden", "zwx cat"),
        TAGS,
        ("2 captions are sentences",),
    ),
    Case("trigger_is_moved", SHUFFLE, KEPT, TAGS, says=("2 captions", "shuffled along")),
    Case(
        "trigger_is_moved",
        {"captions.tag_dropout": 0.1, "captions.keep_tokens": 1},
        {"captions.tag_dropout": 0.1, "captions.keep_tokens": 2},
        read("photo, zwx cat, sofa"),
        says=("1 caption", "dropped now and then"),
    ),
    Case(
        "trigger_is_moved",
        {**SHUFFLE, "captions.prefix": "zwx cat,", "captions.protect": False},
        {**SHUFFLE, "captions.prefix": "zwx cat,"},
        read("sofa, red"),
    ),
    Case(
        "trigger_is_moved",
        {**SHUFFLE, "captions.keep_tokens_separator": "|||"},
        {**SHUFFLE, "captions.keep_tokens_separator": "|||"},
        read("red ||| zwx cat, sofa"),
        read("zwx cat ||| sofa, red"),
    ),
    Case(
        "affixes_are_moved",
        {**SHUFFLE, "captions.prefix": "photo,", "captions.protect": False},
        {**KEPT, "captions.prefix": "photo,", "captions.protect": False},
        says=("are shuffled like",),
    ),
    Case(
        "affixes_are_moved",
        {"captions.tag_dropout": 0.1, "captions.suffix": ", 4k", "captions.protect": False},
        {"captions.tag_dropout": 0.1, "captions.suffix": ", 4k"},
        says=("are dropped like",),
    ),
    Case(
        "trigger_missing_in_captions",
        {"captions.prefix": "a photo,"},
        {"captions.prefix": "a photo of zwx cat,"},
        Facts(images=9, captions_missing_trigger=9),
    ),
    Case("kept_tags_never_move", {"captions.keep_tokens": 1}, KEPT),
    Case(
        "kept_twice",
        {**KEPT, "captions.keep_tokens_separator": "|||"},
        {**KEPT, "captions.keep_tokens_separator": "|||"},
        read("zwx cat ||| red"),
        read("zwx cat ||| red", "zwx cat, sofa"),
    ),
    Case(
        "keep_separator_in_no_caption",
        {"captions.keep_tokens_separator": "|||"},
        {"captions.keep_tokens_separator": "|||"},
        TAGS,
        read("zwx cat ||| red"),
        ("“|||”",),
    ),
    Case(
        "secondary_separator_in_no_caption",
        {"captions.secondary_separator": ";;;"},
        {"captions.secondary_separator": ";;;"},
        TAGS,
        read("zwx cat, red;;;sofa"),
    ),
    Case(
        "separator_is_read",
        {},
        {"captions.keep_tokens_separator": "|||"},
        read("zwx cat ||| red", "zwx cat"),
        says=("1 caption has", "“|||”"),
    ),
    Case("separator_is_read", {}, {}, read("zwx cat, red;;;sofa"), TAGS),
    Case(
        "tags_are_mostly_missing",
        {"captions.tag_dropout": 0.35, "captions.dropout": 0.1},
        {"captions.tag_dropout": 0.3, "captions.dropout": 0.1},
        says=("41%",),
    ),
    Case(
        "tag_warmup_long", {"captions.warmup_steps": 1500}, {"captions.warmup_steps": 1499}, says=("of 1500",)
    ),
    Case("wildcards_off", {}, {"captions.wildcards": True}, read("zwx cat, {a|b}"), says=("1 caption",)),
    Case("wildcards_off", {}, {}, read("zwx cat, {red|green}"), read("zwx cat, {red}")),
    Case(
        "wildcards_in_no_caption",
        {"captions.wildcards": True},
        {"captions.wildcards": True},
        TAGS,
        read("zwx cat", "zwx cat, {red|green}"),
    ),
    Case("several_lines", {}, {"captions.wildcards": True}, read("zwx cat\na cat"), says=("1 caption has",)),
    Case(
        "trigger_twice",
        {"captions.prefix": "zwx cat, a Zwx Cat,"},
        {"captions.prefix": "a zwx cat,"},
        says=("2 times",),
    ),
    Case(
        "trigger_twice",
        {"captions.prefix": "zwx cat,"},
        {"captions.prefix": "photo of"},
        TAGS,
        says=("2 captions do too",),
    ),
    Case(
        "prefix_of_one_concept",
        {"captions.prefix": "zwx cat,", "dataset.subsets": ["dogs | trigger = qrt dog"]},
        {"captions.prefix": "zwx cat,", "dataset.subsets": ["cats | trigger = cat | regularisation"]},
        says=("dogs", "qrt dog"),
    ),
    Case(
        "epochs_without_captions",
        {"captions.dropout_every_epochs": 1},
        {"captions.dropout_every_epochs": 4},
        says=("not even the trigger",),
    ),
    Case(
        "epochs_without_captions",
        {"captions.dropout_every_epochs": 80},
        {"captions.dropout_every_epochs": 70},
        Facts(images=10, folders=(Folder("zwx cat", (((1024, 1024), 2),) * 10),)),
        says=("75 epochs",),
    ),
    Case("one_variant", {**SHUFFLE, "captions.variants": 1}, {**SHUFFLE, "captions.variants": 2}),
    Case(
        "variants_change_nothing",
        {"captions.variants": 4},
        {**SHUFFLE, "captions.variants": 4},
        says=("never vary",),
    ),
    Case(
        "variants_change_nothing",
        {**SHUFFLE, "captions.variants": 4, "train.text_encoder_lr": 1e-5},
        {**SHUFFLE, "train.text_encoder_lr": 1e-5},
        says=("anew at every step",),
    ),
    Case(
        "variants_by_length_of_run",
        {**SHUFFLE, "train.batch_size": 2},
        SHUFFLE,
        says=("3000 looks", "10 variants"),
    ),
    Case(
        "captions_are_cut",
        {},
        {"model.family": "sd3", "model.base": "stabilityai/stable-diffusion-3.5-medium"},
        Facts(images=2, captions=("zwx cat " * 40, "zwx cat")),
        says=("1 caption is longer than the 77 tokens",),
    ),
    Case(
        "captions_are_cut",
        {"dataset.subsets": ["../mia | prefix = " + "drawing " * 50]},
        {"captions.prefix": "drawing " * 50, "dataset.subsets": ["../mia | prefix ="]},
        Facts(images=2, captions=("zwx cat " * 20,), caption_folders=(1,)),
        says=("1 caption is longer",),
    ),
    Case(
        "sentences_are_shuffled",
        {"dataset.subsets": ["../mia | shuffle"]},
        {"captions.shuffle": True, "captions.keep_tokens": 1, "dataset.subsets": ["../mia | shuffle = no"]},
        Facts(captions=("a photo of zwx cat in a garden",), caption_folders=(1,)),
        says=("1 caption is a sentence",),
    ),
]
