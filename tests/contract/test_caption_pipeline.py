"""What becomes of a caption: kohya's order, its traps closed, and chance that is a function of the look."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from trainer.contract.caption_pipeline import (
    FREE_LOOKS,
    USUAL_VARIANTS,
    Look,
    stages,
    variants_of,
    warmed,
    warmup_steps,
)
from trainer.contract.config import TrainConfig
from trainer.contract.errors import ConfigError
from trainer.contract.fields import parse
from trainer.contract.settings.dataset import OwnSettings


def recipe(train: dict[str, Any] | None = None, **captions: Any) -> TrainConfig:
    return parse({"captions": captions, "train": {"steps": 100, **(train or {})}})


def outcomes(text: str, looks: int = 200, step: int = 0, **captions: Any) -> set[str]:
    config = recipe(**captions)
    return {stages(text, config, Look(1, "a", epoch, step=step)).caption for epoch in range(looks)}


MARKED = "a, b ||| c, d ||| e"


def test_both_ends_stay_where_the_separator_comes_twice() -> None:
    found = outcomes(MARKED, keep_tokens_separator="|||", shuffle=True)
    assert found == {"a, b, c, d, e", "a, b, d, c, e"}
    assert outcomes(MARKED, keep_tokens_separator="|||", shuffle=True, tag_dropout=1) == {"a, b, e"}
    assert outcomes("a ||| b, c", keep_tokens_separator="|||", shuffle=True) == {"a, b, c", "a, c, b"}


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        (MARKED, {"keep_tokens_separator": "|||"}, "a, b, c, d, e"),
        ("a|||b ||| c ||| d", {"keep_tokens_separator": "|||"}, "a, b, c, d"),
        ("a ;;; b, c", {"secondary_separator": ";;;"}, "a, b, c"),
        ("a · b", {"separator": "·"}, "a, b"),
        ("b", {"prefix": "a |||", "keep_tokens_separator": "|||"}, "a b"),
        (
            "b",
            {"suffix": "||| c;;;d", "keep_tokens_separator": "|||", "secondary_separator": ";;;"},
            "b c, d",
        ),
    ],
)
def test_no_separator_is_read_though_nothing_is_shuffled(
    text: str, settings: dict[str, Any], expected: str
) -> None:
    assert outcomes(text, looks=3, **settings) == {expected}


def test_no_separator_is_ever_read() -> None:
    """Whatever is put together of captions, affixes, marks and settings."""
    random = Random(7)
    for number in range(500):
        mark = random.choice([",", "·"])
        pieces = ["a", "b c", "", " ", "\n", "{x|y}", mark, mark, "|||", "|||", ";;;", ";;;"]
        text, prefix, suffix = ("".join(random.choices(pieces, k=k)) for k in (9, 3, 3))
        settings = {
            "prefix": prefix,
            "suffix": suffix,
            "separator": mark,
            "keep_tokens_separator": "|||",
            "secondary_separator": ";;;",
            "keep_tokens": random.randrange(3),
            **{name: random.random() < 0.5 for name in ("shuffle", "wildcards", "protect")},
            "tag_dropout": random.choice([0, 0.3]),
        }
        (caption,) = outcomes(text, looks=1, **settings)
        assert not any(one in caption for one in ("|||", ";;;", "·")), (text, settings, number)


@pytest.mark.parametrize("text", ["A cat,sleeping.  It dreams", "line one\nline two", "{a|b} {{c}}", " , ,"])
def test_a_caption_that_nothing_is_asked_of_is_left_as_it_is(text: str) -> None:
    assert outcomes(text, looks=2) == {text}


def test_wildcards() -> None:
    assert outcomes("x{1|2}{{y}}", wildcards=True) == {"x1{y}", "x2{y}"}
    assert outcomes("x{1|2}{{y}}") == {"x{1|2}{{y}}"}
    assert outcomes("{a|} {}", wildcards=True) == {"a {}", " {}"}
    lines = outcomes("one, two\n\n  {three|four}\n", wildcards=True, prefix="zwx,", suffix=", end")
    assert lines == {"zwx, one, two, end", "zwx, three, end", "zwx, four, end"}, "an affix is of every line"
    config = recipe(wildcards=True)
    counts = Counter(stages("{a|b|c}", config, Look(1, str(number))).caption for number in range(3000))
    assert all(900 < counts[letter] < 1100 for letter in "abc")


def test_prefix_and_suffix() -> None:
    assert outcomes("a, b", prefix="photo of zwx,", suffix="outdoors") == {"photo of zwx, a, b outdoors"}
    assert outcomes("", prefix="photo of zwx,", suffix=", outdoors") == {"photo of zwx outdoors"}
    affixes = {"prefix": "x, y,", "suffix": ", z", "shuffle": True}
    assert outcomes("a, b", **affixes) == {"x, y, a, b, z", "x, y, b, a, z"}
    assert len(outcomes("a, b", looks=2000, protect=False, **affixes)) == 120, "as in kohya's: all are tags"
    kept = outcomes("a, b", looks=2000, protect=False, keep_tokens=2, **affixes)
    assert len(kept) == 6 and all(text.startswith("x, y, ") for text in kept)
    config = recipe(prefix="photo of zwx,", suffix="end")
    assert stages("a cat", config, Look(1, "a", regularisation=True)).caption == "a cat"


def test_kept_tags_are_counted_without_empty_ones_and_need_no_separator() -> None:
    found = outcomes(", zwx, a, b,", shuffle=True, keep_tokens=1)
    assert found == {"zwx, a, b", "zwx, b, a"}
    assert outcomes("a, b", shuffle=True, keep_tokens=9) == {"a, b"}
    together = outcomes("a ;;; b, c", shuffle=True, secondary_separator=";;;")
    assert together == {"a, b, c", "c, a, b"}


def test_a_folder_has_a_prefix_and_suffix_of_its_own() -> None:
    config = recipe(prefix="photo of zwx,", suffix="end")

    def caption(regularisation: bool = False, **own: Any) -> str:
        look = Look(1, "a", regularisation=regularisation, own=OwnSettings(**own))
        return stages("a cat", config, look).caption

    assert caption(prefix="drawing of qrt,") == "drawing of qrt, a cat end"
    assert caption(prefix="", suffix="") == "a cat"
    assert caption(regularisation=True) == "a cat"
    assert caption(regularisation=True, suffix="indoors") == "a cat indoors"


def test_a_folder_shuffles_keeps_and_drops_as_it_says() -> None:
    def shown(config: TrainConfig, **own: Any) -> set[str]:
        looks = (Look(1, "a", epoch, own=OwnSettings(**own)) for epoch in range(60))
        return {stages("a, b, c", config, look).caption for look in looks}

    still, moved = recipe(), recipe(shuffle=True, keep_tokens=1)
    assert shown(still) == {"a, b, c"} and shown(moved) == {"a, b, c", "a, c, b"}
    assert shown(still, shuffle=True, keep_tokens=2) == {"a, b, c"} != shown(still, shuffle=True)
    assert shown(moved, shuffle=False) == {"a, b, c"} and len(shown(moved, keep_tokens=0)) == 6
    assert shown(still, dropout=1) == {""} and shown(recipe(dropout=1), dropout=0) == {"a, b, c"}


def test_captions_vary_where_those_of_one_folder_do() -> None:
    long = {"train": {"steps": FREE_LOOKS + 1}}
    assert variants_of(parse(long)) == 0
    assert variants_of(parse(long | {"dataset": {"subsets": ["b | shuffle"]}})) == USUAL_VARIANTS


def test_the_separator_goes_before_the_number_of_kept_tags() -> None:
    both = {"keep_tokens": 1, "keep_tokens_separator": "|||", "shuffle": True}
    assert outcomes("a, b ||| c", **both) == {"a, b, c"}
    assert outcomes("a, b, c", **both) == {"a, b, c", "a, c, b"}, "the number where there is no separator"


def test_dropout_ends_the_pipeline() -> None:
    config = recipe(prefix="zwx", dropout=0.25, tag_dropout=0.5, shuffle=True)
    looks = [Look(1, "a", epoch) for epoch in range(2000)]
    texts = [stages("a, b, c", config, look).caption for look in looks]
    assert 430 < texts.count("") < 570, "also the prefix goes"
    whole = [stages("a, b, c", config, look, dropout=False).caption for look in looks]
    assert all(one in ("", other) for one, other in zip(texts, whole, strict=True)) and "" not in whole
    tags = Counter(tag for text in whole for tag in text.split() if tag != "zwx")
    assert 2800 < tags.total() < 3200, "half of three tags"


def test_every_so_many_epochs_have_no_caption() -> None:
    config = recipe(dropout_every_epochs=3)
    shown = [stages("a", config, Look(1, "a", epoch)).caption for epoch in range(7)]
    assert shown == ["a", "a", "", "a", "a", "", "a"]


def test_the_warm_up_cuts_before_it_shuffles() -> None:
    assert [warmed(7, step, 4, 1) for step in range(6)] == [1, 2, 4, 5, 7, 7]
    assert warmed(2, 0, 10, 5) >= 2, "there are fewer tags than it begins with"
    text = "zwx, a, b, c, d"
    growing = {"shuffle": True, "keep_tokens": 1, "warmup_steps": 40}
    shown = [outcomes(text, step=step, **growing) for step in (0, 20, 39, 40)]
    assert shown[0] == {"zwx, a"}
    assert {frozenset(text.split(", ")) for text in shown[1]} == {frozenset(("zwx", "a", "b"))}
    assert [len(next(iter(texts)).split(", ")) for texts in shown] == [2, 3, 4, 5]
    assert warmup_steps(recipe(warmup_steps=0.4)) == warmup_steps(recipe(warmup_steps=40)) == 40
    assert outcomes(text, warmup_steps=40, warmup_min=0) == {""}


def test_chance_is_a_function_of_the_look_alone() -> None:
    config = recipe(shuffle=True, wildcards=True, tag_dropout=0.3)
    text = ", ".join("abcdefgh")

    def drawn(**look: Any) -> str:
        return stages(
            text, config, Look(**{"seed": 1, "image_id": "x", "epoch": 2, "repeats": 2, **look})
        ).caption

    assert drawn() == drawn()
    others = {"seed": 2, "image_id": "y", "epoch": 3, "repeat": 1}
    assert len({drawn(), *(drawn(**{name: value}) for name, value in others.items())}) == 5
    # As it has been drawn since this was written, on every version of Python.
    assert drawn() == "d, h, c, b, f, g"


def test_turning_one_thing_on_leaves_the_others_as_they_were() -> None:
    text = "{1|2}, a, b, c, d, e"
    both = [stages(text, recipe(shuffle=True, wildcards=True), Look(1, "a", n)) for n in range(50)]
    one = [stages(text, recipe(wildcards=True), Look(1, "a", n)) for n in range(50)]
    assert [each.wildcards for each in both] == [each.wildcards for each in one]


def test_variants_are_the_first_draws_in_turn() -> None:
    text = ", ".join("abcdefgh")
    free, three = recipe(shuffle=True), recipe(shuffle=True, variants=3)
    first = [stages(text, free, Look(1, "a", n)).caption for n in range(3)]
    assert len(set(first)) == 3
    assert [stages(text, three, Look(1, "a", n)).caption for n in range(7)] == [*first, *first, first[0]]
    repeats = [stages(text, three, Look(1, "a", n // 2, n % 2, 2)).caption for n in range(4)]
    assert repeats == [*first, first[0]], "looks are counted, not epochs"
    dropped = recipe(shuffle=True, variants=1, dropout=0.5)
    assert {stages(text, dropped, Look(1, "a", n)).caption for n in range(20)} == {"", first[0]}


def test_variants_share_the_warm_up() -> None:
    """Eight tags grow one by one while three variants are shown: nine captions, and three at the end."""
    config = recipe({"steps": 400}, shuffle=True, variants=3, warmup_steps=80)
    text = ", ".join("abcdefgh")
    shown = [stages(text, config, Look(1, "a", epoch, step=epoch)).caption for epoch in range(400)]
    warming, after = set(shown[:80]), set(shown[80:])
    assert {len(text.split(", ")) for text in warming} == set(range(1, 8))
    assert len(after) == 3 and 7 <= len(warming) <= 7 + 2


def test_how_many_variants() -> None:
    assert variants_of(recipe(shuffle=True)) == 0
    long = {"steps": FREE_LOOKS, "batch_size": 2}
    assert variants_of(recipe(long, shuffle=True)) == 10
    assert variants_of(recipe(long, shuffle=True, variants=25)) == 25
    assert variants_of(recipe(long, variants=25)) == 0, "there is but one caption"
    assert variants_of(recipe({**long, "text_encoder_lr": 1e-5}, shuffle=True, variants=25)) == 0


def test_stages_are_told_apart() -> None:
    config = recipe(
        prefix="P,", wildcards=True, shuffle=True, keep_tokens_separator="|||", secondary_separator=";;;"
    )
    shown = stages("k ||| a;;;{b}", config, Look(1, "a"))
    assert shown.titled()[0] == ("File", shown.file)
    assert [text for _, text in shown.titled()] == [
        "k ||| a;;;{b}",
        "P, k ||| a;;;{b}",
        "P, k ||| a;;;{b}",
        "P, k ||| a;;;b",
        "P, k, a;;;b",
        "P, k, a, b",
    ]
    assert all(one != two for one, two in pairwise(text for _, text in shown.titled()[2:]))


@pytest.mark.parametrize(
    ("captions", "setting"),
    [
        ({"keep_tokens_separator": ","}, "captions.keep_tokens_separator"),
        ({"separator": "|", "keep_tokens_separator": "|||"}, "captions.keep_tokens_separator"),
        ({"secondary_separator": ",,,"}, "captions.secondary_separator"),
    ],
)
def test_separators_that_cannot_be_told_apart_are_refused(captions: dict[str, str], setting: str) -> None:
    with pytest.raises(ConfigError, match="cannot be told from") as caught:
        recipe(**captions)
    assert set(caught.value.problems) == {setting}
