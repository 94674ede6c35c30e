"""`compute: ray`: the same answers from several processes, whichever of them dies."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ssclass.data.batches import list_batches, read_batch
from ssclass.data.build import build_shard
from ssclass.data.dataset import Dataset
from ssclass.data.fetch import Known
from ssclass.data.images import decode
from ssclass.data.shards import Row, read_shard
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw, junk
from ssclass.environment import free_port
from ssclass.errors import BatchError, FailedError, InputError, ObjectError, SsclassError
from ssclass.params import IngestParams, Params
from ssclass.retrain.delivered import delivered_features
from ssclass.retrain.predict import features_of, memo_of, remember_elsewhere
from ssclass.serving.bulk import Job, Summary, predict_all
from ssclass.serving.carried import carry
from ssclass.serving.model import Model
from ssclass.serving.unlabelled import photos_at
from ssclass.settings import CHECKOUT, Settings
from ssclass.spread import _Process, spread
from ssclass.store import Store
from ssclass.study.measure import folder_of
from ssclass.study.rows import load_rows
from ssclass.workspace.workspace import Workspace
from tests.support.models import needed_weights
from tests.support.pipelines import CLASSES, ingest_all, set_params
from tests.support.spreading import deadly, forbidden, impatient, squares

HERE = Settings(workspace=Path("nowhere"))
ON_RAY = HERE.model_copy(update={"compute": "ray"})
LIMITS = IngestParams(min_side=1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray on this machine with two processors, on loopback; it ends with the module.

    A grammar of jsonschema, which tools of ours bring and Ray does not need, would cost each of its ten processes more
    than a second.
    """
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    folder = tmp_path_factory.mktemp("path")
    (folder / "rfc3987_syntax.py").write_text('raise ImportError("not here")\n')
    path = os.pathsep.join([str(folder), str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.syspath_prepend(folder)
        import ray

        for attempt in range(3):  # Ray gives its parts fifteen seconds, and this machine may be busy
            try:
                ray.init(
                    address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000,
                    log_to_driver=False, logging_level="ERROR",
                )  # fmt: skip
                break
            except Exception as error:
                ray.shutdown()
                if attempt == 2:
                    pytest.skip(f"this machine is too busy for Ray to start: {error}")
        try:
            yield ray
        finally:
            ray.shutdown()


def kill_one() -> None:
    """Kill a process that answers."""
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Process"):
            process.send_signal(signal.SIGKILL)
            return
    raise AssertionError("no process answers")


def test_answers_come_in_order_and_a_process_that_is_killed_is_missed_by_nobody(cluster: Any, tmp_path: Path) -> None:
    found = list(spread(ON_RAY, partial(squares, tmp_path / "died"), iter(range(40))))
    assert (tmp_path / "died").exists()
    assert [square for square, _ in found] == [number * number for number in range(40)]
    assert len({process for _, process in found}) > 1
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize("settings", [None, HERE, ON_RAY], ids=["none", "local", "ray"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_of_ours_comes_in_its_place(request: Any, settings: Settings | None, threads: int) -> None:
    if settings is ON_RAY:
        request.getfixturevalue("cluster")
    answers = spread(settings, forbidden, iter(range(9)), threads)
    assert [next(answers) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ObjectError, match="forbids it") as raised:
        next(answers)
    assert raised.value.code == "AccessDenied"


@pytest.fixture
def workspace(s3_endpoint: str, tmp_path: Path) -> Any:
    """Three batches that were taken in, of six drawings each."""
    from ssclass.workspace.create import create

    needed_weights()
    values = {"bucket": f"test-{uuid.uuid4().hex[:12]}", "s3_endpoint": s3_endpoint, "s3_region": "us-east-1"}
    made = create(tmp_path / "shop", values)
    made.store.make_bucket()
    set_params(made, classes=f"[{', '.join(CLASSES)}]", sizes="[96]")
    for number in range(3):
        draw(tmp_path / str(number), CLASSES, 3, number)
        submit(made.store, tmp_path / str(number), f"batch-{number}", CLASSES)
    ingest_all(made)
    return made


def test_features_have_the_same_bytes_when_a_process_dies_over_them(cluster: Any, workspace: Any) -> None:
    from ssclass.model.features import FeatureMemo
    from ssclass.model.spec import feature_spec

    version = workspace.newest()
    spec = feature_spec(version.params.features, maps=True)
    sha256s = [row.sha256 for shard in version.dataset.shards for row in shard.rows]
    assert len(version.dataset.shards) == 3
    here = FeatureMemo(workspace.private / "here", None)
    (expected,) = features_of(version, here, spec, sha256s)
    keys = [FeatureMemo.key(spec, shard.photos_digest) for shard in version.dataset.shards]
    assert not any(workspace.store.head(key) for key in keys)

    killed: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if not killed:
            killed.append(done)
            kill_one()

    store = Store(workspace.settings.model_copy(update={"compute": "ray"}))
    there = FeatureMemo(workspace.private / "there", store)
    remember_elsewhere(version, there, store, spec, version.dataset.shards, progress)
    assert killed
    for key in keys:
        assert store.get(key) == (here.local / key).read_bytes()
        assert not (there.local / key).exists()  # whoever made them put them into S3
    (found,) = features_of(version, there, spec, sha256s)
    assert found.sha256s == expected.sha256s
    assert all((found.arrays[name] == array).all() for name, array in expected.arrays.items())
    remember_elsewhere(version, there, store, spec, version.dataset.shards, lambda *_: pytest.fail("done again"))
    assert memo_of(workspace).knows(spec, version.dataset.shards[0].photos_digest)


def png(side: int) -> bytes:
    out = io.BytesIO()
    with Image.linear_gradient("L") as slope:
        slope.resize((side, side)).convert("RGBA").save(out, "PNG", compress_level=6)
    return out.getvalue()


def bombs(folder: Path) -> None:
    """Photos that would take all of a machine's memory, or that are none, among class folders."""
    junk(folder / CLASSES[0])
    with Image.open(io.BytesIO(png(64))) as photo:
        wide = io.BytesIO()
        photo.convert("RGB").resize((4000, 3000)).save(wide, "AVIF", speed=10)
    size = (4000).to_bytes(4, "big") + (3000).to_bytes(4, "big")
    (folder / CLASSES[1] / "wide.avif").write_bytes(wide.getvalue().replace(size, (64).to_bytes(4, "big") * 2))
    (folder / CLASSES[1] / "huge.ppm").write_bytes(b"P3\n2000 2000 255\n" + b"1 2 3#\n" * 200_000)


def test_a_shard_has_the_same_bytes_when_a_process_dies_over_its_photos(
    cluster: Any, s3: Store, params: Params, tmp_path: Path
) -> None:
    draw(tmp_path / "earlier", CLASSES, 4, 1)
    draw(tmp_path / "batch", CLASSES, 30, 2)
    bombs(tmp_path / "batch")
    for path in sorted((tmp_path / "earlier").rglob("*.jpg")):  # a copy each, every other with another label
        at = sorted(CLASSES)[sum(path.read_bytes()) % 2]
        shutil.copy(path, tmp_path / "batch" / at / f"again-{path.name}")
    told: dict[str, list[tuple[int, int]]] = {"local": [], "ray": []}
    shards: dict[str, Path] = {}
    for compute in told:
        store = Store(s3.settings.model_copy(update={"compute": compute}))
        dataset = Dataset()
        for name in ("earlier", "batch"):
            if compute == "local":
                submit(store, tmp_path / name, name, CLASSES)
            (ref,) = (ref for ref in list_batches(store) if ref.id == name)
            batch, scratch = read_batch(store, ref, CLASSES), tmp_path / f"{compute}-{name}"
            scratch.mkdir()
            shards[compute] = tmp_path / f"{compute}-{name}.parquet"

            def progress(done: int, total: int, compute: str = compute) -> None:
                if compute == "ray" and done == 20:
                    kill_one()
                told[compute].append((done, total))

            receipt = build_shard(store, batch, params, dataset, scratch, shards[compute], progress)
            dataset = Dataset.of([*dataset.shards, read_shard(shards[compute])])
    assert shards["ray"].read_bytes() == shards["local"].read_bytes()
    assert told["ray"] == told["local"]
    assert receipt.accepted == 60
    assert receipt.duplicates
    assert {refusal.reason for refusal in receipt.refused} == {
        "corrupt", "empty", "label conflict", "not an image", "too many pixels", "too small", "truncated",
    }  # fmt: skip


def test_a_bomb_ends_its_decoder_alone_in_a_cluster_too(cluster: Any) -> None:
    good = png(300)
    found = list(spread(ON_RAY, impatient, iter([good, png(7800), good]), network=False))
    assert [said.partition(":")[0] for said, _, _ in found] == [found[0][0], "too costly", found[0][0]]
    assert {decoders for _, _, decoders in found if decoders} == {1}
    assert psutil.pid_exists(found[0][1])


def test_what_a_data_set_has_is_known_elsewhere() -> None:
    names = [hashlib.sha256(bytes([number])).hexdigest() for number in range(50)]
    rows = {name: Row(name, CLASSES[at % 2], "train", name, "0" * 16, b"", "k", 1, 1) for at, name in enumerate(names)}
    for present in ({}, rows):
        here = Known(present)
        there = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(here))))
        for name in [*names, "0" * 64, "f" * 64]:
            assert there.label(name) == here.label(name) == (present[name].label if name in present else None)


def test_a_new_batch_has_the_same_features_when_a_process_dies_over_them(
    cluster: Any, workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssclass.model import features
    from ssclass.model.spec import feature_spec

    version = workspace.newest()
    shard, params = version.dataset.shards[0], version.params
    spec = feature_spec(params.features, maps=True)
    monkeypatch.setattr("ssclass.retrain.delivered.TOGETHER", 2)
    store = Store(workspace.settings.model_copy(update={"compute": "ray"}))
    with version.open(f"data/{shard.batch_id}.parquet") as file:
        path = workspace.private / "shard.parquet"
        path.write_bytes(file.read())
    here = features.FeatureMemo(workspace.private / "here", None)
    expected = delivered_features(spec, here, workspace.store, shard, path, params)
    key = features.FeatureMemo.key(spec, shard.photos_digest)

    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if not killed:
            killed.append(done)
            kill_one()

    there = features.FeatureMemo(workspace.private / "there", store)
    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", lambda *_: pytest.fail("computed here"))
        found = delivered_features(spec, there, store, shard, path, params, progress)
    assert killed == [2]
    assert found.sha256s == expected.sha256s
    assert (there.local / key).read_bytes() == (here.local / key).read_bytes() == store.get(key)

    store.put(f"incoming/{shard.batch_id}/{shard.rows[-1].key}", b"another photo")
    again = features.FeatureMemo(workspace.private / "again", None)
    delivered_features(spec, again, store, shard, path, params)
    assert (again.local / key).read_bytes() == (here.local / key).read_bytes()


@pytest.mark.slow  # three trainings, twice
def test_rows_of_the_study_have_the_same_figures_when_a_process_dies_over_one(
    cluster: Any, workspace: Any, tmp_path: Path
) -> None:
    from ssclass.study.side_by_side import fitted_rows

    small = {"train.folds": 2}
    rows = {
        "default": {"about": "as it is"},
        "kernel": {"about": "a kernel", "set": {**small, "model.head": "rbf"}, "repeats": 1},
        "wide": {"about": "another", "set": {**small, "model.head": "rbf", "train.seed": 5}, "repeats": 2},
        "maps": {"about": "maps", "set": {**small, "model.head": "bilinear"}, "repeats": 1},
        "none": {"about": "no photos", "set": {**small, "dataset.sources": ["bought"]}},
    }
    (workspace.root / "study.yaml").write_text(yaml.safe_dump({"repeats": 2, "rows": rows}, sort_keys=False))
    chosen = [row for name, row in load_rows(workspace).items() if name != "default"]
    dataset = workspace.at().dataset
    found: dict[str, list[Any]] = {}
    files: dict[str, dict[str, bytes]] = {}
    killed: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "rows" and not killed:
            killed.append(done)
            kill_one()

    for compute in ("local", "ray"):
        settings = workspace.settings.model_copy(update={"compute": compute})
        told = progress if compute == "ray" else lambda *_: None
        found[compute] = list(fitted_rows(Workspace(settings), chosen, dataset, told))
        folders = [folder_of(workspace, row.key(row.with_sources(dataset))) for row in chosen]
        files[compute] = {
            f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "model.keras"  # holds the time
        }
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    assert killed
    *here, none = found["local"]
    *there, none_there = found["ray"]
    for one, other in zip(here, there, strict=True):
        replace(one.result, seconds={}).write(tmp_path / "one.json")
        replace(other.result, seconds={}).write(tmp_path / "other.json")
        assert json.loads((tmp_path / "other.json").read_text()) == json.loads((tmp_path / "one.json").read_text())
        assert replace(other, result=one.result) == one
    assert files["ray"] == files["local"]
    assert len(files["ray"]) == 6
    assert type(none_there) is type(none) is BatchError
    assert str(none_there) == str(none)


@pytest.mark.slow  # TensorFlow in three processes
def test_answers_on_a_folder_are_the_same_file(cluster: Any, tmp_path: Path) -> None:
    from ssclass.model.backbones import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(0)
    pixels = keras.Input((24, 24, 3), dtype="uint8")
    hidden = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels))
    network = keras.Model(pixels, keras.layers.Dense(2, activation="softmax")(hidden))
    model = Model("dense", CLASSES, 24, network)
    roll = tmp_path / "roll"
    draw(roll, CLASSES, 30)
    (roll / "notes.txt").write_text("not a photo")
    (roll / "empty.jpg").write_bytes(b"")

    killed: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if not killed and done:
            killed.append(done)
            kill_one()

    job = Job(str(roll), "dense", None, None, CLASSES)
    for settings, name in ((HERE, "here"), (ON_RAY, "there")):
        found = photos_at(str(roll), None, LIMITS.max_bytes)
        told = progress if settings is ON_RAY else lambda *_: None
        assert predict_all(model, job, found, tmp_path / name, LIMITS, told, settings) == Summary(62, 2)
    assert killed
    here, there = pq.read_table(tmp_path / "here"), pq.read_table(tmp_path / "there")
    assert there.equals(here)
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert [row["error"].split(":")[0] for row in there.to_pylist() if row["error"]] == ["empty", "not an image"]


