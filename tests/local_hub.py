"""A hub on this machine: the few answers of the real one's HTTP interface that a download needs, and a count of asks.

It serves a dict of repositories; it stands in for a server that is not ours, never for a part of ours.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
Repositories = dict[str, dict[str, bytes]]


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(path)
        status, headers, body = self._found(path)
        wanted = self.headers.get("Range", "")
        if status == 200 and wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            status, body = 206, body[int(first) : int(last) + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.server.sent_nbytes += len(body)
            self.wfile.write(body)

    def _found(self, path: str) -> tuple[int, dict[str, str], bytes]:
        for repo, files in self.server.repositories.items():
            if path in (f"api/models/{repo}", f"api/models/{repo}/revision/main"):
                siblings = [{"rfilename": name} for name in files]
                return 200, {}, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
            if path == f"api/models/{repo}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": _etag(body)}
                    for name, body in files.items()
                ]
                return 200, {}, json.dumps(tree).encode()
            if path.startswith(f"{repo}/resolve/"):
                if repo in self.server.gated:
                    return 403, {"X-Error-Code": "GatedRepo"}, b""
                body = files[path.removeprefix(f"{repo}/resolve/").partition("/")[2]]
                return 200, {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": COMMIT}, body
        return 401, {"X-Error-Code": "RepoNotFound"}, b""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class LocalHub(ThreadingHTTPServer):
    """`asked` are the paths of all requests so far; the repositories in `gated` give no file away.

    `sent_nbytes` counts what the answers' bodies held.
    """

    def __init__(self, repositories: Repositories, gated: frozenset[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories, self.gated = repositories, gated
        self.asked: list[str] = []
        self.sent_nbytes = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def _etag(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@contextmanager
def local_hub(repositories: Repositories, gated: frozenset[str] = frozenset()) -> Iterator[LocalHub]:
    """Serve until the block ends."""
    with LocalHub(repositories, gated) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
