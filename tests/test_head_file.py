"""A head that NumPy trained is written as Keras would write it, without Keras."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ssclass.model import saved_head
from ssclass.model.backbones import import_keras
from ssclass.model.classifier import Classifier, Member
from ssclass.model.features import Features
from ssclass.model.heads.bilinear import _FALL, STEPS, Axes, BilinearHead, find_axes, place_weights
from ssclass.model.heads.kernel import KernelHead, RbfHead
from ssclass.model.heads.ridge import KernelFit
from ssclass.model.keras_files import load_model, save_model
from ssclass.model.saved_head import ALIKE, SavedHead
from ssclass.model.spec import FeatureSpec
from ssclass.params import TrainParams

CHECKOUT = Path(__file__).parent.parent
KINDS = ("rbf", "bilinear", "photos in their own shape")
SPEC = FeatureSpec("mobilenet", "0" * 64, (224,), True)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Keras's answers are kept: a folder of the test's own."""
    monkeypatch.setattr(saved_head, "home", lambda: tmp_path / "home")
    return tmp_path / "home" / "engines" / "heads"


def made(kind: str, classes: int = 2, landmarks: int = 7, seed: int = 0) -> tuple[KernelHead, Features, Any, KernelFit]:
    """A head, features, the basis of its vectors, and a fit with drawn weights."""
    draw = np.random.default_rng(seed)
    basis: Axes | None = None
    head: KernelHead = RbfHead(224, classes, TrainParams())
    arrays, wide = {"224.out.mean": draw.uniform(size=(5, 2, 12)).astype(np.float32)}, 12
    if kind != "rbf":
        head = BilinearHead(224, classes, TrainParams())
        maps, wide = np.maximum(draw.normal(size=(5, 2, 3, 4, 12)), 0).astype(np.float16), 144
        arrays, place = {"224.out.map": maps}, None
        if kind != "bilinear":
            place = draw.uniform(-1, 1, (5, 2, 12, 2)).astype(np.float32)
            arrays = {"224.out.map": maps.reshape(5, 2, 12, 12), "224.out.place": place}
        basis = find_axes(arrays["224.out.map"], np.arange(5), 0, place)
    z = np.abs(draw.normal(size=(landmarks, wide)))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    fit = KernelFit(z, draw.normal(size=(landmarks, classes)), draw.normal(size=classes), 0.7, 0.1, 0.2, head.gamma)
    return head, Features(tuple("abcde"), arrays), basis, fit


def by_keras(head: KernelHead, features: Features, basis: Axes | None, fit: KernelFit) -> Any:
    """The same head, built by Keras itself."""
    keras = import_keras()
    name, place = head.arrays[0], head.arrays[0].replace("map", "place")
    arrays = features.arrays
    shapes: dict[str, tuple[int | None, ...]] = {name: arrays[name].shape[1:]}
    if basis is None:
        shapes = {name: (None, arrays[name].shape[-1])}
    elif place in arrays:
        shapes = {each: (arrays[each].shape[1], None, arrays[each].shape[-1]) for each in (name, place)}
    inputs = {each: keras.Input(shape, name=each, dtype=str(arrays[each].dtype)) for each, shape in shapes.items()}
    z = _rbf_layers(inputs[name]) if basis is None else _bilinear_layers(inputs[name], basis, inputs.get(place))
    alike = keras.layers.Dense(len(fit.landmarks), activation="exponential", name="kernel")
    dense = keras.layers.Dense(len(fit.bias), activation="softmax", name="probabilities")
    output = dense(alike(z))
    alike.set_weights([2 * fit.gamma * fit.landmarks.T, np.full(len(fit.landmarks), -2 * fit.gamma)])
    dense.set_weights([fit.weights / fit.temperature, fit.bias / fit.temperature])
    return keras.Model(inputs, output, name="head")


def _rbf_layers(views: Any) -> Any:
    layers = import_keras().layers
    from keras.src.ops.numpy import Sqrt

    mean = layers.ReLU(name="not_negative")(layers.GlobalAveragePooling1D(name="views")(views))
    return layers.UnitNormalization(name="unit")(Sqrt(name="roots")(mean))


