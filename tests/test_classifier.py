from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ssclass.data.images import decode
from ssclass.errors import BatchError, NotFoundError
from ssclass.model.classifier import ABOUT_FILE, Classifier
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.folds import grouped_folds
from ssclass.model.heads.registry import HEADS
from ssclass.model.spec import FeatureSpec, feature_spec
from ssclass.model.training import train
from ssclass.params import DatasetParams, ModelParams, Params, TrainParams
from tests.support.models import clouds, needed_weights, pictures, shard_of

CLASSES = ("sandwich", "sushi")
SPEC = FeatureSpec("mobilenet", "0" * 64, (224,), True)


def params_for(head: str, classes: tuple[str, ...] = CLASSES) -> Params:
    return Params.model_validate(
        {
            "dataset": DatasetParams(classes=classes),
            "model": ModelParams.model_validate({"head": head}),
            "train": TrainParams(folds=3, epochs=6),
        }
    )


def trained(head: str, classes: tuple[str, ...] = CLASSES, spec: FeatureSpec = SPEC, channels: int = 16) -> Classifier:
    features, labels = clouds(15, len(classes), apart=3.0, channels=channels)
    return train(features, labels, features.sha256s, spec, params_for(head, classes)).classifier


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded_it_gives_the_same_answers(head: str, tmp_path: Path) -> None:
    classifier = trained(head)
    features, _ = clouds(20, 2, apart=3.0, seed=1)
    classifier.save(tmp_path / "new" / "folder")
    loaded = Classifier.load(tmp_path / "new" / "folder")
    assert loaded.classes == CLASSES
    assert loaded.specs == (SPEC,)
    assert loaded.head_name == head
    answers = classifier.predict(lambda spec: features)
    assert answers.dtype == np.float64
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(loaded.predict(lambda spec: features), answers)


@pytest.fixture(scope="module", params=[("linear", 2), ("T1", 3), ("rbf", 2)], ids=["linear", "T1 of 3 classes", "rbf"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path]:
    """A classifier on the real backbone, and the folder that holds it in both forms."""
    needed_weights()
    head, count = request.param
    params = params_for(head, ("a", "b", "c")[:count])
    classifier = trained(head, params.dataset.classes, feature_spec(params.features), channels=1024)
    folder = tmp_path_factory.mktemp("exported")
    classifier.save(folder)
    classifier.export(folder / "model.keras")
    return classifier, folder


ELSEWHERE = """
import sys, numpy as np, keras
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model(np.load(sys.argv[2])).numpy())
large = np.zeros((2, 97, 301, 3), "uint8")
assert model(large).shape[0] == 2
assert "ssclass" not in sys.modules
"""


def test_the_export_answers_from_pixels_where_ssclass_is_not_installed(
    exported: tuple[Classifier, Path], tmp_path: Path
) -> None:
    classifier, folder = exported
    _, photos = shard_of(pictures())
    np.save(tmp_path / "pixels.npy", np.stack([decode(data, classifier.size) for _, data in photos]))
    arguments = [str(folder / "model.keras"), str(tmp_path / "pixels.npy"), str(tmp_path / "answers.npy")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *arguments], check=True, cwd=tmp_path)
    answers = np.load(tmp_path / "answers.npy")

    assert answers.dtype == np.float32
    assert answers.shape == (len(photos), len(classifier.classes))
    looked = {spec: Features(*extract(spec, photos, make_extractor(spec))) for spec in classifier.specs}
    np.testing.assert_allclose(answers, classifier.predict(looked.__getitem__), atol=1e-5)


