"""A git host with logins for a folder of repositories: ``python -P -m ssclass.stack.githost FOLDER [HOST:]PORT``.

Git's own ``git http-backend`` does the work. ``GIT_HOST_LOGIN`` (user:password) may push, ``GIT_HOST_READ_LOGIN`` may
only fetch; nobody else gets in. ``GET /health`` needs no login.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ssclass.stack.serving import knows, parse_address, server

CHUNK = 64 * 1024


def application(folder: str, writers: Mapping[str, str], readers: Mapping[str, str]) -> Any:
    """The ASGI app over `folder`; `writers` and `readers` are passwords by user."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    class Answer(Response):
        """Git answers while it still reads; starlette's streaming response would read the body away from under it."""

        def __init__(self, parts: AsyncIterator[bytes], status: int, headers: Mapping[str, str]) -> None:
            super().__init__(None, status, headers)
            self.parts = parts
            self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in self.parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def backend(request: Request) -> Response:
        user = knows(request.headers.get("authorization", ""), {**readers, **writers})
        if user is None:
            return PlainTextResponse("a wrong or no login\n", 401, {"WWW-Authenticate": 'Basic realm="git"'})
        pushes = request.url.path.endswith("/git-receive-pack") or (
            "git-receive-pack" in request.query_params.getlist("service")
        )
        if pushes and user not in writers:
            return PlainTextResponse("this login may only fetch\n", 403)
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",  # the folder may be another user's, as a volume is
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_PROJECT_ROOT": folder,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.scope["path"],
            "QUERY_STRING": request.url.query,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }
        if user in writers:
            variables["REMOTE_USER"] = user  # without it git takes no push
        if "content-length" in request.headers:
            variables["CONTENT_LENGTH"] = request.headers["content-length"]
        process = await asyncio.create_subprocess_exec(
            "git",
            "http-backend",
            env=variables,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        feeding = asyncio.create_task(_feed(request, process))
        assert process.stdout is not None
        head = b""
        while line := await process.stdout.readline():
            if line in (b"\r\n", b"\n"):
                break
            head += line
        headers = dict(each.split(": ", 1) for each in head.decode("latin-1").splitlines() if ": " in each)
        status = int(headers.pop("Status", "200").split()[0]) if headers else 500
        return Answer(_answer(process, feeding), status, headers)

    return Starlette(routes=[Route("/health", health), Route("/{path:path}", backend, methods=["GET", "HEAD", "POST"])])


async def _feed(request: Any, process: asyncio.subprocess.Process) -> None:
    from starlette.requests import ClientDisconnect

    assert process.stdin is not None
    try:
        async for part in request.stream():
            process.stdin.write(part)
            await process.stdin.drain()
    except (OSError, ClientDisconnect):  # git has read enough, or nobody goes on sending
        pass
    finally:
        process.stdin.close()


async def _answer(process: asyncio.subprocess.Process, feeding: asyncio.Task[None]) -> AsyncIterator[bytes]:
    assert process.stdout is not None
    try:
        while part := await process.stdout.read(CHUNK):
            yield part
    finally:
        feeding.cancel()
        if process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()


def main(arguments: Sequence[str]) -> int:
    """Serve until it is stopped."""
    folder, address = arguments
    host, port = parse_address(address)

    def login(name: str) -> dict[str, str]:
        user, _, password = os.environ[name].partition(":")
        return {user: password}

    server(application(folder, login("GIT_HOST_LOGIN"), login("GIT_HOST_READ_LOGIN")), host, port).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
