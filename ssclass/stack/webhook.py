"""S3's notifications by HTTP, as MinIO and JuiceFS's gateway send them."""

from __future__ import annotations

import asyncio
import hmac
import socket
import threading
from collections.abc import Callable
from typing import Any

from ssclass.errors import FailedError, ParamsError
from ssclass.stack.serving import parse_address
from ssclass.stack.serving import server as http_server

LIMIT = 256 * 1024  # bytes of a notification; S3's have a few kilobytes
PATIENCE = 10.0  # seconds that a notification may take to arrive
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def application(heard: Callable[[bytes], None], secret: str | None) -> Any:
    """The ASGI app: POST /s3 with ``Authorization: Bearer SECRET`` (or the bare secret); GET /health."""
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def read(request: Request) -> bytes | None:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LIMIT:
                return None
        return body

    async def notify(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if secret is not None and not hmac.compare_digest(given, secret.encode()):
            return PlainTextResponse("a wrong or no secret\n", 401)
        try:
            body = await asyncio.wait_for(read(request), PATIENCE)
        except (TimeoutError, ClientDisconnect):
            return PlainTextResponse(f"not read within {PATIENCE:.0f} s\n", 408)
        if body is None:
            return PlainTextResponse(f"more than {LIMIT} bytes\n", 413)
        heard(body)
        return Response(status_code=200)

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    # MinIO probes its target by HEAD before it sends; GET brings HEAD with it.
    return Starlette(
        routes=[
            Route("/s3", notify, methods=["POST"]),
            Route("/s3", health, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
        ]
    )


def server(address: str, secret: str | None) -> Callable[[Callable[[bytes], None]], None]:
    """What `listen` starts: a server at ``[HOST:]PORT``, in a thread. ParamsError when it would be open to anybody."""
    try:
        host, port = parse_address(address)
    except ValueError:
        raise ParamsError(f"--webhook {address}: not [HOST:]PORT; give a port, as in 8099 or 0.0.0.0:8099") from None
    if host not in LOOPBACK and not secret:
        raise ParamsError(
            f"--webhook {address}: reachable from other machines without a secret; set SSCLASS_WEBHOOK_SECRET"
        )

    def start(heard: Callable[[bytes], None]) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise FailedError(
                f"--webhook {address}: cannot listen there ({error.strerror or error}); give another port, or end what "
                "has this one"
            ) from error
        running = http_server(application(heard, secret), host, port)
        running.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        threading.Thread(target=running.run, args=([bound],), daemon=True, name="webhook").start()

    return start
