"""A stand-in for the Hub on loopback: enough of its HTTP interface for huggingface_hub and datasets to load from."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Repository:
    """Files of one commit, under the names that a person may ask for it by.

    Attributes:
        kind: `models` or `datasets`.
        name: `owner/name`.
        commit: 40 hexadecimal digits.
        files: path to content.
        refs: branches of this commit; the commit itself is always a name of it.
    """

    kind: str
    name: str
    commit: str
    files: Mapping[str, bytes]
    refs: tuple[str, ...] = ("main",)

    @classmethod
    def of_folder(
        cls, kind: str, name: str, folder: Path, commit: str | None = None, refs: tuple[str, ...] = ("main",)
    ) -> "Repository":
        """All files below a folder."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return cls(kind, name, commit or hashlib.sha1(name.encode()).hexdigest(), files, refs)

    def entry(self, path: str) -> dict[str, Any]:
        """A file as listings tell of it."""
        return {"type": "file", "path": path, "size": len(self.files[path]), "oid": _git_hash(self.files[path])}


@dataclass
class HubStandIn:
    """What is served, and what was asked for.

    Attributes:
        repositories: all that there is.
        requests: method and path of each request, in the order of their coming.
    """

    repositories: list[Repository]
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    def find(self, kind: str, name: str, revision: str) -> Repository | None:
        """The repository that has this revision."""
        for repository in self.repositories:
            known = (repository.commit, *repository.refs)
            if (repository.kind, repository.name) == (kind, name) and revision in known:
                return repository
        return None

    def asked(self, pattern: str) -> list[str]:
        """The requests that match a regular expression."""
        return [request for request in self.requests if re.search(pattern, request)]


@contextmanager
def serve(repositories: list[Repository]) -> Iterator[HubStandIn]:
    """Serve repositories on a free port of loopback; `endpoint` is the address."""
    hub = HubStandIn(repositories)
    with serving(_Handler, hub=hub) as hub.endpoint:
        yield hub


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **attributes: Any) -> Iterator[str]:
    """A server on a free port of loopback, with these attributes of its handler; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), attributes))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        """Silent."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if found := re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path
        ):
            kind, name, action, revision, rest = found.groups()
            repository = self.hub.find(kind, name, revision or "main")
            if repository is None:
                self._missing(kind, name)
            elif action == "tree":
                self._tree(repository, (rest or "").strip("/"))
            elif action == "paths-info":
                self._paths_info(repository, body)
            else:
                self._info(repository)
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if found[1] else "models"
            repository = self.hub.find(kind, found[2], found[3])
            if repository is None:
                self._missing(kind, found[2])
            else:
                self._file(repository, found[4])
        else:
            self._send(404, b"", {"X-Error-Message": "no such page"})

    def _missing(self, kind: str, name: str) -> None:
        there = any((repository.kind, repository.name) == (kind, name) for repository in self.hub.repositories)
        code = "RevisionNotFound" if there else "RepoNotFound"
        self._send(404, b'{"error": "not found"}', {"X-Error-Code": code, "X-Error-Message": "not found"})

    def _info(self, repository: Repository) -> None:
        info = {
            "_id": repository.commit[:24],
            "id": repository.name,
            "sha": repository.commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in repository.files],
        }
        self._send_json(info)

    def _tree(self, repository: Repository, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path in repository.files:
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                below = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    entries[below] = {"type": "directory", "path": below, "oid": _git_hash(below.encode()), "size": 0}
            if recursive or len(parts) == 1:
                entries[path] = repository.entry(path)
        if prefix and not entries:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            self._send_json(list(entries.values()))

    def _paths_info(self, repository: Repository, body: bytes) -> None:
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        paths = [paths] if isinstance(paths, str) else paths
        folders = {
            "/".join(path.split("/")[:depth]) for path in repository.files for depth in range(1, path.count("/") + 1)
        }
        entries = [repository.entry(path) for path in paths if path in repository.files]
        entries += [
            {"type": "directory", "path": path, "oid": _git_hash(path.encode()), "size": 0}
            for path in paths
            if path in folders
        ]
        self._send_json(entries)

    def _file(self, repository: Repository, path: str) -> None:
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if path not in repository.files:
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content = repository.files[path]
        headers |= {"ETag": f'"{_git_hash(content)}"', "Content-Type": "application/octet-stream"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._send(206, content[start : end + 1], headers)
        else:
            self._send(200, content, headers)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
