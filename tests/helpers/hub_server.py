"""The Hugging Face hub on loopback, as far as huggingface_hub asks it, with everything that can go wrong.

What it answers was taken from the clients' source (huggingface_hub 2.4) and the hub's documentation: the info of a
repository at a revision, the listing of a commit's files, and the files themselves by HEAD and GET, with ranges. Large
files lie on another host, as with the hub: the answer to HEAD has their hash and size and says where.
"""

import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

INFO = re.compile(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)(?:/revision/([^/]+))?")
TREE = re.compile(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)/tree/([^/]+)")
RESOLVE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
LARGE = 2**20  # from here on a file is kept apart, as by git-lfs


class Repository(NamedTuple):
    commits: dict[str, dict[str, bytes]]  # commit -> name of a file -> content
    branches: dict[str, str]  # name -> commit
    gated: bool = False  # its info and its listing can be had, and no file


class Asked(NamedTuple):
    method: str
    path: str
    range: str | None
    token: bool  # whether it came with one


@dataclass
class Hub:
    """What is on the hub, what it was asked, and its faults; a test changes them as it goes."""

    address: str
    elsewhere: str  # the host that large files lie on
    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    refused: int = 0  # so many requests from now on get 429
    retry_after_seconds: int = 0
    delay_seconds: float = 0.0  # before every answer
    status: int | None = None  # of every answer, if it is a hub in trouble
    broken: list[str] = field(default_factory=list)  # names of files whose next answer ends half way
    page: bytes | None = None  # the answer to everything, if this is no hub at all

    def paths(self, ending: str = "", method: str = "GET") -> list[str]:
        """The paths that were asked for with this method and end so."""
        return [asked.path for asked in self.asked if asked.method == method and asked.path.endswith(ending)]


@contextmanager
def hub_on_loopback() -> Iterator[Hub]:
    """A hub without repositories, until the context ends."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", f"http://localhost:{server.server_port}")
    Handler.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.asked.append(Asked(self.command, path, self.headers["Range"], "Authorization" in self.headers))
        time.sleep(hub.delay_seconds)
        if hub.page is not None:
            return self._send(200, hub.page, {"Content-Type": "text/html"})
        if hub.status is not None:
            return self._send(hub.status)
        if hub.refused > 0:
            hub.refused -= 1
            return self._send(429, headers={"Retry-After": str(hub.retry_after_seconds)})
        if path.startswith("/lfs/"):
            return self._send_file(path.split("/")[2], self._content_of(path.split("/")[2]), {})
        for pattern, answer in ((TREE, self._tree), (INFO, self._info), (RESOLVE, self._resolve)):
            if match := pattern.fullmatch(path):
                return answer(*match.groups())
        self._send(404)

    do_HEAD = do_GET

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        if found := self._found(kind, name, revision or "main"):
            repository, commit = found
            siblings = [{"rfilename": name} for name in repository.commits[commit]]
            gated = "manual" if repository.gated else False
            self._send_json({"id": name, "sha": commit, "siblings": siblings, "gated": gated, "private": False})

    def _tree(self, kind: str, name: str, revision: str) -> None:
        if found := self._found(kind, name, revision):
            repository, commit = found
            self._send_json([_entry(path, content) for path, content in repository.commits[commit].items()])

    def _resolve(self, data: str | None, name: str, revision: str, path: str) -> None:
        found = self._found("dataset" if data else "model", name, revision)
        if not found:
            return
        repository, commit = found
        origin = {"X-Repo-Commit": commit}
        if repository.gated:
            return self._send(401, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": f"{name} is gated"})
        content = repository.commits[commit].get(unquote(path))
        if content is None:
            return self._send(404, headers=origin | {"X-Error-Code": "EntryNotFound"})
        if len(content) < LARGE:
            return self._send_file(path, content, origin | {"ETag": f'"{_git_hash(content)}"'})
        sha = _sha256(content)
        linked = {"X-Linked-ETag": f'"{sha}"', "X-Linked-Size": str(len(content))}
        self._send(302, headers=origin | linked | {"Location": f"{self.hub.elsewhere}/lfs/{sha}/{path}"})

    def _found(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit; None after it was answered that there is none."""
        repository = (self.hub.models if kind == "model" else self.hub.datasets).get(name)
        if repository is None:  # 401: the hub does not tell strangers which private repositories there are
            self._send(401, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = repository.branches.get(unquote(revision), revision)
        if commit not in repository.commits:
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, commit

    def _content_of(self, sha: str) -> bytes:
        repositories = [*self.hub.models.values(), *self.hub.datasets.values()]
        contents = [content for r in repositories for files in r.commits.values() for content in files.values()]
        return next(content for content in contents if len(content) >= LARGE and _sha256(content) == sha)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        """The file, or the part of it that is asked for; half of that if it is to break."""
        path, whole, status = urlsplit(self.path).path, len(content), 200
        if given := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            start = int(given.group(1))
            content, status = content[start:], 206
            headers = headers | {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        broken = next((name for name in self.hub.broken if path.endswith(name)), None)
        if broken is None or self.command != "GET":
            return self._send(status, content, headers)
        self.hub.broken.remove(broken)
        self._send(status, content[: len(content) // 2], headers | {"Content-Length": str(len(content))})
        self.close_connection = True

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(BrokenPipeError, ConnectionResetError):  # of who lost patience
                self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the listing of a commit has it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
    if len(content) >= LARGE:
        sha = _sha256(content)
        entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 134}
    return entry


@functools.lru_cache(maxsize=4)
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
