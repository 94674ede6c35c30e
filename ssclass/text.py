"""Text that others wrote (file names, labels, keys, messages of servers), made fit for where it is shown or kept.

Whoever sends photos chooses keys and labels. Raw, they could move a terminal's cursor, forge a line of a log, or
make a line of the ledger five megabytes long. Every error, receipt, notice and table passes its foreign parts through
here; what is stored by content (keys in S3, labels in shards) stays as it came.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from urllib.parse import SplitResult, urlsplit

SHOWN = 120
"""Characters of one foreign name that are shown."""
LINE = 2000
"""Characters of one message."""
_JOINERS = "\u200c\u200d"  # Persian, Hindi and emoji need them; they print nothing of their own


def printable(text: str) -> str:
    r"""The text in one line: whatever a terminal or a log would act on is spelt out, as ``\n``, ``\x1b`` or ``\u202e``.

    Letters, digits, marks, punctuation, symbols and blanks of every script stay; control characters, line and
    paragraph separators, direction overrides, surrogates and unassigned code points do not.
    """
    if text.isprintable():
        return text
    return "".join(c if _shows(c) else _spelt(c) for c in text)


def _shows(c: str) -> bool:
    return c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs"


def _spelt(c: str) -> str:
    return c.encode("unicode_escape").decode()


def shown(text: object, limit: int = SHOWN) -> str:
    """A foreign name as it may stand in a message: printable, and cut to about `limit` characters."""
    whole = str(text)
    if len(whole) <= limit:
        return printable(whole)
    return f"{printable(whole[:limit])}… ({len(whole):,} characters)"


def quoted(text: object, limit: int = SHOWN) -> str:
    """A foreign name in quotation marks, as `shown`."""
    whole = str(text)
    if len(whole) <= limit:
        return f"'{printable(whole)}'"
    return f"'{printable(whole[:limit])}…' ({len(whole):,} characters)"


def message(text: object, limit: int = LINE) -> str:
    """A whole message in one line of at most about `limit` characters, its middle left out where it is longer."""
    line = " ".join(printable(part) for part in str(text).splitlines() if part.strip())
    if len(line) <= limit:
        return line
    return f"{line[: limit // 2]} … {line[-limit // 2 :]}"


def composed(name: str) -> str:
    """The name in composed Unicode (NFC), in which names are compared: macOS writes ``é`` as ``e`` and an accent."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """What a name is on a file system or a server that knows no difference between upper and lower case."""
    return unicodedata.normalize("NFKC", name).casefold()


METRIC = re.compile(r"[\w.\- :]+")
"""What MLflow takes in a metric's name (`mlflow.utils.validation`), but for the slash, which no class has."""
METRIC_LIMIT = 200  # characters of a class in a metric's name; MLflow's limit for the whole is 250


def metric_word(name: str) -> str:
    """A class's name as part of a metric's name in MLflow: itself where MLflow takes it, else spelt so that it does.

    What MLflow refuses becomes ``_``, and six hex digits of the name's sha256 keep two such names apart:
    ``fish & chips`` is ``fish _ chips.02479a``.
    """
    if METRIC.fullmatch(name) and len(name) <= METRIC_LIMIT:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return re.sub(r"[^\w.\- :]", "_", name)[:METRIC_LIMIT] + f".{digest}"


def markdown_word(name: str) -> str:
    """A name as text in a table of Markdown, which would read a bar, a backquote or an angle bracket its own way."""
    return re.sub(r"([\\`|*\[\]])", r"\\\1", printable(name)).replace("<", "&lt;")


def chart_word(name: str) -> str:
    """A name as text in a figure: Matplotlib would read what stands between two dollar signs as a formula."""
    return printable(name).replace("$", r"\$")


def url_parts(text: str) -> SplitResult | None:
    """The parts of a URL that a stranger wrote; None where it is none, as ``http://[``."""
    try:
        return urlsplit(text)
    except ValueError:
        return None
