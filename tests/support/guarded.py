"""Servers that want a password, each a process of its own: `python guarded.py git FOLDER USER:PASSWORD` serves a folder
of git repositories over HTTP, `python guarded.py proxy URL USER:PASSWORD` stands before a server. Prints its port."""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KIND, TARGET, LOGIN = sys.argv[1:]
WANTED = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.read_body()
        if self.headers.get("Authorization") != WANTED:
            self.reply(401, [("WWW-Authenticate", 'Basic realm="test"')], b"")
        else:
            self.reply(*(git if KIND == "git" else forward)(self, body))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def git(request: Handler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """What git's own CGI program answers."""
    at = urlsplit(request.path)
    variables = {
        "GIT_PROJECT_ROOT": TARGET,
        "GIT_HTTP_EXPORT_ALL": "1",
        "REMOTE_USER": LOGIN.split(":")[0],
        "REQUEST_METHOD": request.command,
        "PATH_INFO": at.path,
        "QUERY_STRING": at.query,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(["git", "http-backend"], env=variables, input=body, capture_output=True)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    headers = [tuple(line.split(": ", 1)) for line in head.decode().splitlines()]
    status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
    return status, [(name, value) for name, value in headers if name != "Status"], content


def forward(request: Handler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """What the server behind answers."""
    behind = http.client.HTTPConnection(urlsplit(TARGET).netloc, timeout=120)
    left_out = ("authorization", "connection", "transfer-encoding", "content-length", "host")
    headers = {name: value for name, value in request.headers.items() if name.lower() not in left_out}
    behind.request(request.command, request.path, body, headers)
    answer = behind.getresponse()
    return answer.status, answer.getheaders(), answer.read()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
