"""Photos, captions, folders and zips into a project; hostile ones as well."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_tools import ingest as ingest_module
from dataset_tools import sources
from dataset_tools.dataset import DatasetError, caption_path, load_dataset, read_caption
from dataset_tools.images import open_image
from dataset_tools.ingest import ingest, remove_images
from trainer.contract import files as contract_files
from trainer.contract.errors import UserError

from ..forks import Program
from .pictures import encoded, photo, picture, tree


def make_zip(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def reasons(report: ingest_module.IngestReport) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in report.skipped}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path / "project"


def test_files_and_captions_become_records(tmp_path: Path, project: Path) -> None:
    # As a browser uploads them: every file in a temporary folder of its own.
    first = photo(tmp_path / "up1" / "Bella 1.JPG", 1)
    second = photo(tmp_path / "up2" / "b.png", 2, (300, 200))
    words = tmp_path / "up3" / "bella 1.txt"
    words.parent.mkdir()
    words.write_text("  zwx dog on grass \n", encoding="utf-8-sig")
    steps: list[tuple[int, int, str]] = []
    report = ingest([first, words, second], project, progress=lambda *step: steps.append(step))
    assert report.skipped == () and report.captions == 1 and len(report.added) == 2
    dataset = load_dataset(project)
    assert [r.original_name for r in dataset.images] == ["Bella 1.JPG", "b.png"]
    assert tuple(r.id for r in dataset.images) == report.added
    assert steps == [(0, 2, "Bella 1.JPG"), (1, 2, "b.png"), (2, 2, "done")]
    for record, seed, size in zip(dataset.images, (1, 2), ((96, 64), (300, 200)), strict=True):
        path = project / record.file
        assert record.file == f"images/{record.id}.png" and (record.width, record.height) == size
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256
        assert np.array_equal(np.asarray(open_image(path).image), np.asarray(picture(*size, seed)))
    assert [read_caption(project, r) for r in dataset.images] == ["zwx dog on grass", ""]
    assert not caption_path(project, dataset.images[1]).exists()
    assert not (project / "originals").exists()


def test_dataset_json_has_exactly_the_documented_layout(tmp_path: Path, project: Path) -> None:
    ingest([photo(tmp_path / "a.png")], project)
    value = json.loads((project / "dataset.json").read_text())
    assert list(value) == ["version", "trigger", "images"]
    names = "id file original_name sha256 width height bucket crop reason enabled repeats"
    assert list(value["images"][0]) == names.split()


def test_a_photo_without_its_metadata_and_upright(tmp_path: Path, project: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x0110] = "Secret Camera 9000"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    paths = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.jpg"
        path.write_bytes(encoded(picture(seed=seed), "JPEG", exif=exif))
        paths.append(path)
    report = ingest(paths, project)
    record = load_dataset(project).images[0]
    assert (record.width, record.height) == (64, 96)
    assert b"Secret" not in (project / record.file).read_bytes()
    assert "GPS position removed (2 photos)" in report.notes and "turned upright (2 photos)" in report.notes
    assert "2 added" in report.summary() and "GPS" in report.summary()


def test_originals_are_kept_only_on_request(tmp_path: Path, project: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), "JPEG"))
    (image_id,) = ingest([path], project, keep_originals=True).added
    assert (project / "originals" / f"{image_id}.jpg").read_bytes() == path.read_bytes()


def test_the_same_picture_twice_is_told(tmp_path: Path, project: Path) -> None:
    first = photo(tmp_path / "a.png")
    again = tmp_path / "copy.bmp"
    again.write_bytes(encoded(picture(), "BMP"))
    report = ingest([first, again], project)
    assert len(report.added) == 1
    assert reasons(report) == {"copy.bmp": "copy.bmp is already in the project as a.png."}


def test_a_folder_is_walked_in_order_with_kohyas_names(tmp_path: Path, project: Path) -> None:
    source = tmp_path / "source"
    photo(source / "10_zwx dog" / "b.png", 1)
    photo(source / "10_zwx dog" / "a.png", 2)
    (source / "10_zwx dog" / "a.txt").write_text("zwx dog, sitting")
    photo(source / "plain" / "a.png", 3)
    photo(source / ".hidden" / "x.png", 4)
    photo(source / "__MACOSX" / "y.png", 5)
    (source / "Thumbs.db").write_bytes(b"junk")
    report = ingest([source], project)
    assert report.skipped == ()
    dataset = load_dataset(project)
    found = [(r.original_name, r.repeats, read_caption(project, r)) for r in dataset.images]
    assert found == [("a.png", 10, "zwx dog, sitting"), ("b.png", 10, "zwx dog"), ("a.png", 1, "")]


def test_nothing_in_a_folder_is_passed_over_in_silence(tmp_path: Path, project: Path) -> None:
    source, other = tmp_path / "source", photo(tmp_path / "other" / "b.png", 2)
    photo(source / "a.png", 1)
    (source / "linked").symlink_to(other.parent)
    (source / "c.png").symlink_to(other)
    (source / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(source / "pipe.png")
    (source / "more.7z").write_bytes(b"7z")
    (source / "more.zip").write_bytes(b"no zip")
    report = ingest([source, tmp_path / "gone.zip"], project)
    assert [r.original_name for r in load_dataset(project).images] == ["a.png", "c.png"]
    told = reasons(report)
    assert set(told) == {"linked", "lost.png", "pipe.png", "more.7z", "more.zip", "gone.zip"}
    assert "link to a folder" in told["linked"] and "leads nowhere" in told["lost.png"]
    assert "no ordinary file" in told["pipe.png"] and "is not a zip" in told["more.7z"]
    assert "does not exist" in told["gone.zip"] and "damaged or no zip" in told["more.zip"]


def test_bad_files_are_skipped_and_good_ones_go_in(tmp_path: Path, project: Path) -> None:
    ingest([photo(tmp_path / "old.png", 9)], project)
    before = tree(project)
    good = photo(tmp_path / "good.png", 1)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:100])
    names = ["empty.jpg", "text.png", "cut.png", "gone.png"]
    report = ingest([*(tmp_path / name for name in names), good, tmp_path / "x.rar"], project)
    assert len(report.added) == 1 and set(reasons(report)) == {*names, "x.rar"}
    assert all(reason.startswith(name) for name, reason in reasons(report).items())
    after = tree(project)
    assert all(after[name] == data for name, data in before.items() if name != "dataset.json")
    assert len(load_dataset(project).images) == 2


def test_a_zip_goes_in_with_captions_and_odd_names(tmp_path: Path, project: Path) -> None:
    archive = make_zip(
        tmp_path / "pets.zip",
        {
            "pets/a.jpg": encoded(picture(seed=1), "JPEG"),
            "pets/a.png": encoded(picture(seed=2)),
            "pets/a.txt": b"zwx both",
            "5_zwx cat/Ünü 猫.png": encoded(picture(seed=3)),
            "__MACOSX/pets/._a.jpg": b"rubbish",
            "pets/.DS_Store": b"rubbish",
            "pets/inner.zip": b"PK\x03\x04",
        },
    )
    report = ingest([archive], project)
    assert reasons(report) == {
        "inner.zip": "pets/inner.zip in pets.zip is an archive in an archive; unpack it first."
    }
    found = {r.original_name: (r.repeats, read_caption(project, r)) for r in load_dataset(project).images}
    assert found == {"a.jpg": (1, "zwx both"), "a.png": (1, "zwx both"), "Ünü 猫.png": (5, "zwx cat")}


def test_names_without_the_utf8_flag_are_read(tmp_path: Path, project: Path) -> None:
    """Old programs write UTF-8 without saying so, or code page 437."""
    for stored, expected in (("Größe.png".encode(), "Größe.png"), ("Größe.png".encode("cp437"), "Größe.png")):
        path = tmp_path / "old.zip"
        info = zipfile.ZipInfo("X" * len(stored))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(info, encoded(picture(seed=len(stored))))
        path.write_bytes(path.read_bytes().replace(b"X" * len(stored), stored))
        ingest([path], project)
        assert load_dataset(project).images[-1].original_name == expected
    assert len(load_dataset(project).images) == 2


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "a/../../evil.png",
        "/etc/evil.png",
        "C:\\evil.png",
        "C:/evil.png",
        "..\\evil.png",
        "a\\b.png",
    ],
)
def test_unsafe_names_are_refused_and_nothing_escapes(name: str, tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    archive = make_zip(
        folder / "evil.zip", {name: encoded(picture(seed=1)), "good.png": encoded(picture(seed=2))}
    )
    report = ingest([archive], project)
    assert [r.original_name for r in load_dataset(project).images] == ["good.png"]
    assert len(report.skipped) == 1 and "unsafe name" in report.skipped[0].reason
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and project not in p.parents and p != archive]
    assert outside == [] and not Path("/etc/evil.png").exists()


def test_links_and_encrypted_entries_are_refused(tmp_path: Path, project: Path) -> None:
    path = tmp_path / "links.zip"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("secret.png", encoded(picture()))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # the last central entry: set its "encrypted" bit
    data[entry + 8] |= 1
    path.write_bytes(bytes(data))
    report = ingest([path], project)
    assert report.added == ()
    assert "is a link" in reasons(report)["link.png"] and "encrypted" in reasons(report)["secret.png"]


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, project: Path) -> None:
    bomb = make_zip(
        tmp_path / "bomb.zip",
        {
            "a.png": encoded(picture(seed=1)),
            "zeros.png": bytes(30_000_000),
            "later.png": encoded(picture(seed=2)),
        },
    )
    assert bomb.stat().st_size < 60_000
    report = ingest([bomb, photo(tmp_path / "b.png", 3)], project)
    assert [r.original_name for r in load_dataset(project).images] == ["a.png", "b.png"]
    assert "zip bomb" in reasons(report)["zeros.png"]


def test_many_entries_that_share_their_bytes_are_stopped(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single entry is suspicious, but together they come out far larger than the archive."""
    monkeypatch.setattr(sources, "RATIO_GRACE_BYTES", 10_000)
    monkeypatch.setattr(sources, "MAX_RATIO", 3)
    path = make_zip(tmp_path / "overlap.zip", {"a.png": encoded(picture(600, 600))}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    count = 300
    entries = data[start:end] * count
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, count, count, len(entries))
    path.write_bytes(data[:start] + entries + bytes(tail))
    report = ingest([path], project)
    told = [skipped.reason for skipped in report.skipped]
    # Newer Pythons refuse overlapping entries by themselves.
    assert any("not read further" in reason for reason in told) or all("damaged" in r for r in told)
    assert len(report.added) <= 1


