"""A server on this machine that answers W&B's client as theirs does, as far as an upload asks, and keeps what came."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    url: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> name, group, job type, tags as first told
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # id -> rows, by the offset they came with
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> the last
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Received]:
    """Within it the server runs, at `url`."""
    received = Received("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._reply(b"")

        do_GET = do_HEAD

        def do_PUT(self) -> None:
            self._body()
            self._reply(b"")

        def do_POST(self) -> None:
            body = self._body()
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                answer = _answer(received, asked["query"], asked.get("variables") or {})
            else:
                answer = _stream(received, self.path, body)
            self._reply(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

        def _body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()


def _answer(received: Received, query: str, told: dict[str, Any]) -> dict[str, Any]:
    """What W&B's GraphQL says to the few questions of an upload."""
    (name,) = re.findall(r"(?:query|mutation)\s+(\w+)", query)[:1] or [""]
    data: dict[str, Any] = {}
    if name == "Viewer":
        data = {"viewer": {"id": "U", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
    elif name == "GetDefaultEntity":
        data = {"viewer": {"id": "U", "entity": "me"}}
    elif name == "UpsertBucket":
        run = told["name"]
        new = run not in received.runs
        received.runs.setdefault(
            run, {"name": told["displayName"], "group": told["groupName"], "job_type": told["jobType"]}
        )
        project = {"id": "P", "name": told["project"], "entity": {"id": "E", "name": "me"}}
        bucket = {"id": run, "name": run, "displayName": run, "project": project, "historyLineCount": 0}
        data = {"upsertBucket": {"bucket": bucket, "inserted": new}}
    elif name == "CreateRunFiles":
        files = [{"name": file, "uploadUrl": f"{received.url}/{file}"} for file in told["files"]]
        data = {"createRunFiles": {"runID": told["run"], "uploadHeaders": [], "files": files}}
    elif name == "CreateArtifact":
        received.artifacts.append(told["input"])
        sequence = {"id": "S", "latestArtifact": {"id": "A", "versionIndex": 0}}
        data = {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}}}
    elif name == "UpsertView2":
        received.views.append(told)
        data = {"upsertView": {"view": {"id": "V", "name": told["name"]}, "inserted": True}}
    return {"data": data}


def _stream(received: Received, path: str, body: bytes) -> dict[str, Any]:
    """Rows of a run's history: they replace what stood from their offset on."""
    run = re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path)
    if run:
        for name, part in (json.loads(body).get("files") or {}).items():
            if name == "wandb-history.jsonl":
                rows = received.history.setdefault(run[1], [])
                rows[part["offset"] :] = [json.loads(line) for line in part["content"]]
            if name == "wandb-summary.json":
                received.summaries[run[1]] = json.loads(part["content"][-1])
    return {}
