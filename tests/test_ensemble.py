"""Several members as one model: what they say together, how that is judged, and its way through the pipeline."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssclass.data.folders import labelled_files
from ssclass.data.images import decode
from ssclass.demo.drawings import draw
from ssclass.demo.run import deliveries, gather
from ssclass.errors import ParamsError
from ssclass.model.backbones import BACKBONES, import_keras
from ssclass.model.classifier import Classifier
from ssclass.model.ensemble import combine_tensors, combined
from ssclass.model.extraction import extract, make_extractor
from ssclass.model.features import Features
from ssclass.model.spec import FeatureSpec
from ssclass.model.training import plan, train, train_planned
from ssclass.model.weights import import_weights
from ssclass.params import ModelParams, Params, load_params
from ssclass.settings import home
from ssclass.workspace.create import template_file
from tests.support.models import clouds, needed_weights, pictures, random_file, shard_of
from tests.support.pipelines import CLASSES, Command, Pipeline


def params_for(members: list[str], combine: str = "mean", **features: object) -> Params:
    return Params.model_validate(
        {
            "dataset": {"classes": CLASSES},
            "features": features,
            "model": {"members": members, "combine": combine},
            "train": {"folds": 3, "epochs": 5},
        }
    )


def test_a_vote_goes_to_the_majority_and_a_tie_to_the_higher_mean() -> None:
    sure, unsure = [0.99, 0.01, 0.0], [0.3, 0.4, 0.3]
    assert combined([np.array([each]) for each in (sure, unsure, unsure)], "mean").argmax() == 0
    assert combined([np.array([each]) for each in (sure, unsure, unsure)], "vote").argmax() == 1
    assert combined([np.array([each]) for each in (sure, unsure)], "vote").argmax() == 0
    # However sure one is, it has one vote.
    close = [1 / 3 - 1e-6, 1 / 3 + 2e-6, 1 / 3 - 1e-6]
    assert combined([np.array([each]) for each in ([1.0, 0.0, 0.0], close, close)], "vote").argmax() == 1


@pytest.mark.parametrize("how", ["mean", "vote"])
@pytest.mark.parametrize("members", [2, 3, 4])
def test_the_graph_says_what_the_formula_says(how: str, members: int) -> None:
    keras = import_keras()
    answers = np.random.default_rng(0).dirichlet(np.ones(3), (members, 50)).astype(np.float32)
    inputs = [keras.Input((3,)) for _ in range(members)]
    model = keras.Model(inputs, combine_tensors(inputs, how))
    found = model(list(answers)).numpy()
    np.testing.assert_allclose(found, combined(list(answers), how), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_it_is_judged_by_what_its_members_say_of_photos_they_did_not_learn_from(how: str) -> None:
    features, labels = clouds(40, 2, apart=1.0)
    members = ["mobilenet/T1", "mobilenet/linear", "mobilenet/T2.1"]
    params = params_for(members, how)
    spec = FeatureSpec("mobilenet", "0" * 64, (224,), flip=True)
    planned = [(spec, head) for _, head in params.model.pairs]
    seen: list[tuple[int, int]] = []
    found = train_planned(
        lambda spec: features, labels, features.sha256s, planned, params, lambda *each: seen.append(each)
    )
    name = f"{how} of mobilenet/T1, mobilenet/linear, mobilenet/T2.1"
    assert found.head == found.classifier.head_name == name
    assert list(found.cv) == [name, *members]
    apart = [found.cv[member].probabilities for member in members]
    np.testing.assert_array_equal(found.cv[name].probabilities, combined(apart, how))
    right = found.cv[name].probabilities.argmax(axis=1) == labels
    assert found.cv[name].mean == pytest.approx(right.mean(), abs=0.02)  # folds differ by a photo in size
    assert len(found.cv[name].accuracy) == 3
    assert found.cv["mobilenet/T1"].curves["loss"]
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    # A member is what it would be alone.
    t1 = params.model_copy(update={"model": ModelParams(head="T1")})
    alone = train(features, labels, features.sha256s, spec, t1)
    one, other = (each.classifier.members[0].head.get_weights() for each in (alone, found))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_saved_and_exported_it_gives_the_same_answers(tmp_path: Path) -> None:
    needed_weights()
    params = params_for(["mobilenet/T1", "mobilenet/rbf", "mobilenet/T2.0"], "vote", sizes=[64], crops="five")
    planned = plan(params)
    assert len({spec for spec, _ in planned}) == 2  # T2.0 alone needs the maps
    _, photos = shard_of(pictures())
    by_spec = {spec: Features(*extract(spec, photos, make_extractor(spec))) for spec, _ in planned}
    labels = np.array([0, 1] * 6)
    groups = [str(row) for row in range(12)]
    for_training = {spec: found.rows([0, 1, 2, 3] * 3) for spec, found in by_spec.items()}
    classifier = train_planned(for_training.__getitem__, labels, groups, planned, params).classifier

    classifier.save(tmp_path)
    again = Classifier.load(tmp_path)
    expected = classifier.predict(by_spec.__getitem__)
    assert again.specs == classifier.specs
    assert again.head_name == classifier.head_name
    np.testing.assert_array_equal(again.predict(by_spec.__getitem__), expected)

    classifier.export(tmp_path / "model.keras")
    model = import_keras().models.load_model(tmp_path / "model.keras")
    pixels = np.stack([decode(data, classifier.size) for _, data in photos])
    np.testing.assert_allclose(model(pixels).numpy(), expected, atol=2e-3)  # maps are remembered in half precision
    config = json.dumps(model.get_config(), default=str)
    assert "Lambda" not in config


def test_members_of_different_sizes_see_photos_decoded_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed_weights()
    for name, size in (("mobilenet", 64), ("mobilenet_v2", 96)):  # as if trained with so many pixels
        monkeypatch.setitem(BACKBONES, name, replace(BACKBONES[name], size=size))
    (alone, _), _ = plan(params_for(["mobilenet/linear", "mobilenet/rbf"], crops="none"))
    (tmp_path / "weights").mkdir()  # of a home with MobileNet's own weights and random ones of MobileNetV2
    shutil.copy(home() / "weights" / "mobilenet.npz", tmp_path / "weights")
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path))
    import_weights(random_file("mobilenet_v2", tmp_path))
    params = params_for(["mobilenet/linear", "mobilenet_v2/linear"], crops="none")
    planned = plan(params)
    assert [each.sizes for each, _ in planned] == [(64,), (96,)]
    assert {each.size for each, _ in planned} == {96}
    assert planned[0][0].fingerprint != alone.fingerprint

    _, photos = shard_of(pictures())
    by_spec = {each: Features(*extract(each, photos, make_extractor(each))) for each, _ in planned}
    for_training = {each: found.rows([0, 1, 2, 3] * 3) for each, found in by_spec.items()}
    labels, groups = np.array([0, 1] * 6), [str(row) for row in range(12)]
    classifier = train_planned(for_training.__getitem__, labels, groups, planned, params).classifier
    classifier.export(tmp_path / "model.keras")
    model = import_keras().models.load_model(tmp_path / "model.keras")
    pixels = np.stack([decode(data, classifier.size) for _, data in photos])
    np.testing.assert_allclose(model(pixels).numpy(), classifier.predict(by_spec.__getitem__), atol=1e-4)


@pytest.mark.slow
def test_members_have_tuned_backbones_of_their_own(drawings: Path, tmp_path: Path) -> None:
    needed_weights()
    params = params_for(["mobilenet/T2.0", "mobilenet/linear"], sizes=[64], crops="none")
    tuned = params.train.model_copy(update={"unfreeze_blocks": 1, "tune_epochs": 2, "folds": 2})
    params = params.model_copy(update={"train": tuned})
    planned = plan(params)
    files = labelled_files(drawings, CLASSES)
    photos = [(f"{number:064x}", file.path.read_bytes()) for number, file in enumerate(files)]
    labels = np.array([CLASSES.index(file.label) for file in files])

    def features_of(spec: FeatureSpec) -> Features:
        return Features(*extract(spec, photos, make_extractor(spec)))

    classifier = train_planned(features_of, labels, [name for name, _ in photos], planned, params).classifier
    assert all(spec.tuned_blocks for spec in classifier.specs)
    classifier.save(tmp_path)
    expected = classifier.predict(features_of)
    np.testing.assert_array_equal(Classifier.load(tmp_path).predict(features_of), expected)
    classifier.export(tmp_path / "model.keras")
    pixels = np.stack([decode(data, classifier.size) for _, data in photos])
    model = import_keras().models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(model(pixels).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("[mobilenet/T1]", "at least two"),
        ("[]", "null for none"),
        ("[mobilenet/T1, mobilenet/T1]", "different"),
        ("[mobilenet/T1, mobilenet/auto]", "'mobilenet/auto'"),
        ("[mobilenet/T1, T2.0]", "'T2.0'"),
    ],
)
def test_members_that_make_no_sense_are_told(members: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((template_file("params.yaml")).read_text().replace("members: null", f"members: {members}"))
    with pytest.raises(ParamsError, match=r"model\.members") as caught:
        load_params(path)
    assert said in str(caught.value)


def test_an_unknown_backbone_among_the_members_is_told() -> None:
    with pytest.raises(ParamsError, match=r"'resnet51'.*model\.members"):
        plan(params_for(["mobilenet/T1", "resnet51/T1"]))


VOTE = {"members": "[mobilenet/linear, mobilenet/T2.0]", "combine": "vote", "epochs": "20"}
TUNED = {"head": "linear", "unfreeze_blocks": "1", "tune_epochs": "1", "folds": "3"}


@pytest.mark.slow  # three retrains each
@pytest.mark.parametrize(
    ("params", "name", "files"),
    [
        (VOTE, "vote of mobilenet/linear, mobilenet/T2.0", ["head.keras", "head_2.keras"]),
        (TUNED, "linear", ["head.keras", "tail.npz"]),
    ],
    ids=["ensemble", "tuned"],
)
def test_it_is_one_model_all_the_way(
    params: dict[str, str], name: str, files: list[str], pipeline: Pipeline, ssclass: Command, tmp_path: Path
) -> None:
    """An ensemble, and a network whose last block is tuned: promoted, compared, a champion that batches must pass."""
    draw(tmp_path / "drawings", CLASSES, 40)
    first, more, _, flipped, _ = deliveries(gather(tmp_path / "drawings"), tmp_path, seed=0)
    workspace = pipeline.workspace(tmp_path / "workspace", sizes="[64]", crops="none", **params)
    _, batch, source = first
    assert pipeline.deliver(workspace, source, batch).decision == "PROMOTED"
    champion = workspace.at().state.champion
    event = workspace.at().state.decisions[champion].body
    assert event["head"] == name
    kept = {path.name for path in (workspace.root / "candidate").iterdir()}
    assert kept == {"classifier.json", "training.json", *files}

    _, batch, source = more  # both are scored on the same photos
    pipeline.deliver(workspace, source, batch)
    body = list(workspace.at().state.decisions.values())[-1].body
    assert body["champion"]["key"] == champion
    _, batch, source = flipped
    assert pipeline.deliver(workspace, source, batch).decision == "HELD"

    done = ssclass("evaluate", tmp_path / "drawings", "--workspace", workspace.root, "--json")
    assert done.returncode == 0, done.stderr
    done = ssclass("predict", next((tmp_path / "drawings" / "sushi").iterdir()), "--workspace", workspace.root)
    assert done.returncode == 0, done.stderr
    assert "sushi" in done.stdout
