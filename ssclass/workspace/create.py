"""Making a workspace: the template's files, its git and DVC configuration, a bare origin beside it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ssclass.environment import private_folder
from ssclass.errors import WorkspaceError
from ssclass.files import write_whole
from ssclass.settings import CHECKOUT, PACKAGE, SETTINGS_FILE, Settings, load_settings
from ssclass.text import quoted
from ssclass.workspace.dvc import bootstrap, configure
from ssclass.workspace.git import Git, check_url
from ssclass.workspace.workspace import Workspace

FILES = (
    "params.yaml",
    "study.yaml",
    "dvc.yaml",
    "dvc.lock",
    "data.dvc",
    "metrics.json",
    "decisions.csv",
    "code.json",
    ".dvcignore",
)
IGNORED = "/data\n/candidate\n/dvc_plots\n/.ssclass\n"
BUILDING = ".ssclass-init"
"""Where a workspace is built, inside its folder."""
NEW, CLONE, NAMES, ORIGIN = "new", "clone", "names.json", "origin"
"""In there: what is built, the names of what leaves there, and that the origin beside the folder is this one's."""


def template_file(name: str) -> Path:
    """The path of a file that every new workspace starts with; dvc.yaml and data.dvc lie at a checkout's top level."""
    packaged = PACKAGE / "template" / name
    return packaged if packaged.exists() else CHECKOUT / name


