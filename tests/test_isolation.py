"""The demo under a person whose own settings are all against it: it works, and nothing of the person's changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssclass.errors import WeightsError
from ssclass.model.weights import load_weights
from ssclass.settings import CHECKOUT, home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
STRANGER = 54321  # a uid without a name

FILES = {
    ".aws/config": f"[default]\nregion = mars-1\nendpoint_url = {NOWHERE}\n[profile hers]\nregion = mars-2\n",
    ".aws/credentials": "[default]\naws_access_key_id = HERS\naws_secret_access_key = hers\n",
    ".gitconfig": (
        "[user]\n\tname = Her\n\temail = her@example.org\n\tsigningkey = none\n"
        "[commit]\n\tgpgsign = true\n[tag]\n\tgpgsign = true\n[push]\n\tgpgsign = if-asked\n"
        "[core]\n\thooksPath = {home}/hooks\n\tautocrlf = true\n[init]\n\tdefaultBranch = trunk\n"
        '[url "ssh://git@127.0.0.1:9/"]\n\tinsteadOf = /\n[pull]\n\tff = only\n'
    ),
    "hooks/pre-commit": "#!/bin/sh\ntouch {home}/hooked\nexit 1\n",
    "hooks/pre-push": "#!/bin/sh\ntouch {home}/hooked\nexit 1\n",
    ".prefect/profiles.toml": f'active = "hers"\n[profiles.hers]\nPREFECT_API_URL = "{NOWHERE}/api"\n',
    ".config/dvc/config": "[core]\n    remote = hers\n    analytics = true\n[cache]\n    dir = {home}/dvc-cache\n",
    ".config/matplotlib/matplotlibrc": "backend: TkAgg\nfigure.dpi: 1\n",
    ".keras/keras.json": '{{"backend": "jax", "floatx": "float16", "image_data_format": "channels_first"}}',
}
VARIABLES = {
    "AWS_PROFILE": "hers",
    "AWS_ENDPOINT_URL": NOWHERE,
    "AWS_ENDPOINT_URL_S3": NOWHERE,
    "AWS_ACCESS_KEY_ID": "HERS",
    "AWS_SECRET_ACCESS_KEY": "hers",
    "MLFLOW_TRACKING_URI": NOWHERE,
    "MLFLOW_REGISTRY_URI": NOWHERE,
    "MLFLOW_EXPERIMENT_NAME": "hers",
    "PREFECT_API_URL": f"{NOWHERE}/api",
    "PREFECT_API_KEY": "hers",
    "PREFECT_PROFILE": "hers",
    "GIT_DIR": "/nowhere",
    "GIT_AUTHOR_NAME": "Her",
    "DVC_NO_ANALYTICS": "0",
    "SSCLASS_S3_ENDPOINT": NOWHERE,
    "SSCLASS_MLFLOW_URI": NOWHERE,
    "SSCLASS_PREFECT_URL": f"{NOWHERE}/api",
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "no_proxy": "intranet.example.org",
}


def seen(folder: Path) -> dict[str, str]:
    """Every path under a folder with its kind, mode and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        what = "folder"
        if path.is_symlink():
            what = f"link to {path.readlink()}"
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = f"{path.lstat().st_mode:o} {what}"
    return found


@dataclass(frozen=True)
class Person:
    """Somebody's HOME, temporary and current folder, and the one folder that ssclass may write to."""

    root: Path
    uid: int | None = None
    home: Path = Path()

    @classmethod
    def make(cls, root: Path, uid: int | None = None) -> Person:
        person = cls(root, uid, root / "home")
        for name, text in FILES.items():
            path = person.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(home=person.home))
        for path in (person.home / "hooks").iterdir():
            path.chmod(0o755)
        for name in ("tmp", "here", "work"):
            (root / name).mkdir()
        shutil.copytree(home() / "weights", root / "cache" / "weights")
        return person

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.home),
            "TMPDIR": str(self.root / "tmp"),
            "SSCLASS_HOME": str(self.root / "cache"),
            **VARIABLES,
            **more,
        }
        who = {} if self.uid is None else {"user": self.uid, "group": self.uid, "extra_groups": []}
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.root / "here",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **who,
        )

    def demo(self) -> dict[str, object]:
        done = self.run("-m", "ssclass", "demo", "--workspace", str(self.root / "work" / "shop"), "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own is not."""
    try:
        load_weights("mobilenet")
    except WeightsError as error:
        pytest.skip(f"no demo without weights: {error}")
    folder = Path(tempfile.mkdtemp(prefix="ssclass-test-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


def check(told: dict[str, object], root: Path) -> None:
    """The demo went as it should, in the one place that is its own."""
    decisions = [step["decision"] for step in told["steps"]]
    assert decisions[0] == "PROMOTED", told
    assert decisions[2:4] == ["SKIPPED", "HELD"]
    assert {path.name for path in (root / "work").iterdir()} == {"shop", "shop.git"}
    assert seen(root / "here") == {}
    for repository in ("shop", "shop.git"):
        told_by_git = subprocess.run(
            ["git", "-c", "safe.directory=*", "-C", str(root / "work" / repository), "symbolic-ref", "HEAD"],
            capture_output=True,
            text=True,
        )
        assert told_by_git.stdout == "refs/heads/main\n", told_by_git.stderr


def test_a_hostile_home_neither_leaks_in_nor_is_touched(root: Path):
    person = Person.make(root)
    before = seen(person.home)
    told = person.demo()
    assert seen(person.home) == before
    check(told, root)
    assert seen(root / "tmp") == {}


def test_a_home_that_cannot_be_written_to_does_no_harm(root: Path):
    """As another user, who owns neither HOME nor the code; where that cannot be, HOME is a folder of the kernel's."""
    person = Person.make(root)
    if os.geteuid() == 0:
        stranger = Person(root, STRANGER, person.home)
        own = [root / name for name in ("tmp", "here", "work", "cache")]
        subprocess.run(["chown", "-R", f"{STRANGER}:{STRANGER}", *own], check=True)
        try:
            reaches = stranger.run("-c", "import ssclass, mlflow").returncode == 0
        except PermissionError:  # Python itself is in root's own folders
            reaches = False
        person = stranger if reaches else Person(root, None, Path("/proc/self"))
    else:
        for path in (*person.home.rglob("*"), person.home):
            path.chmod(path.stat().st_mode & ~0o222)
    before = seen(root / "home")
    check(person.demo(), root)
    assert seen(root / "home") == before
