from __future__ import annotations

from pathlib import Path

import pytest

from dataset_tools.dataset import (
    Dataset,
    DatasetError,
    ImageRecord,
    caption_path,
    decode_caption,
    load_dataset,
    read_caption,
    read_caption_file,
    save_dataset,
    update_dataset,
    write_caption,
)


def record(image_id: str, **changes: object) -> ImageRecord:
    values = {
        "id": image_id,
        "file": f"images/{image_id}.png",
        "original_name": f"{image_id}.jpg",
        "sha256": "0" * 64,
        "width": 640,
        "height": 480,
    }
    return ImageRecord.model_validate(values | changes)


def test_a_dataset_survives_the_round_trip(tmp_path: Path) -> None:
    dataset = Dataset(
        trigger="zwx dög",
        images=(
            record("a", bucket=(1024, 1024), crop=(1, 2, 3, 4), warnings=("face cut",)),
            record("b", repeats=3),
        ),
    )
    save_dataset(tmp_path, dataset)
    assert load_dataset(tmp_path) == dataset
    assert [p.name for p in tmp_path.iterdir()] == ["dataset.json"]


def test_helpers_address_by_id() -> None:
    dataset = Dataset(images=(record("a"), record("b", enabled=False)))
    changed = dataset.with_record(record("b", repeats=7), record("unknown"))
    assert changed.get("b").repeats == 7 and [r.id for r in changed.images] == ["a", "b"]
    assert [r.id for r in dataset.enabled_images()] == ["a"]
    assert [r.id for r in dataset.without(["a"]).images] == ["b"]
    with pytest.raises(DatasetError, match="no picture 'c'"):
        dataset.get("c")


@pytest.mark.parametrize("file", ["/etc/passwd", "../a.png", "images/../../a.png", "a\\b.png", ""])
def test_a_record_cannot_point_outside(file: str, tmp_path: Path) -> None:
    save_dataset(tmp_path, Dataset(images=(record("a"),)))
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace("images/a.png", file.replace("\\", "\\\\")))
    with pytest.raises(DatasetError, match=r"damaged at images\.0\.file"):
        load_dataset(tmp_path)


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"version": 2}', '{"imagez": []}'):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DatasetError, match=r"dataset\.json is damaged at .*; restore"):
            load_dataset(tmp_path)
    with pytest.raises(DatasetError, match="does not exist"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="does not exist"):
        update_dataset(tmp_path / "nowhere", lambda dataset: dataset)
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_change_saves_nothing_and_frees_the_lock(tmp_path: Path) -> None:
    save_dataset(tmp_path, Dataset(images=(record("a"),)))

    def fail(dataset: Dataset) -> Dataset:
        raise DatasetError("no")

    with pytest.raises(DatasetError):
        update_dataset(tmp_path, fail)
    assert update_dataset(tmp_path, lambda d: d.without(["a"])).images == ()
    assert load_dataset(tmp_path).images == ()


def test_captions_are_sidecars(tmp_path: Path) -> None:
    image = record("a", file="10_zwx dog/my.photo.JPG")
    path = caption_path(tmp_path, image)
    assert path == tmp_path / "10_zwx dog" / "my.photo.txt"
    assert read_caption_file(path) == ("", None)
    write_caption(tmp_path, image, "  zwx dög\n")
    assert path.read_bytes() == "zwx dög\n".encode()
    assert read_caption_file(path) == ("zwx dög", None)
    write_caption(tmp_path, image, " ")
    assert not path.exists()
    write_caption(tmp_path, image, "")


def test_a_caption_of_kohyas_kind_is_read_where_there_is_no_other(tmp_path: Path) -> None:
    image = record("a", file="images/a.png")
    other = tmp_path / "images" / "a.caption"
    other.parent.mkdir()
    other.write_text("theirs\n")
    assert read_caption(tmp_path, image) == "theirs"
    write_caption(tmp_path, image, "ours")
    assert read_caption(tmp_path, image) == "ours"
    write_caption(tmp_path, image, "")  # emptied, not taken back to what it was before
    assert read_caption(tmp_path, image) == "" and not other.exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_no_encoding_loses_a_letter(encoding: str) -> None:
    text, guess = decode_caption("a dög – “très” joli".encode(encoding))
    assert text == "a dög – “très” joli"
    assert guess == (None if encoding.startswith("utf") else "Windows-1252")


def test_any_bytes_are_some_caption() -> None:
    for data in (b"", bytes(range(256)), b"\xff\xfe\x00", b"\x81\x8d\x8f", b"\xff\xfe\x00\xd8a\x00"):
        text, _ = decode_caption(data)
        assert isinstance(text, str)
    assert decode_caption(b"ab\x81") == ("ab\x81", "Latin-1")