def test_the_bytes_that_come_are_counted_not_those_declared(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_ENTRY_BYTES", 5_000)
    archive = make_zip(
        tmp_path / "big.zip",
        {"big.png": os.urandom(20_000), "small.png": encoded(picture(40, 40))},
    )
    report = ingest([archive], project)
    assert len(report.added) == 1 and "larger than" in reasons(report)["big.png"]


def test_a_lying_size_in_the_directory_is_no_way_in(tmp_path: Path, project: Path) -> None:
    path = make_zip(tmp_path / "lie.zip", {"zeros.png": bytes(30_000_000)})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(mark) + offset, 100)
    path.write_bytes(bytes(data))
    report = ingest([path], project)
    assert report.added == () and len(report.skipped) == 1


def test_damaged_archives_are_told(tmp_path: Path, project: Path) -> None:
    whole = make_zip(
        tmp_path / "a.zip", {"a.png": encoded(picture(400, 400)), "b.png": encoded(picture(seed=2))}
    )
    data = whole.read_bytes()
    (tmp_path / "half.zip").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.zip").write_text("no zip")
    hurt = bytearray(data)
    hurt[200:220] = bytes(20)
    (tmp_path / "hurt.zip").write_bytes(bytes(hurt))
    report = ingest([tmp_path / name for name in ("half.zip", "text.zip", "hurt.zip")], project)
    assert "pack it again" in reasons(report)["half.zip"] and "pack it again" in reasons(report)["text.zip"]
    assert "a.png" in reasons(report) and len(report.added) == 1


