"""The study's rows, suspicious labels, and seeing a model: on one small workspace with two sources."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from ssclass.cli import cli
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Row
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.errors import NotFoundError, ParamsError, WeightsError
from ssclass.model.backbones import BACKBONES, import_keras
from ssclass.model.classifier import Classifier, Member
from ssclass.model.spec import feature_spec
from ssclass.params import FeatureParams
from ssclass.retrain.ingest import waiting
from ssclass.retrain.predict import memo_of
from ssclass.serving.model import Model, open_model
from ssclass.store import Store
from ssclass.study import explain as explaining
from ssclass.study import measure as measuring
from ssclass.study.answers import answer_photos, of_folder, of_holdout, out_of_fold, threshold
from ssclass.study.erase import clean_rows, erase_pages
from ssclass.study.experiment import StudyRuns
from ssclass.study.filters import shown_layers, visualise_channels
from ssclass.study.maps import MappedModel
from ssclass.study.measure import finished
from ssclass.study.report import pair
from ssclass.study.rows import choose, load_rows
from ssclass.study.run import run_study, survey
from ssclass.study.suspects import manifest, ranked
from ssclass.workspace.create import create, template_file
from ssclass.workspace.workspace import Workspace
from tests.support.models import needed_weights, random_file
from tests.support.pipelines import CLASSES, Command, ingest_all

SMALL = {"features.crops": "none", "features.sizes": [64], "train.folds": 2}
ROWS = {
    "default": {"about": "as it is"},
    "linear": {"about": "small and quick", "set": {**SMALL, "model.head": "linear"}, "study": 90.0, "repeats": 3},
    "rbf": {"about": "another head", "set": {**SMALL, "model.head": "rbf"}, "against": "linear"},
    "own": {
        "about": "without the bought photos",
        "set": {**SMALL, "model.head": "linear", "dataset.sources": ["main"]},
        "auxiliary": True,
        "against": "linear",
    },
}


@pytest.fixture
def visited(studied: Workspace) -> Iterator[Workspace]:
    """The same workspace, for rows of a test's own: afterwards it has those of before."""
    before = set((studied.private / "study").iterdir())
    yield studied
    rows_of(studied, ROWS)
    for folder in set((studied.private / "study").iterdir()) - before:
        shutil.rmtree(folder)


def rows_of(workspace: Workspace, rows: dict[str, object]) -> None:
    (workspace.root / "study.yaml").write_text(yaml.safe_dump({"repeats": 2, "rows": rows}, sort_keys=False))


