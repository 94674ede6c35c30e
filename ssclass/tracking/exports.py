"""What a registered version says of its exports: for each format a tag, and what of it is still to be made.

    export.litert-float16 = "attached: 8.9 MB, …"     an artifact of its run, exports/litert-float16/
                            "refused: …"              it cannot be had of this model, and why
                            "skipped: …"              what makes it is not installed where it was to be made
                            "failed 2 times: …"       its process died; after `ATTEMPTS` nobody tries again

Nothing heavy is imported here: a retrain with nothing new asks this, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec

from ssclass.settings import Settings

TAG = "export."
"""What the names of these tags begin with; the name of the export follows, its format and the type of its weights."""
SUM_TAG = ".files_sha256"
"""What such a tag's name ends with where it has the sum of an attached export's files."""
FOLDER = "exports"
"""The folder among the artifacts of a run."""
ATTACHED, REFUSED, SKIPPED = "attached", "refused", "skipped"
ATTEMPTS = 3
RUNTIMES: Mapping[str, tuple[str, ...]] = {
    "litert": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnxruntime"),
}
"""Modules that a format needs beside TensorFlow: the extra `export`."""


def wanted(settings: Settings) -> list[str]:
    """The exports that the settings ask for, each as format-dtype, once."""
    return list(dict.fromkeys(name.strip() for name in settings.exports.split(",") if name.strip()))


def lacking(name: str) -> str | None:
    """The package that an export needs and that is not installed; None when there is none."""
    for module in RUNTIMES.get(name.partition("-")[0], ()):
        if find_spec(module) is None:
            return module.replace("_", "-")
    return None


def failures(said: str | None) -> int:
    """How often the process that was to make an export died, by the tag's value."""
    found = re.match(r"failed (\d+) time", said or "")
    return int(found[1]) if found else 0


def pending(settings: Settings, tags: Mapping[str, str]) -> list[str]:
    """The exports that a version, by its tags, still needs a word on; what is final, or cannot be had here, is not."""
    return [name for name in wanted(settings) if not _settled(name, tags.get(f"{TAG}{name}"))]


def _settled(name: str, said: str | None) -> bool:
    if said is None:
        return False
    if said.startswith(SKIPPED):
        return lacking(name) is not None
    return said.startswith((ATTACHED, REFUSED)) or failures(said) >= ATTEMPTS
