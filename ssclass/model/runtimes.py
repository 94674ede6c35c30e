"""Runtimes for the frozen network: OpenVINO, LiteRT or ONNX Runtime instead of TensorFlow, where one is installed.

A runtime takes one photo at a time on one thread, and as many threads as there are cores take photos side by side:
faster on a CPU than a batch on all cores, and a photo's features are then the same bits in whatever company it comes.

What a runtime reads is made once by TensorFlow and kept in ssclass's folder, under the fingerprint of the features,
with TensorFlow's own answers on two probe images. Each time it is opened, it answers on those first: where a value is
further from TensorFlow's than `APART` allows, it is not used. So the runtime is no part of the fingerprint. A later
process needs neither Keras nor TensorFlow.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.errors import FailedError, ParamsError
from ssclass.files import whole
from ssclass.model.backbones import without_chatter
from ssclass.model.compute import gpu_possible, share_gpus
from ssclass.model.engine import constant_graph, probe_images
from ssclass.model.plain import plain_products
from ssclass.params import FeatureParams
from ssclass.settings import home

TENSORFLOW = "tensorflow"
PACKAGES = {
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert",),
    "onnxruntime": ("onnxruntime", "onnx", "tf2onnx"),
}
"""Runtimes in the order in which ``auto`` takes the first that is installed, with the packages that each needs."""
EXTRAS = {"openvino": "openvino", "litert": "export", "onnxruntime": "export"}
APART = {"float32": 1e-4, "float16": 2e-3}
"""How far a value may be from TensorFlow's, as a share of the array's largest. Measured: 5e-6, and of maps, which are
rounded to float16, one step (6.5e-4): additions come in another order, nothing else."""
TOGETHER = 16
"""Photos that are decoded and handed over together, so that no thread waits long for the last of them."""
LAYOUT = 1  # of the kept files
PROBE = "probe.npz"

Arrays = dict[str, NDArray[Any]]
Lane = Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]
"""One thread's way to the feature arrays [1, …] of one image uint8 [1, size, size, 3], in the order of their names."""

log = logging.getLogger(__name__)


class Runtime:
    """A frozen network in a runtime: called with images uint8 [n, size, size, 3] it gives their feature arrays.

    `name` says which runtime it is. Safe to call from several threads.
    """

    together = TOGETHER

    def __init__(self, name: str, arrays: Sequence[str], lanes: Sequence[Lane]) -> None:
        self.name = name
        self._arrays = tuple(arrays)
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)
        self._pool = ThreadPoolExecutor(len(lanes), thread_name_prefix=name)

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """The feature arrays of some images, rows in the order of the images; at least one image."""
        found = list(self._pool.map(self._one, images))
        return {name: np.concatenate(parts) for name, parts in zip(self._arrays, zip(*found, strict=True), strict=True)}

    def _one(self, image: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        lane = self._free.get()
        try:
            return lane(image[None])
        finally:
            self._free.put(lane)


def chosen(engine: str) -> str:
    """The runtime that ``features.engine`` means on this machine; ParamsError where the one it names is not installed.

    ``auto``: TensorFlow where it may compute on a GPU, else the first of `PACKAGES` that is installed, else TensorFlow.
    """
    if engine == TENSORFLOW:
        return engine
    if engine == "auto":
        there = () if gpu_possible() and share_gpus() else PACKAGES
        return next((name for name in there if described(name)), TENSORFLOW)
    if not described(engine):
        raise ParamsError(
            f"features.engine: {engine} is not installed; run `pip install 'ssclass[{EXTRAS[engine]}]'`, or choose auto"
        )
    return engine


def runtime_of(params: FeatureParams) -> str:
    """The runtime that computes features here, with its version; empty where it is TensorFlow."""
    name = TENSORFLOW if params.shape == "own" else chosen(params.engine)
    return "" if name == TENSORFLOW else described(name)


@cache
def described(name: str) -> str:
    """A runtime with the versions of its packages, ``openvino 2026.4.1``; empty where one of them is not installed."""
    try:
        return " ".join([name, *(version(package) for package in PACKAGES[name])])
    except PackageNotFoundError:
        return ""


def open_runtime(engine: str, fingerprint: str, size: int, network: Callable[[], Any]) -> Runtime | None:
    """The runtime that ``features.engine`` means, with the network of a fingerprint; None: TensorFlow is to compute.

    `network` makes the Keras model, uint8 [n, h, w, 3] to a dict of arrays, where it is not kept yet. FailedError where
    a runtime that `engine` names cannot take the network, or is too far from TensorFlow; where ``auto`` chose it,
    TensorFlow takes its place, and the log says so.
    """
    if (name := chosen(engine)) == TENSORFLOW:
        return None
    said = " ".join([described(name), version(TENSORFLOW), fingerprint, str(size), str(LAYOUT)])
    folder = home() / "engines" / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:32]}"
    try:
        if (opened := _kept(name, folder)) is not None:
            return opened
    except FailedError as error:  # damaged since, or else it says so again
        log.info("%s: %s; it is made again", folder, error)
    model = network()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _keep(name, model, size, folder)
        if (opened := _kept(name, folder)) is not None:
            return opened
        why = "what was made for it cannot be read"
    except FailedError as error:
        why = str(error)
    except Exception as error:  # converters and runtimes raise what they like
        why = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
    if engine != "auto":
        raise FailedError(f"features.engine: {engine} cannot compute this network ({why}); choose auto, or tensorflow")
    log.warning("%s cannot compute this network (%s); TensorFlow does", name, why)
    return None