@pytest.fixture(scope="module")
def studied(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with two sources, in which the small rows are done."""
    needed_weights()
    folder = tmp_path_factory.mktemp("study")
    workspace = create(folder / "workspace", {"bucket": "study", "s3_endpoint": s3_endpoint, "s3_region": "us-east-1"})
    store = workspace.store
    store.make_bucket()
    for source, seed, per_class in (("main", 1, 20), ("bought", 2, 8)):
        draw(folder / source, CLASSES, per_class, seed)
        submit(store, folder / source, source, CLASSES, source=source)
    ingest_all(workspace)
    rows_of(workspace, ROWS)
    run_study(workspace, ["linear", "rbf", "own"], say=lambda line: None)
    return workspace


@pytest.fixture
def empty(s3: Store, tmp_path: Path) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    return create(tmp_path / "workspace", at)


def test_each_row_is_a_child_run_with_the_metrics_of_a_retrain_and_of_the_study(studied: Workspace) -> None:
    runs = StudyRuns(studied)
    found = runs.client.search_runs([runs.experiment_id])
    (parent,) = (run for run in found if "study_key" in run.data.tags)
    children = {run.data.tags["row"]: run for run in found if "row" in run.data.tags}
    assert set(children) == {"linear", "rbf", "own"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    metrics = children["linear"].data.metrics
    assert {"accuracy", "accuracy_low", "loss", "f_measure", "cv_accuracy", "cv_accuracy_sd", "megabytes"} <= set(
        metrics
    )
    assert {"parameters_head", "parameters_backbone", "milliseconds_1", "milliseconds_32", "seconds_training"} <= set(
        metrics
    )
    assert metrics["parameters_head"] == 1024 * 2 + 2
    assert metrics["parameters_backbone"] == 3_228_864, "MobileNet without its classifier"
    assert metrics["cv_repeats"] == 3
    assert {"wins", "cv_mcnemar_p"} <= set(children["rbf"].data.metrics), "compared with the row that it names"
    assert children["rbf"].data.params["model.head"] == "rbf"
    assert children["rbf"].outputs.model_outputs, "with its model"
    names = {each.path for each in runs.client.list_artifacts(parent.info.run_id)}
    assert names == {"study.md", "study.html", "study.png"}


def test_the_study_writes_nothing_that_decides(studied: Workspace) -> None:
    assert studied.git("status", "--porcelain") == "M study.yaml", "written by hand above"
    assert not studied.at().state.decisions
    assert [event.kind for event in studied.at().events] == ["ingest", "ingest"]
    assert not StudyRuns(studied).client.search_registered_models()


def test_the_report_has_every_row_and_says_which_were_not_run(studied: Workspace) -> None:
    folder = studied.private / "study" / "report"
    text, html = (folder / "study.md").read_text(), (folder / "study.html").read_text()
    linear = finished(studied, load_rows(studied)["linear"], studied.at().dataset)
    assert linear is not None
    assert f"{linear.scores.right} of {linear.scores.n}" in text
    assert "| 90.00 |" in text.replace("**", "")
    assert "| default | not run yet |" in text
    assert "| bought | " in text, "photos of each source"
    assert "dvc exp run -S features.crops=none -S 'features.sizes=[64]'" in text
    assert "<svg" in html
    assert "](study.png)" in text
    assert "<script" not in html
    assert 'src="http' not in html


def test_a_finished_row_is_not_trained_again_until_data_params_or_code_change(
    studied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(measuring, "fit", never)
    said: list[str] = []
    before = len(StudyRuns(studied).client.search_runs([StudyRuns(studied).experiment_id]))
    run_study(studied, ["linear", "rbf"], say=said.append)
    assert said == ["linear: finished before", "rbf: finished before"]
    assert len(StudyRuns(studied).client.search_runs([StudyRuns(studied).experiment_id])) == before

    params = studied.root / "params.yaml"
    text = params.read_text()
    try:
        params.write_text(text.replace("  seed: 0", "  seed: 1"))
        row = load_rows(studied)["linear"]
        assert finished(studied, row, studied.at().dataset) is None
    finally:
        params.write_text(text)


def test_a_row_that_was_cut_off_is_taken_up_where_rows_are_whole(
    studied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = StudyRuns(studied)
    row, dataset = load_rows(studied)["rbf"], studied.at().dataset
    done = finished(studied, row, dataset)
    assert done is not None
    parent = next(r for r in runs.client.search_runs([runs.experiment_id]) if "study_key" in r.data.tags).info.run_id
    run = runs.child(parent, done)
    assert run is not None
    runs.discard(run)  # as if it had been killed between the training and MLflow
    said: list[str] = []
    monkeypatch.setattr(measuring, "fit", None)
    run_study(studied, ["rbf"], say=said.append)
    assert said == ["rbf: finished before"]
    again = runs.child(parent, done)
    assert again is not None
    assert again != run
    assert runs.client.get_run(again).outputs.model_outputs, "with its model, exported anew"


def test_rows_of_other_sources_are_compared_on_the_photos_that_both_have(studied: Workspace) -> None:
    rows, dataset = load_rows(studied), studied.at().dataset
    linear, own = (finished(studied, rows[name], dataset) for name in ("linear", "own"))
    assert linear is not None
    assert own is not None
    assert set(own.train) < set(linear.train)
    found = pair(own, linear)
    assert found.out_of_fold.n == len(own.train)
    assert found.holdout.n == len(set(own.result.holdout) & set(linear.result.holdout))
    assert own.result.sources["bought"]["unused"] == 16


def test_rows_whose_weights_cannot_be_had_are_told_and_the_rest_goes_on(
    studied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of(studied, {**ROWS, "away": {"about": "no weights", "set": {**SMALL, "train.seed": 7}}})

    def away(workspace: Workspace, params: object, *rest: object) -> None:
        raise WeightsError("weights of resnet50: out of reach; bring them")

    monkeypatch.setattr(measuring, "fit", away)
    said: list[str] = []
    found = run_study(studied, ["away", "linear"], say=said.append)
    assert found.not_run == {"away": "weights of resnet50: out of reach; bring them"}
    assert said[-2:] == ["linear: finished before", "away: not run: weights of resnet50: out of reach; bring them"]
    assert "out of reach" in (studied.private / "study" / "report" / "study.md").read_text()
    rows_of(studied, ROWS)


def test_the_command_lists_rows_and_prints_json(studied: Workspace, ssclass: Command) -> None:
    done = ssclass("study", "--list", "--json", "--workspace", studied.root)
    assert done.returncode == 0, done.stderr
    rows = {row["row"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == list(ROWS)
    assert rows["default"]["state"] == "not run yet"
    assert rows["linear"]["cv_repeats"] == 3
    assert ssclass("study", "no-such-row", "--workspace", studied.root).returncode == 2


def test_each_source_is_told_apart_and_left_out_of_training_once(studied: Workspace) -> None:
    from ssclass.study.report import by_source

    found = survey(studied, load_rows(studied), studied.at().dataset)
    lines = {(one.row, one.source): one for one in by_source(found)}
    assert {source for row, source in lines if row == "linear"} == {"main", "bought"}
    assert not finished(studied, load_rows(studied)["own"], studied.at().dataset).left_out, "it has one source"  # type: ignore[union-attr]
    dataset = studied.at().dataset
    for row in ("linear", "rbf"):
        measured, sides = found.measured[row], [lines[row, source] for source in ("main", "bought")]
        for part, whole in (("out_of_fold", measured.cv_correct), ("holdout", measured.correct)):
            counted = [getattr(one, part) or (0, 0) for one in sides]
            assert tuple(map(sum, zip(*counted, strict=True))) == (int(whole.sum()), len(whole))
        for one in sides:
            assert one.left_out is not None
            groups = {each.group for each in dataset.train if dataset.source_of(each.sha256) != one.source}
            asked = [each for each in dataset.used if dataset.source_of(each.sha256) == one.source]
            assert set(measured.left_out[one.source]) == {e.sha256 for e in asked if e.group not in groups}
    assert lines["rbf", "main"].against is not None
    params = load_rows(studied)["linear"].params
    again = measuring.left_out(studied.at(), memo_of(studied), params, dataset, "linear")
    assert again == found.measured["linear"].left_out
    assert "Left out of training" in (studied.private / "study" / "report" / "study.md").read_text()


def test_a_row_without_its_weights_names_the_file_and_runs_once_it_is_imported(
    visited: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssclass.model.weights import import_weights

    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path / "home"))
    changes = {**SMALL, "features.backbone": "mobilenet_v2", "model.head": "linear"}
    rows_of(visited, ROWS | {"v2": {"about": "", "set": changes, "repeats": 1}})
    told = survey(visited, load_rows(visited), visited.at().dataset).not_run["v2"]
    assert BACKBONES["mobilenet_v2"].file in told
    import_weights(random_file("mobilenet_v2", tmp_path))
    assert "v2" not in survey(visited, load_rows(visited), visited.at().dataset).not_run
    found = run_study(visited, ["v2"], say=lambda line: None)
    assert found.measured["v2"].repeats == 1


FROM_KERAS = ("inception_v3", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FROM_KERAS)
def test_the_studys_own_row_runs_by_one_command_from_a_file_of_full_size(
    name: str, visited: Workspace, ssclass: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has Keras's name and all tensors; the row is the shipped one, at the network's own size, done once."""
    monkeypatch.setenv("SSCLASS_HOME", str(tmp_path / "home"))
    shipped = yaml.safe_load(template_file("study.yaml").read_text())
    (visited.root / "study.yaml").write_text(yaml.safe_dump(shipped | {"repeats": 1}, sort_keys=False))
    rows = load_rows(visited)
    (row,) = [row for row, each in rows.items() if each.backbones == (name,) and each.params.model.head == "T1"]
    file = random_file(name, tmp_path)
    assert file.name == BACKBONES[name].file
    assert file.name in survey(visited, rows, visited.at().dataset).not_run[row]
    done = ssclass("weights", "import", file)
    assert done.returncode == 0, done.stderr
    done = ssclass("study", row, "--json", "--workspace", visited.root)
    assert done.returncode == 0, done.stderr
    (line,) = [each for each in json.loads(done.stdout)["rows"] if each["row"] == row]
    assert line["state"] == "finished"
    assert line["parameters_backbone"] > 2e6
    assert line["train_size"] == len(visited.at().dataset.train)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"default": {"about": "", "set": {"train.seed": 1}}}, "change nothing"),
        ({**ROWS, "bad": {"about": "", "set": {"model.head": "T9"}}}, r"bad: model\.head"),
        ({**ROWS, "bad": {"about": "", "set": {"model.heed": "T1"}}}, r"bad: model\.heed"),
        ({**ROWS, "bad": {"about": "", "against": "none"}}, "no row 'none'"),
        ({**ROWS, "bad": {"set": {}}}, r"bad\.about"),
    ],
)
def test_a_wrong_row_is_named(empty: Workspace, rows: dict[str, object], said: str) -> None:
    rows_of(empty, rows)
    with pytest.raises(ParamsError, match=said):
        load_rows(empty)


