"""A Keras classifier that people had before becomes the first champion, and is asked the same as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssclass.data.images import decode
from ssclass.demo.drawings import draw
from ssclass.errors import InputError
from ssclass.history.lineage import lineage
from ssclass.model.adopted import NAMES, Adopted, check_probabilities, wrap
from ssclass.model.backbones import import_keras
from ssclass.serving.model import open_model
from ssclass.tracking.client import Tracking
from ssclass.upkeep.rebuild import rebuild
from ssclass.workspace.ledger import PROMOTED, REJECTED
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, Pipeline

SIZE = 48


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Three folders of drawings: what the old model learnt from, and two batches."""
    folder = tmp_path_factory.mktemp("deliveries")
    for seed, (name, count) in enumerate((("before", 60), ("first", 45), ("second", 20)), 1):
        draw(folder / name, CLASSES, count, seed)
    return folder


@pytest.fixture(scope="module")
def old(sources: Path) -> Path:
    """A small network that somebody trained on pixels from 0 to 1, one sigmoid output: the probability of sushi."""
    keras = import_keras()
    files = sorted((sources / "before").rglob("*.jpg"))
    images = np.stack([decode(file.read_bytes(), SIZE) for file in files]) / np.float32(255)
    labels = np.array([CLASSES.index(file.parent.name) for file in files])
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(12, 5, strides=2, activation="relu"),
            layers.Conv2D(24, 3, strides=2, activation="relu"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("adam", "binary_crossentropy")
    model.optimizer.learning_rate = 5e-3
    model.fit(images, labels, epochs=40, batch_size=24, verbose=0)
    path = sources / "old.keras"
    model.save(path)
    return path


def by_hand(old: Path, photos: list[bytes]) -> np.ndarray:
    """What its owner would compute: the class of each photo, int [n], without any code of the adoption."""
    from keras.models import load_model

    pixels = np.stack([np.asarray(decode(photo, SIZE), np.float32) / 255 for photo in photos])
    return (load_model(old).predict(pixels, verbose=0)[:, 0] > 0.5).astype(int)


def photos_of(workspace: Workspace, sha256s: list[str], folder: Path) -> list[bytes]:
    import hashlib

    found = {hashlib.sha256(data).hexdigest(): data for data in (path.read_bytes() for path in folder.rglob("*.jpg"))}
    return [found[sha256] for sha256 in sha256s]


@pytest.fixture(scope="module")
def workspace(pipeline: Pipeline, tmp_path_factory) -> Workspace:
    return pipeline.workspace(tmp_path_factory.mktemp("adopt") / "workspace", head="linear", crops="none")


def adopt(ssclass: Command, workspace: Workspace, model: Path, *more: str, classes: str = "sandwich,sushi") -> Any:
    done = ssclass("adopt", model, "--classes", classes, "--preprocess", "0..1", *more, "--workspace", workspace.root)
    workspace.newest()
    return done


# Each test goes on from where the one before it left the workspace.


def test_without_photos_it_says_what_to_do(workspace, old, ssclass: Command):
    done = adopt(ssclass, workspace, old)
    assert done.returncode == 2
    assert "no held-out photos" in done.stderr
    assert "`ssclass import DIR`" in done.stderr


def test_a_model_whose_classes_are_told_the_wrong_way_round_is_rejected(workspace, old, sources, ssclass: Command):
    from ssclass.data.submit import submit

    submit(workspace.store, sources / "first", "first", CLASSES)
    done = adopt(ssclass, workspace, old, classes="sushi,sandwich")
    assert done.returncode == 0, done.stderr
    assert "first: INGESTED, 90 photos in" in done.stdout
    assert "REJECTED: first champion" in done.stdout
    assert "--classes" in done.stderr
    assert workspace.at().state.champion is None


def test_the_first_champion_has_right_what_its_owner_would_count(workspace, old, sources, ssclass: Command):
    done = adopt(ssclass, workspace, old, "--json")
    assert done.returncode == 0, done.stderr
    event = json.loads(done.stdout)
    assert event["decision"] == PROMOTED, event["reason"]
    rows = workspace.at().dataset.holdout
    answers = by_hand(old, photos_of(workspace, [row.sha256 for row in rows], sources / "first"))
    assert event["candidate"]["right"] == int((answers == [CLASSES.index(row.label) for row in rows]).sum())
    assert event["batches"] == [], "its photos are still to be learnt from"
    assert event["adopted"]["file"] == "old.keras"
    champion = Tracking.of(workspace).client.get_model_version_by_alias("ssclass", "champion")
    assert str(champion.version) == "1"
    assert "Adopted from `old.keras`" in champion.description
    assert json.loads((workspace.root / "metrics.json").read_text())["accuracy"] == pytest.approx(
        event["candidate"]["accuracy"]
    )
    told = lineage(workspace, "1")
    assert told["adopted file"] == "old.keras"
    (train, *_) = workspace.at().dataset.train
    assert lineage(workspace, train.sha256)["models"] == [], "it has learnt from no photo of ours"
    again = adopt(ssclass, workspace, old)
    assert again.returncode == 2
    assert "there is a champion" in again.stderr


def test_it_answers_from_the_registry_like_any_other(workspace, old, sources, tmp_path, ssclass: Command):
    model = open_model("champion", workspace.settings)
    photos = [path.read_bytes() for path in sorted((sources / "second").rglob("*.jpg"))]
    answers = model.predict(np.stack([decode(photo, model.size) for photo in photos]))
    np.testing.assert_array_equal(answers.argmax(axis=1), by_hand(old, photos))
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    done = ssclass("evaluate", sources / "second", "--json", "--workspace", workspace.root)
    right = int((by_hand(old, photos) == np.repeat([0, 1], 20)).sum())
    assert json.loads(done.stdout)["models"]["champion"]["right"] == right


def test_a_retrain_learns_from_the_same_photos_and_is_compared_with_it(workspace, pipeline: Pipeline):
    adopted = workspace.at().state.champion
    before = workspace.at().state.decisions[adopted].body
    outcome = pipeline.retrain(workspace)
    assert outcome.event["champion"]["key"] == adopted
    assert outcome.event["champion"]["right"] == before["candidate"]["right"], "the same photos, the same answers"
    assert outcome.event["batches"] == ["first"]
    ours = outcome.event["candidate"]["right"]
    assert outcome.decision == (PROMOTED if ours > before["candidate"]["right"] else REJECTED)


def test_it_tests_the_next_batch_and_is_scored_on_the_larger_set(workspace, pipeline, sources, old, ssclass: Command):
    adopted = next(iter(workspace.at().state.champions))
    if workspace.at().state.champion != adopted:
        assert ssclass("rollback", "1", "--workspace", workspace.root).returncode == 0
        workspace.newest()
    for local in ("features", "champions"):  # a machine that has none of it
        shutil.rmtree(workspace.private / local, ignore_errors=True)
    outcome = pipeline.deliver(workspace, sources / "second", "second")
    test = workspace.at().state.ingested["second"].body["champion_test"]
    rows = [row for shard in workspace.at().dataset.shards if shard.batch_id == "second" for row in shard.rows]
    answers = by_hand(old, photos_of(workspace, [row.sha256 for row in rows], sources / "second"))
    assert (test["key"], test["n"]) == (adopted, len(rows))
    assert test["right"] == int((answers == [CLASSES.index(row.label) for row in rows]).sum())
    held = workspace.at().dataset.holdout
    answers = by_hand(old, photos_of(workspace, [row.sha256 for row in held], sources))
    assert outcome.event["champion"]["key"] == adopted
    assert outcome.event["champion"]["right"] == int((answers == [CLASSES.index(row.label) for row in held]).sum())


def test_it_is_rebuilt_like_any_other(workspace, tmp_path):
    known = Tracking.of(workspace).version_of(workspace.at().state.champions[0])
    shutil.rmtree(workspace.private / "results")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    empty = Workspace(workspace.settings.model_copy(update={"mlflow_uri": uri}))
    assert {each.note for each in rebuild(empty)} == {""}
    again = Tracking(empty.settings).version_of(workspace.at().state.champions[0])
    assert (again.description, again.tags) == (known.description, known.tags)


# -- what is wrapped --------------------------------------------------------------------------------------


def built(outputs: int, activation: str | None, size: int | None = 32) -> Any:
    """An untrained network of one convolution."""
    keras = import_keras()
    keras.utils.set_random_seed(1)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(outputs, activation=activation),
        ]
    )


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("name", ["none", "mobilenet_v2", "vgg16", "densenet"])
def test_preprocessing_is_what_keras_applications_do(name: str, tmp_path: Path):
    model = built(3, "softmax")
    model.save(tmp_path / "m.keras")
    made = wrap(tmp_path / "m.keras", tmp_path, ("a", "b", "c"), name)
    pixels = images().astype(np.float32)
    if name != "none":
        pixels = getattr(import_keras().applications, name).preprocess_input(pixels.copy())
    expected = np.asarray(model(pixels))
    np.testing.assert_allclose(np.asarray(made.whole()(images())), expected, atol=1e-5)


