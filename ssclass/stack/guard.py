"""A login in front of a server that has none: ``python -P -m ssclass.stack.guard [HOST:]PORT NAMES COMMAND…``.

The command starts the server; `{socket}` in it becomes the path of a UNIX socket in a folder that nobody else enters,
so that the guard is the only way in. ``GUARD_LOGIN`` in the environment is the login, as user:password. NAMES are the
host names, with ports, under which the server is known, with commas between: a request under another name is refused
(DNS rebinding), and so is one that a page of another origin sends. ``GET /health`` needs no login.

Basic authentication rather than a cookie: browsers keep it to one host *and port*; a cookie goes to every port.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssclass.stack.serving import knows, parse_address, server
from ssclass.text import url_parts

HEALTH = "/health"
STOPPING = 15  # seconds that the server behind has to stop
LONGEST_SOCKET = 90  # characters of a socket's path
HOPS = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)


def application(socket: str, logins: dict[str, str], names: Sequence[str]) -> Any:
    """The ASGI app: passes on what comes with a login, under a known name, from no other origin."""
    import httpx
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    behind = httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=socket),
        timeout=httpx.Timeout(None, connect=5),
        headers={"accept-encoding": "identity"},
    )

    def refusal(request: Request) -> Response | None:
        if request.headers.get("host", "") not in names:
            return PlainTextResponse("not a name of this server\n", 403)
        origin = request.headers.get("origin")
        if origin is not None and ((other := url_parts(origin)) is None or other.netloc not in names):
            return PlainTextResponse("not from another origin\n", 403)
        if request.url.path == HEALTH and request.method == "GET":
            return None
        if knows(request.headers.get("authorization", ""), logins) is None:
            return PlainTextResponse("a wrong or no login\n", 401, {"WWW-Authenticate": 'Basic realm="ssclass"'})
        return None

    async def passed_on(request: Request) -> Response:
        refused = refusal(request)
        if refused is not None:
            return refused
        scope = request.scope
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        asked = behind.build_request(
            request.method,
            httpx.URL("http://behind").copy_with(
                raw_path=scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
            ),
            headers=[(name, value) for name, value in request.headers.raw if name not in HOPS | {b"authorization"}],
            content=request.stream() if has_body else None,
        )
        try:
            answer = await behind.send(asked, stream=True)
        except httpx.TransportError:
            return PlainTextResponse("the server behind does not answer\n", 503)
        reply = StreamingResponse(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        reply.raw_headers = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in HOPS]
        return reply

    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(routes=[Route("/{path:path}", passed_on, methods=every)])


def main(arguments: Sequence[str]) -> int:
    """Start the server and stand before it until one of the two ends."""
    address, names, *command = arguments
    host, port = parse_address(address)
    user, _, password = os.environ.pop("GUARD_LOGIN").partition(":")  # the server behind need not know it
    folder = tempfile.mkdtemp(prefix="ssclass-")
    if len(folder) > LONGEST_SOCKET - 10:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="ssclass-", dir="/tmp")
    socket = str(Path(folder) / "socket")
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has stopped
        signal.signal(number, lambda number, frame: sys.exit(0))
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen([word.replace("{socket}", socket) for word in command])
        behind = process
        front = server(application(socket, {user: password}, names.split(",")), host, port)

        def watch() -> None:
            behind.wait()
            front.should_exit = True

        threading.Thread(target=watch, daemon=True).start()
        front.run()
        return process.poll() or 0
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(STOPPING)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
