"""The frozen network in another runtime: TensorFlow's features within the stated bound, or TensorFlow computes them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ssclass.errors import FailedError, ParamsError, WeightsError
from ssclass.model import compute, runtimes
from ssclass.model.backbones import import_keras
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.runtimes import APART, PACKAGES, Runtime, apart, chosen, described, open_runtime
from ssclass.model.spec import feature_spec
from ssclass.params import DatasetParams, FeatureParams, Params, parse_params
from ssclass.retrain.key import training_key
from tests.support.models import needed_weights, pictures, shard_of

CHECKOUT = Path(__file__).parent.parent
SIZE, NAMES = 40, ("map", "mean", "square")
INSTALLED = [pytest.param(name, marks=pytest.mark.skipif(not described(name), reason="an extra")) for name in PACKAGES]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runtimes are kept: a folder of the test's own."""
    monkeypatch.setattr(runtimes, "home", lambda: tmp_path)
    return tmp_path / "engines"


def network() -> Any:
    """What extraction makes, small: a resize, a preprocess, convolutions, a batch norm; three arrays, one float16."""
    keras = import_keras()
    layers = keras.layers
    # Seeds of their own: what another thread draws meanwhile would change the network that is made next time.
    one, other = (keras.initializers.GlorotUniform(seed) for seed in (1, 2))
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    photo = layers.Rescaling(1 / 127.5, offset=-1)(layers.Resizing(SIZE, SIZE, antialias=True)(images))
    seen = layers.Conv2D(8, 3, strides=2, activation="relu6", kernel_initializer=one)(photo)
    seen = layers.DepthwiseConv2D(3, padding="same", depthwise_initializer=other)(seen)
    seen = layers.ReLU()(layers.BatchNormalization()(seen))
    pool, square = layers.GlobalAveragePooling2D(), layers.Multiply()([seen, seen])
    rows = layers.Reshape((1, 8))
    maps = keras.ops.cast(layers.Reshape((1, 19, 19, 8))(seen), "float16")
    made = keras.Model(images, {"square": rows(pool(square)), "mean": rows(pool(seen)), "map": maps})
    made.trainable = False
    return made


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def opened(name: str, made: Callable[[], Any] = network) -> Runtime:
    found = open_runtime(name, "f" * 64, SIZE, made)
    assert found is not None
    return found


def never() -> Any:
    raise AssertionError("the network was made again, though a runtime has it")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", INSTALLED)
def test_it_answers_as_tensorflow_does_and_a_photo_has_the_same_bits_in_any_company(name: str) -> None:
    runtime = opened(name)
    assert runtime.name == name
    many = images(37)
    found, expected = runtime(many), network()(many)
    assert sorted(found) == sorted(NAMES)
    for each, array in found.items():
        values = np.asarray(expected[each])
        assert array.dtype == values.dtype
        assert apart(array, values) <= APART[str(values.dtype)]
    assert same(runtime(many[20:21]), {each: array[20:21] for each, array in found.items()})
    with ThreadPoolExecutor(4) as pool:
        for at, part in enumerate(pool.map(lambda at: runtime(many[at : at + 5]), range(30))):
            assert same(part, {each: array[at : at + 5] for each, array in found.items()})


