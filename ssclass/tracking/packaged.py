"""A classifier as an MLflow model: the whole network, and the code that decodes photos for it, packed beside it.

The model is "from code" (nothing is pickled). The modules that it needs are packed under a name of their own, which
their content gives: a process with ssclass, or with two champions of different versions, loads the right ones.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import re
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from ssclass.data.shapes import about_size
from ssclass.files import file_sha256
from ssclass.settings import PACKAGE

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier

REQUIREMENTS = ("mlflow", "keras", "tensorflow", "numpy", "pandas", "pillow", "pillow-heif", "imagehash")
ROOT = "tracking/photo_model.py"
KEY_TAG = "decision_key"
SUM_TAG = "files_sha256"
"""The tag of a logged model that names the sum of its files: they lie in another place than it does."""

SCRIPT = '''"""Photos in, answers by class name out; made by ssclass."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import mlflow

from {package}.data.shapes import read_size
from {package}.model.engine import open_engine
from {package}.tracking.photo_model import PhotoModel


class Classifier(mlflow.pyfunc.PythonModel):
    """`predict` takes photos as bytes, paths, base64 or pixels, one or many; a DataFrame comes back."""

    # No type hint says all that may come in, and it is checked here. Without this MLflow warns of it each time.
    _skip_type_hint_validation = True

    def load_context(self, context):
        """Open the network."""
        import keras

        about = context.model_config
        network = keras.models.load_model(context.artifacts["model"], compile=False)
        self.model = PhotoModel(open_engine(network, read_size(about)), about["classes"])

    def predict(self, context, model_input, params=None):
        """Say what is on each photo."""
        return self.model.answer(model_input)


mlflow.models.set_model(Classifier())
'''


def write_model(folder: Path, classifier: Classifier | Adopted, metadata: dict[str, Any], made: Any) -> str:
    """Write a classifier as an MLflow model into a new folder; the sum of its files.

    `metadata` joins what MLmodel says of classes and size. `made`: MLflow's Model, which knows the ids.
    """
    import mlflow
    import pandas as pd

    about = {"classes": list(classifier.classes)} | about_size(classifier.size)
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, code = Path(scratch) / "model.keras", Path(scratch) / "code"
        classifier.export(network)
        package = pack(code)
        script = Path(scratch) / "photo_model.py"
        script.write_text(SCRIPT.format(package=package), encoding="utf-8")
        # Keras's own flavour, too: `mlflow.keras.load_model` goes on giving the network itself.
        made.add_flavor("keras", data="artifacts", keras_version=version("keras"), keras_backend="tensorflow")
        with _importable(code, package), _versions_known():
            mlflow.pyfunc.save_model(
                str(folder),
                python_model=str(script),
                artifacts={"model": str(network)},
                code_paths=[str(code / package)],
                model_config=about,
                signature=_signature(),
                input_example=pd.DataFrame({"photo": [base64.b64encode(_example()).decode()]}),
                pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
                metadata=about | metadata,
                mlflow_model=made,
            )
    return files_sum(folder)


def files_sum(folder: Path) -> str:
    """One sha256 over the paths and contents of all files of a folder that say how a model answers.

    MLflow writes some anew when it fetches a model (``registered_model_meta``), and those are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "registered_model_meta" and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def broken(there: Path, key: str, tags: Mapping[str, str]) -> str | None:
    """What is wrong with the files of the whole model of a decision; None when nothing is.

    `tags` of the logged model name the sum of its files; of models that older versions logged there is none, and only
    the sums inside the .keras file speak.
    """
    try:
        about = yaml.safe_load((there / "MLmodel").read_text(encoding="utf-8"))
        named = about["metadata"][KEY_TAG]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "MLmodel is gone, or cannot be read"
    if named != key:
        return f"it is the model of {named}"
    files = sorted(there.rglob("*.keras"))
    if not files:
        return "model.keras is gone"
    for path in files:
        try:
            with zipfile.ZipFile(path) as file:
                if file.testzip() is not None:
                    return f"{path.name} is damaged"
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError):
            return f"{path.name} is damaged"
    if SUM_TAG in tags and files_sum(there) != tags[SUM_TAG]:
        return "its files are others than those that were logged"
    return None


def pack(folder: Path) -> str:
    """Write the modules that a registered model needs into a folder, as a package; its name."""
    modules = needed_modules()
    content = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in modules}
    digest = hashlib.sha256("\0".join(f"{name}\0{text}" for name, text in content.items()).encode()).hexdigest()
    package = f"ssclass_{digest[:12]}"
    for name, text in content.items():
        target = folder / package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        for parent in (target.parent, folder / package):
            if not (parent / "__init__.py").exists():
                (parent / "__init__.py").write_text('"""Part of ssclass, packed with a model."""\n', encoding="utf-8")
        target.write_text(_renamed(text, package), encoding="utf-8")
    return package


def needed_modules() -> list[Path]:
    """The files of `ROOT` and of all modules of ssclass that it imports, and that those import."""
    found: set[Path] = set()
    waiting = [PACKAGE / ROOT]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return sorted(found)


def _imports(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ssclass":
            inside = PACKAGE.joinpath(*node.module.split(".")[1:])
            for alias in node.names:
                as_module, of_module = (inside / alias.name).with_suffix(".py"), inside.with_suffix(".py")
                yield as_module if as_module.exists() else of_module


def _renamed(text: str, package: str) -> str:
    """The text of a module that imports from `package` what it imported from ssclass."""
    return re.sub(r"^(\s*from )ssclass(?=[. ])", rf"\g<1>{package}", text, flags=re.MULTILINE)


@contextmanager
def _importable(folder: Path, package: str) -> Iterator[None]:
    """MLflow runs the model's script when it saves it; nothing of that stays behind, as the folder goes."""
    before = {name for name in sys.modules if name.partition(".")[0] == package}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            if name not in before:
                del sys.modules[name]


@contextmanager
def _versions_known() -> Iterator[None]:
    """MLflow does not look whether the required versions are installed: they are named by what is.

    It would list the files of every installed package for that, a second of a processor.
    """
    from mlflow.utils import environment

    check = "warn_dependency_requirement_mismatches"
    before = getattr(environment, check, None)
    if before is None:  # another MLflow
        yield
        return
    setattr(environment, check, lambda model_requirements: None)
    try:
        yield
    finally:
        setattr(environment, check, before)


def _signature() -> Any:
    """What comes out. Of what goes in nothing is declared: MLflow would make a table of it, which pixels are not."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    columns = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    return ModelSignature(outputs=Schema(columns))


def _example() -> bytes:
    """A small picture, the bytes of a PNG: a dish on a table."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 72), "burlywood")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((18, 8, 78, 64), fill="white")
    draw.ellipse((32, 20, 64, 52), fill="darkred")
    written = io.BytesIO()
    picture.save(written, "PNG")
    return written.getvalue()
