"""Who may see the review: whoever has the address that the command printed; and no page of another site.

The secret is part of every path, and not a cookie: browsers send cookies of 127.0.0.1 to every port of it, programs of
other accounts included. A form has to bring a second secret, which only pages of the review know.
"""

from __future__ import annotations

import secrets
from hmac import compare_digest

from starlette.responses import HTMLResponse
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
    """Stands before the application. `root` begins every path of it, `form` is what forms bring."""

    def __init__(self, application: ASGIApp) -> None:
        self.root, self.form = f"/{secrets.token_urlsafe(32)}", secrets.token_urlsafe(32)
        self._inside = application
        self._admission = Admission(self._known, None, local=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on whose path begins with the secret, answer 403 to all others."""

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
        elif compare_digest(scope["path"].encode()[: len(self.root) + 1], f"{self.root}/".encode()):
            await self._inside({**scope, "root_path": self.root}, receive, send)
        else:
            await HTMLResponse(CLOSED, 403)(scope, receive, send)

    def is_ours(self, form: str) -> bool:
        """Whether a form comes from a page of ours."""
        return compare_digest(form.encode(), self.form.encode())
