"""A registered version, an alias, a run or a folder, as something that answers on photos."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
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
from ssclass.errors import NotFoundError
from ssclass.model.compute import batch_size
from ssclass.params import IngestParams
from ssclass.settings import Settings

if TYPE_CHECKING:
    from ssclass.model.engine import Engine
    from ssclass.tracking.client import Tracking


@dataclass(frozen=True)
class Model:
    """A model that answers: `classes` in the order of its outputs, `size`: what photos are decoded to.

    `key`: of the decision (or the study's row) that made it, `run_id`: its MLflow run; None where nothing says it.
    """

    name: str
    classes: tuple[str, ...]
    size: Size
    keras: Any
    key: str | None = None
    run_id: str | None = None

    @cached_property
    def engine(self) -> Engine:
        """What answers: made and checked on first use, in a few seconds."""
        from ssclass.model.engine import open_engine

        return open_engine(self.keras, self.size)

    def predict(self, images: Images) -> NDArray[np.float64]:
        """Probabilities, float64 [n, classes], of decoded images."""
        return self.engine.predict(images)

    def predict_few(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """What :meth:`predict` gives, by Keras itself: slower a photo, but there is no engine to be made first."""
        return np.asarray(self.keras(images, training=False)).astype(float)


def open_model(name: str, settings: Settings | None) -> Model:
    """Open ``champion``, ``challenger`` or another alias, ``3`` (a version), a run's id, or a folder with a model.

    NotFoundError when there is no such model; TrackingError when MLflow is away.
    """
    if (path := Path(name)).is_dir():
        return open_folder(name, path)
    if settings is None:
        raise NotFoundError(f"{name}: no such folder; name one that holds model.keras, or a workspace with --workspace")
    import mlflow

    from ssclass.tracking.client import CANDIDATE, KEY_TAG, MODEL, Tracking

    tracking = Tracking(settings)
    with tracking.named():
        client = tracking.client
        try:
            if re.fullmatch(r"(run:)?[0-9a-f]{32}", name):
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
    return Model(name, classifier.classes, classifier.size, classifier.whole(), key, run_id)


def open_folder(name: str, folder: Path) -> Model:
    """Open the .keras file of a folder that MLflow or `ssclass` wrote; NotFoundError when there is none."""
    from ssclass.model.backbones import import_keras

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
    keras = import_keras().models.load_model(found[0])
    return Model(name, tuple(about["classes"]), read_size(about), keras, about.get("decision_key"))


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
    together = batch_size()
    with ThreadPoolExecutor() as pool:
        for at in range(0, len(files), together):
            part = files[at : at + together]
            images = list(pool.map(lambda file: read_photo(file.path, size), part))
            good = [(file, image) for file, image in zip(part, images, strict=True) if not isinstance(image, Refused)]
            bad = [(file, image) for file, image in zip(part, images, strict=True) if isinstance(image, Refused)]
            yield [file for file, _ in good], [image for _, image in good], bad
