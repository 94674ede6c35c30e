"""The graph of a Keras model as it was made once: opened again, no Keras model is built, which takes many seconds.

It lies in ssclass's folder under the digest of the model's file, with Keras's answers on two probe images, and is made
again where it is damaged or does not answer so. The graphs of a few models are kept: those that were opened last.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ssclass.data.shapes import Size, about_size
from ssclass.files import file_sha256, whole
from ssclass.model.backbones import without_chatter
from ssclass.model.engine import FOLDED, TOLERANCE, Engine, Folded, largest_difference, open_engine, probe_images
from ssclass.settings import home

LAYOUT = 1  # of the kept files
MOST = 8  # models whose graphs are kept, of 15 to 100 MB each
GRAPH, ANSWERS = "graph.pb", "answers.npz"

log = logging.getLogger(__name__)


def open_kept(path: Path, size: Size, load: Callable[[], Any]) -> Engine:
    """The engine of a .keras file; `load` gives its Keras model where its graph is not kept yet.

    Errors of `load`, and FailedError as :func:`ssclass.model.engine.open_engine`.
    """
    said = f"{LAYOUT} {version('tensorflow')} {version('keras')} {about_size(size)} {file_sha256(path)}"
    folder = home() / "engines" / f"tensorflow-{hashlib.sha256(said.encode()).hexdigest()[:32]}"
    if (engine := _opened(folder, size)) is not None:
        return engine
    model = load()
    engine = open_engine(model, size)
    if isinstance(engine.answer, Folded):
        try:
            _keep(folder, engine.answer.graph, np.asarray(model(probe_images(size), training=False)))
        except OSError as error:  # a full disk, say: it is made again next time
            log.info("%s: not kept (%s)", folder, error)
    return engine


def _keep(folder: Path, graph: Any, answers: Any) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with whole(folder) as new:
        new.mkdir()
        (new / GRAPH).write_bytes(graph.graph.as_graph_def().SerializeToString())
        names = np.array([graph.inputs[0].name, graph.outputs[0].name])
        np.savez(new / ANSWERS, answers=answers, names=names)
    there = sorted(folder.parent.glob("tensorflow-*"), key=lambda each: each.stat().st_mtime, reverse=True)
    for old in there[MOST:]:
        shutil.rmtree(old, ignore_errors=True)


def _opened(folder: Path, size: Size) -> Engine | None:
    """The engine of what is kept; None where there is nothing, or it is damaged or answers otherwise than Keras."""
    try:
        with np.load(folder / ANSWERS, allow_pickle=False) as file:
            expected, (given, found) = file["answers"], map(str, file["names"])
        data = (folder / GRAPH).read_bytes()
        engine = Engine(FOLDED, size, expected.shape[1], Folded(_graph(data, given, found)))
        difference = largest_difference(engine.predict(probe_images(size)), expected)
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged files make NumPy and TensorFlow raise anything
        log.info("%s: cannot be opened (%s); it is made again", folder, type(error).__name__)
        return None
    if not difference <= TOLERANCE:
        log.info("%s: differs from Keras by %.2g; it is made again", folder, difference)
        return None
    os.utime(folder)
    return engine


def _graph(data: bytes, given: str, found: str) -> Any:
    """TensorFlow's function of a graph, from the tensor named `given` to the one named `found`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_chatter():
        import tensorflow as tf

        definition = tf.compat.v1.GraphDef.FromString(data)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(definition, name=""), [])
        return wrapped.prune([wrapped.graph.get_tensor_by_name(given)], [wrapped.graph.get_tensor_by_name(found)])
