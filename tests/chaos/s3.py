"""An S3 server (moto) with a partner's bad days in front of it: ``python -m tests.chaos.s3`` prints its port.

``POST /_chaos`` with JSON sets what happens to requests from then on; an empty object ends it:

    {"what": "500" | "503" | "slow" | "cut" | "wrong" | "expired", "method": "GET", "path": "dvc/", "times": 3}

`cut` ends the connection in the middle of the body, `wrong` changes a byte of it, `expired` refuses the credentials.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

ERROR = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{0}</Message></Error>'
CODES = {"500": ("500 Internal Server Error", "InternalError"), "503": ("503 Slow Down", "SlowDown")}
CODES["expired"] = ("400 Bad Request", "ExpiredToken")


class BadDays:
    """A WSGI application before another."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.rule, self.count, self.lock = app, {}, 0, threading.Lock()  # type: ignore[var-annotated]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_chaos":
            with self.lock:
                body = json.dumps({"happened": self.count}).encode()
                self.rule = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                self.count = 0
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        rule = self._applies(environ)
        what = rule.get("what")
        if what in CODES:
            if length := int(environ.get("CONTENT_LENGTH") or 0):
                environ["wsgi.input"].read(length)
            status, code = CODES[what]
            said = ERROR.format(code).encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(said)))])
            return [said] if environ["REQUEST_METHOD"] != "HEAD" else []
        if what == "slow":
            time.sleep(0.5)
        if what not in ("cut", "wrong"):
            return self.app(environ, start_response)
        data = b"".join(self.app(environ, start_response))
        if not data:
            return [data]
        if what == "wrong":
            return [data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]]
        return self._half(data)

    def _half(self, data: bytes) -> Iterable[bytes]:
        yield data[: len(data) // 2]
        raise ConnectionResetError  # the server closes the connection, short of what it promised

    def _applies(self, environ: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            rule = self.rule
            if (
                rule
                and self.count < rule.get("times", 1)
                and environ["REQUEST_METHOD"] in (rule.get("method") or environ["REQUEST_METHOD"])
                and rule.get("path", "") in environ["PATH_INFO"] + "?" + environ.get("QUERY_STRING", "")
            ):
                self.count += 1
                return dict(rule)
        return {}


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = BadDays(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.server_port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()  # ends with its parent
    server.serve_forever()


if __name__ == "__main__":
    main()
