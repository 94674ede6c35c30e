"""What tests of the pipeline share: the photos, the installed command, workspaces on real parts, retrains in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssclass.demo.drawings import draw
from ssclass.settings import CHECKOUT

if TYPE_CHECKING:
    from flows.retrain import Outcome
    from ssclass.retrain.ingest import Ingested
    from ssclass.workspace.workspace import Workspace

CLASSES = ("sandwich", "sushi")
REAL = Path(os.environ.get("SSCLASS_PHOTOS") or CHECKOUT.parent / "shared" / "photos")


def real_photos() -> bool:
    return all((REAL / name).is_dir() for name in CLASSES)


def deal(folder: Path, classes: tuple[str, ...], per_class: int, number: int) -> None:
    """Write class folders: the `number`-th `per_class` real photos of each class where they are, else drawings."""
    if not real_photos():
        draw(folder, classes, per_class, number)
        return
    for name in classes:
        (folder / name).mkdir(parents=True)
        for path in sorted((REAL / name).iterdir())[number * per_class : (number + 1) * per_class]:
            shutil.copy(path, folder / name)


@dataclass(frozen=True)
class Command:
    """The `ssclass` command as installed: the one beside this Python, else this checkout run as a module."""

    folder: Path  # to be first in PATH; holds ssclass, and beside it dvc is found

    def __call__(
        self, *args: object, cwd: Path | None = None, **environment: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "ssclass"), *map(str, args)],
            cwd=cwd,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def environment(self, **more: object) -> dict[str, str]:
        """This process's environment with the command on the PATH; `more` on top, None takes a name out."""
        path = os.pathsep.join([str(self.folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        values = {**os.environ, "PATH": path, **more}
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Pipeline:
    """Makes workspaces on this session's S3 and Prefect, and runs retrains in them, in this process."""

    endpoint: str
    prefect: str

    def workspace(self, folder: Path, classes: tuple[str, ...] = CLASSES, **params: object) -> Workspace:
        """A new workspace with a bucket of its own; `params` replace values in params.yaml, by their last name."""
        from ssclass.workspace.create import create

        values = {
            "bucket": f"test-{uuid.uuid4().hex[:12]}",
            "s3_endpoint": self.endpoint,
            "s3_region": "us-east-1",
            "prefect_url": self.prefect,
        }
        workspace = create(folder, values)
        workspace.store.make_bucket()
        set_params(workspace, classes=f"[{', '.join(classes)}]", **params)
        return workspace

    def retrain(self, workspace: Workspace) -> Outcome:
        """What `ssclass retrain` does."""
        from ssclass.environment import quiet_libraries

        quiet_libraries(workspace.settings)
        from flows.retrain import retrain

        return retrain(str(workspace.root))

    def deliver(self, workspace: Workspace, folder: Path, batch: str) -> Outcome:
        """Submit a folder of class folders as a batch, and retrain."""
        from ssclass.data.submit import submit

        submit(workspace.store, folder, batch, workspace.at().params.dataset.classes)
        return self.retrain(workspace)


def ingest_all(workspace: Workspace) -> list[Ingested]:
    """Take in every batch that waits, without a training."""
    from ssclass.retrain.ingest import ingest, waiting

    return [ingest(workspace, ref) for ref in waiting(workspace.store, workspace.newest().state)]


def set_params(workspace: Workspace, **params: object) -> None:
    """Change values in params.yaml by name, and push that, as a person would."""
    path = workspace.root / "params.yaml"
    lines = path.read_text().splitlines()
    for name, value in params.items():
        (at,) = (i for i, line in enumerate(lines) if line.lstrip().startswith(f"{name}:"))
        lines[at] = f"  {name}: {value}"
    path.write_text("\n".join(lines) + "\n")
    git = ["git", "-C", str(workspace.root), "-c", "user.name=p", "-c", "user.email=p@example.org"]
    if workspace.git("status", "--porcelain"):
        subprocess.run([*git, "commit", "--quiet", "--all", "--message", "Params"], check=True)
        subprocess.run([*git, "push", "--quiet", "origin", "main"], check=True)
