"""The command line as a person meets it: help with examples, whole ids at 80 columns, --json, servers that end."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ssclass.cli import cli
from ssclass.cli.common import print_table
from ssclass.cli.examples import CODES, EXAMPLES, leaves
from ssclass.errors import FailedError
from ssclass.settings import STARTED_FILE
from ssclass.stack import webhook
from ssclass.stack.storage import storage
from ssclass.workspace.create import create
from tests.support.pipelines import Command
from tests.support.running import clean_environment, eventually

COMMANDS = leaves(cli)


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_each_help_has_an_example_that_can_be_typed(path: str):
    context = click.Context(COMMANDS[path], info_name=path)
    assert "Example" in COMMANDS[path].get_help(context)
    for example in EXAMPLES[path]:
        command: click.Command = cli
        words = shlex.split(example)
        while isinstance(command, click.Group):
            _, found, words = command.resolve_command(click.Context(command), words)
            assert found is not None
            command = found
        assert command is COMMANDS[path]
        command.make_context(path, words)  # UsageError where it does not take them


def test_help_tells_the_exit_codes():
    assert " ".join(CODES.split()[:4]) in " ".join(cli.get_help(click.Context(cli)).split())


@pytest.mark.parametrize(("typed", "meant"), [("statsu", "status"), ("batch shwo", "show"), ("retrian", "retrain")])
def test_a_misspelt_command_is_told_the_right_one(ssclass: Command, typed: str, meant: str):
    done = ssclass(*typed.split())
    assert done.returncode == 2
    assert f"'{meant}'" in done.stderr


@pytest.mark.parametrize(
    "path",
    ["init", "submit", "import", "export", "batch admit", "batch drop", "deploy", "bucket setup", "up", "status"],
)
def test_machines_can_read_it(path: str):
    assert "--json" in {option for each in COMMANDS[path].params for option in each.opts}


def test_json_is_all_that_is_printed(ssclass: Command, tmp_path: Path, drawings: Path):
    """On a real S3, the stack's own."""
    folder = tmp_path / "shop"
    made = json.loads(ssclass("init", str(folder), "--json").stdout)
    assert (made["workspace"], made["origin"]) == (str(folder), f"{folder}.git")
    from ssclass.settings import load_settings

    with storage(load_settings(folder)):
        sent = json.loads(ssclass("submit", str(drawings), "--id", "day-1", "--json", cwd=folder).stdout)
        assert sent == {"batch": "day-1", "photos": 24, "place": "s3://ssclass/incoming/day-1/"}
        dropped = json.loads(ssclass("batch", "drop", "day-1", "--json", cwd=folder).stdout)
        assert dropped == {"batch": "day-1", "status": "dropped"}
        prepared = json.loads(ssclass("bucket", "setup", "--json", cwd=folder).stdout)
        assert prepared["lifecycle"] is False, "JuiceFS has none"


@pytest.mark.parametrize("width", [40, 80, 160])
def test_an_id_is_whole_at_any_width(width: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    batch, digest = "20261128-174609-a-long-name-of-a-folder", "0123456789abcdef" * 2
    why = "a sentence of many words that may well be folded " * 4
    print_table(("batch", "photo", "n", "why"), [(batch, digest, 7, why), ("b", "c", None, "")])
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert batch in said
    assert digest in said
    assert "…" not in said
    assert said.count("sentence") == 4


def test_a_webhook_that_cannot_listen_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedError, match=f"--webhook {port}: cannot listen there .*another port"):
            webhook.server(str(port), "secret")(lambda body: None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_ui_ends_its_server_with_itself(number: signal.Signals, tmp_path: Path):
    """Nothing is left, whichever signal ends the command, and whether the server was up by then."""
    folder = tmp_path / "shop"
    create(folder, {})
    assert not (folder / STARTED_FILE).exists()
    environment = clean_environment(SSCLASS_HOME=str(tmp_path / "home"), MARK_OF_THIS_TEST=str(tmp_path))
    command = [sys.executable, "-m", "ssclass", "ui", "--workspace", str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    def left() -> list[int]:
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK_OF_THIS_TEST={tmp_path}".encode() in (each / "environ").read_bytes().split(b"\0"):
                    found.append(int(each.name))
            except OSError:
                continue
        return found

    eventually("the guard and its server run", lambda: len(left()) >= 3)
    process.send_signal(number)
    assert process.wait(60) == 0
    eventually("nothing is left", lambda: not left(), within=30)


def test_history_draws_candidate_and_champion_on_the_same_photos(capsys):
    from ssclass.cli.workspace import _draw

    def body(decision: str, right: int, champion: int | None, of: int) -> dict:
        champion = champion and {"right": champion}
        return {
            "data_version": f"data/{of}",
            "decision": decision,
            "candidate": {"right": right},
            "champion": champion,
            "holdout": {"size": of},
        }

    _draw([body("PROMOTED", 55, None, 55), body("REJECTED", 80, 90, 100), body("HELD", 0, None, 0)])
    first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert first.split()[-3:] == ["75%", "to", "100%"]
    assert second.split()[:4] == ["data/55", "PROMOTED", "candidate", "55/55"]
    assert third.split()[:4] == ["data/100", "REJECTED", "champion", "90/100"]
    assert fourth.split()[:2] == ["candidate", "80/100"]
    assert second.count("█") > third.count("█") > fourth.count("█") > 0
    assert all(len(line) <= 80 for line in (first, second, third, fourth))
    _draw([])
    assert "no decisions yet" in capsys.readouterr().out
