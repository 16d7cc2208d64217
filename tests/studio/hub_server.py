"""A loopback server that speaks as much of the Hub's HTTP API as publishing needs, and checks all of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class Hub:
    """``repositories`` is what was published. ``fail[path prefix] = code`` makes requests fail."""

    def __init__(self, token: str, user: str = "ada") -> None:
        self.token, self.user = token, user
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._serve(self)

            do_POST = do_PUT = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        path = handler.path.partition("?")[0]
        self.requests.append(f"{handler.command} {path}")
        code = next((code for prefix, code in self.fail.items() if path.startswith(prefix)), None)
        if code is not None:
            answer: Any = {"error": f"made to fail with hf_{'x' * 30}"}
        elif handler.headers.get("Authorization") != f"Bearer {self.token}" and handler.command != "PUT":
            code, answer = 401, {"error": "Invalid username or password."}
        else:
            code, answer = self._answer(handler.command, path, body)
        data = json.dumps(answer).encode()
        handler.send_response(code)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/whoami-v2":
            return 200, {"name": self.user, "type": "user"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != match[1]:
                return 400, {"error": "the object does not match its sha256"}
            self.objects[match[1]] = body
            return 200, {}
        if path == "/lfs/verify":
            wanted = json.loads(body)
            known = self.objects.get(wanted["oid"])
            return (
                (200, {})
                if known is not None and len(known) == wanted["size"]
                else (404, {"error": "no object"})
            )
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return 200, {
                "transfer": "basic",
                "objects": [self._lfs(each) for each in json.loads(body)["objects"]],
            }
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/preupload/main|/commit/main)?", path):
            repository = self.repositories.get(match[1])
            if repository is None:
                return 404, {"error": "Repository not found"}
            if match[2] is None:
                return 200, {
                    "id": match[1],
                    "modelId": match[1],
                    "private": repository.private,
                    "sha": "0" * 40,
                }
            if match[2] == "/preupload/main":
                files = json.loads(body)["files"]
                return 200, {"files": [_upload_mode(each) for each in files]}
            return self._commit(match[1], repository, body)
        return 404, {"error": f"no such page: {method} {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        owner = wanted.get("organization") or self.user
        if owner != self.user:
            return 403, {
                "error": f"You don't have the rights to create a model under the namespace {owner!r}"
            }
        name = f"{owner}/{wanted['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return 200, {"url": f"{self.url}/{name}", "name": name}

    def _validate(self, content: str) -> tuple[int, Any]:
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            assert match is not None and isinstance(yaml.safe_load(match[1]), dict)
        except (AssertionError, yaml.YAMLError) as error:
            return 400, {"errors": [{"message": f"bad front matter: {error}"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.objects:
            return answer
        actions = {
            "upload": {"href": f"{self.url}/lfs/{wanted['oid']}"},
            "verify": {"href": f"{self.url}/lfs/verify"},
        }
        return {**answer, "actions": actions}

    def _commit(self, name: str, repository: Repository, body: bytes) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.splitlines()]
        new: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if len(self.objects.get(value["oid"], b"")) != value["size"]:
                    return 400, {"error": f"{value['path']} was never uploaded"}
                new[value["path"]] = self.objects[value["oid"]]
        repository.files |= new
        repository.commits.append(lines[0]["value"]["summary"])
        oid = hashlib.sha1(body).hexdigest()
        return 200, {"success": True, "commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    assert len(base64.b64decode(file["sample"])) <= min(512, file["size"])
    binary = file["path"].endswith((".safetensors", ".webp", ".png"))
    return {"path": file["path"], "uploadMode": "lfs" if binary else "regular", "shouldIgnore": False}


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in handler.headers.get("Transfer-Encoding", ""):
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body
