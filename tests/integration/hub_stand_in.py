"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that downloads ask for.

It speaks to the real `huggingface_hub`, `transformers` and `datasets`, started with its address as HF_ENDPOINT. Every
request is remembered with its answer.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
"""Path inside a repository -> content."""

FILE_URL = re.compile(r"/(?P<kind>datasets/)?(?P<id>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
API_URL = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<id>[\w.-]+/[\w.-]+)(/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(/(?P<path>.+))?)?"
)


@dataclass
class Repo:
    """A repository: what each revision holds."""

    revisions: Mapping[str, Files]
    """Branch or tag -> its files."""
    is_gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, a tag or itself."""
        by_name = {
            name: hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
            for name, files in self.revisions.items()
        }
        return by_name.get(revision) or (revision if revision in by_name.values() else None)

    def files(self, revision: str) -> Files:
        return next(files for name, files in self.revisions.items() if revision in (name, self.commit(name)))


@dataclass(frozen=True)
class Request:
    """What was asked and how it was answered."""

    method: str
    path: str
    status: int


@dataclass
class Hub:
    """The repositories, the address once it is served, and the requests so far."""

    models: Mapping[str, Repo]
    datasets: Mapping[str, Repo]
    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)

    def downloads(self) -> Counter[str]:
        """``OWNER/NAME/FILE`` -> how often its content was fetched."""
        found: Counter[str] = Counter()
        for request in self.requests:
            url = FILE_URL.fullmatch(request.path)
            if url and request.method == "GET" and request.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                found[f"{url['id']}@{url['revision']}/{url['path']}"] += 1
        return found


@dataclass(frozen=True)
class Answer:
    status: HTTPStatus
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal(status: HTTPStatus, code: str, message: str) -> Answer:
    return Answer(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message})


def as_json(content: Any) -> Answer:
    return Answer(HTTPStatus.OK, json.dumps(content).encode(), {"Content-Type": "application/json"})


def answer(hub: Hub, path: str, form: Mapping[str, list[str]]) -> Answer:
    """What the hub says to a request of this path; a file's answer has its whole content."""
    of_file, of_api = FILE_URL.fullmatch(path), API_URL.fullmatch(path)
    found = of_file or of_api
    if not found:
        return refusal(HTTPStatus.NOT_FOUND, "", "no such page")
    repos = hub.datasets if (found["kind"] or "").startswith("datasets") else hub.models
    repo = repos.get(found["id"])
    if repo is None:
        return refusal(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Invalid username or password.")
    revision = unquote(found["revision"] or "main")
    commit = repo.commit(revision)
    if commit is None:
        return refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
    if of_file:
        return file_answer(repo, commit, unquote(of_file["path"]))
    files = repo.files(commit)
    if found["what"] == "tree":
        return tree(files, found["path"])
    if found["what"] == "paths-info":
        return as_json([entry for path in form["paths"] for entry in path_info(files, path)])
    siblings = [{"rfilename": name} for name in files]
    return as_json(
        {"id": found["id"], "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
    )


def file_answer(repo: Repo, commit: str, path: str) -> Answer:
    if repo.is_gated:
        return refusal(HTTPStatus.UNAUTHORIZED, "GatedRepo", "Access to this repository is restricted.")
    files = repo.files(commit)
    if path not in files:
        message = "Entry not found"
        return Answer(
            HTTPStatus.NOT_FOUND, message.encode(),
            {"X-Error-Code": "EntryNotFound", "X-Error-Message": message, "X-Repo-Commit": commit},
        )  # fmt: skip
    return Answer(
        HTTPStatus.OK, files[path], {"ETag": f'"{oid(files[path])}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    )


def oid(content: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def path_info(files: Files, path: str) -> list[dict[str, Any]]:
    if path in files:
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": oid(files[path])}]
    inside = any(name.startswith(f"{path}/") for name in files)
    return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40}] if inside else []


def tree(files: Files, folder: str | None) -> Answer:
    prefix = f"{unquote(folder)}/" if folder else ""
    names = {prefix + name.removeprefix(prefix).partition("/")[0] for name in files if name.startswith(prefix)}
    if not names:
        return refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
    return as_json([entry for name in sorted(names) for entry in path_info(files, name)])


@contextmanager
def served(models: Mapping[str, Repo], datasets: Mapping[str, Repo]) -> Iterator[Hub]:
    """A hub with these repositories, in a thread of this process until the block ends."""
    hub = Hub(models, datasets)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.respond({})

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.respond(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

        def respond(self, form: Mapping[str, list[str]]) -> None:
            path = urlsplit(self.path).path
            found = in_range(answer(hub, path, form), self.headers)
            hub.requests.append(Request(self.command, path, found.status))
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)

        def log_message(self, format: str, *args: object) -> None:
            """`Hub.requests` is the log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def in_range(found: Answer, headers: Message) -> Answer:
    """The part of a file that ``Range: bytes=A-B`` asks for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
    if not asked or found.status != HTTPStatus.OK:
        return found
    start, end = int(asked[1]), int(asked[2] or len(found.body) - 1)
    content_range = {"Content-Range": f"bytes {start}-{end}/{len(found.body)}"}
    return Answer(HTTPStatus.PARTIAL_CONTENT, found.body[start : end + 1], {**found.headers, **content_range})
