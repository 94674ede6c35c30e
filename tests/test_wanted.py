"""What to label next: the order, where photos come from, and how they come back as a batch; and what `serve` keeps.

Real git, DVC, S3 and MLflow; the champion is a fake head (tests/support/fake_head.py), but for the ranking itself.
"""

from __future__ import annotations

import csv
import hashlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ssclass.cli import cli
from ssclass.data.folders import walk
from ssclass.data.images import Refused
from ssclass.errors import InputError, StoreError
from ssclass.serving import collected as stored
from ssclass.serving import collecting
from ssclass.serving.collected import COLLECT, collected, keep, read, remove_old
from ssclass.serving.collecting import Collector
from ssclass.serving.ranking import DIMENSIONS, doubt, embedded, novelty, ranked
from ssclass.serving.unlabelled import Unlabelled, photos_at
from ssclass.serving.wanted import Choice, Wanted, wanted, write
from ssclass.store import Store
from tests.support.fake_head import patch_model, photo, retrain_flow
from tests.support.pipelines import CLASSES
from tests.support.running import eventually
from tests.support.shops import Shop, empty_mlflow, pictures

# -- the order -----------------------------------------------------------------------------------------------


def directions(count: int, seed: int = 0) -> np.ndarray:
    return embedded(np.random.default_rng(seed).standard_normal((count, 64)))


def test_doubt_is_the_lack_of_a_margin() -> None:
    found = doubt(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.2, 0.7, 0.1]]))
    assert found.tolist() == pytest.approx([1.0, 0.0, 0.5])


def test_of_photos_equally_new_the_doubtful_ones_come_first() -> None:
    vectors = np.eye(6, dtype=np.float32)
    unsure = np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.2])
    assert ranked(unsure, vectors, np.zeros((0, 6), np.float32), 6) == [1, 4, 2, 3, 5, 0]


def test_of_ten_pictures_of_one_dish_one_comes_early() -> None:
    others = directions(20)
    dish = embedded(directions(1, 1) + 0.01 * np.random.default_rng(2).standard_normal((10, 64)))
    vectors = np.concatenate([dish, others])
    unsure = np.concatenate([np.full(10, 0.95), np.full(20, 0.6)])
    order = ranked(unsure, vectors, np.zeros((0, 64), np.float32), 21)
    assert sum(row < 10 for row in order) == 1
    assert order[0] < 10, "the most doubtful photo of all is one of them"


def test_what_the_data_set_has_the_like_of_comes_late() -> None:
    vectors = directions(10)
    known = embedded(vectors[:5] + 0.01 * directions(5, 3))
    assert novelty(vectors, known)[:5].max() < 0.01 < novelty(vectors, known)[5:].min()
    assert sorted(ranked(np.full(10, 0.5), vectors, known, 5)) == [5, 6, 7, 8, 9]


def test_each_photo_is_ranked_once_and_a_shorter_list_is_the_beginning_of_a_longer_one() -> None:
    chance = np.random.default_rng(0)
    vectors, unsure = directions(50), chance.random(50)
    vectors[10:20] = vectors[0]  # copies, of no worth once one is chosen
    unsure[30:35] = 0
    order = ranked(unsure, vectors, directions(3, 9), 1000)
    assert sorted(order) == list(range(50))
    assert ranked(unsure, vectors, directions(3, 9), 7) == order[:7]
    assert ranked(unsure[:0], vectors[:0], directions(3, 9), 5) == []


def test_projected_vectors_keep_their_distances() -> None:
    wide = np.abs(np.random.default_rng(0).standard_normal((40, 2048)))
    narrow = embedded(wide)
    assert narrow.shape == (40, DIMENSIONS)
    length = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    assert np.abs(length @ length.T - narrow @ narrow.T).max() < 0.25
    assert np.isfinite(embedded(np.zeros((2, 9)))).all(), "photos without colours"