def create(folder: Path, values: Mapping[str, str], git: str | None = None) -> Workspace:
    """Make a workspace in an empty folder, or clone the one that a git URL already holds.

    `values` are the fields of ssclass.toml. Without a URL a bare origin is made beside the folder, as
    ``<folder>.git``; a URL that is a relative path is one from the current folder. Killed at any moment and given
    again, it begins anew, or finds that all is done. WorkspaceError when the folder is in use; FailedError when git
    fails.
    """
    building = folder / BUILDING
    _check_free(folder)
    origin = _absolute(check_url(git)) if git else check_url(str(folder.with_name(folder.name + ".git").resolve()))
    ours = building / ORIGIN
    if git is None and Path(origin).exists() and not ours.exists():
        raise WorkspaceError(f"{origin}: there already; name it with --git to use it, or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    outside = Git(folder.parent)
    main = _main_of(outside, origin) if git is not None else ""  # before anything is made: the URL may be wrong
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        _check_free(folder)  # another process may have been at it until now
        building.mkdir(exist_ok=True)
        if git is None:
            ours.touch()
            outside("init", "--quiet", "--bare", "--initial-branch=main", "--", origin)
            main = _main_of(outside, origin)
        if not (main and _in_place(folder, values, main)):
            _clear(folder)
            whole = _clone(building, origin) if main else _start(building, origin, values)
            _put_in_place(whole, folder)
            if not main:
                Git(folder).remote("push", "--quiet", "--set-upstream", "origin", "main")
        workspace = Workspace(load_settings(folder))
        # Moved at once to where git looks away: what a kill leaves there is in nobody's way.
        shutil.rmtree(building.rename(private_folder(workspace.settings) / building.name))
    return workspace


def _check_free(folder: Path) -> None:
    """WorkspaceError unless a folder is empty, not there, or one in which this was begun."""
    if folder.exists() and any(folder.iterdir()) and not (folder / BUILDING).exists():
        raise WorkspaceError(f"{folder}: not empty; name a new folder")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that make a workspace in it; WorkspaceError where one does.

    The folder itself is locked: a file would stay in it, or go from under who waits for it.
    """
    import fcntl

    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise WorkspaceError(f"{folder}: another process makes a workspace there; wait for it") from None
    except OSError:  # a network's file system that locks no folders
        pass
    try:
        yield
    finally:
        os.close(opened)


def _absolute(url: str) -> str:
    """A git URL that is a path, from the root: git is run in several folders, and keeps it in the workspace's own."""
    remote = "://" in url or ":" in url.split("/")[0]
    return url if remote else str(Path(url).absolute())


def _main_of(git: Git, origin: str) -> str:
    """The commit of an origin's main; empty where it has none."""
    return git.remote("ls-remote", "--heads", "--", origin, "refs/heads/main").partition("\t")[0]


def _clone(building: Path, origin: str) -> Path:
    folder = building / CLONE
    Git(building).remote("clone", "--quiet", "--branch", "main", "--", origin, str(folder))
    _identify(folder)
    configure(load_settings(folder))
    bootstrap(folder)
    return folder


def _start(building: Path, origin: str, values: Mapping[str, str]) -> Path:
    folder = building / NEW
    folder.mkdir()
    git = Git(folder)
    git("init", "--quiet", "--initial-branch=main")
    git("remote", "add", "--", "origin", origin)
    _identify(folder)
    for name in FILES:
        shutil.copyfile(template_file(name), folder / name)
    (folder / ".gitignore").write_text(IGNORED)
    (folder / "ledger.jsonl").touch()
    (folder / SETTINGS_FILE).write_text(_settings_text(values))
    settings = load_settings(folder)
    _configure_dvc(settings)
    bootstrap(folder)
    configure(settings)
    git("add", "--all")
    # The first commit is what a workspace is known by in shared services: no two may have the same.
    git("commit", "--quiet", "--message", "Start the workspace", "--message", f"Workspace: {uuid.uuid4()}")
    return folder


# -- a workspace appears whole: it is built aside, and its files are then put in place ---------------------------


def _put_in_place(whole: Path, folder: Path) -> None:
    """Move what was built into the folder, after its names are noted: who comes after a kill knows them as ours."""
    names = sorted(path.name for path in whole.iterdir())
    write_whole(folder / BUILDING / NAMES, json.dumps(names).encode())
    for name in names:
        (whole / name).rename(folder / name)


def _in_place(folder: Path, values: Mapping[str, str], main: str) -> bool:
    """Whether a killed run had put everything in place, and origin's main, a commit, is what it had made or cloned.

    WorkspaceError where other settings are asked for now.
    """
    building = folder / BUILDING
    wholes = [building / name for name in (NEW, CLONE) if (building / name).exists()]
    if not (building / NAMES).exists() or any(any(whole.iterdir()) for whole in wholes):
        return False
    if building / NEW in wholes and Git(folder)("rev-parse", "HEAD") != main:  # another one pushed before it could
        return False
    if building / NEW in wholes and (folder / SETTINGS_FILE).read_text() != _settings_text(values):
        raise WorkspaceError(f"{folder}: made already, with other settings; edit {SETTINGS_FILE} there and push it")
    return True


def _clear(folder: Path) -> None:
    """Delete what a killed run left; WorkspaceError where something else came into the folder since."""
    building = folder / BUILDING
    try:
        names = json.loads((building / NAMES).read_bytes())
    except (OSError, ValueError):
        names = []
    others = {path.name for path in folder.iterdir()} - {BUILDING, *names}
    if others:
        raise WorkspaceError(f"{folder}: not empty ({quoted(min(others))}); name a new folder")
    for path in (*(folder / name for name in names), building / NEW, building / CLONE, building / NAMES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _settings_text(values: Mapping[str, str]) -> str:
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def _configure_dvc(settings: Settings) -> None:
    (settings.workspace / ".dvc").mkdir(exist_ok=True)
    (settings.workspace / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    lines = [
        "[core]",
        "    remote = store",
        "    analytics = false",
        "    check_update = false",
        "[cache]",
        "    type = reflink,hardlink,copy",
        "['remote \"store\"']",
        f"    url = s3://{settings.place}/dvc",
    ]
    lines += [
        f"    {name} = {value}"
        for name, value in (
            ("endpointurl", settings.s3_endpoint),
            ("region", settings.s3_region),
            ("profile", settings.s3_profile),
        )
        if value
    ]
    (settings.workspace / ".dvc" / "config").write_text("\n".join(lines) + "\n")


def _identify(folder: Path) -> None:
    """Give git an author where the person has set none."""
    git = Git(folder)
    if not git("config", "user.email", check=False):
        git("config", "user.name", "ssclass")
        git("config", "user.email", "user@ssclass.invalid")
