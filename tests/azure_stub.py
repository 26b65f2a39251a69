"""A stub of a storage account for cases that Azurite cannot simulate: a failure, a lost response, a required token.

The real SDK calls it over HTTP. The responses are those of Microsoft's reference of Copy Blob, Abort Copy Blob, Put
Block, Put Block From URL, Put Block List, Get Blob Properties and Path Create (rename). Every other call is refused.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from shared.storage import crc64

CREDENTIAL = {"account_name": "a", "account_key": base64.b64encode(b"no secret").decode()}


@dataclass
class Blob:
    content: bytes
    etag: str
    copy: str = "success"


@dataclass
class StubAccount:
    """The account `a`: its state, and the faults that it simulates."""

    address: str
    blobs: dict[str, Blob] = field(default_factory=dict)
    """Blobs by path, which begins with the container."""
    elsewhere: dict[str, Blob] = field(default_factory=dict)
    """Blobs of other accounts by URL, which are read with `token`."""
    token: str = ""
    copies_end: str = "never"
    """When pending copies end: `never`, or `when aborted`, which is just before the call that aborts one."""
    answers_to_lose: int = 0
    """The number of renames that succeed without a response."""
    staged: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    account: StubAccount

    def log_message(self, *_: Any) -> None:
        """Keep a test's output clean."""

    def handle_call(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path).removeprefix("/a/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = " ".join(
            [
                self.command,
                *parse_qs(url.query).get("comp", []),
                *(
                    name
                    for name in ("x-ms-copy-source", "x-ms-copy-action", "x-ms-rename-source")
                    if name in self.headers
                ),
            ]
        )
        self.account.calls.append(call)
        try:
            done = _CALLS[call](self, path, body, {name: value[0] for name, value in parse_qs(url.query).items()})
        except KeyError:
            done = 501, {"x-ms-error-code": "NotImplemented"}
        except Refused as refused:
            done = refused.status, {"x-ms-error-code": refused.code}
        if done is None:
            self.close_connection = True
            return
        status, headers = done
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    do_PUT = do_HEAD = do_GET = handle_call

    def properties(self, path: str, *_: Any) -> Any:
        blob = self.account.blobs.get(path)
        if blob is None:
            raise Refused(404, "BlobNotFound")
        modified = "Sun, 22 Nov 2026 06:00:00 GMT"
        return 200, {
            "ETag": blob.etag,
            "Last-Modified": modified,
            "Content-Length": str(len(blob.content)),
            "x-ms-blob-type": "BlockBlob",
            "x-ms-copy-id": "1",
            "x-ms-copy-status": blob.copy,
        }

    def copy(self, path: str, *_: Any) -> Any:
        self.account.blobs[path] = Blob(b"", '"copy"', "pending")
        return 202, {"ETag": '"copy"', "x-ms-copy-id": "1", "x-ms-copy-status": "pending"}

    def abort(self, path: str, *_: Any) -> Any:
        blob = self.account.blobs[path]
        if self.account.copies_end == "when aborted":
            blob.copy = "success"
            raise Refused(409, "NoPendingCopyOperation")
        blob.copy = "aborted"
        return 204, {}

    def stage(self, path: str, body: bytes, query: dict[str, str]) -> Any:
        if path in self.account.blobs and self.account.blobs[path].copy == "pending":
            raise Refused(409, "PendingCopyOperation")
        self.account.staged[query["blockid"]] = body
        return 201, {"x-ms-content-crc64": base64.b64encode(crc64(body).to_bytes(8, "little")).decode()}

    def fetch(self, path: str, body: bytes, query: dict[str, str]) -> Any:
        source = self.account.elsewhere.get(self.headers["x-ms-copy-source"])
        if source is None or self.headers.get("x-ms-copy-source-authorization") != f"Bearer {self.account.token}":
            raise Refused(404, "CannotVerifyCopySource")
        if self.headers.get("x-ms-source-if-match") != source.etag:
            raise Refused(412, "SourceConditionNotMet")
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["x-ms-source-range"]).groups()  # type: ignore[union-attr]
        return self.stage(path, source.content[int(first) : int(last) + 1], query)

    def commit(self, path: str, body: bytes, *_: Any) -> Any:
        ids = re.findall(r"<Latest>(.*?)</Latest>", body.decode())
        self.account.blobs[path] = Blob(b"".join(self.account.staged[each] for each in ids), '"blocks"')
        return 201, {"ETag": '"blocks"'}

    def rename(self, path: str, *_: Any) -> Any:
        source = unquote(self.headers["x-ms-rename-source"]).lstrip("/")
        if source not in self.account.blobs:
            raise Refused(404, "SourcePathNotFound")
        self.account.blobs[path] = self.account.blobs.pop(source)
        if self.account.answers_to_lose:
            self.account.answers_to_lose -= 1
            return None
        return 201, {}


_CALLS = {
    "HEAD": _Handler.properties,
    "PUT x-ms-copy-source": _Handler.copy,
    "PUT copy x-ms-copy-action": _Handler.abort,
    "PUT block": _Handler.stage,
    "PUT block x-ms-copy-source": _Handler.fetch,
    "PUT blocklist": _Handler.commit,
    "PUT x-ms-rename-source": _Handler.rename,
}


@contextmanager
def stub_account() -> Iterator[StubAccount]:
    """A new, empty account on its own port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {}))
    account = StubAccount(f"http://127.0.0.1:{server.server_port}/a")
    server.RequestHandlerClass.account = account  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield account
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
