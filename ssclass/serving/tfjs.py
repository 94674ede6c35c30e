"""TensorFlow.js's graph-model format: model.json with TensorFlow's graph, and its weights in files of 4 MB.

The format is what the converter of TensorFlow.js writes (``tensorflowjs_converter --output_format
tfjs_graph_model``), whose package asks for an older TensorFlow than ours: the graph as JSON by protobuf's rules, its
constants without their values, and a list of the constants in the order in which the files have them. Half precision
and whole numbers (one scale a tensor) are for the way there: the browser makes float32 of both before it computes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclass.errors import FailedError
from ssclass.model.engine import constant_graph
from ssclass.pages.templating import render

MODEL = "model.json"
RUNTIME = "4.22.0"
"""The version of TensorFlow.js that the page asks for."""
SHARD = 4 * 1024 * 1024  # bytes of a file, as browsers cache them
SMALL = 256  # values of a tensor that stays float32: biases, scales
_OPERATIONS = """
Abs Add AddN AddV2 ArgMax AvgPool BatchMatMul BatchMatMulV2 BiasAdd BroadcastTo Cast ClipByValue Concat ConcatV2 Const
Conv2D Conv2DBackpropInput DepthwiseConv2d DepthwiseConv2dNative Div DivNoNan Einsum Elu EnsureShape Erf Exp
ExpandDims Fill Floor FloorDiv FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 FusedDepthwiseConv2dNative Gather
GatherV2 Greater GreaterEqual Identity IdentityN LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd LogicalNot
LogicalOr MatMul Max MaxPool Maximum Mean Min Minimum MirrorPad Mul Neg NoOp NotEqual OneHot OnesLike Pack Pad PadV2
Placeholder Pow Prelu Prod Range Rank RealDiv Reciprocal Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor
Reverse ReverseV2 Round Rsqrt Select SelectV2 Selu Shape Sigmoid Sign Size Slice Softmax Softplus Split SplitV Sqrt
Square SquaredDifference Squeeze StopGradient StridedSlice Sub Sum Tanh Tile TopKV2 Transpose Unpack Where ZerosLike
_FusedConv2D _FusedMatMul
"""
KNOWN = frozenset(_OPERATIONS.split())
"""Operations that networks of images use and that TensorFlow.js 4.22 has."""
NUMBERS = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}
"""The types of TensorFlow.js's weights."""


