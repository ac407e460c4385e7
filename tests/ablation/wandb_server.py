"""A server of Weights & Biases on this machine: it keeps the views and the runs that clients send, in memory."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Stored:
    """A run as the server has it."""

    facts: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


@dataclass
class Server:
    """What was asked of it: the variables of each GraphQL operation, by the operation's name."""

    url: str
    runs: dict[str, Stored] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def saved(self, kind: str) -> list[dict[str, Any]]:
        """The views of a kind, "runs" (reports) or "project-view" (workspaces), with their specification parsed."""
        return [view | {"spec": json.loads(view["spec"])} for view in self.views.values() if view["type"] == kind]


@contextmanager
def serve() -> Iterator[Server]:
    """A server on a free port, for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                request = json.loads(content)
                answer = {"data": _answer(server, request["query"], request.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                _stream(server.runs[self.path.split("/")[-2]], json.loads(content))
            self._send(json.dumps(answer).encode())

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._send(b"")

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def _answer(server: Server, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    name = (query.split("(")[0].split("{")[0].split() or [""])[-1]
    server.calls.append((name, variables))
    if name in ("upsertView", "UpsertView2"):
        id = variables.get("id") or f"view{len(server.views) + 1}"
        inserted = id not in server.views
        server.views[id] = variables | {"id": id}
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": id, **{key: variables.get(key) for key in ("type", "name", "displayName", "description", "spec")}}
        return {"upsertView": {"view": view | {"project": project, "updatedAt": None}, "inserted": inserted}}
    if name == "ProjectInternalId":
        return {"project": {"id": "p", "internalId": "UHJvamVjdDoxMjM="}}
    if name == "View":
        nodes = [view for view in server.views.values() if view["name"] == variables["viewName"]]
        return {"project": {"allViews": {"edges": [{"node": view} for view in nodes]}}}
    if "viewer" in query.lower():
        teams = {"edges": [{"node": {"id": "e", "name": "team"}}]}
        viewer = {"id": "u", "username": "me", "email": "", "admin": False, "flags": "{}", "entity": "team"}
        return {"viewer": viewer | {"teams": teams, "apiKeys": {"edges": []}, "deletedAt": None, "name": "me"}}
    if "models" in query:
        edge = {
            "node": {
                "id": "p",
                "name": "elder-tiny",
                "entityName": "team",
                "createdAt": "",
                "isBenchmark": False,
                "user": None,
            }
        }
        return {"models": {"edges": [edge], "pageInfo": {"endCursor": None, "hasNextPage": False}}}
    if name == "RunResumeStatus":
        run = server.runs.get(variables["name"])
        return {
            "model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "team"}, "bucket": run and _bucket(run)}
        }
    if name == "UpsertBucket":
        run = server.runs.setdefault(variables["name"], Stored())
        run.facts |= {key: value for key, value in variables.items() if value is not None}
        return {"upsertBucket": {"bucket": _bucket(run), "inserted": not run.history}}
    if name == "CreateRunFiles":
        server.runs[variables["run"]].files |= set(variables["files"])
        files = [{"name": name, "uploadUrl": f"{server.url}/upload"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
    if name == "ArtifactType":
        return {"project": {"artifact": None}}
    if name == "CreateArtifact":  # as one that is known already, so that nothing is uploaded
        sequence = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
        return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
    server.unknown.append(name)
    return {}


def _bucket(run: Stored) -> dict[str, Any]:
    """What a client that resumes the run, or renews it, is told."""
    facts = run.facts
    project = {"id": "p", "name": facts["project"], "entity": {"id": "e", "name": facts["entity"]}}
    return {
        "id": facts["name"],
        "name": facts["name"],
        "displayName": facts.get("displayName"),
        "description": None,
        "sweepName": None,
        "project": project,
        "config": facts.get("config", "{}"),
        "tags": facts.get("tags") or [],
        "notes": None,
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": 0,
        "eventsLineCount": 0,
        "historyLineCount": len(run.history),
        "historyTail": json.dumps([json.dumps(line) for line in run.history[-1:]]),
        "eventsTail": "[]",
        "wandbConfig": json.dumps({"t": 1}),
    }


def _stream(run: Stored, content: dict[str, Any]) -> None:
    """Take lines where the client says they belong."""
    files = content.get("files") or {}
    if (history := files.get("wandb-history.jsonl")) is not None:
        assert history["offset"] == len(run.history), "lines that are there already, or a gap"
        run.history += [json.loads(line) for line in history["content"]]
    if (summary := files.get("wandb-summary.json")) is not None:
        run.summary = json.loads(summary["content"][-1])
