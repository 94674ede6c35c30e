"""A registered version, an alias, a run or a folder, as something that answers on photos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssclass.data.decoders import decoders
from ssclass.data.folders import LabelledFile
from ssclass.data.images import Refused, decode
from ssclass.data.shapes import Images, Size, read_size
from ssclass.errors import NotFoundError, SsclassError
from ssclass.model.keras_files import load_model
from ssclass.params import IngestParams
from ssclass.settings import Settings

if TYPE_CHECKING:
    from ssclass.model.engine import Engine
    from ssclass.tracking.client import Tracking

TOGETHER = 32  # photos that are read at a time


@dataclass(frozen=True)
class Later:
    """A Keras model that is loaded when it is asked for; `file`: the .keras file that it is in."""

    load: Callable[[], Any]
    file: Path | None = None


@dataclass(frozen=True)
class Model:
    """A model that answers: `classes` in the order of its outputs, `size`: what photos are decoded to.

    `network`: the Keras model, or :class:`Later`. `key`: of the decision (or the study's row) that made it, `run_id`:
    its MLflow run; None where nothing says it. `quick`: an engine that needs no Keras; `folder`: the classifier that it
    was made of, `runs_on`: what was asked for its network, as in params.yaml.
    """

    name: str
    classes: tuple[str, ...]
    size: Size
    network: Any
    key: str | None = None
    run_id: str | None = None
    quick: Engine | None = None
    folder: Path | None = None
    runs_on: str = "auto"

    @cached_property
    def keras(self) -> Any:
        """The whole model, uint8 images [n, h, w, 3] to probabilities [n, classes], as a Keras model."""
        return self.network.load() if isinstance(self.network, Later) else self.network

    @cached_property
    def engine(self) -> Engine:
        """What answers: made and checked on first use, in a few seconds where it is not quick."""
        from ssclass.model.engine import open_engine
        from ssclass.serving.kept import open_kept

        if self.quick is not None:
            return self.quick
        if isinstance(self.network, Later) and self.network.file is not None:
            return open_kept(self.network.file, self.size, lambda: self.keras)
        return open_engine(self.keras, self.size)

    def predict(self, images: Images) -> NDArray[np.float64]:
        """Probabilities, float64 [n, classes], of decoded images."""
        return self.engine.predict(images)

    def predict_few(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """What :meth:`predict` gives; where its engine would not be kept, by Keras itself, which need not be made."""
        if self.quick is not None or (isinstance(self.network, Later) and self.network.file is not None):
            return self.predict(images)
        return np.asarray(self.keras(images, training=False)).astype(float)


def open_model(name: str, settings: Settings | None) -> Model:
    """Open ``champion``, ``challenger`` or another alias, ``3`` (a version), a run's id, or a folder with a model.

    NotFoundError when there is no such model; TrackingError when MLflow is away.
    """
    if (path := Path(name)).is_dir():
        return open_folder(name, path)
    if settings is None:
        raise NotFoundError(f"{name}: no such folder; name one that holds model.keras, or a workspace with --workspace")
    return _promoted(name, settings) or _by_mlflow(name, settings)


def _promoted(name: str, settings: Settings) -> Model | None:
    """A model that the ledger promoted, by what git and DVC have of it: it opens without MLflow's client and Keras.

    None where it is none, or its engine is TensorFlow's here, or anything is amiss, which `_by_mlflow` says better.
    """
    from ssclass.serving.quick import open_quick
    from ssclass.tracking.glance import look_up
    from ssclass.workspace.workspace import Workspace

    try:
        if (named := look_up(settings, name)) is None:
            return None
        workspace = Workspace(settings)
        quick = open_quick(workspace, named.key) if named.key in workspace.at().state.champions else None
    except SsclassError:
        return None
    if quick is None:
        return None
    whole = Later(lambda: _by_mlflow(named.version or name, settings).keras)
    made_of = quick.folder, quick.runs_on
    return Model(name, quick.classes, quick.engine.size, whole, named.key, named.run_id, quick.engine, *made_of)


def _by_mlflow(name: str, settings: Settings) -> Model:
    """A version, an alias or a run by MLflow's client; what is trained and not promoted, too."""
    import mlflow

    from ssclass.tracking.client import CANDIDATE, KEY_TAG, MODEL, Tracking
    from ssclass.tracking.glance import RUN

    tracking = Tracking(settings)
    with tracking.named():
        client = tracking.client
        try:
            if RUN.fullmatch(name):
                run_id = name.removeprefix("run:")
                models = tracking.models_of(client.get_run(run_id))
                if not models:
                    raise NotFoundError(
                        f"{name}: that run has no model, or `ssclass gc` took it; choose another run, or a version"
                    )
                logged = models.get(MODEL) or models[CANDIDATE]
                uri = f"models:/{logged.model_id}"
                if logged.name == CANDIDATE:
                    folder = Path(mlflow.artifacts.download_artifacts(logged.artifact_location))
                    return _from_candidate(name, folder, logged.tags.get(KEY_TAG), run_id)
            else:
                version = (
                    client.get_model_version(tracking.name, name)
                    if name.isdigit()
                    else client.get_model_version_by_alias(_registered(tracking, name), name)
                )
                uri, run_id = version.source, version.run_id
        except mlflow.MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise NotFoundError(
                    f"{name}: MLflow at {settings.tracking_uri} has no such version, alias or run of "
                    f"{tracking.name!r}; `ssclass history` lists decisions, `ssclass retrain` makes a first champion"
                ) from error
            raise
        return replace(open_folder(name, Path(mlflow.artifacts.download_artifacts(uri))), run_id=run_id)


def _registered(tracking: Tracking, alias: str) -> str:
    """The registered model that has an alias."""
    from ssclass.tracking.client import CHALLENGER

    return tracking.challengers if alias == CHALLENGER else tracking.name


def _from_candidate(name: str, folder: Path, key: str | None, run_id: str) -> Model:
    """What was trained, put on its backbone, which is on this machine once for all."""
    from ssclass.model.adopted import open_classifier

    classifier = open_classifier(folder)
    return Model(name, classifier.classes, classifier.size, Later(classifier.whole), key, run_id)


def open_folder(name: str, folder: Path) -> Model:
    """Open the .keras file of a folder that MLflow or `ssclass` wrote; NotFoundError when there is none."""
    path, classes, size, key = read_about(folder)
    return Model(name, classes, size, Later(lambda: load_model(path), path), key)


def read_about(folder: Path) -> tuple[Path, tuple[str, ...], Size, str | None]:
    """The .keras file of a folder, and its classes, size and decision key; NotFoundError where there is none."""
    found = sorted(folder.rglob("*.keras"))
    if not found:
        raise NotFoundError(f"{folder}: holds no .keras file; name the folder of a model")
    if (described := folder / "MLmodel").exists():
        import yaml

        about = yaml.safe_load(described.read_text())["metadata"]
    elif (described := found[0].with_name("model.json")).exists():
        about = json.loads(described.read_text())
    else:
        raise NotFoundError(
            f"{folder}: neither MLmodel nor model.json beside the model says which classes it tells; name the folder "
            "that MLflow or `ssclass` wrote"
        )
    return found[0], tuple(about["classes"]), read_size(about), about.get("decision_key")


def read_photo(path: Path, size: Size) -> NDArray[np.uint8] | Refused:
    """A photo, uint8 [h, w, 3], by the decode that training uses; Refused (returned) says why it cannot be."""
    try:
        data = path.read_bytes()
        decoders().inspect(data, IngestParams(min_side=1))
        return decode(data, size)
    except Refused as error:
        return error
    except OSError as error:
        return Refused("unreadable", error.strerror or str(error))


def stream(
    files: Sequence[LabelledFile], size: Size
) -> Iterator[tuple[list[LabelledFile], list[NDArray[np.uint8]], list[tuple[LabelledFile, Refused]]]]:
    """Photos in batches: the files that could be read, their images uint8 [h, w, 3], and the others."""
    with ThreadPoolExecutor() as pool:
        for at in range(0, len(files), TOGETHER):
            part = files[at : at + TOGETHER]
            images = list(pool.map(lambda file: read_photo(file.path, size), part))
            good = [(file, image) for file, image in zip(part, images, strict=True) if not isinstance(image, Refused)]
            bad = [(file, image) for file, image in zip(part, images, strict=True) if isinstance(image, Refused)]
            yield [file for file, _ in good], [image for _, image in good], bad
