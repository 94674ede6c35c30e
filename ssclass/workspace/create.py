"""Making a workspace: the template's files, its git and DVC configuration, a bare origin beside it."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from ssclass.errors import WorkspaceError
from ssclass.settings import CHECKOUT, PACKAGE, SETTINGS_FILE, Settings, load_settings
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


def template_file(name: str) -> Path:
    """The path of a file that every new workspace starts with; dvc.yaml and data.dvc lie at a checkout's top level."""
    packaged = PACKAGE / "template" / name
    return packaged if packaged.exists() else CHECKOUT / name


def create(folder: Path, values: Mapping[str, str], git: str | None = None) -> Workspace:
    """Make a workspace in an empty folder, or clone the one that a git URL already holds.

    `values` are the fields of ssclass.toml. Without a URL a bare origin is made beside the folder, as
    ``<folder>.git``. WorkspaceError when the folder is in use; FailedError when git fails.
    """
    if folder.exists() and any(folder.iterdir()):
        raise WorkspaceError(f"{folder}: not empty; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    outside = Git(folder.parent)
    if git is None:
        origin = folder.with_name(folder.name + ".git").resolve()
        if origin.exists():
            raise WorkspaceError(f"{origin}: there already; name it with --git to use it, or choose another folder")
        outside("init", "--quiet", "--bare", "--initial-branch=main", "--", str(origin))
        git = str(origin)
    check_url(git)
    if outside.remote("ls-remote", "--heads", "--", git, "main"):
        outside.remote("clone", "--quiet", "--branch", "main", "--", git, str(folder))
        _identify(folder)
        settings = load_settings(folder)
        configure(settings)
        bootstrap(folder)
        return Workspace(settings)

    folder.mkdir(exist_ok=True)
    inside = Git(folder)
    inside("init", "--quiet", "--initial-branch=main")
    inside("remote", "add", "--", "origin", git)
    _identify(folder)
    for name in FILES:
        shutil.copyfile(template_file(name), folder / name)
    (folder / ".gitignore").write_text(IGNORED)
    (folder / "ledger.jsonl").touch()
    (folder / SETTINGS_FILE).write_text(
        "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    )
    settings = load_settings(folder)
    _configure_dvc(settings)
    workspace = Workspace(settings)
    bootstrap(folder)
    configure(settings)
    workspace.git("add", "--all")
    # The first commit is what a workspace is known by in shared services: no two may have the same.
    workspace.git("commit", "--quiet", "--message", "Start the workspace", "--message", f"Workspace: {uuid.uuid4()}")
    workspace.git.remote("push", "--quiet", "--set-upstream", "origin", "main")
    return workspace


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
