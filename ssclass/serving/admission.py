"""Who may ask: whoever has the key, where there is one; and no page of another site, by whatever name it calls us."""

from __future__ import annotations

from hmac import compare_digest

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ssclass.text import url_parts

OPEN = ("/health", "/ready")
LOCAL = ("127.0.0.1", "localhost", "::1")


class Admission:
    """Stands before the service. `local`: it listens on loopback, so no other name of its host is right."""

    def __init__(self, application: ASGIApp, key: str | None, *, local: bool) -> None:
        self._application = application
        self._key = key
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer 401 or 403."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if (why := self._foreign(headers)) is not None:
                await JSONResponse({"error": why}, 403)(scope, receive, send)
                return
            if self._key is not None and scope["path"] not in OPEN and not self._knows(headers):
                challenge = {"WWW-Authenticate": "Bearer"}
                await JSONResponse({"error": "the key is missing or wrong"}, 401, challenge)(scope, receive, send)
                return
        await self._application(scope, receive, send)

    def _foreign(self, headers: Headers) -> str | None:
        """Why a request comes from another site's page: it names a foreign Origin, or us by a foreign name."""
        host = headers.get("host", "")
        name = url_parts(f"//{host}")
        if self._local and (name is None or name.hostname not in LOCAL):
            return f"host {host[:80]!r}: this service is on this machine only"
        origin = headers.get("origin")
        if origin is not None and ((other := url_parts(origin)) is None or other.netloc != host):
            return f"origin {origin[:80]!r}: pages of other sites may not ask"
        return None

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return compare_digest(given.encode(), (self._key or "").encode())