def _keep(name: str, model: Any, size: int, folder: Path) -> None:
    """Write what a runtime reads, and TensorFlow's answers on the probe, into a new folder."""
    import tensorflow as tf

    names = sorted(model.output)  # TensorFlow flattens a dict by its keys
    answers = constant_graph(model, size)(tf.constant(probe_images(size)))
    graph = constant_graph(plain_products(model, size), size, photos=1)
    with whole(folder) as new:
        new.mkdir()
        WRITERS[name](graph, new)
        arrays = {str(number): answer.numpy() for number, answer in enumerate(answers)}
        np.savez(new / PROBE, names=np.array(json.dumps(names)), size=size, **arrays)


def _kept(name: str, folder: Path) -> Runtime | None:
    """The runtime of a folder; None where there is none or it is damaged. FailedError where it answers otherwise."""
    try:
        with np.load(folder / PROBE, allow_pickle=False) as file:
            names = json.loads(str(file["names"]))
            expected = {each: file[str(number)] for number, each in enumerate(names)}
            size = int(file["size"])
        probe = probe_images(size)
        with without_chatter():
            ways = OPENERS[name](folder, lanes())
            for lane in ways:  # one after the other: OpenVINO's Python hangs where two threads are the first to call it
                lane(probe[:1])
        opened = Runtime(name, names, ways)
        found = opened(probe)
    except Exception as error:  # damaged files make NumPy and runtimes raise anything
        if folder.exists():
            log.info("%s: cannot be opened (%s); it is made again", folder, type(error).__name__)
        return None
    for each, values in expected.items():
        far, most = apart(found[each], values), APART[str(values.dtype)]
        if not far <= most:
            raise FailedError(f"{each} differs from TensorFlow's by {far:.2g} of the largest value, more than {most:g}")
    return opened


def apart(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference of two arrays as a share of the second's largest value; infinite where they are unlike."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    one, other = found.astype(np.float64), expected.astype(np.float64)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    return float(np.abs(one - other).max(initial=0) / max(np.abs(other).max(initial=0), 1e-12))


def lanes() -> int:
    """How many photos a runtime takes side by side: one a core that this process may use.

    TensorFlow's own variable makes it fewer, as it does with TensorFlow.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    return min(cores, int(told)) if told.isdecimal() and int(told) else cores


# -- what each runtime reads, and how it is asked -------------------------------------------------------------


def _write_openvino(graph: Any, folder: Path) -> None:
    openvino = importlib.import_module("openvino")
    source = folder / "graph.pb"
    source.write_bytes(graph.graph.as_graph_def().SerializeToString())
    model = openvino.Core().read_model(source)  # not convert_model, which would tell its maker's statistics
    outputs = [model.output(output.name) for output in graph.outputs]
    openvino.save_model(openvino.Model(outputs, model.get_parameters()), folder / "model.xml", compress_to_fp16=False)
    source.unlink()


def _open_openvino(folder: Path, count: int) -> list[Lane]:
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 where the processor has it, otherwise
        "NUM_STREAMS": count,
        "INFERENCE_NUM_THREADS": count,
        "ENABLE_CPU_PINNING": False,  # two processes would share one core
    }
    openvino = importlib.import_module("openvino")
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)

    def lane(request: Any) -> Lane:
        given = np.zeros(tuple(compiled.input(0).shape), np.uint8)
        request.set_input_tensor(openvino.Tensor(given, shared_memory=True))
        outputs = [request.get_output_tensor(number).data for number in range(len(compiled.outputs))]

        def answer(image: NDArray[np.uint8]) -> list[NDArray[Any]]:
            given[:] = image
            request.infer()
            return [output.copy() for output in outputs]

        return answer

    return [lane(compiled.create_infer_request()) for _ in range(count)]


def _write_litert(graph: Any, folder: Path) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph])
    (folder / "model.tflite").write_bytes(converter.convert())


def _open_litert(folder: Path, count: int) -> list[Lane]:
    interpreter_of = importlib.import_module("ai_edge_litert.interpreter").Interpreter

    def lane() -> Lane:
        interpreter = interpreter_of(model_path=str(folder / "model.tflite"), num_threads=1)
        interpreter.allocate_tensors()
        (given,) = interpreter.get_input_details()
        outputs = interpreter.get_output_details()

        def answer(image: NDArray[np.uint8]) -> list[NDArray[Any]]:
            interpreter.set_tensor(given["index"], image)
            interpreter.invoke()
            return [interpreter.get_tensor(output["index"]) for output in outputs]

        return answer

    return [lane() for _ in range(count)]


def _write_onnx(graph: Any, folder: Path) -> None:
    convert = importlib.import_module("tf2onnx.convert")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, by tf2onnx
        importlib.import_module("keras.src.export.tf2onnx_lib").patch_tf2onnx()
        names = [tensor.name for tensor in graph.inputs], [tensor.name for tensor in graph.outputs]
        made, _ = convert.from_graph_def(
            graph.graph.as_graph_def(), input_names=names[0], output_names=names[1], opset=17
        )
    (folder / "model.onnx").write_bytes(made.SerializeToString())


def _open_onnx(folder: Path, count: int) -> list[Lane]:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return [lambda image: session.run(None, {given.name: image})] * count  # one session serves all threads


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "openvino": _write_openvino,
    "litert": _write_litert,
    "onnxruntime": _write_onnx,
}
OPENERS: dict[str, Callable[[Path, int], list[Lane]]] = {
    "openvino": _open_openvino,
    "litert": _open_litert,
    "onnxruntime": _open_onnx,
}
