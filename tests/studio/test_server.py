"""The web application over a real socket: live data, files, the guard, and what hostile clients try."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from running import Running, wait_for
from starlette.routing import Mount, WebSocketRoute

from studio.guard import OPEN
from studio.jobs import REPOSITORY
from studio.live import LOG_BYTES, MAX_POINTS, read_log, thinned
from studio.projects import Project, Workspace
from studio.redact import redact
from trainer.contract.config import TrainConfig
from trainer.contract.events import EventLog
from trainer.contract.fields import merge, parse, to_tables
from trainer.contract.runs import RunFolder, Status

PASSWORD = "correct horse battery"


def make_run(workspace: Workspace, project: Project, name: str = "20260101-000000-a-00") -> RunFolder:
    run = RunFolder(workspace.runs / name)
    path = f"../../projects/{project.id}"
    run.create(parse(merge(to_tables(TrainConfig()), {"dataset": {"path": path}})))
    return run


def logged_in(studio: Running) -> httpx.Client:
    client = studio.client()
    assert client.post("/login", data={"password": PASSWORD}).status_code == 303
    return client


# Live data -----------------------------------------------------------------------------------------


def test_live_gives_each_thing_once(serve, workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    events = EventLog(run.events, 1)
    events.append("started", step=0, total=10)
    events.append("step", step=1, loss=0.5, lr=1e-4, grad_norm=1.0, seconds=0.1)
    run.log.write_text("one\ntwo\nhalf a li")
    held = run.hold()
    run.write_status(Status(state="training", step=1, total=10, heartbeat=time.time(), attempt=1))
    studio = serve()
    with studio.client() as client:
        query: dict[str, Any] = {"project": project.id}
        first = client.get("/studio/live", params=query).json()
        assert first["run"] == first["latest"] == run.id and not first["reset"]
        assert [event["kind"] for event in first["events"]] == ["started", "step"]
        assert first["log"] == "one\ntwo\n" and first["status"]["alive"]
        assert first["active"]["project"] == project.id and first["active"]["step"] == 1
        assert first["result"] is None and first["disk_free_gib"] > 0

        query |= {"run": run.id, "offset": first["offset"], "log": first["log_offset"]}
        nothing = client.get("/studio/live", params=query).json()
        assert nothing["events"] == [] and nothing["log"] == "" and not nothing["reset"]
        assert (nothing["offset"], nothing["log_offset"]) == (first["offset"], first["log_offset"])

        events.append("step", step=2, loss=0.4, lr=1e-4, grad_norm=1.0, seconds=0.1)
        with run.events.open("ab") as file:
            file.write(b'{"seq": 4, "kind": "st')  # a line that is still being written
        with run.log.open("a") as file:
            file.write("ne\nthree\n")
        news = client.get("/studio/live", params=query).json()
        assert [event["step"] for event in news["events"]] == [2]
        assert news["log"] == "half a line\nthree\n"
        assert len(json.dumps(news)) < 2000

        held.release()
        events = EventLog(run.events, 2)  # resumed from step 1: the torn line is closed, step 2 is void
        events.append("started", step=1, total=10)
        query |= {"offset": news["offset"], "log": news["log_offset"]}
        assert [event["attempt"] for event in client.get("/studio/live", params=query).json()["events"]] == [
            2
        ]
        late = client.get("/studio/live", params={"project": project.id}).json()
        assert [(event["kind"], event["step"]) for event in late["events"]] == [
            ("started", 0),
            ("step", 1),
            ("started", 1),
        ]


def test_live_tells_when_offsets_do_not_fit(serve, workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    EventLog(run.events, 1).append("started", step=0, total=10)
    studio = serve()
    with studio.client() as client:
        for query in (
            {"run": run.id, "offset": 10**9},
            {"run": run.id, "log": 10**9},
            {"run": "20250101-000000-gone-00", "offset": 5},
            {"offset": 5},
        ):
            answer = client.get("/studio/live", params={"project": project.id, **query}).json()
            assert answer["reset"] and answer["run"] == run.id and len(answer["events"]) == 1, query
        newer = make_run(workspace, project, "20260202-000000-b-00")
        answer = client.get("/studio/live", params={"project": project.id, "run": run.id}).json()
        assert (answer["run"], answer["latest"]) == (run.id, newer.id)


def test_live_without_any_run(serve, workspace: Workspace, project: Project) -> None:
    studio = serve()
    with studio.client() as client:
        for query in ({}, {"project": project.id}, {"project": "../../etc"}, {"run": "../x"}):
            answer = client.get("/studio/live", params=query).json()
            assert answer["run"] is None and answer["status"] is None and answer["events"] == []
        assert client.get("/studio/live", params={"offset": -1}).status_code == 422
        assert client.get("/studio/live", params={"offset": "x"}).status_code == 422


def test_two_clients_and_a_late_one_see_the_same_training(serve, supervise, project: Project) -> None:
    jobs = supervise(steps=60)
    studio = serve(jobs=jobs)
    run = jobs.start(project, project.config())

    class Follower:
        def __init__(self) -> None:
            self.client = studio.client()
            self.state: dict[str, Any] = {"project": project.id}
            self.steps: list[int] = []
            self.log = ""

        def poll(self) -> str:
            answer = self.client.get("/studio/live", params=self.state).json()
            self.state |= {"run": answer["run"], "offset": answer["offset"], "log": answer["log_offset"]}
            self.steps += [event["step"] for event in answer["events"] if event["kind"] == "step"]
            self.log += answer["log"]
            return str(answer["status"]["state"])

    early, other = Follower(), Follower()
    while early.poll() != "finished":
        other.poll()
        time.sleep(0.05)
    other.poll(), early.poll()
    late = Follower()
    assert late.poll() == "finished"
    assert early.steps == other.steps == late.steps == list(range(1, 61))
    assert early.log == other.log == late.log == run.log.read_text()
    answer = early.client.get("/studio/live", params={"project": project.id}).json()
    wait_for(lambda: early.client.get("/studio/live").json()["active"] is None)
    name = answer["result"]
    lora = early.client.get(f"/studio/download/{run.id}/{name}")
    assert lora.content == run.result(run.config()).read_bytes()
    assert lora.headers["content-disposition"] == f'attachment; filename="{name}"'
    part = early.client.get(f"/studio/download/{run.id}/{name}", headers={"range": "bytes=5-9"})
    assert part.status_code == 206 and part.content == lora.content[5:10]


def test_long_run_is_thinned_and_a_poll_of_it_stays_cheap(serve, workspace, project: Project) -> None:
    run = make_run(workspace, project)
    lines = [{"seq": 1, "time": 1.0, "attempt": 1, "kind": "started", "step": 0, "total": 50_000}]
    lines += [
        {"seq": n + 1, "time": 1.0, "attempt": 1, "kind": "step", "step": n, "loss": 0.1, "lr": 1e-4}
        for n in range(1, 50_001)
    ]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    studio = serve()
    with studio.client() as client:
        first = client.get("/studio/live", params={"project": project.id}).json()
        steps = [event["step"] for event in first["events"] if event["kind"] == "step"]
        assert len(steps) == MAX_POINTS and steps[-1] == 50_000 and steps == sorted(steps)
        assert first["log"].endswith("line 99999\n") and first["log"].startswith("line ")
        assert len(first["log"]) <= LOG_BYTES
        query = {"run": run.id, "offset": first["offset"], "log": first["log_offset"]}
        started = time.perf_counter()
        for _ in range(20):
            assert len(client.get("/studio/live", params=query).content) < 2000
        assert (time.perf_counter() - started) / 20 < 0.1


def test_log_is_given_in_whole_lines_and_redacted(workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    token = "hf_" + "A1b2" * 8
    run.log.write_bytes(f"a\nusing {token[:20]}".encode())
    text, offset = read_log(run, 0)
    assert text == "a\n"
    with run.log.open("ab") as file:
        file.write(f"{token[20:]} \xe9\n".encode("latin-1"))
        file.write(b"no newline at the end")
    text, offset = read_log(run, offset)
    assert text == "using hf_… �\n"
    assert read_log(run, offset, ended=True)[0] == "no newline at the end"


def test_thinning_keeps_everything_but_steps() -> None:
    events = [{"kind": "step", "step": n} for n in range(MAX_POINTS * 3)]
    events.insert(7, {"kind": "sample", "step": 3})
    kept = thinned(events)
    assert len(kept) == MAX_POINTS + 1 and kept[-1] is events[-1]
    assert [event for event in kept if event["kind"] == "sample"]
    assert thinned(events[:100]) == events[:100]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("token hf_abcdefghijklmnopqrstuvwxyz end", "abcdefgh"),
        ("Authorization: Bearer abcdef.ghi-jkl", "abcdef.ghi"),
        ("https://user:pa55word@hub.example/x", "pa55word"),
        ("HF_TOKEN=secretvalue1", "secretvalue1"),
        ('{"password": "hunter2222"}', "hunter2222"),
        ("?api_key=0123456789abc&x=1", "0123456789abc"),
    ],
)
def test_secrets_are_blanked(text: str, gone: str) -> None:
    assert gone not in redact(text) and redact(redact(text)) == redact(text)


def test_plain_text_is_left_alone() -> None:
    for text in ("step 3/10 loss 0.12", "https://huggingface.co/a/b@main", "token: 77", "a tokeniser = fast"):
        assert redact(text) == text


# Files ---------------------------------------------------------------------------------------------


def test_dataset_is_described_with_findings_and_an_etag(serve, project: Project) -> None:
    studio = serve()
    with studio.client() as client:
        answer = wait_for(
            lambda: (a := client.get(f"/studio/dataset/{project.id}")).json()["checking"] is False and a
        )
        body = answer.json()
        assert (body["trigger"], body["resolution"]) == ("zwx blob", 128)
        image = next(each for each in body["images"] if each["name"] == "red.png")
        assert image["caption"] == "a red blob" and image["enabled"] and image["crop"] and image["bucket"]
        assert any("blue.png has no caption" in finding["sentence"] for finding in body["findings"])
        etag = {"if-none-match": answer.headers["etag"]}
        assert client.get(f"/studio/dataset/{project.id}", headers=etag).status_code == 304
        blue = next(each["id"] for each in body["images"] if each["name"] == "blue.png")
        caption = "<img src=x onerror=alert(1)> zwx blob é"
        assert client.post(f"/studio/caption/{project.id}/{blue}", json={"text": caption}).status_code == 200
        assert client.post(f"/studio/enabled/{project.id}/{blue}", json={"enabled": False}).status_code == 200
        changed = wait_for(
            lambda: (
                (a := client.get(f"/studio/dataset/{project.id}", headers=etag)).status_code == 200
                and not a.json()["checking"]
                and a.json()
            )
        )
        image = next(each for each in changed["images"] if each["id"] == blue)
        assert image["caption"] == caption and not image["enabled"]
        assert not any("blue.png" in finding["sentence"] for finding in changed["findings"])


def test_thumbnail_and_crop_are_rendered_once(serve, project: Project) -> None:
    studio = serve()
    record = project.dataset().images[0]
    with studio.client() as client:
        version = client.get(f"/studio/dataset/{project.id}").json()["images"][0]["v"]
        for kind, size in (("thumb", (200, 150)), ("crop", record.bucket)):
            url = f"/studio/{kind}/{project.id}/{record.id}.webp"
            answer = client.get(url, params={"v": version})
            assert answer.headers["content-type"] == "image/webp"
            assert "immutable" in answer.headers["cache-control"]
            assert Image.open(io.BytesIO(answer.content)).size == size
            assert "immutable" not in client.get(url).headers["cache-control"]
            etag = {"if-none-match": answer.headers["etag"]}
            assert client.get(url, headers=etag).status_code == 304
        project.save_config(parse(merge(to_tables(project.config()), {"dataset": {"resolution": 256}})))
        project.recrop()
        crop = client.get(f"/studio/crop/{project.id}/{record.id}.webp", params={"v": version})
        assert "immutable" not in crop.headers["cache-control"], "an old address"
        assert max(Image.open(io.BytesIO(crop.content)).size) >= 256
        assert len(list((project.root / ".thumbs").glob(f"{record.id}.*"))) == 2


def test_crop_is_what_the_trainer_sees(serve, project: Project) -> None:
    from dataset_tools.crop import render_crop
    from dataset_tools.images import open_image

    record = project.dataset().images[0]
    studio = serve()
    with studio.client() as client:
        shown = Image.open(io.BytesIO(client.get(f"/studio/crop/{project.id}/{record.id}.webp").content))
    seen = render_crop(open_image(project.root / record.file).image, record.crop, record.bucket)
    from PIL import ImageChops, ImageStat

    assert max(ImageStat.Stat(ImageChops.difference(shown.convert("RGB"), seen)).mean) < 3


def test_static_and_vendor_files(serve) -> None:
    studio = serve()
    with studio.client() as client:
        css = client.get("/studio/static/login.css", params={"v": "abc"})
        assert (
            css.headers["content-type"].startswith("text/css") and "immutable" in css.headers["cache-control"]
        )
        script = client.get("/studio/vendor/bokeh.min.js")
        assert script.headers["content-type"].startswith("text/javascript") and len(script.content) > 100_000
        for name in (
            "login.html",
            "..",
            "%2e%2e%2fserver.py",
            "server.py",
            "x.css",
            ".login.css",
            "bokeh.js",
        ):
            assert client.get(f"/studio/static/{name}").status_code == 404, name
            assert client.get(f"/studio/vendor/{name}").status_code == 404, name


def test_samples_are_served_and_nothing_else_of_a_run(serve, workspace: Workspace, project: Project) -> None:
    run = make_run(workspace, project)
    Image.new("RGB", (8, 8)).save(run.sample(0, 1), "WEBP")
    (run.samples / "s000001_p00.webp").symlink_to(run.recipe)
    (run.path / "evil.safetensors").symlink_to("/etc/passwd")
    (run.path / "publish.log").write_text("secret")
    studio = serve()
    with studio.client() as client:
        assert client.get(f"/studio/sample/{run.id}/s000000_p01.webp").headers["content-type"] == "image/webp"
        for name in (
            "s000001_p00.webp",
            "s000009_p00.webp",
            "../recipe.toml",
            "..%2frecipe.toml",
            "%2e%2e/recipe.toml",
            "recipe.toml",
            "s000000_p01.webp%00",
            "s000000_p01.webp%0a",
        ):
            assert client.get(f"/studio/sample/{run.id}/{name}").status_code == 404, name
        for name in (
            "evil.safetensors",
            "none.safetensors",
            "recipe.toml",
            "publish.log",
            "trainer.log",
            "lock",
            "..%2f..%2fsessions.json",
            "%2fetc%2fpasswd",
            "checkpoints%2fstep-000001%2fx.safetensors",
        ):
            assert client.get(f"/studio/download/{run.id}/{name}").status_code == 404, name


# Hostile clients -----------------------------------------------------------------------------------

TRAVERSALS = (
    *("..", "../..", "..%2f..", "%2e%2e", "....//", "%00", "a%00b", "a/b", "~", "C:%5C"),
    *("%ff", "A", "%C3%A9", "x" * 300, "%0d%0a", "?", "%3f", "%25", "a%0a"),
)


def ask(studio: Running, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    """A request whose path goes out exactly as given (httpx would tidy it up)."""
    connection = http.client.HTTPConnection("127.0.0.1", studio.port, timeout=20)
    try:
        headers = {"content-type": "application/json"} if body else {}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def test_no_parameter_is_a_path(serve, project: Project) -> None:
    studio = serve()
    image = project.dataset().images[0].id
    for bad in TRAVERSALS:
        for url in (
            f"/studio/dataset/{bad}",
            f"/studio/thumb/{bad}/{image}.webp",
            f"/studio/thumb/{project.id}/{bad}.webp",
            f"/studio/crop/{project.id}/{bad}.webp",
            f"/studio/sample/{bad}/s000000_p00.webp",
            f"/studio/download/{bad}/lora.safetensors",
            f"/studio/static/{bad}",
            f"/studio/vendor/{bad}",
        ):
            code, text = ask(studio, "GET", url)
            assert code in (404, 405), (url, code)
            assert "Traceback" not in text and str(project.workspace.root) not in text, url
        for url in (f"/studio/caption/{bad}/{image}", f"/studio/caption/{project.id}/{bad}"):
            code, _ = ask(studio, "POST", url, '{"text": "x"}')
            assert code in (404, 405), (url, code)


def test_wrong_bodies_are_refused_in_a_sentence(serve, project: Project) -> None:
    studio = serve()
    image = project.dataset().images[0]
    url = f"/studio/caption/{project.id}/{image.id}"
    before = project.captions()
    wrong: list[tuple[dict[str, Any], int]] = [
        ({"content": b"text=x"}, 415),
        ({"data": {"text": "x"}}, 415),
        ({"content": b"", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"[" * 50_000, "headers": {"content-type": "application/json"}}, 400),
        ({"content": b'{"text": "\\ud800"}', "headers": {"content-type": "application/json"}}, 400),
        ({"json": []}, 400),
        ({"json": {}}, 400),
        ({"json": {"text": None}}, 400),
        ({"json": {"text": ["x"]}}, 400),
        ({"json": {"text": "x" * 5001}}, 400),
        ({"json": {"text": "x" * 200_000}}, 413),
        ({"content": iter([b"x" * 60_000] * 100), "headers": {"content-type": "application/json"}}, 413),
    ]
    with studio.client() as client:
        for body, code in wrong:
            answer = client.post(url, **body)
            assert answer.status_code == code, (body, answer.text[:200])
            assert answer.json()["error"].endswith((".", '"…"}.'))
        assert client.post(f"/studio/enabled/{project.id}/{image.id}", json={"enabled": 1}).status_code == 400
    assert project.captions() == before


def test_other_sites_cannot_act_or_read(serve, project: Project) -> None:
    for password in (None, PASSWORD):
        studio = serve(password)
        client = logged_in(studio) if password else studio.client()
        url = f"/studio/caption/{project.id}/{project.dataset().images[0].id}"
        here = studio.url
        for foreign in (
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": f"http://127.0.0.1:{studio.port + 1}"},
            {"origin": f"http://localhost:{studio.port}"},
            {"origin": f"{here}.evil.example"},
            {"origin": "http://[bad"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site", "origin": here},
            {"origin": "https://evil.example", "x-forwarded-host": "evil.example"},
        ):
            for target in (
                url,
                "/logout",
                "/login",
                "/gradio_api/queue/join",
                "/gradio_api/upload",
                "/cancel",
            ):
                assert client.post(target, json={"text": "x"}, headers=foreign).status_code == 403, (
                    target,
                    foreign,
                )
            assert client.options(url, headers=foreign).status_code == 403
        for own in (
            {"origin": here},
            {"origin": here, "sec-fetch-site": "same-origin"},
            {"sec-fetch-site": "none"},
            {},
            {
                "origin": "https://pod.example",
                "sec-fetch-site": "same-origin",
                "x-forwarded-host": "pod.example",
            },
        ):
            assert client.post(url, json={"text": "fine"}, headers=own).status_code == 200, own
        embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert client.get("/studio/live", headers=embedded).status_code == 403
        followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert client.get("/", headers=followed).status_code == 200
        for path in ("/", "/config", "/studio/live"):
            answer = client.get(path, headers={"origin": "https://evil.example"})
            assert not [name for name in answer.headers if name.startswith("access-control-")], path
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        client.close()


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        connection.settimeout(10)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_rebound_names_reach_no_local_studio(serve) -> None:
    studio = serve()
    port = studio.port
    for host, code in (
        (f"127.0.0.1:{port}", b"200"),
        (f"localhost:{port}", b"200"),
        (f"LOCALHOST:{port}", b"200"),
        (f"[::1]:{port}", b"200"),
        ("localhost", b"200"),
        (f"evil.example:{port}", b"403"),
        (f"127.0.0.1.evil.example:{port}", b"403"),
        (f"localhost.evil.example:{port}", b"403"),
        (f"localhost@evil.example:{port}", b"403"),
        ("", b"403"),
        ("[bad", b"403"),
    ):
        answer = raw(port, f"GET /studio/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert answer.split(b" ", 2)[1] == code, (host, answer[:80])
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(port, two).split(b" ", 2)[1] == b"400"
    assert raw(port, b"GET / HTTP/1.0\r\n\r\n").split(b" ", 2)[1] == b"400"


def test_headers_cannot_be_injected(serve) -> None:
    studio = serve(PASSWORD)
    request = (
        b"GET /x%0d%0aSet-Cookie:%20a=b?y=%0d%0aX:1 HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\n"
        b"Connection: close\r\n\r\n"
    )
    answer = raw(studio.port, request)
    head = answer.split(b"\r\n\r\n")[0].lower()
    assert b"302" in head.split(b"\r\n")[0]
    assert b"\r\nset-cookie" not in head and b"\r\nx:" not in head


def all_routes(routes: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(method, path with made-up parameters) of every route, those of mounted applications too."""
    found: list[tuple[str, str]] = []
    for route in routes:
        path = prefix + getattr(route, "path", "")
        if isinstance(route, Mount):
            found += all_routes(route.routes, path.rstrip("/"))
            continue
        if hasattr(route, "original_router"):
            found += all_routes(route.original_router.routes, prefix)
            continue
        filled = "".join("x" if part == "}" else part for part in _without_names(path))
        methods = {"WEBSOCKET"} if isinstance(route, WebSocketRoute) else set(route.methods or ())
        found += [(method, filled) for method in methods]
    return found


