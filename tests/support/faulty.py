"""A server before another one, that answers some requests with an error of S3's instead."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@contextmanager
def answering(behind: str, rules: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """Its address. GET, and PUT of copies, of a key that ends like one of `rules` get that status and code."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = [unquote(urlsplit(self.path).path)]
            if self.command == "PUT" and "x-amz-copy-source" not in self.headers:
                asked = []
            if found := [rule for end, rule in rules.items() if any(path.endswith(end) for path in asked)]:
                status, code = found[0]
                self.reply(status, [], f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
                return
            server = http.client.HTTPConnection(urlsplit(behind).netloc, timeout=60)
            server.request(self.command, self.path, body, dict(self.headers.items()))
            told = server.getresponse()
            self.reply(told.status, told.getheaders(), told.read())

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                elif name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