def test_logits_and_one_output_become_probabilities(tmp_path: Path):
    for outputs in (1, 2):
        built(outputs, None).save(tmp_path / "m.keras")
        raw = np.asarray(built(outputs, None)(images().astype(np.float32)))
        expected = np.concatenate([np.zeros_like(raw), raw], 1) if outputs == 1 else raw  # sigmoid(x) = softmax(0, x)
        odds = np.exp(expected - expected.max(axis=1, keepdims=True))
        expected = odds / odds.sum(axis=1, keepdims=True)
        made = wrap(tmp_path / "m.keras", tmp_path, ("a", "b"), "none", logits=True)
        np.testing.assert_allclose(np.asarray(made.whole()(images())), expected, atol=1e-5)
    with pytest.raises(InputError, match="--logits"):
        check_probabilities(raw, tmp_path)


def test_any_size_goes_in_and_a_model_of_any_size_needs_to_be_told(tmp_path: Path):
    built(2, "softmax", None).save(tmp_path / "m.keras")
    with pytest.raises(InputError, match="--size"):
        wrap(tmp_path / "m.keras", tmp_path, ("a", "b"), "none")
    made = wrap(tmp_path / "m.keras", tmp_path, ("a", "b"), "none", size=40)
    assert made.size == 40
    large = np.asarray(Image.fromarray(images()[0]).resize((301, 97)))
    assert made.whole()(large[None]).shape == (1, 2)
    assert Adopted.load(tmp_path).spec == made.spec


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_the_classes_must_fit_the_outputs(outputs: int, tmp_path: Path):
    built(outputs, "sigmoid").save(tmp_path / "m.keras")
    with pytest.raises(InputError, match=f"{outputs} outputs, but 3 classes"):
        wrap(tmp_path / "m.keras", tmp_path, ("a", "b", "c"), "none")


