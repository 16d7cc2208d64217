"""Small things that the routes share: bodies with a limit, and files with a validator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from trainer.contract.errors import UserError

from .projects import NotFound

JSON_LIMIT = 64 * 1024
IMMUTABLE = "private, max-age=31536000, immutable"
REVALIDATE = "private, no-cache"


async def limited_body(request: Request, limit: int) -> bytes:
    """The request's body. Raises HTTPException 413 as soon as it is larger than ``limit`` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"The request is larger than {limit // 1024} kB.")
    return bytes(body)


async def json_body(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object. Raises HTTPException 400, 413 or 415."""
    # Requiring this type also keeps plain HTML forms of other sites out.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send JSON (Content-Type: application/json).")
    try:
        value = json.loads(await limited_body(request, JSON_LIMIT))
    except (ValueError, RecursionError):
        raise HTTPException(400, "The request is not valid JSON.") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "The request must be a JSON object.")
    return value


def send_file(
    request: Request, path: Path, media_type: str, cache: str = REVALIDATE, download: bool = False
) -> Response:
    """A file of ours, 304 where the browser has it. Raises NotFound for links and for what is no file."""
    if path.is_symlink() or not path.is_file():
        raise NotFound(f"There is no file {path.name[:80]!r}; reload the page.")
    stat = path.stat()
    etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    headers = {"cache-control": cache, "etag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    name = path.name if download else None
    return FileResponse(path, media_type=media_type, headers=headers, filename=name, stat_result=stat)


def error_response(request: Request, error: Exception) -> Response:
    """A UserError as JSON: its sentence, under the status that fits."""
    assert isinstance(error, UserError)
    return JSONResponse({"error": str(error)}, 404 if isinstance(error, NotFound) else 400)


def http_error_response(request: Request, error: Exception) -> Response:
    """An HTTPException in the same shape."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
