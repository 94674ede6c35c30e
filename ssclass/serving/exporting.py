"""A champion as a file for a phone, a browser or another server: LiteRT's, ONNX's, TensorFlow's or TensorFlow.js's.

An export takes one photo at a time, already decoded and squeezed to the model's size: `RESIZE` says how. Where the
network itself resizes further, or multiplies by an einsum, the export has plain products of matrices instead
(`ssclass.model.plain`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.errors import FailedError, InputError
from ssclass.model.engine import constant_graph
from ssclass.model.plain import plain_products
from ssclass.serving.tfjs import open_tfjs, write_tfjs

FORMATS = {"litert": "model.tflite", "onnx": "model.onnx", "savedmodel": "saved_model", "tfjs": "tfjs"}
"""Formats, and the name of the file or folder of each."""
DTYPES = ("float32", "float16", "int8")
RESIZE = (
    "upright by the EXIF orientation, colours by the ICC profile to sRGB, what is transparent on white; then the whole "
    "picture squeezed to a square of this side, by the mean of whole blocks of pixels down to at most twice the side, "
    "then bilinear with antialiasing (Pillow's BILINEAR)"
)
OPSET = 17
_CANNOT = {
    ("onnx", "float16"): "ONNX is exported in float32 only",
    ("onnx", "int8"): "ONNX is exported in float32 only",
    ("savedmodel", "float16"): "TensorFlow computes a SavedModel in float32",
    ("savedmodel", "int8"): "TensorFlow computes a SavedModel in float32",
}

Runtime = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Probabilities [classes] of one image uint8 [size, size, 3]."""


def check_choice(kind: str, dtype: str) -> None:
    """InputError where a format is not to be had with these numbers."""
    if (why := _CANNOT.get((kind, dtype))) is not None:
        raise InputError(f"--format {kind} --dtype {dtype}: {why}; choose --dtype float32, or --format litert")


def convert(model: Any, size: int, kind: str, dtype: str, folder: Path) -> Path:
    """Write a Keras model of images in a format into a folder; the file. FailedError where it cannot be converted."""
    path = folder / FORMATS[kind]
    try:
        plain = plain_products(model, size)
        to = {"litert": _to_litert, "onnx": _to_onnx, "savedmodel": _to_saved, "tfjs": write_tfjs}
        to[kind](plain, size, dtype, path)
    except (FailedError, InputError):
        raise
    except Exception as error:  # converters raise what they like
        why = next(iter(str(error).strip().splitlines()), "")[:300]
        raise FailedError(f"the model cannot be converted to {kind} ({type(error).__name__}: {why})") from error
    return path


def _to_litert(model: Any, size: int, dtype: str, path: Path) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions([constant_graph(model, size, photos=1)])
    if dtype != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if dtype == "float16":
        converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(converter.convert())


def _to_onnx(model: Any, size: int, dtype: str, path: Path) -> None:
    import tensorflow as tf

    convert = _needed("tf2onnx.convert")
    importlib.import_module("keras.src.export.tf2onnx_lib").patch_tf2onnx()
    shape = tf.TensorSpec((1, size, size, 3), tf.uint8, name="images")
    traced = tf.function(lambda images: model(images, training=False), input_signature=[shape])
    made, _ = convert.from_function(traced, input_signature=[shape], opset=OPSET)
    path.write_bytes(made.SerializeToString())


def _to_saved(model: Any, size: int, dtype: str, path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    shape = tf.TensorSpec((1, size, size, 3), tf.uint8, name="images")
    module.serve = tf.function(lambda images: {"probabilities": model(images, training=False)}, input_signature=[shape])
    module.model = model  # its variables
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})


def open_export(path: Path, kind: str) -> Runtime:
    """An export in the runtime that it is for, on one image at a time; what is for browsers, in TensorFlow."""
    if kind == "litert":
        interpreter = _needed("ai_edge_litert.interpreter").Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
        first, last = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

        def lite(image: NDArray[np.uint8]) -> NDArray[np.float32]:
            interpreter.set_tensor(first, image[None])
            interpreter.invoke()
            return np.asarray(interpreter.get_tensor(last)[0])

        return lite
    if kind == "onnx":
        session = _needed("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda image: np.asarray(session.run(None, {name: image[None]})[0][0])
    if kind == "tfjs":
        return open_tfjs(path)
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    run = loaded.signatures["serving_default"]
    return lambda image: np.asarray(run(images=tf.constant(image[None]))["probabilities"][0])


def _needed(module: str) -> Any:
    """A module of the extra `export`; InputError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise InputError(f"{package} is not installed; run `pip install {package}`") from error
