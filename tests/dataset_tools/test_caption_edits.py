from __future__ import annotations

from pathlib import Path

import pytest

from dataset_tools import captions as bulk
from dataset_tools.captions import CaptionError
from dataset_tools.dataset import DatasetError, caption_path, load_dataset
from dataset_tools.ingest import ingest

from .pictures import encoded, picture

CAPTIONS = {"a": "zwx cat, on a sofa", "b": "a category of dogs, sofa", "c": "", "d": "ZWX  cat outdoors"}


def test_prefix_and_suffix_are_added_once() -> None:
    changed = bulk.add_prefix(CAPTIONS, "photo of ")
    assert changed == {key: f"photo of {text}".strip() for key, text in CAPTIONS.items()}
    assert bulk.add_prefix(CAPTIONS | changed, "photo of") == {}
    assert bulk.add_prefix({"a": "photographic plate"}, "photo") == {"a": "photo photographic plate"}
    assert bulk.add_suffix(CAPTIONS, ", 4k")["a"] == "zwx cat, on a sofa, 4k"
    assert bulk.add_suffix(CAPTIONS, ", 4k")["c"] == "4k"
    assert bulk.add_suffix(CAPTIONS, "at night")["d"] == "ZWX  cat outdoors at night"
    assert bulk.add_suffix({"a": "x, 4k"}, ", 4k") == {}
    assert bulk.add_prefix(CAPTIONS, " ") == {} == bulk.add_suffix(CAPTIONS, "")


def test_replacing_respects_words() -> None:
    assert bulk.find_replace(CAPTIONS, "cat", "dog") == {"a": "zwx dog, on a sofa", "d": "ZWX  dog outdoors"}
    assert bulk.find_replace(CAPTIONS, "cat", "dog", whole_words=False)["b"] == "a dogegory of dogs, sofa"
    assert bulk.find_replace(CAPTIONS, "zwx", "q", ignore_case=True)["d"] == "q  cat outdoors"
    assert bulk.find_replace(CAPTIONS, ", ", " | ") == {
        "a": "zwx cat | on a sofa",
        "b": "a category of dogs | sofa",
    }
    assert bulk.find_replace(CAPTIONS, "", "x") == {}
    assert bulk.find_replace({"a": "c++ (1)"}, "c++ (1)", r"\1 \g<0>") == {"a": r"\1 \g<0>"}, (
        "taken literally"
    )
    assert bulk.find_replace({"a": "chat été"}, "t", "x") == {}, "accented letters are letters"


def test_replacing_by_regex() -> None:
    assert bulk.find_replace(CAPTIONS, r"(\w+), on", r"\1 upon", regex=True) == {"a": "zwx cat upon a sofa"}
    with pytest.raises(CaptionError, match=r"'\(cat' is not a regular expression .*; correct it"):
        bulk.find_replace(CAPTIONS, "(cat", "x", regex=True)
    with pytest.raises(CaptionError, match=r"The replacement .* does not fit"):
        bulk.find_replace(CAPTIONS, "cat", r"\3", regex=True)


def test_tags_are_counted_and_removed() -> None:
    tagged = {"a": "zwx, Brown hair, smile", "b": "brown  hair, brown hair", "c": "brown hairs"}
    assert bulk.tag_frequency(tagged) == [("brown hair", 2), ("brown hairs", 1), ("smile", 1), ("zwx", 1)]
    assert bulk.remove_tag(tagged, "brown hair") == {"a": "zwx, smile", "b": ""}
    assert bulk.remove_tag(tagged, "hair") == {}


def test_the_trigger_is_inserted_where_it_is_missing() -> None:
    assert bulk.missing_trigger(CAPTIONS, "zwx cat") == ["b", "c"]
    changed = bulk.insert_trigger(CAPTIONS, " zwx cat ")
    assert changed == {"b": "zwx cat, a category of dogs, sofa", "c": "zwx cat"}
    assert bulk.insert_trigger(CAPTIONS | changed, "zwx cat") == {}
    assert bulk.missing_trigger({"a": "zwxy", "b": "a zwx."}, "zwx") == ["a"]
    assert bulk.missing_trigger(CAPTIONS, " ") == [] and bulk.insert_trigger(CAPTIONS, "") == {}


def project_of_three(tmp_path: Path) -> tuple[Path, list[str]]:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(encoded(picture(seed=index)))
    (tmp_path / "0.txt").write_text("zero")
    (tmp_path / "1.txt").write_text("one")
    return tmp_path / "project", list(ingest(sorted(tmp_path.glob("*.*")), tmp_path / "project").added)


def test_applying_can_be_undone(tmp_path: Path) -> None:
    root, ids = project_of_three(tmp_path)
    dataset = load_dataset(root)
    before = bulk.read_captions(root, dataset)
    assert list(before.values()) == ["zero", "one", ""]
    undo = bulk.apply_captions(root, dataset, bulk.insert_trigger(before, "zwx"))
    assert list(bulk.read_captions(root, dataset).values()) == ["zwx, zero", "zwx, one", "zwx"]
    redo = bulk.apply_captions(root, dataset, undo)
    assert bulk.read_captions(root, dataset) == before
    assert not caption_path(root, dataset.get(ids[2])).exists()
    bulk.apply_captions(root, dataset, redo)
    assert bulk.read_captions(root, dataset)[ids[2]] == "zwx"


def test_a_failed_write_puts_the_others_back(tmp_path: Path) -> None:
    root, ids = project_of_three(tmp_path)
    dataset = load_dataset(root)
    before = bulk.read_captions(root, dataset)
    caption_path(root, dataset.get(ids[2])).mkdir()  # in the way of the third caption
    try:
        with pytest.raises(DatasetError, match=r"cannot be written .* Nothing was changed"):
            bulk.apply_captions(root, dataset, dict.fromkeys(ids, "new"))
    finally:
        caption_path(root, dataset.get(ids[2])).rmdir()
    assert bulk.read_captions(root, dataset) == before