def _bilinear_layers(views: Any, axes: Axes, place: Any) -> Any:
    layers = import_keras().layers
    from keras.src.ops.numpy import Sqrt, Square

    channels, wide = axes.axes.shape
    places = None if place is not None else int(np.prod(views.shape[1:4]))
    active = layers.ReLU(name="not_negative")(layers.Reshape((places or -1, channels), name="places")(views))
    roots = layers.UnitNormalization(name="unit_roots")(Sqrt(name="roots")(active))
    project = layers.Dense(wide, name="axes")
    weigh = (
        layers.EinsumDense("npd,p->npd", (places, wide), name="centre")
        if places
        else layers.Dense(1, activation="exponential", use_bias=False, name="centre")
    )
    times = layers.Dot((2, 1), name="times")
    step = layers.EinsumDense("nab,bc->nac", (wide, wide), bias_axes="ac", name="step")
    if place is None:
        weighed = weigh(project(roots))
    else:
        at = Square(name="distance")(layers.Reshape((-1, 2), name="where")(place))
        weighed = layers.Multiply(name="weighed")([project(roots), weigh(at)])
    flat = layers.Reshape((places * wide if places else -1,), name="flat")(weighed)
    y = layers.Reshape((places or -1, wide), name="pairs")(layers.UnitNormalization(name="trace")(flat))
    root = layers.Dot((1, 1), name="together")([y, y])
    inverse = None
    for number in range(STEPS):
        factor = step(root if inverse is None else times([inverse, root]))
        root = times([root, factor])
        if number < STEPS - 1:
            inverse = factor if inverse is None else times([factor, inverse])
    one = np.eye(wide, dtype=np.float32)
    project.set_weights([axes.axes, -axes.offset])
    weigh.set_weights([np.sqrt(place_weights(*views.shape[1:4])) if place is None else np.full((2, 1), _FALL)])
    step.set_weights([-0.5 * one, 1.5 * one])
    return layers.UnitNormalization(name="unit")(layers.Flatten(name="root")(root))