def test_a_project_has_room_for_so_many(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "MAX_IMAGES", 3)
    paths = [photo(tmp_path / f"{i}.png", i) for i in range(5)]
    first = ingest(paths[:2], project)
    second = ingest(paths[2:], project)
    assert len(first.added) == 2 and len(second.added) == 1
    assert all("at most 3 photos" in s.reason for s in second.skipped) and len(second.skipped) == 2


def test_an_interrupted_ingest_loses_nothing_and_goes_on(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH_IMAGES", 3)
    paths = [photo(tmp_path / f"{i:02}.png", i) for i in range(10)]

    def interrupt(done: int, total: int, name: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(paths, project, progress=interrupt)
    assert len(load_dataset(project).images) == 6
    report = ingest(paths, project)
    assert len(report.added) == 4 and len(report.skipped) == 6
    assert [r.original_name for r in load_dataset(project).images] == [path.name for path in paths]


def test_a_killed_ingest_leaves_a_sound_project(tmp_path: Path, project: Path) -> None:
    source = tmp_path / "source"
    for index in range(40):
        photo(source / f"{index:02}.png", index, (400, 300))
    process = Program("dataset_tools", "ingest", source, project, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (project / "dataset.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for record in load_dataset(project).images:
        assert hashlib.sha256((project / record.file).read_bytes()).hexdigest() == record.sha256
    ingest([source], project)
    assert len(load_dataset(project).images) == 40


@pytest.mark.parametrize("writes", range(16))
def test_a_full_disk_is_one_sentence_and_leaves_no_halves(
    writes: int, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the disk fills up, every record has its file and every file its record."""
    monkeypatch.setattr(ingest_module, "BATCH_IMAGES", 2)
    (first,) = ingest([photo(tmp_path / "old.png", 99)], project).added
    before = tree(project)
    real: Callable[[int], None] = os.fsync
    left = writes

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(contract_files.os, "fsync", fsync)
    with pytest.raises(UserError, match=r"The disk is full .*; free some space"):
        ingest([photo(tmp_path / f"{i}.png", i) for i in range(6)], project)
    monkeypatch.setattr(contract_files.os, "fsync", real)
    after = tree(project)
    images = load_dataset(project).images
    assert images[0].id == first and after[images[0].file] == before[images[0].file]
    assert set(after) == {"dataset.json", *(record.file for record in images)}
    assert len(images) % 2 == 1, "whole batches"
    for record in images:
        assert hashlib.sha256(after[record.file]).hexdigest() == record.sha256


def test_two_tabs_uploading_at_once_both_succeed(tmp_path: Path, project: Path) -> None:
    """Two processes, 40 photos each, three of them the same: several commits of each interleave."""
    workers = []
    for tab in range(2):
        source = tmp_path / f"tab{tab}"
        for index in range(37):
            photo(source / f"{index:02}.png", 100 * tab + index)
        for index in range(3):
            photo(source / f"shared{index}.png", 1000 + index)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        workers.append(Program("dataset_tools", "ingest", source, project, **pipes))
    told = [worker.communicate(timeout=60) for worker in workers]
    assert [(worker.returncode, err) for worker, (_, err) in zip(workers, told, strict=True)] == [(0, "")] * 2
    assert sum(out.count("is already in the project") for out, _ in told) == 3
    images = load_dataset(project).images
    assert len(images) == 77 and len({record.id for record in images}) == 77
    assert sorted(p.stem for p in (project / "images").iterdir()) == sorted(r.id for r in images)


def test_a_damaged_project_is_not_overwritten(tmp_path: Path, project: Path) -> None:
    project.mkdir()
    (project / "dataset.json").write_text('{"version": 1, "images": [{"id": "../x"}]}')
    with pytest.raises(DatasetError, match=r"dataset\.json is damaged at images\.0\.id"):
        ingest([photo(tmp_path / "a.png")], project)
    assert (project / "dataset.json").read_text() == '{"version": 1, "images": [{"id": "../x"}]}'


def test_removing_takes_the_files_along(tmp_path: Path, project: Path) -> None:
    photo(tmp_path / "in" / "a.png", 1)
    (tmp_path / "in" / "a.txt").write_text("words")
    photo(tmp_path / "in" / "b.png", 2)
    first, second = ingest([tmp_path / "in"], project, keep_originals=True).added
    assert [r.id for r in remove_images(project, [first, "unknown"]).images] == [second]
    assert sorted(tree(project)) == ["dataset.json", f"images/{second}.png", f"originals/{second}.png"]
