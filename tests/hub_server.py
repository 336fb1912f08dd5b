"""A hub on this machine: it answers the requests of huggingface_hub as the public one does, and keeps what it gets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_" + "t" * 34
"""The token of the only person whom the hub knows."""


@dataclass
class Repository:
    """A repository and its commits on the branch main, the oldest first: a hash, and the content of every file."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add or replace files. Returns: the commit's hash."""
        sha = hashlib.sha1(repr((len(self.commits), files)).encode()).hexdigest()
        self.commits.append((sha, (self.commits[-1][1] if self.commits else {}) | files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1] if self.commits else ("0" * 40, {})
        return next((each for each in self.commits if each[0] == revision), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]


class RefusalError(Exception):
    """An answer that is an error of the hub: a status, and the header X-Error-Code."""

    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(status)
        self.status, self.code = status, code


class HubServer:
    """Repositories by name ("owner/name", of a Space "spaces/owner/name"), and the requests that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.authorizations: list[str | None] = []
        self.objects: dict[str, bytes] = {}
        self.hangs_up = False
        self.may_write = True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def do_POST(self) -> None:
                hub.answer(self)

            def do_PUT(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def repository(self, name: str, **files: bytes) -> Repository:
        """A new repository with one commit."""
        found = self.repositories[name] = Repository()
        found.commit(files)
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{request.command} {path}")
        self.authorizations.append(request.headers.get("Authorization"))
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        headers: dict[str, str] = {}
        try:
            status, content = 200, self._content(request, path, body, headers)
        except RefusalError as refusal:
            status, content = refusal.status, b"{}"
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content[: len(content) // 2] if self.hangs_up else content)
            request.close_connection = self.hangs_up

    def _content(self, request: BaseHTTPRequestHandler, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        routes: list[tuple[str, Callable[..., object]]] = [
            (r"GET /api/(models|spaces)/([^/]+/[^/]+)(?:/revision/(.+))?", self._about),
            (r"GET /api/(models|spaces)/([^/]+/[^/]+)/tree/(.+)", self._tree),
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
            (r"POST /api/(models|spaces)/([^/]+/[^/]+)/preupload/main", self._preupload),
            (r"POST /(?:(spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"PUT /objects/(\w+)", self._put),
            (r"POST /api/(models|spaces)/([^/]+/[^/]+)/commit/main", self._commit),
        ]
        for pattern, route in routes:
            if found := re.fullmatch(pattern, f"{request.command} {path}"):
                if request.command == "POST" and path != "/api/validate-yaml":
                    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
                        raise RefusalError(401)
                    if not self.may_write:
                        raise RefusalError(403)
                answer = route(request, body, *found.groups())
                return answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        found = re.fullmatch(r"/((?:spaces/)?[^/]+/[^/]+)/resolve/([^/]+|refs/[^/]+/[^/]+)/(.+)", path)
        if found is None:
            raise RefusalError(404)
        sha, files = self._visible(request, found[1], found[2])
        headers["X-Repo-Commit"] = sha
        if found[3] not in files:
            raise RefusalError(404, "EntryNotFound")
        content = files[found[3]]
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        return content

    def _visible(
        self, request: BaseHTTPRequestHandler, name: str, revision: str = "main"
    ) -> tuple[str, dict[str, bytes]]:
        found = self.repositories.get(name)
        is_known = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not is_known):
            raise RefusalError(404 if is_known else 401, "RepoNotFound")  # as the hub: without a token, always 401
        if found.gated and "/resolve/" in request.path:
            raise RefusalError(403 if is_known else 401, "GatedRepo")
        at = found.at(revision)
        if at is None:
            raise RefusalError(404, "RevisionNotFound")
        return at

    def _about(
        self, request: BaseHTTPRequestHandler, body: bytes, kind: str, name: str, revision: str | None
    ) -> object:
        full = _full(kind, name)
        sha, files = self._visible(request, full, revision or "main")
        card = files.get("README.md", b"").decode().split("---\n")
        data = yaml.safe_load(card[1]) if len(card) > 2 else {}
        about: dict[str, object] = {
            "id": name,
            "sha": sha,
            "private": self.repositories[full].private,
            "cardData": data,
            "tags": [],
        }
        return about | {"siblings": [{"rfilename": file} for file in files], "library_name": data.get("library_name")}

    def _tree(self, request: BaseHTTPRequestHandler, body: bytes, kind: str, name: str, revision: str) -> object:
        _, files = self._visible(request, _full(kind, name), revision)
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]

    def _create(self, request: BaseHTTPRequestHandler, body: bytes) -> object:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        full = _full("spaces" if wanted.get("type") == "space" else "models", name)
        if full in self.repositories:
            raise RefusalError(409)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.repositories[full] = Repository(bool(private), commits=[("0" * 40, {".gitattributes": b""})])
        return {"url": f"{self.url}/{full}"}

    def _validate(self, request: BaseHTTPRequestHandler, body: bytes) -> object:
        data = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        assert isinstance(data, dict)
        return {"errors": [], "warnings": []}

    def _preupload(self, request: BaseHTTPRequestHandler, body: bytes, kind: str, name: str) -> object:
        lfs = (".safetensors", ".onnx", ".evit", ".jpg", ".wasm")
        return {
            "files": [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(lfs) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
        }

    def _batch(self, request: BaseHTTPRequestHandler, body: bytes, kind: str | None, name: str) -> object:
        return {
            "transfer": "basic",
            "objects": [
                {
                    "oid": entry["oid"],
                    "size": entry["size"],
                    "actions": {"upload": {"href": f"{self.url}/objects/{entry['oid']}", "header": {}}},
                }
                for entry in json.loads(body)["objects"]
            ],
        }

    def _put(self, request: BaseHTTPRequestHandler, body: bytes, oid: str) -> bytes:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(400)
        self.objects[oid] = body
        return b""

    def _commit(self, request: BaseHTTPRequestHandler, body: bytes, kind: str, name: str) -> object:
        files = {}
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        sha = self.repositories[_full(kind, name)].commit(files)
        return {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha}


def _full(kind: str, name: str) -> str:
    return f"spaces/{name}" if kind == "spaces" else name


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """A hub that runs while the block does. Nobody waits before asking again, which took up to 12 s per failure."""
    from huggingface_hub.utils import _http

    hub = HubServer()
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_http, "time", impatient)
            yield hub
    finally:
        hub.close()