@pytest.mark.parametrize("name", INSTALLED)
def test_what_is_kept_opens_again_with_the_same_bits_and_without_tensorflow(name: str, kept: Path) -> None:
    found = opened(name)(images(3))
    assert same(opened(name, never)(images(3)), found)
    np.savez(kept.parent / "expected.npz", **found)
    script = (
        "import sys\nimport numpy as np\n"
        "from ssclass.model.runtimes import open_runtime\n"
        f"images = np.random.default_rng(3).integers(0, 256, (3, {SIZE}, {SIZE}, 3), dtype=np.uint8)\n"
        f"found = open_runtime({name!r}, {'f' * 64!r}, {SIZE}, None)(images)\n"
        "expected = np.load(sys.argv[1])\n"
        "assert all(np.array_equal(found[name], expected[name]) for name in expected.files)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SSCLASS_HOME": str(kept.parent)}
    command = [sys.executable, "-c", script, str(kept.parent / "expected.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("damage", ["cut", "empty", "junk", "gone", "a byte"])
def test_a_damaged_file_is_made_again_and_never_answers(damage: str, kept: Path) -> None:
    name = next(name for name in (*PACKAGES, "") if not name or described(name))
    if not name:
        pytest.skip("no runtime is installed")
    found = opened(name)(images(3))
    (folder,) = kept.iterdir()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) > 1
    for file, whole in files.items():
        middle = len(whole) // 2
        bad = {"cut": whole[:middle], "empty": b"", "junk": b"junk" * 99, "gone": b""}.get(damage)
        (folder / file).write_bytes(whole[:middle] + bytes(8) + whole[middle + 8 :] if bad is None else bad)
        if damage == "gone":
            (folder / file).unlink()
        again = opened(name)(images(3))
        for each in NAMES:
            assert apart(again[each], found[each]) <= APART[str(found[each].dtype)]
        for name_of, body in files.items():
            (folder / name_of).write_bytes(body)


@pytest.mark.parametrize("name", INSTALLED)
def test_one_that_answers_otherwise_is_not_used(name: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    openers = runtimes.OPENERS[name]

    def astray(folder: Path, count: int) -> list[runtimes.Lane]:
        return [lambda image, lane=lane: [1.001 * array for array in lane(image)] for lane in openers(folder, count)]

    opened(name)
    monkeypatch.setitem(runtimes.OPENERS, name, astray)
    with pytest.raises(FailedError, match=rf"features.engine: {name} .*differs from TensorFlow's.*; choose auto"):
        open_runtime(name, "f" * 64, SIZE, network)
    monkeypatch.setattr(runtimes, "chosen", lambda engine: name)
    with caplog.at_level(logging.WARNING):
        assert open_runtime("auto", "f" * 64, SIZE, network) is None
    assert "TensorFlow does" in caplog.text


def test_what_it_cannot_take_is_left_to_tensorflow_and_other_faults_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(graph: Any, folder: Path) -> None:
        raise RuntimeError("no such operation")

    def no_weights() -> Any:
        raise WeightsError("no weights")

    monkeypatch.setattr(runtimes, "chosen", lambda engine: "litert")
    monkeypatch.setitem(runtimes.WRITERS, "litert", cannot)
    assert open_runtime("auto", "e" * 64, SIZE, network) is None
    with pytest.raises(FailedError, match=r"litert cannot compute this network .*no such operation.*choose auto"):
        open_runtime("litert", "e" * 64, SIZE, network)
    with pytest.raises(WeightsError):
        open_runtime("auto", "d" * 64, SIZE, no_weights)


def test_auto_is_the_first_that_is_installed_and_tensorflow_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"litert", "onnxruntime"}
    monkeypatch.setattr(runtimes, "described", lambda name: f"{name} 1" if name in there else "")
    monkeypatch.setattr(runtimes, "gpu_possible", lambda: False)
    assert chosen("auto") == "litert"
    there.add("openvino")
    assert chosen("auto") == "openvino"
    monkeypatch.setattr(runtimes, "gpu_possible", lambda: True)
    monkeypatch.setattr(runtimes, "share_gpus", lambda: ["one"])
    assert chosen("auto") == "tensorflow"
    assert chosen("litert") == "litert"
    there.clear()
    monkeypatch.setattr(runtimes, "share_gpus", list)
    assert chosen("auto") == "tensorflow"
    for name, extra in (("openvino", "openvino"), ("litert", "export"), ("onnxruntime", "export")):
        with pytest.raises(ParamsError, match=rf"{name} is not installed; run `pip install 'ssclass\[{extra}\]'`"):
            chosen(name)
    assert isinstance(compute.gpu_possible(), bool)


def test_another_runtime_or_another_version_of_it_is_another_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(engine: str, there: dict[str, str]) -> str:
        monkeypatch.setattr(runtimes, "described", lambda name: there.get(name, ""))
        features: Any = {"engine": engine}
        params = Params(dataset=DatasetParams(classes=("a", "b")), features=FeatureParams(**features))
        version: Any = SimpleNamespace(dataset=SimpleNamespace(digest="d"), params=params)
        return training_key(version)

    monkeypatch.setattr(runtimes, "gpu_possible", lambda: False)
    plain = key("tensorflow", {})
    assert key("auto", {}) == plain, "as it was before there was anything else"
    one, other = {"openvino": "openvino 1"}, {"openvino": "openvino 2"}
    assert key("tensorflow", one) == plain
    assert key("auto", one) == key("openvino", one), "the same bits"
    assert len({plain, key("auto", one), key("auto", other), key("auto", {"litert": "litert 1"})}) == 4


@pytest.mark.parametrize("backbone", ["mobilenet", "efficientnet_lite0"])
def test_real_networks_have_the_features_that_tensorflow_gives_them(backbone: str) -> None:
    if not described("openvino"):
        pytest.skip("an extra")
    needed_weights(backbone)
    _, listed = shard_of(pictures())
    spec = feature_spec(FeatureParams(backbone=backbone, sizes=(64,)), maps=True)
    network = make_extractor(spec, "openvino")
    assert isinstance(network, Runtime)
    ours = Features(*extract(spec, listed, network))
    theirs = Features(*extract(spec, listed, make_extractor(spec, "tensorflow")))
    assert ours.sha256s == theirs.sha256s
    for name, values in theirs.arrays.items():
        assert apart(ours.arrays[name], values) <= APART[str(values.dtype)], name


def test_what_resizes_inside_or_is_not_square_is_left_to_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    needed_weights()
    monkeypatch.setattr(runtimes, "PACKAGES", {})
    monkeypatch.setattr("ssclass.model.extraction.open_runtime", lambda engine, *rest: asked.append(engine))
    asked: list[str] = []
    for features in (
        FeatureParams(sizes=(40, 64)),
        FeatureParams(sizes=(64,)),
        FeatureParams(sizes=(64,), shape="own"),
    ):
        make_extractor(feature_spec(features), "auto")
    assert asked == ["tensorflow", "auto"]
    with pytest.raises(ParamsError, match=r"features: shape own is TensorFlow's; openvino takes squares: engine: auto"):
        parse_params("dataset: {classes: [a, b]}\nfeatures: {shape: own, engine: openvino}", "params.yaml")
