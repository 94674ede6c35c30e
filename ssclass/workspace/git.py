"""Git, run in one folder: the only place that starts the program `git`, and where its failures become ours."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ssclass.errors import FailedError, InputError, LostRaceError
from ssclass.secrets import without_secrets

AUTHOR = "pipeline@ssclass.invalid"
"""The e-mail address of the pipeline's commits; a person's commits have another."""

_OF_ANOTHER_REPOSITORY = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
)
"""What `git rev-parse --local-env-vars` lists: a hook or `git rebase --exec` sets them for its own repository."""

_OPTIONS = ("-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false")
_URL = re.compile(r"(file|git|http|https|ssh)://", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]*@")

_MOVED = (
    "non-fast-forward",
    "fetch first",
    "stale info",
    "cannot lock ref",
    "failed to update ref",
    "incorrect old value",
    "(already exists)",  # a tag: somebody pushed it alone
)
"""Words by which git says that origin has moved: another writer pushed first."""

_BUSY = ("index.lock", "HEAD.lock", "Another git process seems to be running")

_FOR_GOOD = (
    ("protected branch", "allow this user to push to main, or name another origin"),
    ("pre-receive hook declined", "see what origin's hook asks for"),
    ("hook declined", "see what origin's hook asks for"),
    ("unpacker error", "make the folder of origin writable for this user"),
    ("insufficient permission", "make the folder of origin writable for this user"),
    ("Permission denied", "give this user a key or a token that may push there"),
    ("Permission to", "give this user a key or a token that may push there"),
    ("Host key verification failed", "add the host's key to known_hosts: connect once with ssh"),
    ("Authentication failed", "give git a credential helper or a token for that host"),
    ("could not read Username", "give git a credential helper or a token for that host"),
    ("could not read Password", "give git a credential helper or a token for that host"),
    ("terminal prompts disabled", "give git a credential helper or a token for that host"),
    ("returned error: 401", "give git a credential helper or a token for that host"),
    ("returned error: 403", "give this user the right to push there"),
    ("access denied", "give this user the right to push there"),
    (
        "service not enabled",
        "let origin's server accept pushes (http.receivepack, or `git daemon --enable=receive-pack`)",
    ),
    ("unsupported protocol", "use a URL that begins with https://, ssh://, git:// or file://"),
    ("is not supported", "use a URL that begins with https://, ssh://, git:// or file://"),
    ("deny updating", "origin forbids this update; see receive.* in its configuration"),
    ("denyCurrentBranch", "make origin a bare repository"),
    ("refusing to update checked out branch", "make origin a bare repository"),
)
"""Words of refusals that waiting does not change, and what helps."""


class GitRefusedError(FailedError):
    """Git refused for good: trying again does not help, a person has to act."""


class Git:
    """Git in a folder, with the pipeline as author. Variables of another repository in the environment are ignored.

    `patience`: seconds for which a command that talks to origin is repeated while origin is away.
    """

    def __init__(self, folder: Path, patience: float = 0.0) -> None:
        self.folder = folder
        self.patience = patience

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run git and return what it said, whatever the exit status."""
        return subprocess.run(
            ["git", *_OPTIONS, *args],
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def __call__(self, *args: str, check: bool = True) -> str:
        """Run git and return what it prints; FailedError with its message when it fails.

        A lock that another git process holds in this folder is waited for, a few seconds long.
        """
        done = self._unless_busy(args)
        if check and done.returncode:
            raise failure(f"git {args[0]} in {self.folder}", done)
        return done.stdout.strip()

    def remote(self, *args: str) -> str:
        """Run a command that talks to origin; while origin is away, again for `patience` seconds.

        LostRaceError when origin has moved, GitRefusedError when it refuses for good (told at once), FailedError when
        it stays away.
        """
        from tenacity import Retrying, retry_if_result, stop_after_delay, wait_exponential

        def is_away(done: subprocess.CompletedProcess[str]) -> bool:
            return done.returncode != 0 and not _mentions(done.stderr, _MOVED) and _remedy(done.stderr) is None

        again = Retrying(
            retry=retry_if_result(is_away),
            stop=stop_after_delay(self.patience),
            wait=wait_exponential(max=10),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        done: subprocess.CompletedProcess[str] = again(self._unless_busy, args)
        if done.returncode:
            raise failure(f"git {args[0]} in {self.folder}", done)
        return done.stdout.strip()

    def first_commit(self) -> str | None:
        """What a workspace is known by, wherever it is moved or cloned to (hex, 16); None where there is none."""
        done = self.run("rev-list", "--max-parents=0", "HEAD")
        return min(done.stdout.split())[:16] if done.returncode == 0 and done.stdout.split() else None

    def _unless_busy(self, args: Sequence[str]) -> subprocess.CompletedProcess[str]:
        from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

        again = Retrying(
            retry=retry_if_result(lambda done: done.returncode != 0 and _mentions(done.stderr, _BUSY)),
            stop=stop_after_delay(min(5.0, self.patience)),
            wait=wait_fixed(0.2),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        result: subprocess.CompletedProcess[str] = again(self.run, *args)
        return result


def environment() -> dict[str, str]:
    """This process's environment for git: no other repository's variables, no prompts, plain English messages."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_REPOSITORY}
    identity = {
        f"GIT_{role}_{part}": value
        for role in ("AUTHOR", "COMMITTER")
        for part, value in (("NAME", "ssclass"), ("EMAIL", AUTHOR))
    }
    own = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh", "LC_ALL": "C"}
    return {**kept, **identity, **own}


def check_url(url: str) -> str:
    """The URL of an origin, as it came; InputError unless it is a folder, an scp-like address or a URL git may use.

    What begins with a dash would be an option to git; a password in it would be committed and shown.
    """
    if url.startswith("-") or "\n" in url or "::" in url.split("/")[0]:
        raise InputError(f"git URL {url!r}: not an address; use a folder, https://…, ssh://… or user@host:path")
    if "://" in url and not _URL.match(url):
        raise InputError(f"git URL {url!r}: this protocol is not used; use https://, ssh://, git:// or file://")
    if _PASSWORD.search(url):
        raise InputError(
            f"git URL {_PASSWORD.sub('', url)}: it carries a password; leave that out, and give it by a git credential "
            "helper, an SSH key, or http.extraHeader in GIT_CONFIG_COUNT"
        )
    return url


def failure(what: str, done: subprocess.CompletedProcess[str]) -> FailedError:
    """The error that a failed git command is: lost race, refused for good, or away; with all that git said."""
    said = message(done.stderr) or message(done.stdout) or "no message"
    if _mentions(done.stderr, _BUSY):
        return FailedError(f"{what}: {said}; end the other git process in this folder, then run this again")
    if remedy := _remedy(done.stderr):
        return GitRefusedError(f"{what}: {said}; {remedy}")
    if _mentions(done.stderr, _MOVED):
        return LostRaceError(f"{what}: another writer pushed first ({said})")
    return FailedError(f"{what}: {said}; check the address of origin (`git remote -v`) and the access to it")


def message(stderr: str) -> str:
    """What git says, on one line: its hints and progress left out, passwords in URLs too."""
    lines = [line.strip() for line in stderr.splitlines()]
    kept = [
        line.removeprefix("remote: ").removeprefix("fatal: ").removeprefix("error: ")
        for line in lines
        if line and not line.startswith(("hint:", "To ", "error: failed to push some refs", "Everything up-to-date"))
    ]
    return without_secrets(" / ".join(dict.fromkeys(kept)))[:1000]


def _mentions(stderr: str, words: Sequence[str]) -> bool:
    return any(word in stderr for word in words)


def _remedy(stderr: str) -> str | None:
    return next((remedy for words, remedy in _FOR_GOOD if words.lower() in stderr.lower()), None)
