"""The login page, log out, and /healthz: the only answers that need no session."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path
from string import Template
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from .auth import ABSOLUTE_S, Limiter, Sessions
from .guard import headers, session_ids
from .http import limited_body

PAGE = Template(Path(__file__).with_name("static").joinpath("login.html").read_text(encoding="utf-8"))
POLICY = (
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "img-src data:"
)
LOCAL_PATH = re.compile(r"/(?![/\\])[\x21-\x7e]*")


def login_routes(sessions: Sessions | None, cookie: str, limiter: Limiter | None = None) -> APIRouter:
    """``sessions`` is None for a studio without a password: then there is nothing to log in to."""
    router = APIRouter()
    limiter = limiter or Limiter()

    @router.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @router.get("/login")
    async def form(request: Request, next: str = "/") -> Response:
        if sessions is None or any(sessions.valid(each) for each in session_ids(request.scope, cookie)):
            return RedirectResponse(local_path(next), 303)
        return page(next)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        if sessions is None:
            return RedirectResponse("/", 303)
        body = await limited_body(request, 8192)
        try:
            fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=8)
        except ValueError:
            raise HTTPException(400, "The form has too many fields.") from None
        wanted = fields.get("next", ["/"])[0]
        peer = request.client.host if request.client else "unknown"
        wait = limiter.take(peer)
        if wait > 0:
            seconds = math.ceil(wait)
            answer = page(wanted, f"Too many wrong passwords. Wait {seconds} s, then try again.", 429)
            answer.headers["retry-after"] = str(seconds)
            return answer
        if not await run_in_threadpool(sessions.verify, fields.get("password", [""])[0]):
            return page(wanted, "That is not the password.", 401)
        limiter.give_back(peer)
        redirect = RedirectResponse(local_path(wanted), 303)
        redirect.set_cookie(
            cookie,
            await run_in_threadpool(sessions.create),
            max_age=int(ABSOLUTE_S),
            httponly=True,
            samesite="lax",  # "strict" would show the login page to whoever comes by a link
            secure=_is_https(request),
        )
        return redirect

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        for session_id in session_ids(request.scope, cookie):
            if sessions is not None:
                await run_in_threadpool(sessions.end, session_id)
        redirect = RedirectResponse("/login", 303)
        redirect.delete_cookie(cookie, httponly=True, samesite="lax", secure=_is_https(request))
        return redirect

    return router


def page(wanted: str, message: str = "", status: int = 200) -> Response:
    """The login form, which goes on to ``wanted``; ``message`` says why the last try failed."""
    alert = f'<p class="alert" role="alert">{html.escape(message)}</p>' if message else ""
    content = PAGE.substitute(alert=alert, next=html.escape(local_path(wanted), quote=True))
    return HTMLResponse(
        content, status, headers={"content-security-policy": POLICY, "cache-control": "no-store"}
    )


def local_path(wanted: str) -> str:
    """``wanted`` where it is a path on this very site, else "/": the login must not lead elsewhere."""
    return wanted if LOCAL_PATH.fullmatch(wanted) and len(wanted) <= 1000 else "/"


def _is_https(request: Request) -> bool:
    """Whether the browser came by https, by the proxy's word; it decides the cookie's Secure flag only."""
    forwarded = headers(request.scope, "x-forwarded-proto")
    return request.url.scheme == "https" or bool(
        forwarded and forwarded[0].split(",")[0].strip().lower() == "https"
    )