def test_the_shipped_rows_fit_the_shipped_params(empty: Workspace) -> None:
    rows = load_rows(empty)
    assert rows["default"].params == empty.work_tree().params
    assert rows["mobilenet-T1"].study == 91.25
    with pytest.raises(NotFoundError, match="mobilenet-T1"):
        choose(rows, ["mobilenet-t1"])
    (empty.root / "study.yaml").unlink()
    assert load_rows(empty) == rows, "a workspace from before has the template's"


# --- suspicious labels ---------------------------------------------------------------------------------------------


def test_flipped_labels_are_at_the_top_of_the_suspects_and_a_manifest_corrects_them(studied: Workspace) -> None:
    linear = finished(studied, load_rows(studied)["linear"], studied.at().dataset)
    assert linear is not None
    dataset, probabilities = studied.at().dataset, np.array(linear.out_of_fold)
    sure = [at for at in np.argsort(-probabilities.max(axis=1)) if linear.cv_correct[at]][:4]
    flipped = {linear.train[at] for at in sure}
    wrong = {"sandwich": "sushi", "sushi": "sandwich"}

    def as_flipped(row: Row) -> Row:
        return replace(row, label=wrong[row.label]) if row.sha256 in flipped else row

    shards = [replace(shard, rows=tuple(map(as_flipped, shard.rows))) for shard in dataset.shards]
    found = ranked(Dataset.of(shards), probabilities, CLASSES)
    assert {each.sha256 for each in found[:4]} == flipped
    assert all(each.issue for each in found[:4])
    assert [each.quality for each in found] == sorted(each.quality for each in found)
    relabel = json.loads(manifest(found[:4]))["relabel"]
    assert {(each["sha256"], each["label"]) for each in relabel} == {
        (row.sha256, row.label) for row in dataset.train if row.sha256 in flipped
    }, "the labels that they had"


