"""An S3 that lives as long as a block, without logins: for tests and measurements, not for data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def s3_server() -> Iterator[str]:
    """A moto server on a free port of this machine, in a thread of this process; its URL."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def s3_process() -> Iterator[str]:
    """The same in a process of its own, so that its seconds of processors are not counted as those of its client."""
    told = [sys.executable, "-m", "tests.support.moto"]
    with subprocess.Popen(told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()  # it ends


if __name__ == "__main__":
    with s3_server() as url:
        print(url, flush=True)
        sys.stdin.read()
