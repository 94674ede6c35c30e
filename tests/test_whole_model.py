"""The whole model is put together without Keras, and is what Keras would have written."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest

from ssclass import settings
from ssclass.data.images import decode
from ssclass.model import whole_model
from ssclass.model.backbones import import_keras
from ssclass.model.classifier import Classifier, Member
from ssclass.model.features import Features
from ssclass.model.heads.base import CrossValidation
from ssclass.model.heads.registry import HEADS
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.params import FeatureParams, TrainParams
from tests.support.models import needed_weights, pictures

CHECKOUT = Path(__file__).parent.parent
KINDS = ("rbf", "bilinear", "linear", "photos in their own shape")
CLASSES = ("sandwich", "sushi")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where networks are kept: a folder of this module's own."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_model, "home", lambda: folder)
        yield folder / "engines"


def made(kind: str, seed: int = 0) -> Classifier:
    """A classifier on the real backbone at 64 pixels, of a kind of head, fitted to drawn features."""
    needed_weights()
    own = kind == "photos in their own shape"
    name = "bilinear" if own else kind
    spec = feature_spec(FeatureParams(sizes=(64,), flip=not own, shape="own" if own else "square"), maps=name != "rbf")
    draw = np.random.default_rng(seed)
    maps = np.maximum(draw.normal(size=(12, spec.views, 2, 2, 1024)), 0).astype(np.float16)
    mean = maps.mean(axis=(2, 3)).astype(np.float32)
    arrays = {"64.out.mean": mean, "64.out.square": mean**2, "64.out.map": maps}
    if own:
        places = np.stack(np.meshgrid([-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(1, 1, 4, 2)
        arrays |= {
            "64.out.map": maps.reshape(12, 1, 4, 1024),
            "64.out.place": np.repeat(places, 12, axis=0).astype(np.float32),
        }
    head = HEADS[name](64, 2, TrainParams(epochs=2))
    found = CrossValidation((1.0,), np.full((12, 2), 0.5), l2=0.1)
    fitted = head.fit(Features(tuple(map(str, range(12))), arrays), np.arange(12) % 2, found)
    classifier = Classifier(CLASSES, (Member(spec, name, fitted.model),))
    if name != "linear":
        return classifier
    with TemporaryDirectory() as folder:  # as a champion is opened: NumPy computes it
        classifier.save(Path(folder))
        classifier = Classifier.load(Path(folder), quick=True)
        classifier.members[0].head.keras  # noqa: B018 - while the file is there
        return classifier


def parts(path: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration of a .keras file, and its weights and names by their places in the file."""
    with zipfile.ZipFile(path) as file:
        config = file.read("config.json").decode()
        weights = io.BytesIO(file.read("model.weights.h5"))
    found: dict[str, Any] = {}
    with h5py.File(weights, "r") as store:
        store.visititems(lambda name, entry: found.update({name: _told(entry)}))
    return json.loads(_plain(config)), found


def _told(entry: Any) -> Any:
    if isinstance(entry, h5py.Dataset):
        return entry.dtype.str, entry[()].tobytes()
    return {name: _plain(str(value)) for name, value in entry.attrs.items()}