def _without_names(path: str) -> list[str]:
    kept, inside = [], False
    for letter in path:
        inside = letter == "{" or (inside and letter != "}")
        if not inside:
            kept.append(letter)
    return kept


def test_every_route_is_closed_without_login(serve) -> None:
    studio = serve(PASSWORD)
    routes = all_routes(studio.app.app.routes)
    paths = {path for _, path in routes}
    expected = {
        "/studio/live",
        "/studio/dataset/x",
        "/config",
        "/gradio_api/queue/join",
        "/gradio_api/upload",
        "/",
    }
    assert len(routes) > 50 and expected <= paths, sorted(paths)
    with studio.client() as client:
        for method, path in sorted(set(routes)):
            if path in OPEN:
                continue
            for accept in ("*/*", "text/html"):
                answer = client.request(method, path, headers={"accept": accept})
                page = method in ("GET", "HEAD") and (accept == "text/html" or path == "/")
                assert answer.status_code == (302 if page else 401), (method, path, answer.status_code)
                assert not page or answer.headers["location"].startswith("/login")
        for sneaky in (
            *("/login/../studio/live", "/login/", "//login", "/LOGIN", "/healthz/x", "/login%2f..%2fconfig"),
            *("/studio/static/login.css/../style.css", "/studio/static/style.css", "/login;x", "//config"),
            *("/gradio_api/file=/etc/passwd", "/./config", "http://x/login/../config"),
        ):
            assert ask(studio, "GET", sneaky)[0] == 401, sneaky
        for path in OPEN:
            assert client.get(path).status_code == 200, path
        assert "access" not in client.get("/healthz").text
    upgrade = (
        b"GET /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", studio.port), timeout=10) as connection:
        connection.sendall(upgrade)
        assert connection.recv(100).split(b" ", 2)[1] in (b"401", b"403")


