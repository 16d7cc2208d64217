"""Where uploads wait: nothing is left behind, and nothing that somebody still needs is taken away."""

from __future__ import annotations

import os
import time
from pathlib import Path

from studio.uploads import ABANDONED_S, Uploads


def upload(uploads: Uploads, name: str, age_s: float = 0.0) -> Path:
    """A file as Gradio puts it there: in a folder that is named by its content."""
    file = uploads.folder / f"sha-of-{name}" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"photo")
    for path in (file, file.parent):
        os.utime(path, (time.time() - age_s,) * 2)
    return file


def test_a_start_removes_what_dead_processes_left_and_leaves_the_others(tmp_path: Path) -> None:
    root = tmp_path / ".uploads"
    dead, alive = Uploads(root), Uploads(root)
    left, wanted = upload(dead, "left.png"), upload(alive, "wanted.png")
    dead._lock.release()  # as the system does when a process is killed
    (root / "tmp1234").write_bytes(b"half a photo")
    (root / "0a1b2c").mkdir()
    mine = Uploads(root)
    assert not left.exists() and wanted.exists()
    assert {path.name for path in root.iterdir()} == {".lock", alive.folder.name, mine.folder.name}


def test_what_was_taken_in_is_removed_even_when_that_failed(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    file, other = upload(uploads, "cat.png"), upload(uploads, "dog.png")
    try:
        with uploads.taken([file]):
            assert file.exists()
            raise ValueError
    except ValueError:
        pass
    assert not file.parent.exists() and other.exists(), "the other may be on its way to another tab"


def test_a_file_that_two_tabs_dropped_stays_until_both_are_through(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    file = upload(uploads, "cat.png")
    with uploads.taken([file]):
        with uploads.taken([file]):
            pass
        assert file.exists()
    assert not file.exists()


def test_abandoned_uploads_go_after_an_ingest(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    abandoned = upload(uploads, "abandoned.png", ABANDONED_S + 60)
    cut_off = uploads.folder / "tmpabcdef"
    cut_off.write_bytes(b"half")
    os.utime(cut_off, (0, 0))
    slow, fresh = upload(uploads, "slow.png", ABANDONED_S + 60), upload(uploads, "fresh.png", 60)
    with uploads.taken([slow]):
        with uploads.taken([]):
            pass
        assert slow.exists() and fresh.exists()
        assert not abandoned.parent.exists() and not cut_off.exists()
