"""``python -m dataset_tools``, as a user and as a job runs it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_tools.__main__ import main
from dataset_tools.captions import read_captions
from dataset_tools.dataset import load_dataset
from dataset_tools.models import FACE_MODEL_FILE

from .pictures import encoded, picture


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dataset_tools", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.png").write_bytes(encoded(picture(300, 200, index)))
    (folder / "0.txt").write_text("a cat")
    (folder / "bad.png").touch()
    return folder


def test_from_photos_to_captions(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tmp_path / "projects" / "p"
    done = run("ingest", source, project)
    assert (done.returncode, done.stderr) == (0, "")
    assert "skipped: bad.png is empty" in done.stdout and "3 added · 1 skipped · 1 captions" in done.stdout

    assert main(["caption", str(project), "--trigger", "zwx", "--suffix", ", indoors", "--dry-run"]) == 0
    assert "3 would change" in capsys.readouterr().out
    dataset = load_dataset(project)
    assert dataset.trigger == "" and list(read_captions(project, dataset).values()) == ["a cat", "", ""]

    assert main(["caption", str(project), "--trigger", "zwx", "--find", "cat", "--replace", "dog"]) == 0
    dataset = load_dataset(project)
    assert dataset.trigger == "zwx"
    assert list(read_captions(project, dataset).values()) == ["zwx, a dog", "zwx", "zwx"]

    assert main(["check", str(project)]) == 0
    assert "not cropped yet" in capsys.readouterr().out


@pytest.mark.network
def test_cropping_by_command(
    source: Path, tmp_path: Path, face_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "projects" / "p"
    assert main(["ingest", str(source), str(project)]) == 0
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / FACE_MODEL_FILE).write_bytes(face_model.read_bytes())
    done = run("crop", project, "--resolution", "128")
    assert (done.returncode, done.stderr) == (0, ""), "native chatter stays out"
    assert "3 cropped" in done.stdout and "152x104" in done.stdout
    assert all(record.bucket == (152, 104) for record in load_dataset(project).images)
    assert main(["crop", str(project)]) == 0 and "0 cropped" in capsys.readouterr().out


def test_crops_are_those_that_the_recipe_trains_at(source: Path, tmp_path: Path) -> None:
    project = tmp_path / "projects" / "p"
    assert main(["ingest", str(source), str(project)]) == 0
    models = ["--models", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset_tools.crop.ensure_face_model", lambda *_, **__: None)
        (project / "recipe.toml").write_text("[dataset]\nresolution = 256\n")
        assert main(["crop", str(project), *models]) == 0
        assert {record.bucket for record in load_dataset(project).images} == {(304, 208)}
        assert main(["crop", str(project), "--all", "--resolution", "128", *models]) == 0
        assert {record.bucket for record in load_dataset(project).images} == {(152, 104)}
        (project / "recipe.toml").write_text("[train]\nsteps = 'many'\n")
        assert main(["crop", str(project), "--all", *models]) == 1


def test_failures_are_one_line_and_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("crop", "caption", "check"):
        assert main([verb, str(tmp_path / "nowhere")]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "is no project" in err
    project = tmp_path / "p"
    project.mkdir()
    (project / "dataset.json").write_text("{}")
    assert main(["crop", str(project), "--resolution", "7"]) == 1
    assert main(["caption", str(project), "--find", "(", "--regex"]) == 1
    assert main(["check", str(project)]) == 1, "an empty dataset cannot train"


def test_a_disk_that_fails_is_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "p"
    assert main(["ingest", str(source), str(project)]) == 0

    def full(root: Path, *rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(root))

    monkeypatch.setattr("dataset_tools.dataset.write_json", full)
    capsys.readouterr()
    assert main(["caption", str(project), "--trigger", "zwx"]) == 1
    assert "dataset.json cannot be read or written (No space left on device); free" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["ingest"],
        ["crop", "p", "--resolution", "big"],
        ["tag"],
        ["tag", "p", "--threshold", "2"],
        ["caption", "p", "--model", "m", "--find", "a"],
        ["caption", "p", "--prompt", "what?"],
        ["caption", "p", "--model", "m", "--max-tokens", "0"],
    ],
)
def test_bad_arguments_are_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_importing_is_light() -> None:
    """Neither cv2 nor mediapipe nor torch is loaded until something needs it."""
    code = (
        "import sys, dataset_tools.__main__; print({'cv2', 'mediapipe', 'torch', 'gradio'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.strip() == "set()"
