"""Who may see the review: whoever has the address that the command printed; and no page of another site.

The address holds a token that is changed into a cookie at once, so that it stays in no history of pages. A form has to
bring a second secret, which only pages of the review know.
"""

from __future__ import annotations

import secrets
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssclass.serving.admission import Admission

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
CLOSED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Closed</title><main><h1>This page is closed</h1>
<p>Open the address that <code>ssclass review</code> printed.</p></main></html>"""


class Entry:
    """Stands before the application. `token` opens it, `form` is what forms bring, as their field or header."""

    def __init__(self, application: ASGIApp) -> None:
        self.token, self.form, self._session = (secrets.token_urlsafe(32) for _ in range(3))
        self._inside = application
        self._admission = Admission(self._known, None, local=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or answer 303 to who brings the token, 403 to all others."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        await self._admission(scope, receive, sent)

    async def _known(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inside(scope, receive, send)
            return
        headers = Headers(scope=scope)
        name = f"ssclass_review_{(scope.get('server') or ('', 0))[1]}"  # cookies do not tell ports apart
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if given and compare_digest(given.encode(), self.token.encode()):
            response = RedirectResponse(scope["path"], 303)
            response.set_cookie(name, self._session, httponly=True, samesite="strict")
            await response(scope, receive, send)
        elif compare_digest(_cookie(headers, name).encode(), self._session.encode()):
            await self._inside(scope, receive, send)
        else:
            await HTMLResponse(CLOSED, 403)(scope, receive, send)

    def is_ours(self, form: str) -> bool:
        """Whether a form comes from a page of ours."""
        return compare_digest(form.encode(), self.form.encode())


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
