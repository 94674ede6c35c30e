"""The git host of compose.yaml with git itself as its client, and the guard with a server behind it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from ssclass.environment import free_port
from ssclass.settings import CHECKOUT
from tests.support.running import clean_environment, eventually

WRITER, READER = ("pipeline", "p@ss:wo/rd"), ("worker", "another")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end with the test."""
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for process in found:
        process.terminate()
    for process in found:
        assert process.wait(30) in (0, -15)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture
def host(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> str:
    """The URL of a repository on a host of its own."""
    bare = tmp_path / "git" / "a shop.git"
    subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", str(bare)], check=True)
    port = free_port()
    logins = {"GIT_HOST_LOGIN": ":".join(WRITER), "GIT_HOST_READ_LOGIN": ":".join(READER)}
    command = [sys.executable, "-P", "-m", "ssclass.stack.githost", str(bare.parent), str(port)]
    started.append(subprocess.Popen(command, env=clean_environment(**logins)))
    eventually("the host answers", lambda: answers(f"http://127.0.0.1:{port}"))
    return f"http://127.0.0.1:{port}/a%20shop.git"


def git(folder: Path, url: str, login: tuple[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Git in a folder, with the login by GIT_ASKPASS, as the containers give it."""
    more = {
        "GIT_ASKPASS": str(CHECKOUT / "containers" / "askpass.sh"),
        "GIT_TERMINAL_PROMPT": "0",
        "ORIGIN_HOST": url.split("/")[2],
        "ORIGIN_USER": login[0],
        "ORIGIN_PASSWORD": login[1],
    }
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *arguments]
    return subprocess.run(command, cwd=folder, env=clean_environment(**more), capture_output=True, text=True)


def test_large_pushes_and_fetches_go_through_by_those_who_may(host: str, tmp_path: Path):
    def succeeds(where: str, login: tuple[str, str], *arguments: str) -> bool:
        done = git(tmp_path / where, host, login, *arguments)
        assert WRITER[1] not in done.stdout + done.stderr
        return done.returncode == 0

    assert succeeds(".", WRITER, "clone", "-q", host, "one")
    body = os.urandom(5_000_000)  # more than http.postBuffer: git sends it in chunks, without a length
    (tmp_path / "one" / "photo").write_bytes(body)
    assert succeeds("one", WRITER, "add", "--all")
    assert succeeds("one", WRITER, "commit", "-q", "--message", "one")
    assert not succeeds("one", READER, "push", "-q", "origin", "HEAD:main")
    assert not succeeds("one", ("pipeline", "wrong"), "push", "-q", "origin", "HEAD:main")
    assert not succeeds("one", ("worker", WRITER[1]), "push", "-q", "origin", "HEAD:main")
    assert succeeds("one", WRITER, "push", "-q", "origin", "HEAD:main")
    for version in ("0", "2"):
        where = f"read-{version}"
        assert succeeds(".", READER, "-c", f"protocol.version={version}", "clone", "-q", host, where)
        assert (tmp_path / where / "photo").read_bytes() == body
    (tmp_path / "read-2" / "photo").write_text("x")
    assert succeeds("read-2", WRITER, "commit", "-q", "--all", "--message", "two")
    assert succeeds("one", WRITER, "commit", "-q", "--allow-empty", "--message", "three")
    assert succeeds("one", WRITER, "push", "-q", "origin", "HEAD:main")
    assert not succeeds("read-2", WRITER, "push", "-q", "origin", "HEAD:main"), "no fast-forward: the compare-and-set"
    assert succeeds("read-0", READER, "fetch", "-q", "origin")


@pytest.mark.parametrize("path", ["/HEAD", "/info/refs?service=git-receive-pack", "/objects/info/packs", "/../../x"])
def test_nothing_of_a_repository_is_told_to_strangers(host: str, path: str):
    for login in (None, ("pipeline", "wrong"), ("", ""), ("worker", "")):
        assert requests.get(host + path, auth=login, timeout=10).status_code == 401
    for header in ("Basic", "Basic !!!", "Bearer x", "Basic " + "A" * 10_000):
        assert requests.get(host + path, headers={"Authorization": header}, timeout=10).status_code == 401


BEHIND = """
import asyncio, socket, sys, os
import uvicorn
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while (part := await receive()).get("more_body") or part.get("body"):
        body += part.get("body", b"")
        if not part.get("more_body"):
            break
    names = {name.decode() for name, _ in scope["headers"]}
    told = f"{scope['method']} {scope['raw_path'].decode()}?{scope['query_string'].decode()} {len(body)} "
    told += f"{'authorization' in names} {'GUARD_LOGIN' in os.environ}"
    headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 207, "headers": headers})
    await send({"type": "http.response.body", "body": told.encode() if scope["method"] != "HEAD" else b""})
uvicorn.run(app, uds=sys.argv[1], log_level="warning")
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A temporary folder with a short name: the path of a socket may have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="g-") as folder:
        yield Path(folder)


def test_the_guard_passes_on_what_it_lets_in_as_it_is(started: list[subprocess.Popen[bytes]], short: Path):
    port = free_port()
    names = f"127.0.0.1:{port},localhost:{port}"
    command = [sys.executable, "-P", "-m", "ssclass.stack.guard", str(port), names, sys.executable, "-c", BEHIND]
    environment = clean_environment(GUARD_LOGIN="me:p:a@ss", TMPDIR=str(short))
    started.append(subprocess.Popen([*command, "{socket}"], env=environment))
    url, login = f"http://127.0.0.1:{port}", ("me", "p:a@ss")

    def up() -> bool:
        try:
            return requests.get(f"{url}/health", timeout=5).status_code == 207
        except requests.RequestException:
            return False

    eventually("the server behind answers", up)
    answer = requests.put(f"{url}/a%2Fb%20c?x=%26&x=2", data=b"y" * 3_000_000, auth=login, timeout=30)
    assert answer.status_code == 207
    assert answer.text == "PUT /a%2Fb%20c?x=%26&x=2 3000000 False False", "no login reaches the server behind"
    assert answer.raw.headers.getlist("set-cookie") == ["a=1", "b=2"]
    parts = iter([b"y" * 100_000] * 20)
    assert " 2000000 " in requests.post(url, data=parts, auth=login, timeout=30).text
    assert requests.head(url, auth=login, timeout=30).status_code == 207
    assert requests.get(url, timeout=30).status_code == 401
    assert requests.get(url, auth=login, headers={"Host": "evil.example.org"}, timeout=30).status_code == 403
    assert (
        requests.get(url, auth=login, headers={"Origin": f"http://127.0.0.1:{port + 1}"}, timeout=30).status_code == 403
    )
    (folder,) = short.glob("ssclass-*")
    assert folder.stat().st_mode & 0o077 == 0, "nobody else reaches the socket"


def test_the_guard_ends_with_the_server_behind_it():
    command = [sys.executable, "-P", "-m", "ssclass.stack.guard", str(free_port()), "x", sys.executable, "-c"]
    environment = clean_environment(GUARD_LOGIN="me:secret")
    done = subprocess.run([*command, "import sys; sys.exit(3)"], env=environment, timeout=120)
    assert done.returncode == 3
