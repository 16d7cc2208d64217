"""What hostile clients try, over a real socket."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Any

from running import PASSWORD, Running, logged_in
from starlette.routing import Mount, WebSocketRoute

from studio.guard import OPEN
from studio.projects import Project

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
            f"/studio/mask/{project.id}/{bad}.webp",
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
