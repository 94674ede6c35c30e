"""What is taken out of messages, logs and notices, and what is left in them."""

import base64
import pickle
import subprocess
import sys
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssclass.errors import SsclassError, StoreError
from ssclass.secrets import LineFormatter, hide, without_secrets
from ssclass.settings import Settings

KEPT = (
    "http://127.0.0.1:4200/api",
    "s3://photos/incoming/day-1/manifest.json",
    "git@example.org:shop.git",
    "ssh://git@example.org:2222/shop.git",
    "postgresql://ssclass@postgres:5432/mlflow",
    "mailto://127.0.0.1:2525?from=a@example.org&to=b@example.org",
    "https://mlflow.example.org/#/experiments/1/runs?viewStateShareKey=decisions",
    "Basic knowledge of Bearer bonds",
    "2 of 3 photos; key=value; http://host/a@b",
    "champion 88/92, candidate 90/92",
)


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("fatal: https://user:hunter22@example.org/x.git not found", "hunter22"),
        ("https://ghp_0123456789abcdef@github.com/x.git", "ghp_"),
        ("postgresql+asyncpg://ssclass:p@ss/w:rd?#@postgres/db", "w:rd"),
        ("redis://:only-a-password@host", "only-a-password"),
        ("postgres://u:123456@host/db", "123456"),
        ("GET https://bucket.example.org/x?X-Amz-Signature=abc123def&y=1", "abc123def"),
        ("https://example.org/hook?token=abcdef", "abcdef"),
        ("https://example.org/hook?a=1&api_key=abcdef#x", "abcdef"),
        ("headers {'Authorization': 'Bearer abcdefgh.ijk'}", "abcdefgh"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNz"),
        ("two: http://a:secret1@x http://b:secret2@y", "secret"),
    ],
)
def test_a_secret_goes(text, secret):
    said = without_secrets(text)
    assert secret not in said
    assert "***" in said
    assert without_secrets(said) == said


PRINTABLE = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"")


@given(
    user=st.sampled_from(["", "u", "ssclass"]),
    password=st.text(PRINTABLE, min_size=6),
)
def test_no_password_of_a_url_stays(user, password):
    """Quoted as it should be, or not, as people do it; digits alone and a slash after them look like a port."""
    for spelt in {quote(password, safe=""), password.replace("/", "").replace("?", "").replace("#", "")}:
        if len(spelt) >= 6:
            said = without_secrets(f"cannot reach postgresql://{user}:{spelt}@db.example.org/x: timeout")
            assert spelt not in said.replace("db.example.org/x: timeout", "")
            assert said.endswith("timeout")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "PREFECT_API_AUTH_STRING", "MY_TOKEN"])
def test_what_the_environment_names_a_secret_goes_however_it_is_spelt(monkeypatch, name):
    value = "someone:f~0o/b ar"
    monkeypatch.setenv(name, value)
    forms = (value, quote(value, safe=""), base64.b64encode(value.encode()).decode(), "f~0o/b ar")
    for form in forms:
        assert without_secrets(f"it said {form}!") == "it said ***!"


def test_what_was_hidden_goes_and_short_words_stay():
    hide("a-webhook-address", "it")
    assert without_secrets("it said a-webhook-address") == "it said ***"


def test_uncaught_errors_of_the_command_line_hold_no_password():
    """The one line that a command ends with: an MLflow server that is named with its login."""
    program = """
import sys
from ssclass.cli import cli, main
from ssclass.errors import FailedError
import click
@cli.command()
def fails():
    raise FailedError("http://me:my-password@127.0.0.1:9 is away; start it")
sys.argv = ["ssclass", "fails"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "ssclass: http://me:***@127.0.0.1:9 is away; start it\n"


def test_an_error_of_ours_holds_no_secret_however_it_is_shown():
    """Prefect logs the repr of what a run failed with, and keeps it; a notice quotes the text."""
    error = pickle.loads(pickle.dumps(StoreError("https://me:my-password@example.org is away; start it")))
    assert "my-password" not in f"{error} {error!r} {error.args}"
    assert "https://me:***@example.org is away" in str(error)


def test_a_line_of_a_log_that_is_fine_stays_as_it_is():
    import logging

    record = logging.LogRecord("x", logging.WARNING, "f", 1, "webhook: %s", ("day-1",), None)
    assert LineFormatter("%(message)s").format(record) == "webhook: day-1"


@pytest.mark.parametrize("word", ["x", "a://b:", "?token", "Basic a", "a\x1b\n"])
def test_an_error_keeps_and_shows_no_more_than_it_can_say(word: str) -> None:
    """A label of five megabytes in a message once took minutes of backtracking."""
    error = SsclassError(word * (5_000_000 // len(word)))
    assert len(error.args[0]) < 30_000
    assert len(str(error)) < 2100
    assert without_secrets("x" * 300_000) == "x" * 300_000


def test_what_prefect_logs_and_keeps_of_an_error_of_others_holds_no_secret(tmp_path, caplog):
    """Its own loggers send records to its server, and a state keeps an error's words: whoever reads there sees them."""
    import logging

    from ssclass.environment import quiet_libraries
    from ssclass.secrets import redact

    quiet_libraries(Settings(workspace=tmp_path))
    log = logging.getLogger("prefect.task_runs")
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(logging.Formatter().format(record))
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)  # an earlier test may have had Prefect log nothing
    try:
        try:
            try:
                raise ConnectionError("could not reach postgresql://mlflow:hunter2hunter2@db/mlflow")
            except ConnectionError as error:
                raise RuntimeError("the store at https://x.example/?token=abcdef123456 is away") from error
        except RuntimeError as error:
            log.error("Task failed: %s", error, exc_info=True)
            redact(error)
            said += [str(error), str(error.__cause__)]
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert len(said) == 3
    assert "is away" in said[1]
    assert "Traceback" in said[0]
    assert not [each for each in said if "hunter2" in each or "abcdef" in each], said