def test_the_export_holds_no_code(exported: tuple[Classifier, Path]) -> None:
    with zipfile.ZipFile(exported[1] / "model.keras") as file:
        assert sorted(file.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
        config = file.read("config.json").decode()
    assert "Lambda" not in config
    modules = set(_values(json.loads(config), "module"))
    assert all(module is None or module.partition(".")[0] == "keras" for module in modules)


def _values(node: object, key: str) -> list[str | None]:
    if isinstance(node, dict):
        return ([node[key]] if key in node else []) + [each for value in node.values() for each in _values(value, key)]
    return [each for value in node for each in _values(value, key)] if isinstance(node, list) else []


def test_a_classifier_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    classifier = trained("linear")
    classifier.save(tmp_path)
    spec = {"backbone": "mobilenet", "weights_sha256": "0" * 64, "sizes": [224], "flip": True, "crops": "none"}
    about = {"format": 1, "classes": CLASSES, "head": "linear", "spec": spec | {"decode_version": 1}}
    (tmp_path / ABOUT_FILE).write_text(json.dumps(about))
    again = Classifier.load(tmp_path)
    features, _ = clouds(5, 2, apart=3.0)
    assert (again.head_name, again.specs) == ("linear", (SPEC,))
    np.testing.assert_array_equal(again.predict(lambda spec: features), classifier.predict(lambda spec: features))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (ABOUT_FILE, None),
        (ABOUT_FILE, "{"),
        (ABOUT_FILE, '{"format": 99}'),
        ("head.keras", None),
        ("head.keras", "junk"),
    ],
)
def test_what_is_no_classifier_is_refused_by_name(file: str, content: str | None, tmp_path: Path) -> None:
    trained("linear").save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(NotFoundError, match=file):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_the_same_training_is_saved_as_the_same_bytes(head: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        trained(head).save(tmp_path / name)
    one, other = ((tmp_path / name / "head.keras").read_bytes() for name in ("one", "other"))
    assert one == other
    with zipfile.ZipFile(tmp_path / "one" / "head.keras") as file:
        assert {each.date_time[0] for each in file.infolist()} == {1980}
        assert json.loads(file.read("metadata.json"))["date_saved"] == ""


def test_no_photos_no_answers() -> None:
    assert trained("linear").predict(lambda spec: Features((), {})).shape == (0, 2)


def test_auto_takes_the_head_that_is_best_by_cross_validation() -> None:
    features, _ = clouds(30, 2, apart=0.0)
    # The sign of the product of two channels says the class: beyond a linear head, not beyond the others.
    signs = np.random.default_rng(0).choice([-1, 1], (60, 1, 2))
    labels = (signs.prod(axis=(1, 2)) > 0).astype(int)
    features.arrays["224.out.mean"][..., :2] = signs * 4
    params = params_for("auto").model_copy(update={"train": TrainParams(folds=3, epochs=40)})
    found = train(features, labels, features.sha256s, SPEC, params)
    assert found.cv["T1"].mean > found.cv["linear"].mean
    assert found.head == found.classifier.head_name == max(found.cv, key=lambda name: found.cv[name].mean)
    assert found.head != "linear"
    assert "cv_accuracy" in found.history

    easy, labels = clouds(30, 2, apart=9.0)
    found = train(easy, labels, easy.sha256s, SPEC, params)
    assert found.cv["linear"].mean == found.cv["T1"].mean == 1.0
    assert found.head == "linear"  # of equals, the simpler


def test_progress_ends_at_its_total() -> None:
    features, labels = clouds(10, 2, apart=3.0)
    seen: list[tuple[int, int]] = []
    train(features, labels, features.sha256s, SPEC, params_for("auto"), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 13) for done in range(1, 14)]


def test_folds_keep_groups_together() -> None:
    labels = np.array([0, 1] * 30)
    groups = [f"g{index // 4}" for index in range(60)]
    folds = grouped_folds(labels, groups, CLASSES, 5, 0)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(60))
    for train_rows, test_rows in folds:
        assert {groups[row] for row in train_rows}.isdisjoint(groups[row] for row in test_rows)


def test_few_photos_make_few_folds_and_too_few_say_so() -> None:
    labels = np.array([0] * 10 + [1] * 3)
    assert len(grouped_folds(labels, [str(row) for row in range(13)], CLASSES, 5, 0)) == 3
    with pytest.raises(BatchError, match="sushi: 1"):
        grouped_folds(labels, ["a"] * 10 + ["b"] * 3, CLASSES, 5, 0)


def test_a_class_without_photos_yet_is_allowed() -> None:
    features, labels = clouds(15, 2, apart=3.0)
    found = train(features, labels, features.sha256s, SPEC, params_for("auto", (*CLASSES, "soup")))
    answers = found.classifier.predict(lambda spec: features)
    assert answers.shape == (30, 3)
    assert (answers.argmax(axis=1) < 2).all()
