"""From photos to feature arrays: the one graph that training, evaluation and the exported model share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np

from ssclass.data.refusals import Refused
from ssclass.data.shapes import OwnShape, by_shape
from ssclass.errors import InputError, WeightsError
from ssclass.model.backbones import find_backbone, import_keras
from ssclass.model.compute import batch_size
from ssclass.model.engine import constant_graph
from ssclass.model.runtimes import TENSORFLOW, open_runtime
from ssclass.model.spec import FeatureSpec, ModelSpec, Spec
from ssclass.model.weights import load_weights

SPLIT_DTYPE = "float16"
"""Of the activations before tuned blocks: the network rounds to it as the memo does, so that a photo has the same
features whether they are computed at once or from remembered activations."""

ANSWERS = "probabilities"
"""The name of the one array of an adopted model."""

OUTSIDE = 1e3
"""The place of what only fills up a map of places; photos have theirs between -1 and 1."""

Extractor = Callable[[np.ndarray], dict[str, np.ndarray]]  # photos of one shape, uint8 [n, h, w, 3], to arrays


def feature_arrays(spec: FeatureSpec, images: Any, suffix: str = "") -> dict[str, Any]:
    """The feature arrays of a spec, as Keras tensors, for images uint8 [n, h, w, 3], RGB, any height and width.

    Photos that :func:`ssclass.data.images.decode` made at `spec.size` pass through the first resize unchanged. `suffix`
    keeps the names of layers apart when there are several specs in a model. WeightsError when the backbone's weights
    are not to be had, or are others than those of `spec`.
    """
    keras = import_keras()
    weights = load_weights(spec.backbone)
    if weights.sha256 != spec.weights_sha256:
        raise WeightsError(
            f"weights of {spec.backbone}: sha256 {weights.sha256[:12]}… here, but {spec.weights_sha256[:12]}… is asked "
            "for; bring those in with `ssclass weights import FILE`, or train anew with `ssclass retrain`"
        )
    backbone = find_backbone(spec.backbone)
    photo = images
    if not spec.own_shape:  # which the decode has given it: the size of a resize would have to be known here
        photo = keras.layers.Resizing(spec.size, spec.size, antialias=True, name=f"resize{suffix}")(images)
    arrays: dict[str, Any] = {}
    for size in spec.sizes:
        canvas = spec.canvas(size)
        shrink = keras.layers.Resizing(canvas, canvas, antialias=True, name=f"resize_{size}{suffix}")
        whole = photo if canvas == spec.size else shrink(photo)
        views = [_crop(whole, top, left, size, canvas, suffix) for top, left in spec.corners(size)]
        if spec.flip:
            views += [keras.ops.flip(view, axis=2) for view in views]
        network = split_backbone(spec, size)[0] if spec.before_blocks else _whole_backbone(spec, size)
        network.name = f"{spec.backbone}_{size}{suffix}"
        found = [network(backbone.preprocess(view)) for view in views]
        if spec.before_blocks:
            arrays[f"{size}.cut"] = keras.ops.cast(_side_by_side(found), SPLIT_DTYPE)
        else:
            arrays |= summaries(spec, size, found)
    return arrays


def summaries(spec: FeatureSpec, size: int, maps: list[Any]) -> dict[str, Any]:
    """The arrays that heads are fitted to, as Keras tensors, given the last feature map of each view of `size`."""
    keras = import_keras()
    pool = keras.layers.GlobalAveragePooling2D()
    squares = [keras.layers.Multiply()([view, view]) for view in maps]
    arrays = {
        f"{size}.out.mean": _side_by_side([pool(view) for view in maps]),
        f"{size}.out.square": _side_by_side([pool(view) for view in squares]),
    }
    if spec.maps and spec.own_shape:
        channels = maps[0].shape[-1]
        listed = [keras.layers.Reshape((-1, channels))(view) for view in maps]
        arrays[f"{size}.out.map"] = keras.ops.cast(_side_by_side(listed), "float16")
        arrays[f"{size}.out.place"] = _side_by_side([_places(view) for view in maps])
    elif spec.maps and size == max(spec.sizes):
        arrays[f"{size}.out.map"] = keras.ops.cast(_side_by_side(maps), "float16")
    return arrays


def _places(maps: Any) -> Any:
    """Where each place of Keras tensors [n, h, w, channels] is, float32 [n, h * w, 2]: down and across, -1 to 1."""
    keras = import_keras()
    one = keras.ops.ones_like(maps[..., 0])

    def along(axis: int) -> Any:
        steps = keras.ops.maximum(keras.ops.sum(one, axis=axis, keepdims=True) - 1, 1.0)
        return keras.layers.Reshape((-1, 1))((keras.ops.cumsum(one, axis=axis) - 1) / steps * 2 - 1)

    return keras.layers.Concatenate()([along(1), along(2)])


def _crop(photo: Any, top: int, left: int, size: int, canvas: int, suffix: str) -> Any:
    """Cut a Keras tensor [n, size, size, 3] out of one of [n, canvas, canvas, 3]."""
    if size == canvas:
        return photo
    edges = ((top, canvas - size - top), (left, canvas - size - left))
    return import_keras().layers.Cropping2D(edges, name=f"crop_{size}_{top}_{left}{suffix}")(photo)


def _side_by_side(tensors: list[Any]) -> Any:
    """Stack Keras tensors [n, …], one a view, to [n, views, …]."""
    layers = import_keras().layers
    rows = [layers.Reshape((1, *tensor.shape[1:]))(tensor) for tensor in tensors]
    return layers.Concatenate(axis=1)(rows) if len(rows) > 1 else rows[0]


def make_extractor(spec: FeatureSpec | ModelSpec, engine: str = "auto") -> Extractor:
    """The network of a spec as a function of decoded photos of one shape, uint8 [n, h, w, 3].

    `engine` as in params.yaml: what the frozen network runs on (`ssclass.model.runtimes`). Adopted models, tuned
    blocks and photos in their own shape are TensorFlow's.
    """
    if isinstance(spec, ModelSpec):
        return compiled(import_keras().Model(spec.model.input, {ANSWERS: spec.model.output}), spec.size)
    return _feature_extractor(spec, engine)


@lru_cache(2)  # a retrain asks several times: for each shard, and for candidate and champion
def _feature_extractor(spec: FeatureSpec, engine: str) -> Extractor:
    """The network of ours in a runtime, or as TensorFlow's graph with its weights as constants.

    TensorFlow then folds batch norms into the convolutions before them: means differ from those of the graph with
    variables by 3e-6 of their size, maps by one step of float16 here and there. A tuned network takes the two steps
    that the memo takes: one graph of both would round some activations between them otherwise.
    """
    if spec.tuned_blocks is not None:
        frozen, tuned = _feature_extractor(spec.frozen_part, engine), tuned_extractor(spec)
        return lambda images: tuned(frozen(images))

    def network() -> Any:
        keras = import_keras()
        pixels = keras.Input((None, None, 3), dtype="uint8", name="images")
        return keras.Model(pixels, feature_arrays(spec, pixels), name="features")

    asked = engine if taken_by_runtimes(spec, engine) else TENSORFLOW
    if not spec.own_shape and (runtime := open_runtime(asked, spec.fingerprint, spec.size, network)) is not None:
        return runtime
    import tensorflow as tf

    model = network()
    run, names = constant_graph(model, spec.photo_size), sorted(model.output)  # TensorFlow flattens a dict by its keys
    rows = OwnShape(spec.size).places if spec.own_shape else 0

    def features(images: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: value.numpy() for name, value in zip(names, run(tf.constant(images)), strict=True)}
        return {name: _padded(name, value, rows) if rows else value for name, value in found.items()}

    return features


def taken_by_runtimes(spec: FeatureSpec, engine: str) -> bool:
    """Whether other runtimes than TensorFlow are to compute the network of a spec, where one is installed."""
    return spec.tuned_blocks is None and not spec.own_shape and not (engine == "auto" and _resizes(spec))


def _resizes(spec: FeatureSpec) -> bool:
    """Whether the network makes smaller photos of the decoded one: TensorFlow alone rounds their pixels as it does."""
    return any(spec.canvas(size) != spec.size for size in spec.sizes)


def _padded(name: str, array: np.ndarray, places: int) -> np.ndarray:
    """A map [n, views, p, channels], or where its places are [n, views, p, 2], with `places` places.

    What is added is zero, and far outside the photo. Other arrays stay as they are.
    """
    kind = name.rpartition(".")[2]
    if kind not in ("map", "place"):
        return array
    room = ((0, 0), (0, 0), (0, places - array.shape[2]), (0, 0))
    return np.pad(array, room, constant_values=OUTSIDE if kind == "place" else 0)


def compiled(model: Any, size: int) -> Extractor:
    """A Keras model of images, with a dict of outputs, as a function of a uint8 array [n, size, size, 3]."""
    import tensorflow as tf

    # Without jit_compile: XLA is five times slower on these networks on a CPU.
    shape = tf.TensorSpec((None, size, size, 3), tf.uint8)
    run = tf.function(lambda images: model(images, training=False), input_signature=[shape])
    return lambda images: {name: value.numpy() for name, value in run(images).items()}


def _whole_backbone(spec: FeatureSpec, size: int) -> Any:
    """The backbone of a spec for views of `size`, with its tuned blocks, rounding before them as the memo does."""
    keras = import_keras()
    backbone = find_backbone(spec.backbone)
    trunk = backbone.trunk(load_weights(spec.backbone).tensors, None if spec.own_shape else size)
    if spec.tuned_blocks is None:
        return trunk
    _, blocks = backbone.split(trunk, spec.blocks)
    blocks.set_weights(spec.tuned_blocks.tensors)  # the layers are the trunk's own

    def call(layer: Any, *inputs: Any, **named: Any) -> Any:
        found = layer(*inputs, **named)
        rounded = layer.name == backbone.block_ends[spec.blocks - 1]
        return keras.ops.cast(keras.ops.cast(found, SPLIT_DTYPE), "float32") if rounded else found

    network = keras.models.clone_model(trunk, call_function=call)
    network.set_weights(trunk.get_weights())
    network.trainable = False
    return network


def split_backbone(spec: FeatureSpec, size: int) -> tuple[Any, Any]:
    """The backbone of a spec for views of `size` as two Keras models: the frozen part, and the last blocks.

    The second has the spec's tuned weights where there are some, else the published ones.
    """
    backbone = find_backbone(spec.backbone)
    frozen, blocks = backbone.split(backbone.trunk(load_weights(spec.backbone).tensors, size), spec.blocks)
    if spec.tuned_blocks:
        blocks.set_weights(spec.tuned_blocks.tensors)
    return frozen, blocks


@lru_cache(4)
def tuned_extractor(spec: FeatureSpec) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The tuned blocks of a spec as a function from the activations before them to the spec's feature arrays.

    The activations are ``<size>.cut``, `SPLIT_DTYPE` [n, views, h, w, channels], one array a size.
    """
    import tensorflow as tf

    keras = import_keras()
    inputs: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    for size in spec.sizes:
        _, blocks = split_backbone(spec, size)
        views = keras.Input((spec.views, *blocks.input.shape[1:]), dtype=SPLIT_DTYPE, name=f"{size}.cut")
        inputs[f"{size}.cut"] = views
        maps = [blocks(keras.ops.cast(views[:, view], "float32")) for view in range(spec.views)]
        arrays |= summaries(spec, size, maps)
    model = keras.Model(inputs, arrays)
    shapes = {name: tf.TensorSpec(tensor.shape, SPLIT_DTYPE) for name, tensor in inputs.items()}
    run = tf.function(lambda activations: model(activations, training=False), input_signature=[shapes])

    def through(activations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts = []
        size = batch_size()
        for at in range(0, len(activations[f"{spec.sizes[0]}.cut"]), size):
            found = run({name: tf.constant(activations[name][at : at + size]) for name in inputs})
            parts.append({name: value.numpy() for name, value in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return through


def extract(
    spec: Spec,
    photos: Iterable[tuple[str, bytes]],
    extractor: Extractor,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The sha256s of photos, which are given as (sha256, bytes), and their feature arrays in the same order.

    InputError names a photo that can no longer be decoded, as it was taken in before that was checked.

    Threads decode the next batches while the network works on one, so no more than a few batches are in memory.
    """
    sha256s: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        together = getattr(extractor, "together", None) or batch_size()
        for batch, images in _decoded(pool, photos, partial(_pixels, spec), together):
            done = len(sha256s)
            for rows, alike in by_shape(images):
                for name, part in extractor(alike).items():
                    arrays[name] = _with_room(arrays.get(name, part[:0]), done + len(images))
                    arrays[name][done + rows] = part
            sha256s += batch
            progress(len(sha256s))
    return tuple(sha256s), {name: array[: len(sha256s)] for name, array in arrays.items()}


def _pixels(spec: Spec, sha256: str, data: bytes) -> np.ndarray:
    try:
        return spec.pixels(sha256, data)
    except Refused as refused:
        raise InputError(
            f"photo {sha256} of the data set cannot be decoded ({refused}); take it out by a batch whose manifest has "
            "it under `remove`, or by `ssclass forget`"
        ) from refused


def _with_room(array: np.ndarray, rows: int) -> np.ndarray:
    """The array itself where it has `rows` rows, else one of at least twice as many that begins like it.

    Maps are large: a list of parts to be joined at the end would need twice their memory. Rows that are not written
    yet take none.
    """
    if rows <= len(array):
        return array
    larger = np.empty((max(rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


def _decoded(
    pool: ThreadPoolExecutor, photos: Iterable[tuple[str, bytes]], pixels: Callable[[str, bytes], np.ndarray], size: int
) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Yield batches of `size` decoded photos while the next batch is being decoded."""
    source = iter(photos)

    def submit() -> list[tuple[str, Future[np.ndarray]]]:
        return [(sha256, pool.submit(pixels, sha256, data)) for sha256, data in islice(source, size)]

    ready, coming = submit(), submit()
    while ready:
        yield [sha256 for sha256, _ in ready], [future.result() for _, future in ready]
        ready, coming = coming, submit()
