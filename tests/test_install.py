"""`make install`: what it says when it cannot, what it does when it is killed, and what its locks hold."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ssclass.workspace.create import FILES

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("scripts/preflight.py", "scripts/install.py")
LOCKS = ("requirements-install.lock", "requirements.lock", "requirements-dev.lock")


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script as a module of its own, beside the scripts in its folder."""
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, "preflight", raising=False)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/preflight.py on a machine that lacks nothing."""
    module = load(ROOT / "scripts/preflight.py", monkeypatch)
    python = SimpleNamespace(version_info=(3, 12, 1), executable="/usr/bin/python3.12")
    monkeypatch.setattr(module, "sys", python)
    disks = SimpleNamespace(disk_usage=lambda folder: SimpleNamespace(free=50e9), which=lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(module, "shutil", disks)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `make install` reads, in a folder with a space in its name."""
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", *SCRIPTS, *LOCKS):
        shutil.copy(ROOT / name, folder / name)
    return folder


# --- preflight ---------------------------------------------------------------------------------------------------


def test_nothing_is_missing_on_a_fitting_machine(preflight: ModuleType, tmp_path: Path) -> None:
    assert preflight.problem(str(tmp_path)) == ""


@pytest.mark.parametrize(("version", "word"), [((3, 6), "old"), ((3, 10), "old"), ((3, 14), "new")])
def test_another_python_is_named_with_a_remedy(
    preflight: ModuleType, tmp_path: Path, version: tuple[int, int], word: str
) -> None:
    preflight.sys.version_info = (*version, 0)
    said = preflight.problem(str(tmp_path))
    assert said.startswith(f"Python {version[0]}.{version[1]} (/usr/bin/python3.12) is too {word}: ")
    assert "make PYTHON=" in said
    assert "\n" not in said


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_names_the_package(
    preflight: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    found = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None if name == module else object()))
    monkeypatch.setattr(preflight, "importlib", found)
    said = preflight.problem(str(tmp_path))
    assert f"no `{module}` module" in said
    assert "apt install python3.12-venv" in said


def test_missing_git_is_named(preflight: ModuleType, tmp_path: Path) -> None:
    preflight.shutil.which = lambda name: None
    assert "no `git` on the PATH; install it" in preflight.problem(str(tmp_path))


