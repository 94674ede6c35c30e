"""What a workspace puts into the environment, and what of a person's own gets in the way."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ssclass.environment import LOGINS_FILE, check_imports, logins, private_folder, quiet_libraries, write_private
from ssclass.errors import FailedError
from ssclass.settings import CHECKOUT, SETTINGS_FILE, Settings, load_settings
from tests.support.running import clean_environment


def workspace(folder: Path, **values: str) -> Settings:
    """Settings of a folder that is a workspace as far as they are concerned."""
    folder.mkdir()
    (folder / SETTINGS_FILE).write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    return load_settings(folder)


def give_logins(settings: Settings, **urls: str) -> None:
    tables = (f'[{part}]\nurl = "{url}"\nuser = "u"\npassword = "of-{part}"\n' for part, url in urls.items())
    write_private(settings.private / LOGINS_FILE, "".join(tables))


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    """The environment as it was, also after the module under test has changed it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_what_was_given_for_one_workspace_is_not_the_next_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("PREFECT_HOME", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    one = workspace(tmp_path / "one", prefect_url="http://one/api", mlflow_uri="http://one-mlflow")
    give_logins(one, prefect="http://one/api", mlflow="http://one-mlflow")
    other = workspace(tmp_path / "other", prefect_url="http://other/api", mlflow_uri="http://other-mlflow")
    quiet_libraries(one)
    assert os.environ["PREFECT_API_AUTH_STRING"] == "u:of-prefect"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "of-mlflow"
    quiet_libraries(other)
    assert os.environ["PREFECT_API_URL"] == "http://other/api"
    assert os.environ["PREFECT_HOME"] == str(other.private / "prefect")
    assert os.environ["DVC_SITE_CACHE_DIR"] == str(other.private / "dvc" / "site")
    assert "PREFECT_API_AUTH_STRING" not in os.environ, "sent to another server"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ, "sent to another server"


def test_a_login_goes_to_the_server_that_it_is_for_and_to_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:of-my-own-server")
    one = workspace(tmp_path / "one", prefect_url="http://mine/api")
    give_logins(one, prefect="http://started/api")
    quiet_libraries(one)
    assert os.environ["PREFECT_API_AUTH_STRING"] == "me:of-my-own-server"
    give_logins(one, prefect="http://mine/api")
    quiet_libraries(one)
    assert os.environ["PREFECT_API_AUTH_STRING"] == "u:of-prefect", "a person's own would not be let in"
    (one.private / LOGINS_FILE).unlink()
    quiet_libraries(one)
    assert os.environ["PREFECT_API_AUTH_STRING"] == "me:of-my-own-server"


def test_what_a_person_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_HOME", "/somewhere")
    one = workspace(tmp_path / "one")
    for _ in range(2):
        quiet_libraries(one)
        assert os.environ["PREFECT_HOME"] == "/somewhere"


def test_damaged_logins_are_named(tmp_path: Path):
    one = workspace(tmp_path / "one")
    write_private(one.private / LOGINS_FILE, "[prefect\n")
    with pytest.raises(FailedError, match=r"logins\.toml.*ssclass up"):
        logins(one)


def test_prefect_that_is_imported_already_hears_of_the_workspace(tmp_path: Path):
    """It reads the environment when it is imported; a temporary server would then be its own, and time out."""
    program = """
import os, sys
from pathlib import Path
import prefect
from prefect.settings import get_current_settings
from ssclass.environment import quiet_libraries
from ssclass.settings import load_settings
for name in sys.argv[1:]:
    settings = load_settings(Path(name))
    quiet_libraries(settings)
    found = get_current_settings()
    assert found.api.url == settings.prefect_url, found.api.url
    assert found.home == settings.private / "prefect", found.home
    assert found.server.ephemeral.startup_timeout_seconds == 180
    assert found.server.analytics_enabled is False
"""
    folders = [workspace(tmp_path / "one").workspace, workspace(tmp_path / "two", prefect_url="http://x/api").workspace]
    command = [sys.executable, "-c", program, *map(str, folders)]
    environment = clean_environment(HOME=str(tmp_path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mask", [0o022, 0o000, 0o077])
def test_the_private_folder_is_its_owners_whoever_makes_it(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        one = workspace(tmp_path / "one")
        one.private.mkdir(mode=0o755)
        quiet_libraries(one)
        assert stat.S_IMODE(one.private.stat().st_mode) == 0o700, "an older version made it for everybody"
        two = workspace(tmp_path / "two")
        private_folder(two)
        assert stat.S_IMODE(two.private.stat().st_mode) == 0o700
        write_private(two.private / "deep" / "secret", "x")
        assert stat.S_IMODE((two.private / "deep" / "secret").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_every_command_leaves_the_private_folder_to_its_owner(tmp_path: Path, s3_endpoint: str):
    where = tmp_path / "shop"
    environment = clean_environment()

    def run(*arguments: object) -> None:
        command = [sys.executable, "-m", "ssclass", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, umask=0o022, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    run("init", where, "--endpoint", s3_endpoint)
    for command in (("status",), ("history",)):
        run(*command, "--workspace", where)
        assert stat.S_IMODE((where / ".ssclass").stat().st_mode) == 0o700, command


# -- a person's own tasks.py and flows -----------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder with the names that Invoke and others use."""
    folder = tmp_path / "theirs"
    (folder / "flows").mkdir(parents=True)
    for name in ("tasks.py", "flows/__init__.py", "flows/retrain.py", "prefect.py", "click.py"):
        (folder / name).write_text('raise SystemExit("somebody else\'s")\n')
    return folder


def test_files_in_the_current_folder_are_not_taken_for_ours(theirs: Path):
    """click.py there stands for whatever the command imports; the checkout itself stays on the path where it is one."""
    command = [sys.executable, "-m", "ssclass", "--version"]
    done = subprocess.run(command, cwd=theirs, env=clean_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    environment = clean_environment()
    del environment["PYTHONPATH"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_that_workers_are_given_imports_ours(theirs: Path):
    """The pool's own command, as its worker starts it, but for the run that it would ask the server for."""
    from ssclass.stack.deployment import POOL_TEMPLATE

    job = POOL_TEMPLATE["job_configuration"]
    command = job["command"].replace("prefect.engine", "ssclass --version")
    assert command != job["command"]
    environment = clean_environment(**job["env"])
    done = subprocess.run(command.split(), cwd=theirs, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    del environment["PYTHONSAFEPATH"]
    unsafe = command.replace(" -P", "").split()
    unsafe = [*unsafe[:1], "-c", "import tasks"]
    done = subprocess.run(unsafe, cwd=theirs, env=environment, capture_output=True, text=True)
    assert "somebody else's" in done.stderr, "without the safe path they are taken: the test can fail"


def test_files_on_pythonpath_that_hide_ours_are_named(theirs: Path, tmp_path: Path):
    (theirs / "click.py").unlink()
    (theirs / "prefect.py").unlink()
    where = tmp_path / "shop"
    environment = clean_environment()
    subprocess.run(
        [sys.executable, "-m", "ssclass", "init", where, "--prefect", "http://127.0.0.1:9/api"],
        env=environment,
        check=True,
        capture_output=True,
    )
    environment["PYTHONPATH"] = f"{theirs}{os.pathsep}{CHECKOUT}"
    for command in ("retrain", "deploy", "up"):
        arguments = [sys.executable, "-m", "ssclass", command, "--workspace", where]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1, (command, done.stderr)
        assert done.stderr.startswith("ssclass: "), done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert str(theirs / "flows") in done.stderr
        assert "PYTHONPATH" in done.stderr


def test_ours_are_ours():
    check_imports()


def test_ctrl_c_while_the_command_is_being_imported_is_no_traceback(tmp_path: Path):
    """A click in front of the real one stands for the moments in which much is imported: it sends the signal itself."""
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "__init__.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    environment = clean_environment()
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{CHECKOUT}"
    for start in (["-m", "ssclass"], ["-c", "from ssclass.__main__ import main; main()"]):
        done = subprocess.run([sys.executable, *start, "status"], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
