"""Routes of our own static files, and of the few scripts that come with installed packages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from .http import IMMUTABLE, REVALIDATE, send_file
from .projects import NotFound

STATIC = Path(__file__).with_name("static")
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
# Name in the address -> (package it ships in, path inside). The package is never imported.
VENDOR = {
    "bokeh.min.js": ("bokeh", "server/static/js/bokeh.min.js"),
    "bokeh-api.min.js": ("bokeh", "server/static/js/bokeh-api.min.js"),
}


def asset_routes() -> APIRouter:
    router = APIRouter(prefix="/studio")

    @router.get("/static/{name}")
    def static(request: Request, name: str, v: str = "") -> Response:
        """A file of studio/static; its address carries ``?v=<hash of its content>``."""
        path = STATIC / name
        if not NAME.fullmatch(name) or path.suffix not in TYPES:
            raise NotFound(f"There is no file {name[:80]!r} in the studio.")
        return send_file(request, path, TYPES[path.suffix], IMMUTABLE if v else REVALIDATE)

    @router.get("/vendor/{name}")
    def vendor(request: Request, name: str) -> Response:
        """A script out of an installed package."""
        package, inside = VENDOR.get(name, ("", ""))
        spec = importlib.util.find_spec(package) if package else None
        if spec is None or not spec.submodule_search_locations:
            raise NotFound(f"There is no script {name[:80]!r} in the studio.")
        path = Path(spec.submodule_search_locations[0]) / inside
        return send_file(request, path, TYPES[path.suffix])

    return router