def test_what_would_run_code_is_refused_before_it_is_loaded(tmp_path: Path):
    keras = import_keras()
    ran = tmp_path / "ran"
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Flatten()])
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(InputError, match="Lambda layer, which runs code"):
        wrap(tmp_path / "lambda.keras", tmp_path, ("a", "b"), "none")

    @keras.saving.register_keras_serializable("mine")
    class Own(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            ran.touch()
            return x

    model = keras.Sequential([keras.Input((8, 8, 3)), Own(), keras.layers.Flatten()])
    ran.unlink(missing_ok=True)
    model.save(tmp_path / "own.keras")
    with pytest.raises(InputError, match=r"no part of Keras"):
        wrap(tmp_path / "own.keras", tmp_path, ("a", "b"), "none")
    assert not ran.exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_what_is_no_keras_file_is_said_to_be_none(content: bytes, tmp_path: Path):
    (tmp_path / "m.keras").write_bytes(content)
    with pytest.raises(InputError, match=r"not a \.keras file"):
        wrap(tmp_path / "m.keras", tmp_path, ("a", "b"), "none")


def test_every_name_of_a_preprocessing_is_known():
    keras = import_keras()
    for name in NAMES:
        assert name in ("none", "0..1", "-1..1", "caffe", "torch") or hasattr(keras.applications, name)
