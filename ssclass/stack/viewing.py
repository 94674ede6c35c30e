"""MLflow's UI on a workspace that names no server: it ends with the command that started it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from ssclass.settings import Settings

STOPPING = 20.0  # seconds that the server has to stop
SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def view(settings: Settings, port: int, password: str) -> int:
    """Serve the UI at a port of loopback until Ctrl-C, SIGTERM or SIGHUP; the exit code of what served it.

    It asks for the user `ssclass` and the password. Behind its guard nobody else reaches it.
    """
    names = f"127.0.0.1:{port},localhost:{port}"
    python = (sys.executable, "-P", "-m")
    command = [*python, "ssclass.stack.guard", f"127.0.0.1:{port}", names]
    command += [*python, "mlflow", "server", "--uvicorn-opts", "--uds {socket}", "--workers", "1"]
    command += ["--backend-store-uri", settings.tracking_uri, "--allowed-hosts", names]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "GUARD_LOGIN": f"ssclass:{password}"}

    def interrupted(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupted) for number in SIGNALS}
    process = subprocess.Popen(command, env=environment, start_new_session=True)  # Ctrl-C is ours to hand on
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # what is stopping has a time limit of its own
        process.terminate()  # the guard ends the server behind it
        try:
            process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):  # what the server started and did not end
            os.killpg(process.pid, signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)
