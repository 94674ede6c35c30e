"""Make ``.venv`` and put the pinned packages into it; do nothing when that is done already.

    python scripts/install.py          what ssclass needs to run
    python scripts/install.py --dev    and what its tests and checks need

Each part that is in leaves a stamp, written last: without a fitting stamp the environment is made anew, so an
installation killed half-way, a changed lock, another Python and a moved folder all mend themselves.
Downloads are kept in ``.cache``, where the next attempt finds them. Same old syntax as preflight.py.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

import preflight

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
CACHE = os.path.join(ROOT, ".cache")
TOOLS = "requirements-install.lock"  # uv, and what builds ssclass and the one dependency that has no wheel
RUN = "requirements.lock"
PROJECT = "pyproject.toml"  # ssclass itself, editable: its command and its metadata
DEV = "requirements-dev.lock"  # only what the locks above do not name
# pip settings by which a company points at its own index or gets through its own gate; uv reads none of them.
PIP_ONLY = ("index-url", "find-links", "no-index", "proxy", "cert", "trusted-host", "keyring-provider")


def main() -> int:
    """Bring ``.venv`` up to date; 2 when the machine lacks something, 1 when an installer fails."""
    wanted = [TOOLS, RUN, PROJECT] + [DEV] * ("--dev" in sys.argv[1:])
    if all(stamped(part) for part in wanted):
        return 0
    lacking = preflight.problem(ROOT, everything=not stamped(RUN))
    if lacking:
        print("preflight: " + lacking, file=sys.stderr)
        return 2
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, "install.lock"), "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # two `make` at once: the second waits, then finds the stamps
        try:
            if not stamped(RUN):
                print("Installing into .venv: about 3 GB of packages, 2 to 5 minutes", flush=True)
                new_environment()
            for part in wanted:
                if not stamped(part):
                    install(part)
                    stamp(part)
        except (subprocess.CalledProcessError, OSError) as error:
            print("install: {}; see above; the same make command tries again".format(error), file=sys.stderr)
            return 1
    return 0


def new_environment() -> None:
    """An empty ``.venv``, made by the base Python: ours may be the link that goes."""
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    shutil.rmtree(VENV, ignore_errors=True)
    run(base, "-m", "venv", VENV)


def install(part: str) -> None:
    """Everything a lock names, checked by its hashes and compiled to bytecode (imports are three times faster)."""
    if part == PROJECT:
        pip("install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--editable", ROOT)
        return
    common = ["--no-deps", "--no-build-isolation", "--require-hashes", "--requirement", part]
    uv = shutil.which("uv", path=os.pathsep.join([os.path.join(VENV, "bin"), os.environ.get("PATH", "")]))
    if uv and uv_will_do():
        try:
            run(uv, "pip", "install", "--python", binary("python"), "--reinstall", "--compile-bytecode", *common)
            return
        except subprocess.CalledProcessError:
            print("install: uv did not manage; trying with pip", flush=True)
    pip("install", "--force-reinstall", "--no-compile", *common)
    # In parallel, and whatever PYTHONDONTWRITEBYTECODE says; a few packages hold templates that are not valid Python.
    subprocess.call([binary("python"), "-m", "compileall", "-qq", "-j0", os.path.join(VENV, "lib")], cwd=ROOT)


def uv_will_do() -> bool:
    """Uv is three times faster, but would go past the index and the certificates that pip is told to use."""
    settings = subprocess.check_output([binary("python"), "-m", "pip", "config", "list"], cwd=ROOT, env=environment())
    names = [line.split("=")[0] for line in settings.decode().splitlines()]
    return not any(name.endswith(PIP_ONLY) for name in names)


def stamped(part: str) -> bool:
    """Is this part, as it is now, installed here and whole?"""
    try:
        with open(stamp_path(part)) as file:
            return file.read() == key(part) and os.path.exists(binary("python"))
    except OSError:
        return False


def stamp(part: str) -> None:
    """Say that the part is in, by a rename so that the stamp is there in full or not at all."""
    with open(stamp_path(part) + ".new", "w") as file:
        file.write(key(part))
    os.replace(stamp_path(part) + ".new", stamp_path(part))


def stamp_path(part: str) -> str:
    """Where the stamp of a part is: inside the environment that it speaks of."""
    return os.path.join(VENV, "installed-" + part)


def key(part: str) -> str:
    """Digest of what an environment with this part is made from: Python, place (scripts hold it), locks."""
    digest = hashlib.sha256("{} {}".format(sys.version_info[:2], ROOT).encode())
    for name in (TOOLS, RUN, part):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def binary(name: str) -> str:
    """A command of the environment."""
    return os.path.join(VENV, "bin", name)


def pip(*arguments: str) -> None:
    """The environment's own pip."""
    run(binary("python"), "-m", "pip", *arguments)


def run(*command: str) -> None:
    """Run a command in the project folder; CalledProcessError when it fails."""
    subprocess.check_call(command, cwd=ROOT, env=environment())


def environment() -> dict:
    """Ours, with caches in the project folder and without pip settings that would install elsewhere."""
    changed = dict(os.environ, PIP_CACHE_DIR=os.path.join(CACHE, "pip"), UV_CACHE_DIR=os.path.join(CACHE, "uv"))
    changed.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONHOME", "PYTHONPATH"):
        changed.pop(name, None)
    return changed


if __name__ == "__main__":
    sys.exit(main())
