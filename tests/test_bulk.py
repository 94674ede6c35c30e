"""`ssclass predict --from … --to …`: a row a photo, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ssclass.cli import cli
from ssclass.data.images import decode
from ssclass.data.shards import Receipt, Row, write_shard
from ssclass.demo.drawings import draw
from ssclass.errors import InputError, StoreError
from ssclass.params import IngestParams
from ssclass.serving import bulk
from ssclass.serving.bulk import Job, Summary, begun, parts_of, predict_all
from ssclass.serving.model import Model
from ssclass.serving.unlabelled import Unlabelled, photos_at
from ssclass.store import Store
from tests.support.running import clean_environment, eventually

CLASSES = ("sandwich", "sushi")
LIMITS = IngestParams(min_side=1)


class Bright(Model):
    """Says how bright a photo is; no network."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        bright = np.array([image.mean() for image in images]) / 255
        return np.stack([1 - bright, bright], axis=1)


MODEL = Bright("bright", CLASSES, 24, None)


def job(source: Path | str) -> Job:
    return Job(str(source), "bright", None, None, CLASSES)


@pytest.fixture
def roll(tmp_path: Path) -> Path:
    """Photos, one of them twice, and two files that are none."""
    folder = tmp_path / "roll"
    draw(folder, CLASSES, 6)
    shutil.copy(sorted(folder.rglob("*.jpg"))[0], folder / "copy.jpg")
    (folder / "notes.txt").write_text("not a photo")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / ".hidden").write_bytes(b"x")
    return folder


def run(source: Path | str, target: Path, photos: Iterator[Unlabelled] | None = None) -> Summary:
    found = photos if photos is not None else photos_at(str(source), None, LIMITS.max_bytes)
    return predict_all(
        MODEL, begun(target, str(source), "bright") or job(source), found, target, LIMITS, lambda *_: None
    )


def check(target: Path, roll: Path) -> None:
    """Every file has its row, once, with what the model says of it; and nothing is left beside the file."""
    rows = pq.read_table(target).to_pylist()
    files = {path.relative_to(roll).as_posix(): path for path in roll.rglob("*") if path.is_file()}
    del files[".hidden"]
    assert sorted(row["photo"] for row in rows) == sorted(files)
    for row in rows:
        data = files[row["photo"]].read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        if row["photo"] in ("notes.txt", "empty.jpg"):
            assert row["error"].startswith({"notes.txt": "not an image", "empty.jpg": "empty"}[row["photo"]])
            assert row["label"] is row["probability"] is row["probabilities"] is None
            continue
        odds = MODEL.predict(decode(data, 24)[None])[0]
        assert row["error"] is None
        assert list(row["probabilities"].values()) == pytest.approx(list(odds))
        assert (row["label"], row["probability"]) == (CLASSES[odds.argmax()], pytest.approx(odds.max()))
    assert list(target.parent.glob(f".{target.name}*")) == []


def test_a_folder_has_a_row_a_file_and_a_reason_for_what_is_no_photo(roll: Path, tmp_path: Path) -> None:
    assert run(roll, tmp_path / "p.parquet") == Summary(15, 2)
    check(tmp_path / "p.parquet", roll)
    assert pq.read_schema(tmp_path / "p.parquet").names == [
        "photo", "sha256", "label", "probability", "probabilities", "error",
    ]  # fmt: skip


def test_given_again_it_changes_nothing_and_another_question_is_not_mixed_in(roll: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.parquet"
    run(roll, target)
    before = target.stat().st_mtime_ns
    assert run(roll, target) == Summary(15, 2)
    assert target.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="name a new file"):
        begun(target, str(roll), "champion")
    with pytest.raises(InputError, match="name a new file"):
        begun(target, "elsewhere", "bright")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "mine.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    for name in ("mine", "text"):
        with pytest.raises(InputError, match="is no predictions of ours"):
            begun(tmp_path / f"{name}.parquet", str(roll), "bright")