# -- from a workspace -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("wanted")
    empty_mlflow(folder / "empty.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch_model(patch.setattr)
        drawn = pictures(folder / "pictures", 60)
        shop = Shop.make(folder / "shop", s3_endpoint, drawn, retrain_flow(), folder / "empty.db")
        with pytest.raises(InputError, match="no champion yet"):
            wanted(shop.workspace, str(folder / "pictures"), 5)
        shop.first()
        assert shop.retrain().decision == "PROMOTED"
        yield shop


def camera_roll(shop: Shop, folder: Path) -> dict[str, bytes]:
    """New photos, a copy of one, one of the data set, and a text; by name."""
    files = {f"roll/{number}.jpg": photo(data, number % 2, 0.5) for number, data in enumerate(shop.pictures[40:46])}
    files["copy.jpg"] = files["roll/0.jpg"]
    (batch,) = shop.sent
    key = next(each.key for each in shop.workspace.store.list(f"incoming/{batch}/") if each.key.endswith(".jpg"))
    files["known.jpg"] = shop.workspace.store.get(key) or b""
    files["notes.txt"] = b"not a photo"
    files[".hidden.jpg"] = files["roll/1.jpg"]
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def test_a_folder_and_a_prefix_in_s3_are_ranked_alike(shop: Shop, tmp_path: Path) -> None:
    files = camera_roll(shop, tmp_path / "photos")
    found = wanted(shop.workspace, str(tmp_path / "photos"), 100)
    assert (found.looked_at, found.known, found.copies) == (9, 1, 1)
    assert [(name, why.reason) for name, why in found.refused] == [("notes.txt", "not an image")]
    fresh = {hashlib.sha256(files[f"roll/{number}.jpg"]).hexdigest() for number in range(6)}
    assert {each.sha256 for each in found.photos} == fresh
    assert {each.label for each in found.photos} <= set(CLASSES)
    assert all(each.doubt == pytest.approx(0.2) and each.novelty > 0 for each in found.photos)

    for name, data in files.items():
        shop.workspace.store.put(f"elsewhere/{name}", data)
    beside = wanted(shop.workspace, f"s3://{shop.workspace.settings.bucket}/elsewhere", 100)
    assert [each.sha256 for each in beside.photos] == [each.sha256 for each in found.photos]
    three = wanted(shop.workspace, f"s3://{shop.workspace.settings.bucket}/elsewhere/", 3)
    assert [each.sha256 for each in three.photos] == [each.sha256 for each in found.photos][:3]


def test_what_is_chosen_comes_back_as_a_batch_once_it_is_labelled(shop: Shop, tmp_path: Path) -> None:
    files = camera_roll(shop, tmp_path / "photos")
    for number in range(6):
        keep(shop.workspace.store, files[f"roll/{number}.jpg"], hashlib.sha256(files[f"roll/{number}.jpg"]).hexdigest())
    at = ("--workspace", str(shop.workspace.root))
    source = f"s3://{shop.workspace.settings.bucket}/{COLLECT}"
    told = CliRunner().invoke(cli, ["wanted", source, "--count", "4", "--to", str(tmp_path / "label"), *at])
    assert told.exit_code == 0, told.output
    listed = tmp_path / "label" / "labels.csv"
    assert f"ssclass submit {listed}" in told.output
    rows = list(csv.DictReader(listed.open()))
    assert len(rows) == 4
    assert {row["label"] for row in rows} == {""}
    assert all((tmp_path / "label" / row["path"]).read_bytes() in files.values() for row in rows)
    assert all(row["path"].endswith(".jpg") for row in rows), "a person's programs open it, whatever its key in S3"

    for row in rows:
        row["label"] = "sushi"
    with listed.open("w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = CliRunner().invoke(cli, ["submit", str(listed), "--id", "labelled", *at])
    assert done.exit_code == 0, done.output
    shop.retrain()
    known = shop.labels()
    assert [known[hashlib.sha256((tmp_path / "label" / row["path"]).read_bytes()).hexdigest()] for row in rows] == [
        "sushi"
    ] * 4
    again = wanted(shop.workspace, source, 10)
    assert (again.known, len(again.photos)) == (4, 2), "what was labelled is not asked for again"
    beside = CliRunner().invoke(cli, ["wanted", source, "--to", str(tmp_path / "label"), *at])
    assert beside.exit_code != 0, "a folder that is there is not written into"


@pytest.mark.parametrize("where", ["nowhere", "s3://BUCKET/nothing", "empty"])
def test_where_there_are_no_photos_it_says_so(shop: Shop, tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    named = where.replace("BUCKET", shop.workspace.settings.bucket) if "://" in where else str(tmp_path / where)
    with pytest.raises(InputError, match=r"no (such folder|photos there); name"):
        wanted(shop.workspace, named, 5)


def test_no_name_of_a_photo_is_a_formula_in_the_list(tmp_path: Path) -> None:
    """The list is for a person to fill in, most likely in a spreadsheet; names are whoever's who sent the photos."""
    names = ("=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "plain.jpg")
    photos = [Choice(Unlabelled(name, name, name.encode), sha256(name), "sushi", 0.5, 1, 1) for name in names]
    write(Wanted(photos), tmp_path / "label")
    rows = list(csv.DictReader((tmp_path / "label" / "labels.csv").open(newline="")))
    assert [row["source"] for row in rows] == [*(f"'{name}" for name in names[:-1]), "plain.jpg"]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_that_goes_meanwhile_or_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"x")
    found = list(photos_at(str(tmp_path), None, 100))
    assert [each.name for each in found] == ["a", "b", "c"] == [path.name for path in walk(tmp_path)]
    (tmp_path / "b").unlink()
    assert found[0].read() == b"x"
    with pytest.raises(Refused, match="No such file"):
        found[1].read()


# -- what serve keeps ------------------------------------------------------------------------------------------


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Counts(dict[str, int]):
    def __call__(self, outcome: str) -> None:
        self[outcome] = self.get(outcome, 0) + 1


Made = Callable[..., tuple[Collector, Counts]]


@pytest.fixture
def make(s3: Store) -> Iterator[Made]:
    made: list[Collector] = []

    def start(store: Store = s3, photos: int = 5, size: int = 10_000, days: float = 30) -> tuple[Collector, Counts]:
        counts = Counts()
        made.append(Collector(store, photos, size, days, counts))
        return made[-1], counts

    yield start
    for each in made:
        each.end()
        assert not each._thread.is_alive()


def offer(collector: Collector, counts: Counts, *photos: bytes) -> None:
    """Offer photos one after the other, each once the one before it is done with."""
    for data in photos:
        before = sum(counts.values())
        collector.offer(data)
        eventually("it is done with", lambda before=before: sum(counts.values()) > before, 60)


def test_it_keeps_so_many_photos_and_bytes_and_the_newest_of_them(s3: Store, make: Made) -> None:
    collector, counts = make()
    photos = [bytes([number]) * 100 for number in range(8)]
    offer(collector, counts, *photos, photos[7])
    assert counts == {"kept": 8, "known": 1}
    there = list(collected(s3))
    assert len(there) == 5
    assert all(read(s3, each) is not None and each.day == stored.today() for each in there)
    offer(collector, counts, b"L" * 9_900, b"X" * 10_001)
    sizes = [each.size for each in collected(s3)]
    assert 9_900 in sizes
    assert sum(sizes) <= 10_000
    assert counts["dropped"] == 1, "what is larger than all that may be kept"


def test_another_process_goes_on_within_the_same_bounds(s3: Store, make: Made) -> None:
    first, counts = make()
    offer(first, counts, *(bytes([number]) * 10 for number in range(5)))
    second, others = make()
    offer(second, others, bytes([4]) * 10, b"new")
    assert others == {"known": 1, "kept": 1}
    assert len(list(collected(s3))) == 5


def test_what_is_old_goes_and_what_is_not_ours_stays(s3: Store, make: Made) -> None:
    old = (datetime.now(UTC) - timedelta(days=31)).date().isoformat()
    recent = (datetime.now(UTC) - timedelta(days=29)).date().isoformat()
    for key in (f"{old}/{'a' * 64}", f"{recent}/{'b' * 64}", "notes.txt", f"2026-13-45/{'c' * 64}"):
        s3.put(f"{COLLECT}/{key}", b"photo")
    collector, counts = make()
    offer(collector, counts, b"now")
    assert {each.sha256 for each in collected(s3)} == {"b" * 64, sha(b"now")}
    assert s3.get(f"{COLLECT}/notes.txt") is not None
    assert [read(s3, each) for each in collected(s3)] == [None, b"now"], "bytes that are others than the key says"
    assert remove_old(s3, 28) == 1


def test_s3_that_hangs_or_fails_holds_up_nobody(s3: Store, make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on, state = threading.Event(), {"away": True}

    class Faulty(Store):
        def put(self, key: str, body: Any) -> None:
            assert goes_on.wait(60)
            if state["away"]:
                raise StoreError("S3 is away; start it")
            super().put(key, body)

    collector, counts = make(Faulty(s3.settings))
    for number in range(100):  # returns at once, or the test would not end
        collector.offer(bytes([number]) * 10)
    assert counts["dropped"] >= 100 - collecting.WAITING - 1
    collector.offer(bytes(collecting.WAITING_BYTES + 1))
    goes_on.set()
    eventually("all are done with", lambda: sum(counts.values()) == 101, 60)
    assert counts["failed"] == 1
    offer(collector, counts, b"soon after")
    assert counts["failed"] == 1, "it is not asked again at once"
    state["away"] = False
    monkeypatch.setattr(collecting, "PAUSE", 0)
    offer(collector, counts, b"later")
    assert counts["kept"] == 1
    assert [each.sha256 for each in collected(s3)] == [sha(b"later")]
