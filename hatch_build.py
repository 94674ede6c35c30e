"""Puts the template files that lie at the top level into a built wheel; a checkout reads them where they are."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TEMPLATE = ("dvc.yaml", "data.dvc", "deployments.yaml")
"""Those of the template's files that lie at the top level of a checkout; the others are in ``ssclass/template/``."""


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