@pytest.mark.slow  # a process is started again and again
def test_an_item_that_kills_every_process_ends_it(cluster: Any) -> None:
    with pytest.raises(FailedError, match="died again and again"):
        list(spread(ON_RAY, deadly, [1]))


def test_a_process_with_other_code_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    answer = _Process("0123456789abcdef", False, []).answer(1)
    assert isinstance(answer, FailedError)
    assert "has another ssclass" in str(answer)


def test_without_items_no_cluster_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(spread(ON_RAY, forbidden, [])) == []


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'ssclass\[ray\]'"):
        list(spread(ON_RAY, forbidden, [1]))


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    address = f"ray://127.0.0.1:{free_port()}"
    with pytest.raises(FailedError, match="nobody answers there"):
        list(spread(ON_RAY.model_copy(update={"ray_address": address}), forbidden, [1]))


@pytest.mark.parametrize(
    ("name", "value"), [("compute", "spark"), ("ray_address", "http://head:10001"), ("ray_address", "head")]
)
def test_settings_that_say_nothing_usable_are_named(name: str, value: str, tmp_path: Path) -> None:
    from ssclass.settings import load_settings

    (tmp_path / "ssclass.toml").write_text(f'{name} = "{value}"\n')
    with pytest.raises(SsclassError, match=rf"ssclass.toml: {name}: "):
        load_settings(tmp_path)


@pytest.mark.slow  # a training
def test_a_model_of_the_ledger_travels_as_the_files_of_its_classifier(workspace: Any, tmp_path: Path) -> None:
    from ssclass.model.adopted import open_classifier
    from ssclass.retrain.train import fit, save_candidate
    from ssclass.serving.quick import quick_engine

    set_params(workspace, head="rbf")
    version = workspace.newest()
    trained = fit(version, memo_of(workspace), version.params, version.dataset)
    save_candidate(trained, version.dataset, tmp_path / "candidate", version.params)
    classifier = open_classifier(tmp_path / "candidate", quick=True)
    if (engine := quick_engine(classifier)) is None:
        pytest.skip("no other runtime than TensorFlow is installed")
    model = Model("champion", CLASSES, classifier.size, None, quick=engine, folder=tmp_path / "candidate")
    arrived = pickle.loads(pickle.dumps(carry(model))).open()
    images = np.stack([decode(path.read_bytes(), model.size) for path in sorted((tmp_path / "0").rglob("*.jpg"))])
    assert arrived.quick is not None
    assert arrived.quick.name == engine.name
    np.testing.assert_array_equal(arrived.predict(images), model.predict(images))
