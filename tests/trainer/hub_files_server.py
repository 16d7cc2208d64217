"""A loopback Hub whose repositories can be listed, read, written and deleted from, as fsspec does it."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.studio.hub_server import Hub, Repository


class FilesHub(Hub):
    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/\w+/(.+)", path):
            self._resolve(handler, match[1], match[2])
        elif match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/\w+/?(.*)", path):
            self._tree(handler, match[1], match[2], query.get("recursive", ["false"])[0].lower() == "true")
        else:
            super()._serve(handler)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        path = unquote(path).replace("/revision/main", "")
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/paths-info/main", path):
            files = self.repositories[match[1]].files
            wanted = json.loads(body)["paths"]
            return 200, [_row(name, files[name]) for name in wanted if name in files]
        return super()._answer(method, path, body)

    def _commit(self, name: str, repository: Repository, body: bytes) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "deletedFile":
                repository.files.pop(line["value"]["path"], None)
        return super()._commit(name, repository, body)

    def _tree(self, handler: BaseHTTPRequestHandler, name: str, under: str, recursive: bool) -> None:
        if name not in self.repositories:
            return _send(handler, 404, b"", **{"X-Error-Code": "RepoNotFound"})
        files = self.repositories[name].files
        start = f"{under}/" if under else ""
        inside = {file: content for file, content in files.items() if file.startswith(start)}
        if under and not inside:
            return _send(handler, 404, b"", **{"X-Error-Code": "EntryNotFound"})
        rows = [_row(f, content) for f, content in inside.items() if recursive or "/" not in f[len(start) :]]
        folders = {start + file[len(start) :].split("/")[0] for file in inside if "/" in file[len(start) :]}
        rows += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
        return _send(handler, 200, json.dumps(rows).encode())

    def _resolve(self, handler: BaseHTTPRequestHandler, name: str, file: str) -> None:
        content = self.repositories[name].files.get(file)
        if content is None:
            return _send(handler, 404, b"", **{"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        more = {"ETag": etag, "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes"}
        if not wanted:
            return _send(handler, 200, content, **more)
        first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
        more["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return _send(handler, 206, content[first : last + 1], **more)


def _row(file: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _send(handler: BaseHTTPRequestHandler, code: int, body: bytes, **headers: str) -> None:
    handler.send_response(code)
    for name, value in {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **headers,
    }.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
