"""Keeping secrets out of messages, logs and notices.

Every message that is printed, logged or sent may quote a URL, a command or a server's answer, and with them a
password. :func:`without_secrets` takes out what looks like one and what this process knows to be one.
"""

from __future__ import annotations

import logging
import os
import re
from base64 import b64encode
from urllib.parse import quote

from ssclass.text import shown

HIDDEN = "***"
SHORTEST = 6  # characters; a shorter value is not taken out, as it would spoil ordinary words
LONGEST = 2000  # characters of a log line

_NAMED = re.compile(r"(?:PASSWORD|PASSWD|SECRET|TOKEN|AUTH_STRING|API_KEY|LOGIN|CREDENTIAL|CONNECTION_URL)")
# Repetitions are bounded: text of others, however long, takes time in proportion to its length.
_LOGIN = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,40}://)"
    r"(?:"
    # user:password@, up to the last @ of the word, as people forget to quote / and @; a port is no password
    r"(?P<user>[^\s/:@?#'\"]{0,500}):(?!\d*(?:[/?#\s]|$))[^\s'\"]{0,1000}@"
    r"|(?P<only>[^\s/:@?#'\"]{1,1000})@"  # token@ of http; elsewhere it is a user's name
    r")"
)
_QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w.-]{0,100}(?:token|secret|password|passwd|signature|credential|api[_-]?key)"
    r"|key|sig|pass|auth))="
    r"[^\s&;#'\"]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(?P<scheme>Basic|Bearer)\s+(?=\S*[0-9=._])[A-Za-z0-9+/=._~-]{8,}")
_known: set[str] = set()


def hide(*secrets: str) -> None:
    """Have :func:`without_secrets` take these values out of every text of this process."""
    _known.update(secret for secret in secrets if len(secret) >= SHORTEST)


def without_secrets(text: str) -> str:
    """The text with `***` in the place of every password, token and key that it holds.

    Taken out are logins in URLs, secret values of query strings and of Authorization headers, the values given to
    :func:`hide`, and those of environment variables named like a secret, each also as URLs and base64 spell it.
    """
    for value in sorted(_values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _LOGIN.sub(_without_login, text)
    text = _QUERY.sub(lambda found: f"{found['name']}={HIDDEN}", text)
    return _HEADER.sub(lambda found: f"{found['scheme']} {HIDDEN}", text)


def _values() -> set[str]:
    named = {value for name, value in os.environ.items() if _NAMED.search(name.upper()) and len(value) >= SHORTEST}
    plain = _known | {value for value in named if not value.startswith("/")}
    logins = {part for value in plain for part in (value.partition(":")[2],) if len(part) >= SHORTEST}
    return {
        spelt
        for value in plain | logins
        for spelt in (value, quote(value, safe=""), b64encode(value.encode()).decode())
    }


def _without_login(found: re.Match[str]) -> str:
    only = found["only"]
    if only is None:
        return f"{found['scheme']}{found['user']}:{HIDDEN}@"
    return f"{found['scheme']}{HIDDEN if found['scheme'].lower().startswith('http') else only}@"


def redact(error: BaseException) -> None:
    """Take secrets out of an error that somebody else made, and out of those that it came from, in place."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        one.args = tuple(without_secrets(each) if isinstance(each, str) else each for each in one.args)
        one = one.__cause__ or one.__context__


class WithoutSecrets(logging.Filter):
    """Takes secrets out of every record of a logger, tracebacks included, before any handler has it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record in place, and let it pass."""
        record.msg, record.args = without_secrets(record.getMessage()), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text, record.exc_info = (
                without_secrets(logging.Formatter().formatException(record.exc_info)),
                None,
            )
        return True


class LineFormatter(logging.Formatter):
    """Writes one line a record, whatever is quoted in it: nothing in a message can look like another record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line without secrets; a traceback follows it, indented."""
        trace, record.exc_text = record.exc_info, None
        record.exc_info = None
        line = shown(without_secrets(super().format(record)), LONGEST)
        record.exc_info = trace
        if trace:
            told = without_secrets(self.formatException(trace))
            line += "".join(f"\n    {shown(each, LONGEST)}" for each in told.splitlines())
        return line
