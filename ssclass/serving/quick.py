"""A classifier that answers on photos without Keras and TensorFlow: its network in a runtime, its head in NumPy.

Each part is held against TensorFlow's, or Keras's, answers whenever it is opened (`ssclass.model.runtimes`,
`ssclass.model.saved_head`). Both together open in a second, where Keras takes many.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.errors import SsclassError
from ssclass.model.adopted import Adopted
from ssclass.model.classifier import Classifier
from ssclass.model.engine import Engine
from ssclass.model.extraction import make_extractor, taken_by_runtimes
from ssclass.model.features import Features
from ssclass.model.runtimes import TENSORFLOW, Runtime, chosen
from ssclass.model.saved_head import SavedHead
from ssclass.model.spec import Spec
from ssclass.retrain.predict import decided_classifier, decided_folder
from ssclass.workspace.workspace import Workspace


@dataclass(frozen=True)
class Quick:
    """A promoted classifier that answers without Keras and TensorFlow; `folder` and `runs_on`: what it was made of."""

    classes: tuple[str, ...]
    engine: Engine
    folder: Path
    runs_on: str


def open_quick(workspace: Workspace, key: str) -> Quick | None:
    """The classifier of a decision, its files held against git's; None where its engine is TensorFlow's here.

    StoreError where its files are not to be had.
    """
    classifier = decided_classifier(workspace, key)
    asked = workspace.at().params.features.engine
    engine = quick_engine(classifier, asked)
    return None if engine is None else Quick(classifier.classes, engine, decided_folder(workspace, key), asked)


def quick_engine(classifier: Classifier | Adopted, engine: str = "auto") -> Engine | None:
    """The engine of a classifier; None where its network or its head is TensorFlow's or Keras's on this machine.

    `engine` as in params.yaml: what the frozen network runs on.
    """
    if not isinstance(classifier, Classifier) or not all(
        isinstance(each.head, SavedHead) for each in classifier.members
    ):
        return None
    networks: dict[Spec, Runtime] = {}
    try:
        if chosen(engine) == TENSORFLOW:
            return None
        for spec in classifier.specs:
            if not taken_by_runtimes(spec, engine):
                return None
            network = make_extractor(spec, engine)
            if not isinstance(network, Runtime):
                return None
            networks[spec] = network
    except SsclassError:  # no weights for it, say: the exported model needs none
        return None

    def answer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        def features_of(spec: Any) -> Features:
            return Features(("",) * len(images), networks[spec](images))

        return classifier.predict(features_of).astype(np.float32)

    names = dict.fromkeys(network.name for network in networks.values())
    together = min(network.together for network in networks.values())
    return Engine(f"{', '.join(names)}, head in NumPy", classifier.size, len(classifier.classes), answer, together)