def test_killed_at_any_moment_it_goes_on_and_no_row_is_twice_or_missing(roll: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.parquet"
    script = (
        "import sys, time; from pathlib import Path; from ssclass.serving import bulk; import tests.test_bulk as t\n"
        "bulk.TOGETHER, bulk.ROWS = 2, 4\n"
        "class Slow(t.Bright):\n    def predict(self, images): time.sleep(0.2); return super().predict(images)\n"
        "t.MODEL = Slow('bright', t.CLASSES, 24, None)\n"
        "t.run(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    environment = clean_environment()
    for parts in (1, 3):  # it gets on in between
        process = subprocess.Popen([sys.executable, "-c", script, str(roll), str(target)], env=environment)
        try:
            eventually(
                "parts are there", lambda parts=parts: len(list(parts_of(target).glob("0*.parquet"))) >= parts, 90
            )
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not target.exists()
    asked: list[str] = []

    def noted() -> Iterator[Unlabelled]:
        for photo in photos_at(str(roll), None, LIMITS.max_bytes):
            yield Unlabelled(photo.name, photo.key, lambda photo=photo: asked.append(photo.name) or photo.read())

    (roll / "late.jpg").write_bytes((roll / "copy.jpg").read_bytes() + b"\0")
    assert run(roll, target, noted()) == Summary(16, 2)
    check(target, roll)
    assert len(asked) <= 8, "what was answered is not asked again"
    assert "late.jpg" in asked, "what came meanwhile is"


@pytest.mark.parametrize("step", ["answers", "part", "joined", "cleared"])
def test_stopped_at_a_step_it_goes_on(roll: Path, tmp_path: Path, monkeypatch: Any, step: str) -> None:
    target = tmp_path / "p.parquet"
    monkeypatch.setattr(bulk, "ROWS", 5)
    monkeypatch.setattr(bulk, "TOGETHER", 2)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "answers":
            photos = photos_at(str(roll), None, LIMITS.max_bytes)
            many = [next(photos) for _ in range(7)]
            many.append(Unlabelled("x", "x", stop))
            with pytest.raises(KeyboardInterrupt):
                run(roll, target, iter(many))
        else:
            owner, name = {"part": (pq, "write_table"), "joined": (bulk, "whole"), "cleared": (shutil, "rmtree")}[step]
            if step == "joined":
                patch.setattr(bulk, "_join", lambda *_: stop())
            else:
                patch.setattr(owner, name, stop)
            with pytest.raises(KeyboardInterrupt):
                run(roll, target)
    assert parts_of(target).is_dir()
    assert run(roll, target) == Summary(15, 2)
    check(target, roll)


def test_s3_that_goes_away_ends_it_and_it_goes_on_later(s3: Store, roll: Path, tmp_path: Path) -> None:
    where, target = f"s3://{s3.bucket}/roll", tmp_path / "p.parquet"
    for path in roll.rglob("*"):
        if path.is_file():
            s3.put(f"roll/{path.relative_to(roll).as_posix()}", path.read_bytes())

    def photos() -> Iterator[Unlabelled]:
        return photos_at(where, s3.settings, LIMITS.max_bytes)

    def away() -> bytes:
        raise StoreError("S3 is away; start it")

    first = list(photos())
    with pytest.raises(StoreError):
        run(where, target, iter([*first[:5], Unlabelled("x", "x", away)]))
    assert run(where, target, photos()) == Summary(15, 2)
    check(target, roll)


def test_rows_of_parquet_files_are_answered_in_order(roll: Path, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in sorted(roll.rglob("*.jpg")) if path.stat().st_size]
    table = pa.table({"image": [{"bytes": data, "path": "same.jpg"} for data in pictures] + [None], "label": [0] * 14})
    pq.write_table(table, tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["photo"] for row in rows] == [str(number) for number in range(14)]
    assert [row["sha256"] for row in rows[:13]] == [hashlib.sha256(data).hexdigest() for data in pictures]
    assert rows[13]["error"].startswith("missing")

    made = [Row(f"{n:064x}", "sushi", "train", f"{n:064x}", "0" * 16, b"", "same.jpg", 1, 1) for n in range(13)]
    receipt = Receipt("b", "manifest.json", "etag", 1, 13, 0)
    write_shard(tmp_path / "shard.parquet", zip(made, pictures, strict=True), receipt)
    run(tmp_path / "shard.parquet", tmp_path / "of-shard.parquet")
    rows = pq.read_table(tmp_path / "of-shard.parquet").to_pylist()
    assert [row["photo"] for row in rows] == ["same.jpg"] * 13, "several of one name are several rows"

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("x")
    for name, said in (("other", "no column of photos"), ("text", "not readable as Parquet")):
        with pytest.raises(InputError, match=said):
            list(photos_at(str(tmp_path / f"{name}.parquet"), None, 100))


def test_two_processes_do_not_write_one_file(roll: Path, tmp_path: Path) -> None:
    def other() -> bytes:
        with pytest.raises(InputError, match="another process writes it now"):
            run(roll, tmp_path / "p.parquet")
        return b"x"

    assert run(roll, tmp_path / "p.parquet", iter([Unlabelled("x", "x", other)])) == Summary(1, 1)


def test_memory_does_not_grow_with_the_photos(roll: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """No more than two lots of photos are open, however many there are."""
    monkeypatch.setattr(bulk, "TOGETHER", 4)
    data, state = (roll / "copy.jpg").read_bytes(), {"open": 0, "most": 0}

    class Counting(Bright):
        def predict(self, images: np.ndarray) -> np.ndarray:
            state["open"] -= len(images)
            return super().predict(images)

    def read() -> bytes:
        state["open"] += 1
        state["most"] = max(state["most"], state["open"])
        return data

    many = (Unlabelled(str(n), str(n), read) for n in range(100))
    monkeypatch.setitem(globals(), "MODEL", Counting("bright", CLASSES, 24, None))
    assert run("many", tmp_path / "p.parquet", many) == Summary(100, 0)
    assert state["most"] <= 12


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small real network."""
    from ssclass.model.backbones import import_keras

    keras = import_keras()
    images = keras.Input((None, None, 3), dtype="uint8")
    photo = keras.layers.Resizing(24, 24, antialias=True)(images)
    mean = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(photo))
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("model")
    keras.Model(images, keras.layers.Dense(2, activation="softmax")(mean)).save(folder / "model.keras")
    (folder / "model.json").write_text(json.dumps({"classes": CLASSES, "size": 24}))
    return folder


def test_the_command(network: Path, roll: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.parquet"
    given = ["predict", "--model", str(network), "--from", str(roll), "--to", str(target)]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output
    assert f"{target}: 15 photos, 2 of them cannot be read" in done.output
    rows = {row["photo"]: row for row in pq.read_table(target).to_pylist()}
    one = sorted((roll / "sushi").iterdir())[0]
    alone = CliRunner().invoke(cli, ["predict", "--model", str(network), "--json", str(one)])
    (said,) = json.loads(alone.output)
    assert rows[f"sushi/{one.name}"]["label"] == said["label"]
    assert rows[f"sushi/{one.name}"]["probabilities"] == pytest.approx(said["probabilities"], abs=1e-5)
    again = CliRunner().invoke(cli, [*given, "--json"])
    assert json.loads(again.output) == {"file": str(target), "photos": 15, "unreadable": 2}
    for wrong in (["predict"], given[:-2], [*given, str(one)]):
        assert CliRunner().invoke(cli, wrong).exit_code == 2


def test_a_parquet_file_of_odd_columns_is_answered_or_told(roll: Path, tmp_path: Path) -> None:
    """Columns that are there twice, bytes inside of bytes, names that are times: each was a traceback."""
    data = (roll / "copy.jpg").read_bytes()
    plain, source = pa.array([data], pa.binary()), tmp_path / "odd.parquet"

    def asked(columns: dict[str, pa.Array] | list[tuple[str, pa.Array]]) -> dict[str, Any]:
        pairs = list(columns.items()) if isinstance(columns, dict) else columns
        pq.write_table(pa.table([array for _, array in pairs], [name for name, _ in pairs]), source)
        (tmp_path / "answers.parquet").unlink(missing_ok=True)
        assert run(source, tmp_path / "answers.parquet").photos == 1
        return dict(pq.read_table(tmp_path / "answers.parquet").to_pylist()[0])

    late = pa.array([2**60], pa.timestamp("ms"))  # of no year that Python has
    assert asked({"photo": plain, "name": late})["photo"] == "0"
    assert asked({"photo": plain, "name": pa.array(["a.jpg"]).dictionary_encode()})["photo"] == "a.jpg"
    assert asked({"photo": plain, "name": pa.array([{"a": 1}]), "key": pa.array([7])})["photo"] == "7"
    assert asked([("photo", plain), ("name", pa.array(["a"])), ("name", pa.array(["b"]))])["label"] in CLASSES
    nested = pa.array([{"bytes": {"bytes": data}}], pa.struct([("bytes", pa.struct([("bytes", pa.binary())]))]))
    for wrong in ({"image": nested}, [("photo", plain), ("photo", plain)]):
        with pytest.raises(InputError, match="no column of photos"):
            asked(wrong)
