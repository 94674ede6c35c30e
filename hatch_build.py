"""Puts the workspace's template files into a built wheel; a checkout reads its own."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TEMPLATE = (
    "params.yaml", "study.yaml", "dvc.yaml", "dvc.lock", "data.dvc", "metrics.json", "code.json", ".dvc/config",
    ".dvcignore", "prefect.yaml",
)  # fmt: skip


class TemplateFiles(BuildHookInterface):
    """Copies ``TEMPLATE`` to ``ssclass/template/``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling; ``version`` is "editable" for a checkout."""
        if version == "editable":
            return
        root = Path(self.root)
        for name in TEMPLATE:
            if (root / name).is_file():
                build_data["force_include"][str(root / name)] = f"ssclass/template/{name}"