def test_gradio_works_behind_the_login(serve) -> None:
    studio = serve(PASSWORD)
    with contextlib.closing(logged_in(studio)) as client:
        assert "gradio_config" in client.get("/").text
        started = client.post("/gradio_api/call/shout", json={"data": ["quiet"]}).json()
        events = client.get(f"/gradio_api/call/shout/{started['event_id']}").text
        assert '["QUIET"]' in events
        upload = client.post("/gradio_api/upload", files={"files": ("a.txt", b"x")})
        assert upload.status_code == 200
        assert client.get("/gradio_api/file=/etc/passwd").status_code == 403


# The program ---------------------------------------------------------------------------------------


def start_app(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "app.py", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
    process = start_app("--port", "0", "--workspace", str(workspace.root))
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
    process = start_app("--host", "0.0.0.0", "--port", "0", "--workspace", str(tmp_path))
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
            process = start_app(*arguments)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 2 and sentence in output and "Traceback" not in output, output


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
        "import sys, time; t = time.time(); import app, studio.server, studio.pages.shell, studio.demo;"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate', 'cv2', 'mediapipe'};"
        "print(sorted(heavy & set(sys.modules)), time.time() - t)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert output.stdout.startswith("[] "), output
    listening = "import sys, studio.listen, studio.jobs, studio.auth; print('gradio' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", listening], cwd=REPOSITORY, capture_output=True, text=True)
    assert output.stdout == "False\n", "a taken port is told before Gradio is loaded"
