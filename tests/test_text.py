"""Text of others: spelt and cut wherever it is shown or kept; class names, spelt for MLflow and for figures."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssclass.data.batches import Batch, BatchRef
from ssclass.data.build import build_shard
from ssclass.data.dataset import Dataset
from ssclass.data.manifest import Entry
from ssclass.errors import BatchError, SsclassError
from ssclass.params import Params
from ssclass.review.application import _back
from ssclass.secrets import LineFormatter
from ssclass.store import Store
from ssclass.text import (
    METRIC_LIMIT,
    chart_word,
    markdown_word,
    message,
    metric_word,
    printable,
    quoted,
    shown,
    url_parts,
)
from ssclass.workspace.ledger import Event

NASTY = "a\x1b[2J\x1b]0;title\x07\r\nsecond line\u2028third\x9b31m\u202egnp.\ud800"


@given(st.text())
@example(NASTY)
def test_whatever_is_shown_is_one_line_that_moves_no_cursor(text: str) -> None:
    for made in (printable(text), shown(text), quoted(text), message(text)):
        visible = made.replace("\u200c", "").replace("\u200d", "")
        assert all(
            c.isprintable() or (c.isspace() and c not in "\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029") for c in visible
        )
        made.encode()
        assert len(made.splitlines()) <= 1


@pytest.mark.parametrize(
    "name", ["sushi", "fish & chips", "寿司\u3000🍣", "crème brûlée", "می\u200cخواهم", "👩\u200d🍳", "O'Hara"]
)
def test_what_people_write_stays_as_it_is(name: str) -> None:
    assert printable(name) == shown(name) == message(name) == name


def test_what_is_long_is_cut_and_says_so() -> None:
    assert shown("x" * 5_000_000) == "x" * 120 + "… (5,000,000 characters)"
    assert len(message("x" * 5_000_000)) < 2100
    assert message("begin " + "x" * 5000 + " end").endswith(" end"), "the remedy stands at the end"


def test_errors_ledger_and_logs_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert printable(str(SsclassError(NASTY))) == str(BatchError(NASTY))
    assert len(str(BatchError("x" * 5_000_000))) < 2100
    event = Event.now("decision", decision="HELD", reason=NASTY * 100_000)
    assert len(event.line()) < 6000
    assert json.loads(event.line())["reason"].isprintable()
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LineFormatter("%(message)s"))
    log = logging.getLogger("test of lines")
    log.addHandler(handler)
    log.warning("webhook: %s", "b1\n2026-01-01 PROMOTED b2")
    assert len(out.getvalue().splitlines()) == 1
    assert out.getvalue().startswith("webhook: b1")


def test_receipts_quote_labels_cut(s3: Store, params: Params, tmp_path: Path) -> None:
    entry = Entry("a.jpg", "\x1b[2J" + "y" * 5_000_000)
    batch = Batch(BatchRef("b1", "manifest.json", "etag", "2026-01-01"), (entry,))
    (tmp_path / "scratch").mkdir()
    receipt = build_shard(s3, batch, params, Dataset(), tmp_path / "scratch", tmp_path / "b1.parquet")
    (refused,) = receipt.refused
    assert refused.reason == "unknown label"
    assert len(refused.detail) < 400
    assert refused.detail.isprintable()


def test_tables_and_lines_neither_act_nor_break_in_a_pipe() -> None:
    code = (
        "from ssclass.cli.common import print_line, print_table\n"
        f"nasty = {NASTY!r}\n"
        "print_table(('key',), [(nasty,), ('[bold]not markup[/nonsense]',), ('寿司',)])\n"
        "print_line(nasty)\n"
    )
    environment = {"PYTHONIOENCODING": "latin-1:backslashreplace", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert b"[bold]not markup[/nonsense]" in done.stdout


CLASSES = (
    "sushi",
    "fish & chips",
    "fish | chips",
    "O'Hara",
    "ก๋วยเตี๋ยว",
    "a(b)",
    "100%",
    "#1",
    "🍣",
    "a:b",
    "a.b",
    "x-y_z",
    "crème brûlée",
    "x" * 200,
    "$x^$",
    r"a\b",
)


def test_every_class_has_a_name_that_mlflow_takes_and_no_two_have_one() -> None:
    from mlflow.utils.validation import _validate_metric

    words = {name: metric_word(name) for name in CLASSES}
    assert len(set(words.values())) == len(CLASSES)
    for word in words.values():
        _validate_metric(f"f_measure_{word}", 1.0, 0, 0)
    assert all(words[name] == name for name in ("sushi", "a:b", "a.b", "x-y_z", "crème brûlée"))


@given(st.text(min_size=1, max_size=300).filter(lambda name: "/" not in name and printable(name) == name))
def test_a_name_that_mlflow_took_before_is_not_changed(name: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import _validate_metric

    def takes(word: str) -> bool:
        try:
            _validate_metric(f"f_measure_{word}", 1.0, 0, 0)
        except MlflowException:
            return False
        return True

    assert takes(metric_word(name))
    if takes(name) and len(name) <= METRIC_LIMIT:
        assert metric_word(name) == name


def test_figures_and_tables_show_names_as_they_are() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    names = ("$x^$", r"$\nonsense$", "5$ menu", r"a\$b")
    figure.subplots().set(xticks=range(len(names)), xticklabels=[chart_word(name) for name in names])
    figure.savefig(io.BytesIO())
    assert markdown_word("a|b<c>`d`") == "a\\|b&lt;c>\\`d\\`"


def test_what_is_no_url_has_no_parts():
    assert url_parts("http://[") is None
    assert url_parts("http://example.org/a?b").netloc == "example.org"


def test_a_page_that_came_from_nowhere_goes_back_to_the_first():
    assert _back("http://[", "/review") == "/review/"
    assert _back("http://127.0.0.1/review/held?page=2", "/review") == "/review/held?page=2"