def parts(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Configuration, metadata and weights of a .keras file: every group with its attributes, every array."""
    with zipfile.ZipFile(path) as file:
        assert {each.date_time for each in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        config, about = (json.loads(file.read(f"{name}.json")) for name in ("config", "metadata"))
        weights: dict[str, Any] = {}

        def note(name: str, item: Any) -> None:
            weights[name] = item[()] if isinstance(item, h5py.Dataset) else dict(item.attrs)

        with h5py.File(io.BytesIO(file.read("model.weights.h5")), "r") as store:
            store.visititems(note)
    return config, about, weights


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """The same groups and arrays, bit for bit."""
    assert list(one) == list(other)
    for name, value in one.items():
        assert type(value) is type(other[name])
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype
        np.testing.assert_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_file_says_what_keras_writes(kind: str, classes: int, tmp_path: Path) -> None:
    head, features, basis, fit = made(kind, classes)
    reference = by_keras(head, features, basis, fit)
    save_model(reference, tmp_path / "keras.keras")
    ours = head._model(features, basis, fit)
    ours.save(tmp_path / "ours.keras")
    expected, found = parts(tmp_path / "keras.keras"), parts(tmp_path / "ours.keras")
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    same(found[2], expected[2])

    answers = ours(features.arrays)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, np.asarray(reference(features.arrays)), atol=ALIKE)
    opened = load_model(tmp_path / "ours.keras")
    np.testing.assert_array_equal(np.asarray(opened(features.arrays)), np.asarray(reference(features.arrays)))
    np.testing.assert_array_equal(np.asarray(ours.keras(features.arrays)), np.asarray(reference(features.arrays)))
    assert [layer.name for layer in opened.layers] == [layer.name for layer in reference.layers]
    again = tmp_path / "again.keras"
    save_model(opened, again)  # opened and saved by Keras it is the same
    same(parts(again)[2], expected[2])
    same_again = zip(ours.get_weights(), reference.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in same_again)


WRITE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.test_head_file import KINDS, made
for number, kind in enumerate(KINDS):
    head, features, basis, fit = made(kind)
    model = head._model(features, basis, fit)
    model.save(Path(sys.argv[1]) / f"{number}.keras")
print("tensorflow" in sys.modules or "keras" in sys.modules)
"""


def write(folder: Path, home: Path) -> str:
    """Write a head of each kind in a process of its own; whether it needed Keras."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SSCLASS_HOME": str(home)}
    command = [sys.executable, "-c", WRITE, str(folder), str(CHECKOUT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_keras_opens_the_first_of_a_kind_and_no_more_of_them(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    assert write(tmp_path / "one", home) == "True"
    assert write(tmp_path / "two", home) == "False"
    for number in range(len(KINDS)):
        one, two = ((tmp_path / name / f"{number}.keras").read_bytes() for name in ("one", "two"))
        assert one == two


def never(path: Path) -> Any:
    raise AssertionError(f"{path.name} was loaded by Keras")


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_with_more_landmarks_is_of_the_same_kind(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    head, features, basis, fit = made(kind)
    head._model(features, basis, fit).save(tmp_path / "first.keras")
    monkeypatch.setattr(saved_head, "load_model", never)
    head, features, basis, fit = made(kind, landmarks=9, seed=1)
    larger = head._model(features, basis, fit)
    larger.save(tmp_path / "second.keras")
    opened = saved_head.open_head(tmp_path / "second.keras")
    assert isinstance(opened, SavedHead)
    np.testing.assert_array_equal(opened(features.arrays), larger(features.arrays))
    opened.save(tmp_path / "third.keras")
    assert (tmp_path / "third.keras").read_bytes() == (tmp_path / "second.keras").read_bytes()


def test_one_of_another_kind_is_asked_about_again(tmp_path: Path, monkeypatch: Any) -> None:
    head, features, basis, fit = made("rbf")
    head._model(features, basis, fit).save(tmp_path / "first.keras")
    other = head._model(features, basis, fit)
    other.config["config"]["layers"][2]["config"]["negative_slope"] = 0.5
    monkeypatch.setattr(saved_head, "load_model", never)
    with pytest.raises(AssertionError, match="was loaded by Keras"):
        other.save(tmp_path / "second.keras")


def test_where_keras_answers_otherwise_keras_answers(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    head, features, basis, fit = made("rbf")
    expected = np.asarray(by_keras(head, features, basis, fit)(features.arrays))
    monkeypatch.setitem(saved_head.LAYERS, "Sqrt", lambda settings, tensors: lambda x: np.sqrt(x + 0.1))
    wrong = Classifier(("a", "b"), (Member(SPEC, "rbf", head._model(features, basis, fit)),))
    wrong.save(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = Classifier.load(tmp_path)
    assert "does not answer as Keras does" in caplog.text
    assert not isinstance(loaded.members[0].head, SavedHead)
    np.testing.assert_allclose(loaded.predict(lambda spec: features), expected, atol=1e-6)
    assert not list((tmp_path / "home" / "engines" / "heads").glob("*.alike"))


def test_where_nothing_can_be_kept_it_is_saved_all_the_same(tmp_path: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where the folder should be")
    head, features, basis, fit = made("rbf")
    head._model(features, basis, fit).save(tmp_path / "head.keras")
    assert load_model(tmp_path / "head.keras").name == "head"


def test_several_heads_have_the_names_of_their_files(tmp_path: Path) -> None:
    head, features, basis, fit = made("rbf")
    members = tuple(Member(SPEC, "rbf", head._model(features, basis, fit)) for _ in range(2))
    Classifier(("a", "b"), members).save(tmp_path)
    assert [load_model(tmp_path / name).name for name in ("head.keras", "head_2.keras")] == ["head", "head_2"]
    loaded = Classifier.load(tmp_path)
    assert all(isinstance(member.head, SavedHead) for member in loaded.members)
    np.testing.assert_array_equal(
        loaded.predict(lambda spec: features), Classifier(("a", "b"), members).predict(lambda spec: features)
    )
