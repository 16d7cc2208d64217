"""A loopback server that speaks the part of the Hub's HTTP API that downloads need."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """A model repository: its files at one commit."""

    files: dict[str, bytes]
    gated: bool = False

    @classmethod
    def of_folder(cls, folder: Path, **options: Any) -> Repo:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return cls(files, **options)

    @cached_property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    authorization: str
    range: str


@dataclass
class HubServer:
    """``repos`` by id; ``requests`` as they came. Everything needs ``token`` where one is set.

    ``hold`` keeps back that file's content for as long as it is set; ``cut_once`` breaks the connection
    in the middle of that file, the first time; ``silent`` accepts requests and never answers;
    ``chunk_seconds`` is how long a MiB takes.
    """

    repos: dict[str, Repo]
    token: str = ""
    hold: str = ""
    cut_once: str = ""
    silent: bool = False
    chunk_seconds: float = 0.0
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fetched(self) -> list[str]:
        """The files whose content was asked for."""
        return [
            r.path.split("/", 5)[-1] for r in self.requests if r.method == "GET" and "/resolve/" in r.path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server_state
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization", "")
        hub.requests.append(Request(self.command, path, authorization, self.headers.get("Range", "")))
        while hub.silent:
            time.sleep(0.1)
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            repo = hub.repos.get(f"{owner}/{name}")
            if repo is None:
                return self._error(401, "RepoNotFound")  # what the Hub says to strangers
            if rest and rest[1] not in ("main", repo.commit):
                return self._error(404, "RevisionNotFound")
            if rest and rest[0] == "tree":
                rows = [
                    {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
                    for file, content in repo.files.items()
                ]
                return self._json(rows)
            siblings = [{"rfilename": file} for file in repo.files]
            return self._json(
                {"id": f"{owner}/{name}", "sha": repo.commit, "siblings": siblings, "private": False}
            )
        if path.count("/") < 5:
            return self._error(404, "")
        _, owner, name, _, _, file = path.split("/", 5)
        repo = hub.repos[f"{owner}/{name}"]
        if repo.gated and authorization != f"Bearer {hub.token}":
            return self._error(403, "GatedRepo")
        if file not in repo.files:
            return self._error(404, "EntryNotFound")
        self._file(repo, file)

    def _file(self, repo: Repo, file: str) -> None:
        hub, content = self.server_state, repo.files[file]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("Content-Length", str(len(content) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.cut_once == file:
            hub.cut_once = ""
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        while hub.hold == file:
            time.sleep(0.05)
        for offset in range(start, len(content), 2**20):
            self.wfile.write(content[offset : offset + 2**20])
            time.sleep(hub.chunk_seconds)

    def _json(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _error(self, code: int, name: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", name)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
