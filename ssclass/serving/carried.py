"""A model on its way to another machine: the files that it takes to open it there, without git, DVC and MLflow."""

from __future__ import annotations

import atexit
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from ssclass.data.shapes import Size
from ssclass.model.keras_files import load_model
from ssclass.serving.model import Later, Model

WHOLE = "model.keras"


@dataclass(frozen=True)
class Carried:
    """The files of a model by their names: those of a classifier, whose network is on each machine, or one .keras file.

    `engine` as in params.yaml: what the network of a classifier runs on.
    """

    name: str
    classes: tuple[str, ...]
    size: Size
    engine: str
    files: dict[str, bytes]

    def open(self) -> Model:
        """The model, in a process that keeps its files until it ends."""
        folder = Path(mkdtemp(prefix="model-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, data in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if (whole := folder / WHOLE).exists():
            return Model(self.name, self.classes, self.size, Later(lambda: load_model(whole), whole))

        from ssclass.model.adopted import open_classifier
        from ssclass.serving.quick import quick_engine

        classifier = open_classifier(folder, quick=True)
        quick = quick_engine(classifier, self.engine)  # None: that machine lacks the runtime, and answers by TensorFlow
        return Model(self.name, self.classes, self.size, Later(lambda: open_classifier(folder).whole()), quick=quick)


def carry(model: Model) -> Carried:
    """What another machine needs of a model."""
    if model.quick is not None and model.folder is not None:
        found = {path.relative_to(model.folder).as_posix(): path for path in model.folder.rglob("*") if path.is_file()}
        return Carried(
            model.name, model.classes, model.size, model.runs_on, {name: p.read_bytes() for name, p in found.items()}
        )
    if isinstance(model.network, Later) and model.network.file is not None:
        data = model.network.file.read_bytes()
    else:
        with TemporaryDirectory(prefix="model-") as folder:
            model.keras.save(Path(folder) / WHOLE)
            data = (Path(folder) / WHOLE).read_bytes()
    return Carried(model.name, model.classes, model.size, "auto", {WHOLE: data})