def write_tfjs(model: Any, size: int, dtype: str, folder: Path) -> None:
    """Write a Keras model of images into a new folder; FailedError where TensorFlow.js lacks what it computes with."""
    from google.protobuf.json_format import MessageToDict
    from tensorflow import make_ndarray

    frozen = constant_graph(model, size, photos=1)
    graph = _simplified(frozen)
    if unknown := sorted({node.op for node in graph.node} - KNOWN):
        raise FailedError(f"TensorFlow.js has no {', '.join(unknown)}; choose --format litert")
    listed, parts = [], []
    for node in graph.node:
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            about, data = _packed(node.name, make_ndarray(tensor), dtype)
            listed.append(about)
            parts.append(data)
            kept = type(tensor)(dtype=tensor.dtype, tensor_shape=tensor.tensor_shape)
            tensor.CopyFrom(kept)  # its values are in the files
    folder.mkdir()
    whole = b"".join(parts)
    count = max(1, -(-len(whole) // SHARD))
    names = [f"group1-shard{number + 1}of{count}.bin" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(whole[number * SHARD : (number + 1) * SHARD])
    described = {
        "format": "graph-model",
        "generatedBy": "ssclass",
        "convertedBy": "ssclass",
        "signature": {
            "inputs": {"images": _signature(frozen.inputs[0])},
            "outputs": {"probabilities": _signature(frozen.outputs[0])},
        },
        "modelTopology": MessageToDict(graph),
        "weightsManifest": [{"paths": names, "weights": listed}],
    }
    (folder / MODEL).write_text(json.dumps(described) + "\n", encoding="utf-8")


def page(name: str, size: int, classes: Sequence[str]) -> str:
    """A page that says by the model beside it what is on a photo or before the camera; `name`: the model's."""
    return render("camera.html", name=name, size=size, classes=list(classes), runtime=RUNTIME)


def _simplified(frozen: Any) -> Any:
    """The graph of a function, without what its answers do not need, and with what is constant computed."""
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.grappler import tf_optimizer
    from tensorflow.python.training.saver import export_meta_graph

    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1  # small ones, too
    rewrites.optimizers[:] = ["pruning", "constfold", "arithmetic", "dependency", "pruning", "constfold", "dependency"]
    meta = export_meta_graph(graph_def=frozen.graph.as_graph_def(), graph=frozen.graph)
    ends = meta_graph_pb2.CollectionDef()
    ends.node_list.value.extend([frozen.inputs[0].name, frozen.outputs[0].name])
    meta.collection_def["train_op"].CopyFrom(ends)
    return tf_optimizer.OptimizeGraph(config, meta)


def _signature(tensor: Any) -> dict[str, Any]:
    kind = "DT_UINT8" if tensor.dtype.name == "uint8" else "DT_FLOAT"
    shape = {"dim": [{"size": str(side)} for side in tensor.shape]}
    return {"name": tensor.name, "dtype": kind, "tensorShape": shape}


def _packed(name: str, values: NDArray[Any], dtype: str) -> tuple[dict[str, Any], bytes]:
    """A constant's entry in the list, and its bytes, little-endian."""
    about: dict[str, Any] = {"name": name, "shape": list(values.shape)}
    if values.dtype == np.bool_:
        return about | {"dtype": "bool"}, values.astype(np.uint8).tobytes()
    if not np.issubdtype(values.dtype, np.floating):
        return about | {"dtype": "int32"}, values.astype("<i4").tobytes()
    numbers = values.astype("<f4")
    about["dtype"] = "float32"
    if dtype == "float32" or values.size < SMALL or not np.isfinite(numbers).all():
        return about, numbers.tobytes()
    if dtype == "float16":
        return about | {"quantization": {"dtype": "float16", "original_dtype": "float32"}}, numbers.astype(
            "<f2"
        ).tobytes()
    least, scale = float(numbers.min()), float(np.ptp(numbers)) / 255 or 1.0
    told = {"dtype": "uint8", "min": least, "scale": scale, "original_dtype": "float32"}
    return about | {"quantization": told}, np.round((numbers - least) / scale).astype(np.uint8).tobytes()


def _unpacked(about: dict[str, Any], data: memoryview) -> tuple[NDArray[Any], int]:
    """A constant, as the browser makes it of its bytes, and how many bytes those are."""
    kind, packed = NUMBERS[about["dtype"]], about.get("quantization", {})
    stored = np.dtype(packed.get("dtype", kind)).newbyteorder("<")
    count = int(np.prod(about["shape"], dtype=int))
    values = np.frombuffer(data, stored, count).reshape(about["shape"])
    if "scale" in packed:
        values = values * np.float32(packed["scale"]) + np.float32(packed["min"])
    return values.astype(kind), count * stored.itemsize


def open_tfjs(folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The network that the files of a folder describe, computed by TensorFlow; of one image uint8 [size, size, 3]."""
    import tensorflow as tf
    from google.protobuf.json_format import ParseDict

    told = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    graph = ParseDict(told["modelTopology"], tf.compat.v1.GraphDef())
    (group,) = told["weightsManifest"]
    rest = memoryview(b"".join((folder / name).read_bytes() for name in group["paths"]))
    weights = {}
    for about in group["weights"]:
        weights[about["name"]], used = _unpacked(about, rest)
        rest = rest[used:]
    for node in graph.node:
        if node.op == "Const":
            kind = tf.dtypes.as_dtype(node.attr["value"].tensor.dtype)
            values = weights[node.name].astype(kind.as_numpy_dtype)
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values, kind, values.shape))
    ends = [
        told["signature"][side][name]["name"] for side, name in (("inputs", "images"), ("outputs", "probabilities"))
    ]
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    run = wrapped.prune(*(wrapped.graph.as_graph_element(name) for name in ends))
    return lambda image: np.asarray(run(tf.constant(image[None]))[0])
