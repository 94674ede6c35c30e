"""How the small HTTP servers of the stack run: uvicorn, where a client that keeps silent harms nobody else."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Mapping
from hmac import compare_digest
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 10.0  # seconds that a client has to send the head of a request
SILENT = 128  # clients that may keep one waiting at a time; one more, and the longest silent is cut off


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that ends connections on which no request is under way, after `PATIENCE` or when there are too many."""

    silent: dict[PatientProtocol, asyncio.TimerHandle] = {}  # noqa: RUF012 - of the process: its servers share the limit

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def handle_events(self) -> None:
        """Stop the clock once a request's head is complete."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._answer()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that is gone."""
        self._answer()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._answer()
        self.silent[self] = self.loop.call_later(PATIENCE, self._end)
        if len(self.silent) > SILENT:
            next(iter(self.silent))._end()

    def _answer(self) -> None:
        timer = self.silent.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _end(self) -> None:
        self._answer()
        self.transport.abort()


def server(application: Any, host: str, port: int) -> Server:
    """A uvicorn server that is ready to run; it logs no requests, as their addresses may hold secrets."""
    config = Config(
        application,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=5,
        server_header=False,
    )
    return Server(config)


def knows(header: str, logins: Mapping[str, str]) -> str | None:
    """The user that a Basic Authorization header names with the right password, of passwords by user; else None."""
    scheme, _, given = header.partition(" ")
    try:
        user, _, password = b64decode(given, validate=True).decode().partition(":")
    except ValueError:
        return None
    right = logins.get(user)
    if scheme.lower() != "basic" or right is None or not compare_digest(password.encode(), right.encode()):
        return None
    return user


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of ``[HOST:]PORT``; 127.0.0.1 where no host is named. ValueError when it is neither."""
    host, _, port = address.rpartition(":")
    number = int(port)
    if not 0 < number < 65536:
        raise ValueError(f"{port}: no port")
    return host.strip("[]") or "127.0.0.1", number
