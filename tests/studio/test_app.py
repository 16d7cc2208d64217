"""``python app.py`` as a process: starting, refusing, ending."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from running import wait_for

from studio.processes import REPOSITORY
from tests.forks import Program, run

PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def read_until(process: subprocess.Popen[str], word: str, seconds: float = 60) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if not line:
            break
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError("".join(lines))


def test_app_serves_until_ctrl_c_and_a_training_goes_on(
    tmp_path: Path, supervise, workspace, project
) -> None:
    run = supervise(steps=100_000).start(project, project.config())
    wait_for(run.alive)
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", "0", "--workspace", str(workspace.root)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        **PIPES,
    )
    try:
        line = read_until(process, "ready at")[-1]
        url = line.split("ready at ")[1].split()[0]
        with httpx.Client(trust_env=False, timeout=20) as client:
            assert client.get(f"{url}/healthz").text == "ok\n"
            assert "gradio_config" in client.get(url).text
            active = client.get(f"{url}/studio/live").json()["active"]
            assert active["run"] == run.id and active["project"] == project.id
            with client.stream("GET", f"{url}/gradio_api/heartbeat/x"):  # as every open page does
                process.send_signal(2)
                output, _ = process.communicate(timeout=15)
        assert process.returncode == 0, output
        assert output.splitlines()[-1] == "The studio has ended." and len(output.splitlines()) <= 3, output
    finally:
        process.kill()
    assert run.alive()


def test_app_beyond_loopback_always_has_a_password(tmp_path: Path) -> None:
    words = ("app", "--host", "0.0.0.0", "--port", "0", "--workspace", tmp_path)
    process = Program(*words, cwd=REPOSITORY, **PIPES)
    try:
        lines = read_until(process, "ready at")
        password = next(line for line in lines if line.startswith("Password")).split(": ")[1].strip()
        url = f"http://127.0.0.1:{lines[-1].split(':')[-1].split()[0]}"
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
            assert client.get("/studio/live").status_code == 401
            assert client.post("/login", data={"password": password}).status_code == 303
            assert client.get("/studio/live").status_code == 200
        text = (tmp_path / "sessions.json").read_text()
        assert password not in text
    finally:
        process.kill()
        process.communicate()


def test_app_refuses_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "file"
        file.write_text("")
        for arguments, sentence in (
            (("--port", str(port)), f"Port {port} is taken"),
            (("--host", "no.such.host.invalid"), "is unknown here"),
            (("--workspace", str(file)), "cannot be made"),
            (("--password-file", str(tmp_path / "none")), "cannot be read"),
            (("--port", "99999"), "is no port"),
        ):
            done = run("app", *arguments, cwd=REPOSITORY)
            assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr, done


def test_default_port_moves_on_when_taken() -> None:
    from studio import listen

    first = listen.bind("127.0.0.1", None)
    second = listen.bind("127.0.0.1", None)
    try:
        assert first.getsockname()[1] < second.getsockname()[1] < listen.DEFAULT_PORT + listen.PORTS_TRIED
    finally:
        first.close(), second.close()


def test_studio_never_loads_torch_and_loads_fast() -> None:
    code = (
        "import sys, time; t = time.time(); import studio.listen, studio.jobs, studio.auth;"
        "print('gradio' in sys.modules); import app, studio.server, studio.pages.shell, studio.demo;"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'cv2', 'mediapipe'};"
        "print(sorted(heavy & set(sys.modules)), time.time() - t)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    early, _, loaded = output.stdout.partition("\n")
    assert early == "False", "a taken port is told before Gradio is loaded"
    assert loaded.startswith("[] "), output
