"""Keras models in .keras files: the same model as the same bytes, and read without trusting what is there."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssclass.errors import NotFoundError
from ssclass.files import BAD_ZIP, check_unpacked
from ssclass.model.backbones import import_keras
from ssclass.model.head_file import write_parts
from ssclass.text import message

MODEL_LIMIT = 4_000_000_000  # bytes that a model's file unpacks to
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, *BAD_ZIP)


def save_model(model: Any, path: Path) -> None:
    """Save a model so that the same one gives the same bytes: DVC knows the file by them, and Keras writes the time."""
    with TemporaryDirectory(dir=path.parent) as scratch:
        saved = Path(scratch) / path.name
        model.save(saved)
        with zipfile.ZipFile(saved) as source:
            parts = {name: source.read(name) for name in source.namelist()}
    parts["metadata.json"] = json.dumps(
        json.loads(parts["metadata.json"]) | {"date_saved": ""}, sort_keys=True
    ).encode()
    parts["config.json"] = _renumbered(parts["config.json"])
    write_parts(path, parts)


def _renumbered(config: bytes) -> bytes:
    """Number the objects that layers share 1, 2, …: Keras numbers them by their place in memory."""
    numbers: dict[bytes, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        return b"%s%d" % (found[1], numbers.setdefault(found[2], len(numbers) + 1))

    return re.sub(rb'("shared_object_id": )(\d+)', number, config)


def load_model(path: Path) -> Any:
    """Load a Keras model from a .keras file, running no code but Keras's own; NotFoundError when it is none."""
    try:
        check_unpacked(path, MODEL_LIMIT)
        return import_keras().models.load_model(path, compile=False)
    except Exception as error:  # a damaged configuration makes Keras raise anything
        raise NotFoundError(
            f"{path}: not a Keras model ({message(error, 300)}); train one with `ssclass retrain`"
        ) from error
