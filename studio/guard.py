"""What every request passes before anything else sees it: FastAPI's routes, Gradio's, websockets.

1. A studio on loopback without a password answers to its local names only, so that a page on the
   internet cannot reach it by pointing its own name at 127.0.0.1 (DNS rebinding).
2. What another site sends is refused: every method but GET and HEAD, and GETs that are no navigation.
3. With a password, everything is closed but :data:`OPEN`.

Responses lose Gradio's permissive CORS headers and get the usual protective ones.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import Sessions

OPEN = frozenset({"/login", "/healthz", "/studio/static/login.css"})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# Gradio needs inline scripts and styles and compiles js= and js_on_load at run time; nothing of it, and
# nothing of ours, comes from another host, so whatever got injected could not send anything out.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
PROTECTION = {
    "x-content-type-options": "nosniff",
    # Not "no-referrer": under it browsers send "Origin: null" with our own forms.
    "referrer-policy": "same-origin",
    "content-security-policy": CONTENT_POLICY,
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI application in front of ``app``.

    Args:
        sessions: who is logged in; None for a studio without a password.
        cookie: name of the session cookie.
        local_only: whether the studio listens on loopback only.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions | None, cookie: str, local_only: bool) -> None:
        self.app = app
        self._sessions = sessions
        self._cookie = cookie
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, _protected(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, _protected(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that must not get through; None for one that may."""
        hosts = headers(scope, "host")
        if len(hosts) != 1:
            return PlainTextResponse("A request needs exactly one Host header.\n", 400)
        if self._local_only and self._sessions is None and _host_name(hosts[0]) not in LOCAL_NAMES:
            return PlainTextResponse(
                "This studio has no password and answers to localhost only; open http://127.0.0.1.\n", 403
            )
        if not _same_site(scope, hosts[0]):
            return JSONResponse({"error": "Requests from other sites are refused."}, 403)
        if self._sessions is None or scope["path"] in OPEN or self.logged_in(scope):
            return None
        accepts_page = any("text/html" in accept for accept in headers(scope, "accept"))
        if scope.get("method") in ("GET", "HEAD") and (accepts_page or scope["path"] == "/"):
            query = scope.get("query_string", b"").decode("latin-1")
            wanted = scope["path"] + (f"?{query}" if query else "")
            return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 302)
        return JSONResponse({"error": "Log in first."}, 401)

    def logged_in(self, scope: Scope) -> bool:
        return self._sessions is not None and any(
            self._sessions.valid(session_id) for session_id in session_ids(scope, self._cookie)
        )


def headers(scope: Scope, name: str) -> list[str]:
    """All values of a request header."""
    wanted = name.encode()
    return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]


def session_ids(scope: Scope, cookie: str) -> list[str]:
    """The values of the session cookie (another path or domain may have set a second one)."""
    ids = []
    for header in headers(scope, "cookie"):
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == cookie and 0 < len(value) <= 100:
                ids.append(value)
    return ids[:4]


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_site(scope: Scope, host: str) -> bool:
    """Whether the request comes from our own page, or from no page at all (curl, a typed address)."""
    site = next(iter(headers(scope, "sec-fetch-site")), None)
    ours_or_none = site in (None, "same-origin", "none")
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
        return ours_or_none or "navigate" in headers(scope, "sec-fetch-mode")
    if not ours_or_none:
        return False
    ours = {host.lower()}
    if site == "same-origin":
        # The browser vouches for it; a proxy that renamed the host tells the name that was asked for.
        ours.update(name.lower() for name in headers(scope, "x-forwarded-host"))
    return all(_netloc(origin) in ours for origin in headers(scope, "origin"))


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _protected(send: Send) -> Send:
    """``send`` that takes off CORS headers and adds the protective ones."""

    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": list(_safe_headers(message))}
        await send(message)

    return protected


def _safe_headers(message: MutableMapping[str, Any]) -> Iterable[tuple[bytes, bytes]]:
    kept = [
        (key, value)
        for key, value in message.get("headers", [])
        if not key.lower().startswith(b"access-control-")
    ]
    present = {key.lower(): value for key, value in kept}
    yield from kept
    for name, value in PROTECTION.items():
        if name.encode() not in present:
            yield name.encode(), value.encode()
    content_type = present.get(b"content-type", b"")
    if b"cache-control" not in present and content_type.startswith((b"text/html", b"application/json")):
        yield b"cache-control", b"no-store"