def test_the_command_shows_suspects_and_their_manifest_can_be_submitted(
    studied: Workspace, ssclass: Command, tmp_path: Path
) -> None:
    params = studied.root / "params.yaml"
    text = params.read_text()
    small = text.replace("sizes: [320]", "sizes: [64]")
    params.write_text(small.replace("head: auto", "head: linear").replace("folds: 5", "folds: 2"))
    try:
        page, corrections = tmp_path / "suspects.html", tmp_path / "corrections.json"
        at = ("--workspace", studied.root)
        told = ("--top", 5, "--html", page, "--manifest", corrections, "--json", *at)
        # In this process, which has TensorFlow already.
        done = CliRunner().invoke(cli, ["data", "suspects", *map(str, told)], catch_exceptions=False)
        found = json.loads(done.stdout)
        assert len(found) == 5
        assert page.read_text().count("data:image/jpeg;base64,") == 5
        assert found[0]["sha256"][:16] in page.read_text()
        listed = json.loads(corrections.read_text())["relabel"]
        assert [each["sha256"] for each in listed] == [each["sha256"] for each in found if each["issue"]]

        corrections.write_text(json.dumps({"schema": 1, "relabel": [{"sha256": found[0]["sha256"], "label": "sushi"}]}))
        sent = ssclass("submit", corrections, "--id", "corrections", *at)
        assert sent.returncode == 0, sent.stderr
        assert "1 corrections" in sent.stdout
        assert [ref.id for ref in waiting(Store(studied.settings), studied.at().state)] == ["corrections"]
        Store(studied.settings).delete("incoming/corrections/manifest.json")
        (tmp_path / "odd.json").write_text(json.dumps({"schema": 1, "photos": [{"key": "a.jpg", "label": "sushi"}]}))
        odd = ssclass("submit", tmp_path / "odd.json", *at)
        assert odd.returncode == 2
        assert "corrections alone" in odd.stderr
    finally:
        params.write_text(text)


