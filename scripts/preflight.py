"""What this machine lacks for an installation, said in one line with the remedy.

Runs before anything else, on whatever Python there is: standard library only, and no syntax or annotation newer
than Python 3.6, so that a Python too old for ssclass still says so instead of failing on a comma.
"""

import importlib.util
import os
import shutil
import sys
import tempfile

OLDEST = (3, 11)
NEWEST = (3, 13)
ROOM = 6  # GB: 3.5 GB of packages, and as much again for downloads while they are unpacked


def problem(root: str, everything: bool = True) -> str:
    """The first thing missing to install ``everything`` or a little more into ``root``, as one line; empty: nothing."""
    missing = python_problem() or venv_problem() or git_problem() or folder_problem(root)
    return missing or (room_problem(root) if everything else "")


def python_problem() -> str:
    """Is this Python one that every pinned package has a wheel for?"""
    version = tuple(sys.version_info[:2])
    if OLDEST <= version <= NEWEST:
        return ""
    return (
        "Python {}.{} ({}) is too {}: ssclass needs 3.11, 3.12 or 3.13; install one of them, "
        "or name it: make PYTHON=/path/to/python3.12"
    ).format(version[0], version[1], sys.executable, "old" if version < OLDEST else "new")


def venv_problem() -> str:
    """Debian and Ubuntu ship Python without the modules that make a virtual environment."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            return (
                "{} has no `{}` module; install it (Debian, Ubuntu: apt install python{}.{}-venv), "
                "or name another Python: make PYTHON=/path/to/python3.12"
            ).format(sys.executable, module, sys.version_info[0], sys.version_info[1])
    return ""


def git_problem() -> str:
    """The workspace of every pipeline is a git repository."""
    if shutil.which("git"):
        return ""
    return "there is no `git` on the PATH; install it (Debian, Ubuntu: apt install git)"


def folder_problem(root: str) -> str:
    """Everything is written inside the project folder, so it must take files."""
    if os.access(root, os.W_OK | os.X_OK):
        return ""
    return "{} cannot be written to; give yourself write permission there, or copy it to a folder of yours".format(root)


def room_problem(root: str) -> str:
    """Both the project folder and the folder for temporary files need room."""
    temporary = tempfile.gettempdir()
    for folder, remedy in (
        (root, "free some, or copy the project to a larger disk"),
        (temporary, "free some, or name another folder for temporary files: make TMPDIR=/path/to/folder"),
    ):
        free = shutil.disk_usage(folder).free / 1e9
        if free < ROOM:
            return "{} has {:.1f} GB free and an installation needs {} GB; {}".format(folder, free, ROOM, remedy)
    return ""
