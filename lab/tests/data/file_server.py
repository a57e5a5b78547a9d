"""A file server that a test runs, for downloads."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)


class Server:
    """A small file server that can be told to misbehave, and that records the ranges which were requested."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.tag: str | None = '"v1"'
        self.breaks: list[int] = []  # bytes after which the next answers break off
        self.codes: list[int] = []  # what the next answers are instead
        self.ranges = True
        self.skew = 0  # by how much an answered range is off
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.zip"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.codes or not self.content:
            request.send_error(self.codes.pop(0) if self.codes else 404)
            return
        start, size = 0, len(self.content)
        same = request.headers.get("If-Range") == self.tag
        if asked and same and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= size and start:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{size}")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start + self.skew}-{size - 1}/{size}")
        if self.tag:
            request.send_header("ETag", self.tag)
        request.send_header("Content-Length", str(size - start))
        request.end_headers()
        sent = self.content[start:]
        request.wfile.write(sent[: self.breaks.pop(0)] if self.breaks else sent)