def _plain(text: str) -> str:
    """The text without what means nothing: numbers that Keras counts layers by in a process, and places in memory."""
    text = re.sub(r', "shared_object_id": \d+', "", text)
    kinds = "reshape|cast|rescaling|global_average_pooling2d|multiply|concatenate|flip|input_layer|get_item|ones_like"
    kinds += "|sum|maximum|cumsum|subtract|divide|add|true_divide|squeeze|slice"
    return re.sub(rf"\b({kinds})_\d+\b", r"\1", text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_what_keras_writes_and_answers_alike(kind: str, kept: Path, tmp_path: Path) -> None:
    """The second head of a network is put in without Keras's part: configuration and weights are Keras's own."""
    made(kind).export(tmp_path / "first.keras")
    ours, keras = tmp_path / "ours.keras", tmp_path / "keras.keras"
    classifier = made(kind, seed=1)
    classifier.export(ours)
    classifier.whole().save(keras)
    (found, weights), (expected, theirs) = parts(ours), parts(keras)
    assert found == expected
    assert weights == theirs
    models = [import_keras().models.load_model(path, compile=False) for path in (ours, keras)]
    for data in pictures().values():
        pixels = decode(data, classifier.size)[None]
        one, other = (np.asarray(model(pixels, training=False)) for model in models)
        np.testing.assert_array_equal(one, other)


def test_the_same_head_gives_the_same_bytes(kept: Path, tmp_path: Path) -> None:
    """Also the first one, for which the network was not kept yet."""
    for path in kept.glob("whole-*"):
        path.unlink()
    for name in ("a", "b"):
        made("rbf").export(tmp_path / f"{name}.keras")
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()


WITHOUT = """
import sys
from pathlib import Path
from ssclass.model.classifier import Classifier
Classifier.load(Path(sys.argv[1])).export(Path(sys.argv[2]))
print([name for name in ("keras", "tensorflow") if name in sys.modules])
"""


def test_neither_keras_nor_tensorflow_is_imported(tmp_path: Path) -> None:
    """Once a network is kept on a machine, and a head of the kind was held against Keras there."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SSCLASS_HOME": str(tmp_path / "home")}
    weights = settings.home() / "weights"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "weights").symlink_to(weights)
    said = []
    for seed in (0, 1):
        classifier = made("rbf", seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSCLASS_HOME", str(tmp_path / "home"))
            classifier.save(tmp_path / f"{seed}")
        command = [sys.executable, "-c", WITHOUT, str(tmp_path / f"{seed}"), str(tmp_path / f"{seed}.keras")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stdout.strip())
    assert said == ["['keras', 'tensorflow']", "[]"]


@pytest.mark.parametrize("damage", ["cut short", "no head"])
def test_a_damaged_network_is_made_again(
    damage: str, kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = made("rbf")
    classifier.export(tmp_path / "before.keras")
    path = whole_model._kept(classifier.members[0].spec, classifier.members[0].head)
    whole = path.read_bytes()
    if damage == "no head":
        with zipfile.ZipFile(path) as file:
            entries = {name: file.read(name) for name in file.namelist()}
        config = json.loads(entries["config.json"])
        config["config"]["layers"] = [each for each in config["config"]["layers"] if each["name"] != "head"]
        whole_model.write_parts(path, entries | {"config.json": json.dumps(config).encode()})
    else:
        path.write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.INFO):
        classifier.export(tmp_path / "after.keras")
    assert "it is made again" in caplog.text
    model = import_keras().models.load_model(tmp_path / "after.keras", compile=False)
    assert model.output_shape == (None, 2)
    assert path.stat().st_size == pytest.approx(len(whole), rel=0.01)


def test_a_network_that_answers_otherwise_is_not_kept(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for path in kept.glob("whole-*"):
        path.unlink()
    joined = whole_model.joined

    def wrongly(network: Any, head: Any) -> Any:
        head.tensors = {name: [-each for each in tensors] for name, tensors in head.tensors.items()}
        return joined(network, head)

    classifier = made("rbf")
    classifier.members[0].head.keras  # noqa: B018 - Keras has it before its weights are made wrong
    monkeypatch.setattr(whole_model, "joined", wrongly)
    classifier.export(tmp_path / "model.keras")
    assert "Keras writes it" in caplog.text
    assert not list(kept.glob("whole-*"))
    assert import_keras().models.load_model(tmp_path / "model.keras", compile=False).output_shape == (None, 2)


def test_what_is_no_single_head_by_numpy_is_written_by_keras(tmp_path: Path, kept: Path) -> None:
    for path in kept.glob("whole-*"):
        path.unlink()
    member = made("rbf").members[0]
    Classifier(CLASSES, (member, made("rbf", 1).members[0])).export(tmp_path / "two.keras")
    spec: FeatureSpec = member.spec
    Classifier(CLASSES, (Member(spec, "T1", member.head.keras),)).export(tmp_path / "keras.keras")
    assert not list(kept.glob("whole-*"))
    for name in ("two", "keras"):
        assert import_keras().models.load_model(tmp_path / f"{name}.keras", compile=False).output_shape == (None, 2)