# --- seeing a model ------------------------------------------------------------------------------------------------


def model_of(workspace: Workspace, row: str) -> Model:
    """A row's model, as `ssclass explain --model <run>` opens it."""
    runs = StudyRuns(workspace)
    (run,) = runs.client.search_runs([runs.experiment_id], f"tags.row = '{row}'")
    return open_model(run.info.run_id, workspace.settings)


def test_the_map_of_a_linear_head_adds_up_to_its_score(studied: Workspace) -> None:
    model = model_of(studied, "linear")
    mapped = MappedModel(model)
    images = np.random.default_rng(0).integers(0, 256, (3, model.size, model.size, 3), dtype=np.uint8)
    classes = np.array([0, 1, 1])
    places, channels, probabilities = mapped.contributions(images, classes)
    dense = model.keras.get_layer("head").get_layer("probabilities")
    kernel, bias = (value.numpy() for value in dense.weights)
    maps = mapped.before(images).numpy()
    for at, own in enumerate(classes):
        exact = maps[at] @ (kernel[:, own] - kernel[:, 1 - own]) / (maps.shape[1] * maps.shape[2])
        assert np.allclose(places[0][at], exact, atol=1e-4), "the class-activation map of Zhou et al."
        score = np.log(probabilities[at, own] / probabilities[at, 1 - own])
        assert places[0][at].sum() + bias[own] - bias[1 - own] == pytest.approx(score, abs=1e-3)
        assert channels[0][at].sum() == pytest.approx(places[0][at].sum(), abs=1e-3)


def test_a_place_is_worth_what_a_head_on_directions_loses_without_it(studied: Workspace) -> None:
    model = model_of(studied, "rbf")
    mapped = MappedModel(model)
    images = np.random.default_rng(0).integers(0, 256, (2, model.size, model.size, 3), dtype=np.uint8)
    places, _, probabilities = mapped.contributions(images, np.array([0, 1]))
    maps = mapped.before(images).numpy()
    changed = maps.copy()
    changed[:, 1, 0] = maps.mean(axis=(0, 1, 2))
    left = mapped.after(changed).numpy()
    for at, own in enumerate((0, 1)):
        loss = np.log(probabilities[at, own] / probabilities[at, 1 - own]) - np.log(left[at, own] / left[at, 1 - own])
        assert loss != 0
        assert places[0][at, 1, 0] == pytest.approx(loss, rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("backbone", ["mobilenet", "efficientnet_lite0"])
def test_views_of_five_mirrored_crops_are_where_they_were_cut(backbone: str, tmp_path: Path) -> None:
    needed_weights(backbone)
    spec = feature_spec(FeatureParams(backbone=backbone, sizes=(64,), crops="five", flip=True))
    keras = import_keras()
    views = keras.Input((None, BACKBONES[backbone].channels), name="64.out.mean")
    dense = keras.layers.Dense(2, activation="softmax", kernel_initializer="ones")
    head = keras.Model({views.name: views}, dense(keras.layers.GlobalAveragePooling1D()(views)), name="head")
    Classifier(CLASSES, (Member(spec, "linear", head),)).export(tmp_path / "model.keras")
    mapped = MappedModel(Model("crops", CLASSES, spec.size, keras.models.load_model(tmp_path / "model.keras")))
    assert [(view.top, view.left) for view in mapped.views] == list(spec.corners(64)) * 2
    assert [view.flipped for view in mapped.views] == [False] * 5 + [True] * 5
    assert shown_layers(mapped.trunk().network), "channels to be visualised"
    places = [np.zeros((1, 2, 2), np.float32) for _ in mapped.views]
    places[5][0, 0, 1] = 1  # top right of the mirrored top left view: the photo's top left corner
    shown = mapped.photo_maps(places, 85)[0]
    assert np.unravel_index(shown.argmax(), shown.shape) < (30, 30)
    assert shown[50:].max() == 0


def test_a_channel_is_shown_what_it_answers_to(studied: Workspace) -> None:
    trunk = MappedModel(model_of(studied, "linear")).trunk()
    network = trunk.network
    layer = shown_layers(network)[0]
    pictures = visualise_channels(trunk, layer, [0, 5])
    again = visualise_channels(trunk, layer, [0, 5])
    assert pictures.shape == (2, 128, 128, 3)
    assert np.array_equal(pictures, again), "seeded"
    keras = import_keras()
    part = keras.models.clone_model(
        keras.Model(network.inputs, layer.input), input_tensors=[keras.Input((128, 128, 3))]
    )
    part.set_weights(keras.Model(network.inputs, layer.input).get_weights())
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3))
    answers, usual = (
        part(trunk.before(np.asarray(each, np.float32))).numpy().mean(axis=(1, 2)) for each in (pictures, noise)
    )
    for at, channel in enumerate((0, 5)):
        assert answers[at, channel] > usual[:, channel].max() + 2, "far more than to noise"