@pytest.mark.parametrize("full", ["project", "temporary"])
def test_a_full_disk_is_named_with_what_it_has(
    preflight: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    folders = {"project": tmp_path / "project", "temporary": tmp_path / "temporary"}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.setattr(preflight.tempfile, "gettempdir", lambda: str(folders["temporary"]))
    preflight.shutil.disk_usage = lambda at: SimpleNamespace(free=2.5e9 if at == str(folders[full]) else 50e9)
    said = preflight.problem(str(folders["project"]))
    assert said.startswith(f"{folders[full]} has 2.5 GB free and an installation needs 6 GB; free some, or ")
    assert ("make TMPDIR=" in said) == (full == "temporary")
    assert preflight.problem(str(folders["project"]), everything=False) == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_named(preflight: ModuleType, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert preflight.problem(str(tmp_path)).startswith(f"{tmp_path} cannot be written to; ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_are_readable_to_an_old_python(script: str) -> None:
    tree = ast.parse((ROOT / script).read_text(), feature_version=(3, 6))
    subscripted = [
        node for node in ast.walk(tree) if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Subscript)
    ]
    assert not subscripted
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


def make(checkout: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run make there; with ``path`` its programs are the only ones."""
    environment = dict(os.environ, PATH=str(path or os.environ["PATH"]))
    program = shutil.which("make")
    assert program is not None
    for name in ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    command = [program, "SHELL=/bin/sh", *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def test_make_skips_a_python_that_does_not_run_and_says_what_is_missing(checkout: Path, tmp_path: Path) -> None:
    programs = tmp_path / "programs"  # no git among them
    programs.mkdir()
    shim = programs / "python3.11"  # as a version manager leaves behind for a version it does not have
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    done = make(checkout, "install", path=programs)
    assert done.stderr.splitlines()[0] == (
        "preflight: there is no `git` on the PATH; install it (Debian, Ubuntu: apt install git)"
    )
    assert done.returncode == 2
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("arguments", [["PYTHON=/no such/python", "install"], ["install"]])
def test_make_without_a_python_says_so(checkout: Path, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    done = make(checkout, *arguments, path=tmp_path / "empty")
    assert done.stderr.splitlines()[0].startswith("preflight: no working Python ")
    assert "install 3.11, 3.12 or 3.13" in done.stderr
    assert done.returncode == 2


# --- installing, with an installer that only notes what it is asked ------------------------------------------------


class Installer:
    """Stands in for venv, pip and uv: notes each lock installed, and may be killed at one."""

    def __init__(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script = load(checkout / "scripts/install.py", monkeypatch)
        self.venv = checkout / ".venv"
        self.done: list[str] = []
        self.killed_at = ""
        monkeypatch.setattr(self.script, "run", self.run)
        monkeypatch.setattr(self.script, "uv_will_do", lambda: False)
        monkeypatch.setattr(self.script.preflight, "problem", lambda root, everything: "")
        monkeypatch.setattr(self.script.subprocess, "call", lambda *arguments, **named: 0)
        self.monkeypatch = monkeypatch

    def run(self, *command: str) -> None:
        part = command[-1].removeprefix(str(self.venv.parent)).lstrip("/") or "ssclass"
        if part == self.killed_at:
            raise KeyboardInterrupt
        if part == ".venv":
            (self.venv / "bin").mkdir(parents=True)
            (self.venv / "bin" / "python").touch()
        self.done.append(part)

    def __call__(self, *arguments: str) -> list[str]:
        self.done.clear()
        self.monkeypatch.setattr(sys, "argv", ["install.py", *arguments])
        assert self.script.main() == 0
        return list(self.done)


@pytest.fixture
def installer(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    return Installer(checkout, monkeypatch)


RUNTIME = [".venv", "requirements-install.lock", "requirements.lock", "ssclass"]


def test_a_second_install_does_nothing(installer: Installer) -> None:
    assert installer() == RUNTIME
    assert installer() == []


def test_the_tests_add_to_what_the_demo_installed(installer: Installer) -> None:
    installer()
    assert installer("--dev") == ["requirements-dev.lock"]
    assert installer() == []
    assert installer("--dev") == []


@pytest.mark.parametrize("part", RUNTIME)
def test_a_killed_install_is_done_anew(installer: Installer, part: str) -> None:
    installer.killed_at = part
    with pytest.raises(KeyboardInterrupt):
        installer()
    leftover = installer.venv / "half-installed"
    if installer.venv.exists():
        leftover.touch()
    installer.killed_at = ""
    assert installer() == (["ssclass"] if part == "ssclass" else RUNTIME)
    assert part == "ssclass" or not leftover.exists()


def test_a_killed_addition_leaves_the_demo_ready(installer: Installer) -> None:
    installer()
    installer.killed_at = "requirements-dev.lock"
    with pytest.raises(KeyboardInterrupt):
        installer("--dev")
    assert installer() == []


def test_a_changed_lock_is_installed_anew(installer: Installer, checkout: Path) -> None:
    installer()
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("six==1.0 --hash=sha256:00\n")
    assert installer() == RUNTIME


def test_a_changed_project_file_costs_one_step(installer: Installer, checkout: Path) -> None:
    installer()
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert installer() == ["ssclass"]


def test_a_moved_checkout_is_installed_anew(
    installer: Installer, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installer()
    moved = checkout.rename(checkout.with_name("moved"))
    assert Installer(moved, monkeypatch)() == RUNTIME


@pytest.mark.parametrize(
    ("name", "value", "uv"),
    [
        ("PIP_INDEX_URL", "https://mirror.example/simple", False),
        ("PIP_EXTRA_INDEX_URL", "https://mirror.example/simple", False),
        ("PIP_FIND_LINKS", "/srv/wheels", False),
        ("PIP_CERT", "/srv/ca.pem", False),
        ("PIP_RETRIES", "9", True),
    ],
)
def test_an_index_set_for_pip_is_not_passed_by(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, uv: bool
) -> None:
    for setting in [setting for setting in os.environ if setting.startswith("PIP_")]:
        monkeypatch.delenv(setting)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv(name, value)
    script = load(ROOT / "scripts/install.py", monkeypatch)
    monkeypatch.setattr(script, "VENV", sys.prefix)
    assert script.uv_will_do() is uv


# --- the locks and the wheel ---------------------------------------------------------------------------------------


def pins(lock: str) -> dict[str, list[Requirement]]:
    """Requirements of a lock by name; one package may have several, for different Pythons."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / lock).read_text().replace("\\\n", "").splitlines():
        requirement, *hashes = line.split(" --hash=sha256:")
        assert hashes, f"{lock}: no hash: {line}"
        assert all(re.fullmatch("[0-9a-f]{64}", digest.strip()) for digest in hashes), f"{lock}: {requirement}"
        pin = Requirement(requirement.strip())
        found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_pins_with_hashes_and_names_no_index(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text()
    for pin in (pin for several in pins(lock).values() for pin in several):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
        assert pin.url is None


@pytest.mark.parametrize("lock", LOCKS)
def test_what_the_project_declares_is_pinned_within_its_range(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {
        "requirements.lock": project["project"]["dependencies"],
        "requirements-install.lock": project["dependency-groups"]["install"],
        "requirements-dev.lock": project["dependency-groups"]["dev"],
    }[lock]
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        fitting = pins(lock).get(name) or pins("requirements.lock").get(name)
        assert fitting, f"{requirement}: not in {lock}; run `make lock`"
        for pin in fitting:
            [exact] = pin.specifier
            assert requirement.specifier.contains(exact.version), f"{requirement}: {lock} has {pin}; run `make lock`"


def test_the_locks_agree() -> None:
    install, run, dev = (pins(lock) for lock in LOCKS)
    assert not dev.keys() & (run.keys() | install.keys())
    assert {name: install[name] for name in install.keys() & run.keys()} == {
        name: run[name] for name in install.keys() & run.keys()
    }


def test_the_wheel_holds_the_packages_and_the_template_of_a_workspace(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="not in this environment; `make install` puts it there")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        str(path.relative_to(ROOT))
        for package in ("ssclass", "flows", "tasks")
        for path in (ROOT / package).rglob("*.py")
    }
    assert names >= modules
    assert names - modules >= {f"ssclass/template/{name}" for name in (*FILES, "deployments.yaml")}
    assert {name.split("/")[0] for name in names} <= {"ssclass", "flows", "tasks"}


# --- what is in the repository -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_photos_weights_or_big_files_are_tracked(tracked: list[Path]) -> None:
    unwanted = {".jpg", ".jpeg", ".heic", ".avif", ".webp", ".h5", ".keras", ".pb", ".npz", ".onnx", ".parquet", ".whl"}
    found = [path for path in tracked if path.suffix.lower() in unwanted]
    golden = ROOT / "tests" / "golden"  # drawn, and trained on drawings, by golden/write.py
    assert [path for path in found if not path.is_relative_to(golden)] == []
    assert [path for path in found if path.stat().st_size > 30_000] == []
    assert [path for path in tracked if path.stat().st_size > 1_000_000] == []


def test_no_tracked_file_names_a_package_registry(tracked: list[Path]) -> None:
    hosts = "|".join(("pypi" + r"\.", "python" + "hosted", "npm" + r"js\.", "debian" + r"\.org", "ana" + r"conda\."))
    named = [path for path in tracked if re.search(hosts, path.read_text(errors="replace"))]
    assert named == []
