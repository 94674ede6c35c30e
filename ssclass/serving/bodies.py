"""The photos in the body of a request: multipart, the bytes of one photo, or base64 in JSON; read within limits."""

from __future__ import annotations

import asyncio
import binascii
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

MOST_BYTES = 64_000_000  # of a body
ALL_BYTES = 256_000_000  # of all bodies in memory
MOST_PHOTOS = 64  # in a request
SECONDS = 30.0  # in which a body must be there


class Rejected(Exception):
    """A request that is not answered: an HTTP status, and what is wrong with it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


@dataclass(frozen=True)
class Photo:
    """One photo of a request: its bytes, and the name that the client gave it."""

    data: bytes
    name: str | None = None


class Bodies:
    """Reads bodies, of which no more than `ALL_BYTES` are in memory."""

    def __init__(self) -> None:
        self._bytes = 0

    @asynccontextmanager
    async def photos(self, request: Request) -> AsyncIterator[list[Photo]]:
        """The photos of a request, for as long as the block lasts; Rejected, after the body was read or thrown away."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(SECONDS):
                    await self._read(request, body)
            except TimeoutError:
                raise Rejected(408, f"no whole body within {SECONDS:.0f} s; send it faster, or less of it") from None
            except ClientDisconnect:
                raise Rejected(400, "the client went away") from None
            if kind == "multipart/form-data":
                found = await _multipart(request, bytes(body))
            elif kind == "application/json":
                found = await asyncio.to_thread(_from_json, bytes(body))
            elif kind.startswith("image/") or kind in ("application/octet-stream", ""):
                found = [Photo(bytes(body))]
            else:
                raise Rejected(
                    415,
                    f"content type {kind[:60]!r}; send multipart/form-data, image/…, octet-stream or JSON",
                )
            if not found:
                raise Rejected(422, "no photo in the request; send at least one")
            if len(found) > MOST_PHOTOS:
                raise Rejected(413, f"{len(found)} photos; at most {MOST_PHOTOS} in a request")
            yield found
        finally:
            self._bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Add the body to `body`; Rejected, once no more comes: a client that sends before it reads gets the answer."""
        declared = request.headers.get("content-length", "")
        wrong = None
        if declared.isdigit() and int(declared) > MOST_BYTES:
            wrong = Rejected(413, f"a body of {int(declared):,} bytes; at most {MOST_BYTES:,} are read")
        thrown_away = 0
        async for chunk in request.stream():
            if wrong is None and len(body) + len(chunk) > MOST_BYTES:
                wrong = Rejected(413, f"a body of more than {MOST_BYTES:,} bytes; send fewer photos")
            if wrong is None and self._bytes + len(chunk) > ALL_BYTES:
                wrong = Rejected(503, "too many photos are on their way; try again in a second")
            if wrong is None:
                self._bytes += len(chunk)
                body += chunk
                continue
            thrown_away += len(chunk)
            if thrown_away > 4 * MOST_BYTES:
                break
        if wrong is not None:
            raise wrong


async def _multipart(request: Request, body: bytes) -> list[Photo]:
    async def once() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, once(), max_files=MOST_PHOTOS, max_fields=8)  # type: ignore[arg-type]
    parser.spool_max_size = MOST_BYTES  # never to disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        told = getattr(error, "message", "no multipart form")
        raise Rejected(413 if "Too many files" in told else 400, f"multipart/form-data: {told}") from None
    found = []
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            found.append(Photo(await value.read(), _name(value.filename)))
            await value.close()
    return found


def _from_json(body: bytes) -> list[Photo]:
    """Photos of ``{"photos": [base64, …]}`` or ``{"photo": base64}``."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise Rejected(400, "the body is no JSON") from None
    given: Any = None
    if isinstance(told, dict) and ("photos" in told) != ("photo" in told):
        given = told["photos"] if "photos" in told else [told["photo"]]
    if not isinstance(given, list):
        raise Rejected(422, 'give {"photos": [base64, …]} or {"photo": base64}')
    if len(given) > MOST_PHOTOS:
        raise Rejected(413, f"{len(given)} photos; at most {MOST_PHOTOS} in a request")
    return [_decoded(each, number) for number, each in enumerate(given, 1)]


def _decoded(given: Any, number: int) -> Photo:
    name = None
    if isinstance(given, dict):
        name, given = given.get("name"), given.get("b64")
    if not isinstance(given, str) or not isinstance(name, (str, type(None))):
        raise Rejected(422, f"photo {number}: not base64")
    encoded = given.partition(",")[2] if given.startswith("data:") else given
    try:
        return Photo(b64decode(encoded, validate=True), _name(name))
    except (binascii.Error, ValueError):
        raise Rejected(422, f"photo {number}: not base64") from None


def _name(given: str | None) -> str | None:
    """A photo's name as it can be sent back: JSON may hold halves of characters, which UTF-8 cannot."""
    return given and given.encode("utf-8", "replace").decode()