def test_a_threshold_is_the_one_with_the_most_photos_right() -> None:
    second = np.array([0.1, 0.2, 0.3, 0.35, 0.45, 0.9])
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = threshold(labels, np.stack([1 - second, second], axis=1))
    assert found.value == pytest.approx(0.325)
    assert found.accuracy == 1
    assert found.accuracy_at_half == pytest.approx(4 / 6)
    tied = threshold(np.array([0, 1]), np.array([[0.6, 0.4], [0.4, 0.6]]))
    assert tied.value == 0.5, "of equals the plain one"


def test_the_page_shows_mistakes_maps_curves_and_a_threshold(
    studied: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssclass.study.filters.STEPS", 2)
    model = model_of(studied, "rbf")
    page = explaining.write(explaining.explain(model, of_holdout(studied), studied), tmp_path / "explained").read_text()
    rbf = finished(studied, load_rows(studied)["rbf"], studied.at().dataset)
    assert rbf is not None
    mistakes = rbf.scores.n - rbf.scores.right
    assert f"{rbf.scores.right} of {rbf.scores.n} right" in page
    assert len(list((tmp_path / "explained").glob("mistake-*.jpg"))) == mistakes
    assert len(list((tmp_path / "explained").glob("channel-*.png"))) >= 20
    assert {"roc.png", "precision-recall.png", "calibration.png"} <= {
        p.name for p in (tmp_path / "explained").iterdir()
    }
    assert "what the score loses" in page
    assert f"right of {len(rbf.train)} training photos" in page
    assert 'src="http' not in page
    run = explaining.log(studied, model, tmp_path / "explained")
    runs = StudyRuns(studied)
    assert "look/index.html" in {each.path for each in runs.client.list_artifacts(run, "look")}
    assert erase_pages(studied) == [f"run {run}: look/"], "any photo may be seen there"
    assert not runs.client.list_artifacts(run, "look")
    assert erase_pages(studied) == []


def test_forgetting_a_photo_takes_the_rows_that_name_it(studied: Workspace, tmp_path: Path) -> None:
    done = finished(studied, load_rows(studied)["own"], studied.at().dataset)
    assert done is not None
    copy = Workspace(studied.settings.model_copy(update={"workspace": tmp_path}))
    shutil.copytree(studied.private / "study", copy.private / "study")
    rows = len(list((copy.private / "study").glob("*/row.json")))
    assert rows == 3
    photos = {row.sha256 for row in studied.at().dataset.rows}
    assert clean_rows(copy, photos) == []
    assert len(clean_rows(copy, photos - {done.result.holdout[0]})) == rows, "it is held out in every row"
    assert not list((copy.private / "study").glob("*/row.json"))


def test_class_folders_are_answered_and_what_cannot_be_read_is_named(studied: Workspace, tmp_path: Path) -> None:
    draw(tmp_path / "photos", CLASSES, 2, 9)
    (tmp_path / "photos" / "sushi" / "notes.jpg").write_text("lunch")
    model = model_of(studied, "linear")
    answers = answer_photos(model, of_folder(tmp_path / "photos", model))
    assert len(answers.names) == 4
    assert list(answers.unreadable) == ["sushi/notes.jpg"]
    assert out_of_fold(None, replace(model, key=None)).startswith("it is of no decision")  # type: ignore[union-attr]
    with pytest.raises(NotFoundError, match="no MLflow run"):
        explaining.log(studied, replace(model, run_id=None), tmp_path)
