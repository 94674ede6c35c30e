"""Clients of `ssclass serve`: some that ask as they should and check every answer, and some that send nonsense."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.support.serving import Served

PATIENCE = 120  # seconds; an answer that takes longer than this is none


@dataclass
class Seen:
    """What clients were answered: how many by status, and by which versions; `failed`: whatever else happened."""

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.statuses.total()


def asks(served: Served, url: str, number: int, seen: Seen, ended: threading.Event) -> None:
    """Ask about one to three photos again and again, and check that one champion answered, the one that is named."""
    turn = number
    with requests.Session() as session:
        session.trust_env = False  # it would read the environment, which what uses MLflow changes in other threads
        while not ended.is_set():
            which = [(turn + each) % len(served.photos) for each in range(1 + turn % 3)]
            files = [("photo", (str(each), served.photos[each])) for each in which]
            turn += 1
            try:
                done = session.post(f"{url}/predict", files=files, timeout=PATIENCE)
                seen.statuses[done.status_code] += 1
                if done.status_code != 200:
                    seen.failed.append(f"{done.status_code} {done.text[:500]}")
                    continue
                served.check(done.json(), which)
                seen.versions[done.json()["model"]["version"]] += 1
            except (requests.RequestException, AssertionError) as error:
                seen.failed.append(f"{type(error).__name__}: {str(error)[:500]}")


@contextmanager
def asked_by(served: Served, url: str, clients: int) -> Iterator[Seen]:
    """Have clients ask while the block runs."""
    seen, ended = Seen(), threading.Event()
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(asks, served, url, number, seen, ended) for number in range(clients)]
        try:
            yield seen
        finally:
            ended.set()
    for each in running:
        each.result()


# -- nonsense ------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, bytes, int]] = [
    ("image/jpeg", b"", 422),
    ("image/jpeg", b"no photo", 422),
    ("application/octet-stream", b"\xff\xd8\xff\xe0" + bytes(1000), 422),
    ("text/plain", b"x", 415),
    ("application/json", b"{", 400),
    ("application/json", b"[" * 100_000, 400),
    ("application/json", b'{"photo": 3}', 422),
    ("application/json", b'{"photos": []}', 422),
    ("application/json", b'{"photo": "?"}', 422),
    ("application/json", b'["QQ=="]', 422),
    ("application/json", b'{"photos": [{"name": "\\ud800", "b64": "\\ud800"}]}', 422),
    ("multipart/form-data", b"x", 400),
    ("multipart/form-data; boundary=b", b"--b\r\nnonsense", 422),
    ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n', 422),
]
"""Content type and body of requests that are none, and the status that each must get."""


def sends(url: str, body: bytes, kind: str) -> int:
    """The status of a whole body of nonsense."""
    return requests.post(f"{url}/predict", data=body, headers={"Content-Type": kind}, timeout=PATIENCE).status_code


def streams(url: str, megabytes: int) -> int:
    """The status of a body whose length nobody knows before."""
    chunks = (bytes(1_000_000) for _ in range(megabytes))
    head = {"Content-Type": "image/jpeg"}
    return requests.post(f"{url}/predict", data=chunks, headers=head, timeout=PATIENCE).status_code


def stalls(url: str) -> int:
    """The status of a body that stops after its first byte; 0 where the connection is cut without one."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as slow:
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\nx"
        )
        slow.sendall(head.encode())
        said = slow.recv(1000)
    return int(said.split()[1]) if said else 0


def says_nothing(url: str) -> int:
    """How many bytes come back to a client that connects and keeps silent, until it is cut off."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as silent:
        return len(silent.recv(1000))


@contextmanager
def meanwhile(*calls: tuple[Any, ...]) -> Iterator[list[Future[int]]]:
    """Make calls, each in a thread of its own, while the block runs; they have ended when it has."""
    with ThreadPoolExecutor(len(calls)) as pool:
        yield [pool.submit(call, *arguments) for call, *arguments in calls]
