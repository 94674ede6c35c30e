"""The service under load: `python -m benchmarks.serve WORKSPACE PHOTOS [SECONDS]`, for the champion of a workspace.

Prints JSON: photos a second, and the 50th, 95th and 99th percentile of a request's milliseconds, one photo a request,
of `ssclass serve` at 1, 8 and 32 clients, of `mlflow models serve` of the same model at 1 and 8, and of the bare engine
with the decode, in this process. Each for at most SECONDS (15) on loopback. Then what a promotion costs: the seconds
from the alias in MLflow to the first answer by the other champion, where there are two.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import requests

from ssclass.data.images import decode
from ssclass.environment import free_port, quiet_libraries
from ssclass.serving.model import open_model
from ssclass.settings import Settings, load_settings
from ssclass.tracking.client import Tracking

Ask = Callable[[requests.Session, int], requests.Response]
MOST = 2000  # requests


def figures(milliseconds: list[float], seconds: float) -> dict[str, float]:
    """Photos a second and percentiles."""
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
    rate = len(milliseconds) / seconds
    return {"photos_per_second": round(rate, 1), "p50": round(p50, 1), "p95": round(p95, 1), "p99": round(p99, 1)}


def load(ask: Ask, clients: int, limit: float) -> dict[str, float]:
    """Ask from so many clients at once, each again when it has its answer; every answer must be one."""
    numbers, end, times = count(), time.monotonic() + limit, []
    began = time.monotonic()

    def client(_: int) -> None:
        with requests.Session() as session:
            while time.monotonic() < end and (number := next(numbers)) < MOST:
                at = time.perf_counter()
                ask(session, number).raise_for_status()
                times.append(1000 * (time.perf_counter() - at))

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return figures(times, time.monotonic() - began)


@contextmanager
def server(command: list[str], environment: dict[str, str], url: str) -> Iterator[None]:
    """A server process, for as long as the block lasts, once it answers."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(240):
                if process.poll() is not None:
                    raise SystemExit(f"{' '.join(command)}: ended by itself, {process.returncode}")
                try:
                    if requests.get(url, timeout=5).status_code == 200:
                        break
                except requests.RequestException:
                    pass
                time.sleep(0.5)
            else:
                raise SystemExit(f"{command}: does not answer")
            yield
        finally:
            process.terminate()


def bare(settings: Settings, photos: list[bytes], limit: float) -> dict[str, float]:
    """The engine with the decode, one photo after the other."""
    model = open_model("champion", settings)
    model.predict(decode(photos[0], model.size)[None])
    times, end, began = [], time.monotonic() + limit, time.monotonic()
    while time.monotonic() < end:
        at = time.perf_counter()
        model.predict(decode(photos[len(times) % len(photos)], model.size)[None])
        times.append(1000 * (time.perf_counter() - at))
    return figures(times, time.monotonic() - began)


def switches(settings: Settings, url: str, photo: bytes, times: int = 4) -> list[float]:
    """Seconds from another alias to the first answer by it; the alias is put back."""
    tracking = Tracking(settings)
    first = tracking.alias() or ""
    found = []
    for number in range(times):
        wanted = first if number % 2 else str(int(first) - 1)
        tracking.set_alias(wanted)
        began = time.monotonic()
        while requests.post(url, data=photo, timeout=60).headers["X-Model-Version"] != wanted:
            time.sleep(0.02)
        found.append(round(time.monotonic() - began, 2))
    return found


def main(workspace: Path, folder: Path, limit: float) -> None:
    """Measure the three, one after the other."""
    settings = load_settings(workspace)
    quiet_libraries(settings)
    photos = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:200]]
    encoded = [base64.b64encode(photo).decode() for photo in photos]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    environment = {**os.environ, "MLFLOW_TRACKING_URI": settings.tracking_uri, "PATH": path}
    found: dict[str, Any] = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    port = free_port()
    url = f"http://127.0.0.1:{port}/predict"
    command = [sys.executable, "-m", "ssclass", "serve", "--workspace", str(workspace), "--listen", str(port)]
    with server(command, environment, f"http://127.0.0.1:{port}/ready"):

        def ours(session: requests.Session, number: int) -> requests.Response:
            return session.post(url, data=photos[number % len(photos)], timeout=120)

        load(ours, 2, 3)
        for clients in (1, 8, 32):
            found[f"ssclass serve, {clients} clients"] = load(ours, clients, limit)
        if int(Tracking(settings).alias() or 1) > 1:
            found["seconds from alias to answer"] = switches(settings, url, photos[0])
    port = free_port()
    uri = f"models:/{settings.model_name}@champion"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--model-uri", uri]
    with server([*command, "--port", str(port)], environment, f"http://127.0.0.1:{port}/health"):

        def theirs(session: requests.Session, number: int) -> requests.Response:
            body = {"inputs": [encoded[number % len(encoded)]]}
            return session.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=120)

        for clients in (1, 8):
            found[f"mlflow models serve, {clients} clients"] = load(theirs, clients, limit)
    found["bare engine with decode"] = bare(settings, photos, limit)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 15)
