"""From a batch in S3 to a shard: every photo is in, a duplicate, or refused with its reason."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from botocore.config import Config
from PIL import Image, ImageOps

from ssclass.data.batches import Batch, list_batches, read_batch
from ssclass.data.build import build_shard, implausible, quarantine
from ssclass.data.dataset import Dataset
from ssclass.data.shards import Receipt, iter_photos, read_shard
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw, junk
from ssclass.errors import ObjectError, StoreError
from ssclass.params import Params
from ssclass.store import Store, session
from tests.support.faulty import answering
from tests.support.pipelines import real_photos

CLASSES = ("sandwich", "sushi")


class Sender:
    """Sends batches and takes them in, one after the other."""

    def __init__(self, store: Store, params: Params, folder: Path) -> None:
        self.store, self.params, self.folder = store, params, folder
        self.shards: list[Path] = []

    @property
    def dataset(self) -> Dataset:
        return Dataset.of(read_shard(path) for path in self.shards)

    def read(self, batch_id: str) -> Batch:
        (ref,) = [ref for ref in list_batches(self.store) if ref.id == batch_id]
        return read_batch(self.store, ref, self.params.dataset.classes)

    def ingest(self, batch_id: str) -> Receipt:
        scratch = Path(mkdtemp(dir=self.folder))
        out = self.folder / f"{batch_id}-{len(self.shards)}.parquet"
        receipt = build_shard(self.store, self.read(batch_id), self.params, self.dataset, scratch, out)
        self.shards.append(out)
        assert read_shard(out).receipt == receipt
        return receipt

    def send(self, batch_id: str, photos: list[tuple[str, str, bytes]], **more: object) -> Receipt:
        """(key, label, bytes) each, by a manifest; extra photo fields by `fields={key: {...}}`."""
        fields: dict[str, dict[str, object]] = more.pop("fields", {})  # type: ignore[assignment]
        for key, _, data in photos:
            self.store.put(f"incoming/{batch_id}/{key}", data)
        listed = [{"key": key, "label": label, **fields.get(key, {})} for key, label, _ in photos]
        manifest = {"schema": 1, "photos": listed, **more}
        self.store.put(f"incoming/{batch_id}/manifest.json", json.dumps(manifest).encode())
        return self.ingest(batch_id)


@pytest.fixture
def sender(s3: Store, params: Params, tmp_path: Path) -> Sender:
    return Sender(s3, params, tmp_path)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("jpegs")
    draw(folder, CLASSES, per_class=6, seed=5)
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]


def reasons(receipt: Receipt) -> dict[str, str]:
    return {item.key: item.reason for item in receipt.refused}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_folder_comes_in_whole_and_byte_for_byte(sender: Sender, photos: Path, tmp_path: Path) -> None:
    chosen = [path for name in CLASSES for path in sorted((photos / name).iterdir())[:30]]
    for path in chosen:
        target = tmp_path / "in" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    submit(sender.store, tmp_path / "in", "one", CLASSES)
    receipt = sender.ingest("one")
    assert (receipt.accepted, receipt.duplicates, receipt.refused, receipt.sequence) == (60, 0, (), 1)
    assert {name: sum(sides.values()) for name, sides in receipt.counts.items()} == {"sandwich": 30, "sushi": 30}
    stored = dict(iter_photos(sender.shards[0]))
    assert stored == {sha(path.read_bytes()): path.read_bytes() for path in chosen}
    assert {row.label for row in sender.dataset.rows if row.key.startswith("sushi/")} == {"sushi"}
    assert json.loads(json.dumps(receipt.to_json())) == receipt.to_json()
    assert Receipt.from_json(receipt.to_json()) == receipt


def test_the_same_batch_gives_the_same_shard_whoever_ingests_it(sender: Sender, drawings: Path) -> None:
    submit(sender.store, drawings, "one", CLASSES)
    sender.ingest("one")
    first = sender.shards.pop()
    sender.folder = sender.folder / "elsewhere"
    sender.folder.mkdir()
    sender.ingest("one")
    assert first.read_bytes() == sender.shards[0].read_bytes()


def test_a_batch_of_what_is_there_already_gives_an_empty_shard(sender: Sender, drawings: Path) -> None:
    submit(sender.store, drawings, "one", CLASSES)
    submit(sender.store, drawings, "two", CLASSES)
    sender.ingest("one")
    before = sender.dataset.digest
    again = sender.ingest("two")
    assert (again.accepted, again.duplicates, again.refused, again.changes) == (0, 24, (), False)
    assert sender.dataset.digest == before


def test_success_markers_work_end_to_end(sender: Sender, drawings: Path) -> None:
    for path in drawings.rglob("*.jpg"):
        sender.store.put(f"incoming/one/{path.parent.name}/{path.name}", path.read_bytes())
    sender.store.put("incoming/one/loose.jpg", b"1")
    sender.store.put("incoming/one/_SUCCESS", b"")
    receipt = sender.ingest("one")
    assert (receipt.accepted, receipt.marker) == (24, "_SUCCESS")
    assert reasons(receipt) == {"loose.jpg": "unknown label"}


def test_junk_is_refused_and_quarantined_and_the_rest_is_in(sender: Sender, drawings: Path, tmp_path: Path) -> None:
    for path in drawings.rglob("*.jpg"):
        (tmp_path / "in" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path.parent.name / path.name).write_bytes(path.read_bytes())
    names = junk(tmp_path / "in" / "sushi")
    submit(sender.store, tmp_path / "in", "one", CLASSES)
    receipt = sender.ingest("one")
    assert receipt.accepted == 24
    assert set(reasons(receipt)) == {f"sushi/{name}" for name in names}
    said = {item.key.rsplit("_", 1)[1]: item.reason for item in receipt.refused}
    assert said == {
        "truncated.jpg": "truncated",
        "notes.jpg": "not an image",
        "page.jpg": "not an image",
        "empty.jpg": "empty",
        "bomb.png": "too many pixels",
        "thumbnail.jpg": "too small",
        "noise.jpg": "corrupt",
    }
    for _ in range(2):
        assert quarantine(sender.store, sender.read("one"), receipt) == len(names)
    kept = {found.key for found in sender.store.list("quarantine/")}
    assert kept == {"quarantine/one/reasons.json"} | {f"quarantine/one/sushi/{name}" for name in names}
    told = json.loads(sender.store.get("quarantine/one/reasons.json") or b"")
    assert [item["reason"] for item in told] == [item.reason for item in receipt.refused]


def test_what_a_manifest_says_is_checked(sender: Sender, jpegs: list[bytes]) -> None:
    a, b, c, d, e = jpegs[:5]
    sender.params = sender.params.model_copy(
        update={"ingest": sender.params.ingest.model_copy(update={"max_bytes": 100_000})}
    )
    receipt = sender.send(
        "one",
        [
            ("good é.jpg", "sushi", a),
            ("size.jpg", "sushi", b),
            ("sha.jpg", "sushi", c),
            ("label.jpg", "pizza", d),
            ("big.jpg", "sushi", e + bytes(100_000)),
        ],
        fields={
            "good é.jpg": {"sha256": sha(a), "size": len(a), "split": "holdout"},
            "size.jpg": {"size": 1},
            "sha.jpg": {"sha256": "0" * 64},
        },
    )
    assert reasons(receipt) == {
        "size.jpg": "size mismatch",
        "sha.jpg": "sha256 mismatch",
        "label.jpg": "unknown label",
        "big.jpg": "too large",
    }
    assert [row.split for row in sender.dataset.rows] == ["holdout"]
    assert all(item.detail for item in receipt.refused)


def test_a_photo_that_the_manifest_names_but_nobody_sent_is_missing(sender: Sender, jpegs: list[bytes]) -> None:
    listed = [{"key": "a.jpg", "label": "sushi"}, {"key": "gone.jpg", "label": "sushi"}]
    sender.store.put("incoming/one/a.jpg", jpegs[0])
    sender.store.put("incoming/one/manifest.json", json.dumps({"schema": 1, "photos": listed}).encode())
    receipt = sender.ingest("one")
    assert reasons(receipt) == {"gone.jpg": "missing"}
    assert quarantine(sender.store, sender.read("one"), receipt) == 0
    assert sender.store.get("quarantine/one/reasons.json")


def test_the_same_photo_twice_and_with_two_labels(sender: Sender, jpegs: list[bytes]) -> None:
    a, b, c = jpegs[:3]
    receipt = sender.send(
        "one",
        [("a1.jpg", "sushi", a), ("a2.jpg", "sushi", a), ("b1.jpg", "sushi", b), ("b2.jpg", "sandwich", b)],
    )
    assert (receipt.accepted, receipt.duplicates) == (1, 1)
    assert reasons(receipt) == {"b1.jpg": "label conflict", "b2.jpg": "label conflict"}
    later = sender.send("two", [("a.jpg", "sandwich", a), ("same.jpg", "sushi", a), ("c.jpg", "sushi", c)])
    assert (later.accepted, later.duplicates) == (1, 1)
    assert reasons(later) == {"a.jpg": "label conflict"}
    assert "sushi" in later.refused[0].detail


def test_corrections_change_the_data_set_and_the_last_one_wins(sender: Sender, jpegs: list[bytes]) -> None:
    a, b, c = jpegs[:3]
    sender.send("one", [("a.jpg", "sushi", a), ("b.jpg", "sushi", b), ("c.jpg", "sandwich", c)])
    receipt = sender.send(
        "two",
        [],
        relabel=[
            {"sha256": sha(a), "label": "sandwich"},
            {"sha256": sha(c), "label": "pizza"},
            {"sha256": "0" * 64, "label": "sushi"},
        ],
        remove=[{"sha256": sha(b)}, {"sha256": "1" * 64}],
    )
    assert receipt.relabel == {sha(a): "sandwich"}
    assert receipt.remove == (sha(b),)
    assert receipt.changes
    assert reasons(receipt) == {"0" * 64: "unknown photo", "1" * 64: "unknown photo", sha(c): "unknown label"}
    assert {row.key: row.label for row in sender.dataset.rows} == {"a.jpg": "sandwich", "c.jpg": "sandwich"}
    assert quarantine(sender.store, sender.read("two"), receipt) == 0
    again = sender.send("three", [("a.jpg", "sandwich", a), ("b.jpg", "sandwich", b)])
    assert (again.accepted, again.duplicates, again.refused) == (1, 1, ())
    sender.send("four", [], relabel=[{"sha256": sha(a), "label": "sushi"}])
    labels = {row.sha256: row.label for row in sender.dataset.rows}
    assert (labels[sha(a)], labels[sha(b)]) == ("sushi", "sandwich")


def copies(data: bytes) -> dict[str, bytes]:
    """Near-copies as an app makes them."""
    with Image.open(io.BytesIO(data)) as photo:
        photo.load()
    width, height = photo.size
    made = {
        "small": photo.resize((width * 2 // 3, height * 2 // 3)),
        "cut": photo.crop((1, 1, width - 1, height - 1)),
        "webp": photo,
    }
    out = {}
    for name, picture in made.items():
        file = io.BytesIO()
        picture.save(file, "WEBP" if name == "webp" else "JPEG", quality=80)
        out[name] = file.getvalue()
    return out


def test_copies_follow_the_first_and_never_cross_the_split(sender: Sender, jpegs: list[bytes]) -> None:
    a, b = jpegs[:2]
    sender.send(
        "one",
        [("a.jpg", "sushi", a), ("b.jpg", "sushi", b)],
        fields={"a.jpg": {"split": "holdout"}, "b.jpg": {"split": "train"}},
    )
    near = copies(a)
    receipt = sender.send(
        "two",
        [("small.jpg", "sushi", near["small"]), ("cut.jpg", "sushi", near["cut"]), ("w.webp", "sushi", near["webp"])],
        fields={"cut.jpg": {"split": "train"}},
    )
    assert reasons(receipt) == {"cut.jpg": "copy across split"}
    assert {(row.group, row.split) for row in sender.dataset.rows if row.key != "b.jpg"} == {(sha(a), "holdout")}


@pytest.mark.skipif(not real_photos(), reason="drawings have too few colours for a palette")
def test_a_mirrored_real_photo_is_a_copy(sender: Sender, photos: Path) -> None:
    path = sorted((photos / "sushi").iterdir())[3]
    data = path.read_bytes()
    with Image.open(path) as photo:
        file = io.BytesIO()
        ImageOps.mirror(photo.convert("RGB")).save(file, "JPEG")
    sender.send("one", [("a.jpg", "sushi", data), ("m.jpg", "sushi", file.getvalue())])
    assert len({row.group for row in sender.dataset.rows}) == 1


def test_what_looks_odd_about_a_batch_is_said(sender: Sender, jpegs: list[bytes]) -> None:
    a, b = jpegs[:2]
    with Image.open(io.BytesIO(a)) as photo:
        photo.load()
    flood = []
    for quality in range(60, 70):
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=quality)
        flood.append((f"{quality}.jpg", "sushi", file.getvalue()))
    receipt = sender.send("one", [*flood, ("b.jpg", "sushi", b)])
    assert receipt.accepted == 11
    assert [warned.code for warned in receipt.warnings] == ["class missing", "flood"]
    assert "10 of 11" in receipt.warnings[1].detail
    near = copies(b)
    two = sender.send("two", [("s.jpg", "sandwich", near["small"]), ("w.webp", "sushi", near["webp"])])
    assert Counter(warned.code for warned in two.warnings) == {"copies differ in label": 1}


def test_a_store_that_fails_is_no_reason_to_refuse_photos(sender: Sender, drawings: Path) -> None:
    submit(sender.store, drawings, "one", CLASSES)
    batch = sender.read("one")
    sender.store.bucket = "gone"
    with pytest.raises(StoreError):
        build_shard(sender.store, batch, sender.params, Dataset(), sender.folder, sender.folder / "x.parquet")
    assert not (sender.folder / "x.parquet").exists()


def test_what_is_not_there_does_not_stop_the_quarantine(sender: Sender, jpegs: list[bytes]) -> None:
    listed = [
        {"key": "a.jpg", "label": "sushi"},
        {"key": "gone.jpg", "label": "sushi"},
        {"key": "gone too.jpg", "label": "pizza"},
        {"key": "here.jpg", "label": "pizza"},
        {"key": "é" * 450, "label": "pizza"},
        {"key": "x" * 900, "label": "pizza"},
    ]
    for name, data in (("a.jpg", jpegs[0]), ("here.jpg", jpegs[1])):
        sender.store.put(f"incoming/one/{name}", data)
    sender.store.put("incoming/one/manifest.json", json.dumps({"schema": 1, "photos": listed}).encode())
    receipt = sender.ingest("one")
    assert receipt.accepted == 1
    assert set(reasons(receipt).values()) == {"missing", "unknown label"}
    assert quarantine(sender.store, sender.read("one"), receipt) == 1
    kept = {found.key for found in sender.store.list("quarantine/")}
    assert kept == {"quarantine/one/here.jpg", "quarantine/one/reasons.json"}
    assert len(json.loads(sender.store.get("quarantine/one/reasons.json") or b"")) == 5


def test_an_archived_object_refuses_its_photo_and_the_others_go_on(sender: Sender, jpegs: list[bytes]) -> None:
    for n, data in enumerate(jpegs[:3]):
        archived = {"StorageClass": "GLACIER"} if n else {}
        sender.store.client.put_object(Bucket=sender.store.bucket, Key=f"incoming/one/{n}.jpg", Body=data, **archived)
    listed = [{"key": f"{n}.jpg", "label": "pizza" if n == 2 else "sushi"} for n in range(3)]
    sender.store.put("incoming/one/manifest.json", json.dumps({"schema": 1, "photos": listed}).encode())
    receipt = sender.ingest("one")
    assert receipt.accepted == 1
    assert reasons(receipt) == {"1.jpg": "not readable", "2.jpg": "unknown label"}
    assert "archive class" in receipt.refused[0].detail
    assert quarantine(sender.store, sender.read("one"), receipt) == 0
    only = [{"key": "1.jpg", "label": "sushi"}]
    sender.store.put("incoming/two/manifest.json", json.dumps({"schema": 1, "photos": only}).encode())
    sender.store.client.put_object(
        Bucket=sender.store.bucket, Key="incoming/two/1.jpg", Body=jpegs[1], StorageClass="GLACIER"
    )
    assert reasons(sender.ingest("two")) == {"1.jpg": "not readable"}, "alone, too: it is so for itself"


@pytest.fixture
def faulty(sender: Sender) -> Iterator[dict[str, tuple[int, str]]]:
    """The sender's store behind a server that answers what this says (end of key: status and code) instead."""
    rules: dict[str, tuple[int, str]] = {}
    with answering(str(sender.store.settings.s3_endpoint), rules) as address:
        sender.store = Store(sender.store.settings.model_copy(update={"s3_endpoint": address}))
        once = Config(retries={"mode": "standard", "total_max_attempts": 1}, s3={"addressing_style": "path"})
        sender.store.__dict__["client"] = session(sender.store.settings).client("s3", endpoint_url=address, config=once)
        yield rules


def test_a_forbidden_object_refuses_its_photo_and_the_others_go_on(
    sender: Sender, faulty: dict[str, tuple[int, str]], jpegs: list[bytes]
) -> None:
    faulty["b.jpg"] = (403, "AccessDenied")
    faulty["c.jpg"] = (400, "KMS.DisabledException")
    photos = [(f"{name}.jpg", "sushi", data) for name, data in zip("abc", jpegs, strict=False)]
    receipt = sender.send("one", photos)
    assert receipt.accepted == 1
    assert reasons(receipt) == {"b.jpg": "not readable", "c.jpg": "not readable"}
    assert quarantine(sender.store, sender.read("one"), receipt) == 0
    alone = sender.send("two", [("b.jpg", "sushi", jpegs[1])])
    assert reasons(alone) == {"b.jpg": "not readable"}, "the manifest beside it could be read"


@pytest.mark.parametrize(
    "answer", [(500, "InternalError"), (503, "SlowDown"), (403, "InvalidAccessKeyId"), (400, "ExpiredToken")]
)
def test_a_server_that_fails_fails_the_batch_which_can_be_tried_again(
    sender: Sender, faulty: dict[str, tuple[int, str]], jpegs: list[bytes], answer: tuple[int, str]
) -> None:
    faulty["b.jpg"] = answer
    photos = [("a.jpg", "sushi", jpegs[0]), ("b.jpg", "sushi", jpegs[1])]
    with pytest.raises(StoreError, match=answer[1]) as caught:
        sender.send("one", photos)
    assert not isinstance(caught.value, ObjectError)
    faulty.clear()
    assert sender.ingest("one").accepted == 2


def test_where_every_photo_is_forbidden_the_policy_is_wrong_and_nothing_is_refused(
    sender: Sender, faulty: dict[str, tuple[int, str]], jpegs: list[bytes]
) -> None:
    faulty[".jpg"] = (403, "AccessDenied")
    photos = [("a.jpg", "sushi", jpegs[0]), ("b.jpg", "sushi", jpegs[1]), ("c.jpg", "pizza", jpegs[2])]
    with pytest.raises(StoreError, match="AccessDenied"):
        sender.send("one", photos)
    faulty.clear()
    assert sender.ingest("one").accepted == 2


def test_where_quarantine_may_not_be_written_the_policy_is_wrong(
    sender: Sender, faulty: dict[str, tuple[int, str]], jpegs: list[bytes]
) -> None:
    receipt = sender.send("one", [("a.jpg", "sushi", jpegs[0]), ("b.jpg", "pizza", jpegs[1])])
    faulty["quarantine/one/b.jpg"] = (403, "AccessDenied")
    with pytest.raises(StoreError, match="AccessDenied"):
        quarantine(sender.store, sender.read("one"), receipt)


def test_crafted_photos_are_refused_and_the_others_go_on(sender: Sender, jpegs: list[bytes]) -> None:
    with Image.open(io.BytesIO(jpegs[0])) as photo:
        whole, scans, wide = io.BytesIO(), io.BytesIO(), io.BytesIO()
        photo.save(whole, "JPEG", quality=91)
        photo.convert("L").save(scans, "JPEG", progressive=True)
        photo.resize((4000, 3000)).save(wide, "AVIF", speed=10)
    empty = b"\xff\xda\0\x08\1\1\0\1\x3f\x10\0"
    size = (4000).to_bytes(4, "big") + (3000).to_bytes(4, "big")
    photos = [
        ("a.jpg", "sushi", whole.getvalue()[:-2]),
        ("b.jpg", "sushi", scans.getvalue()[:-2] + empty * 1000 + b"\xff\xd9"),
        ("c.avif", "sushi", wide.getvalue().replace(size, (64).to_bytes(4, "big") * 2)),
        ("d.ppm", "sushi", b"P3\n2000 2000 255\n" + b"1 2 3#\n" * 200_000),
        ("e.jpg", "sushi", jpegs[1]),
    ]
    receipt = sender.send("one", photos)
    assert receipt.accepted == 2
    assert reasons(receipt) == {"b.jpg": "corrupt", "c.avif": "corrupt", "d.ppm": "not an image"}
    (warned,) = [each for each in receipt.warnings if each.code == "end missing"]
    assert warned.detail == "files that lack their last bytes: 1; their pictures are whole"


def test_implausible_tells_flipped_batches_from_hard_ones() -> None:
    # Champion at 131 of 145 on its held-out photos; batches of 80.
    assert implausible(72, 80, 131, 145) > 0.3
    assert implausible(64, 80, 131, 145) > 1e-3  # 80 %: hard, not impossible
    assert implausible(48, 80, 131, 145) < 1e-3  # a third of the labels flipped
    assert implausible(8, 80, 131, 145) < 1e-12
    assert implausible(0, 0, 131, 145) == 1.0
    # The less is known of the champion, the more is plausible.
    assert implausible(60, 80, 9, 10) > implausible(60, 80, 900, 1000)
    tail = [implausible(right, 80, 131, 145) for right in range(81)]
    assert tail == sorted(tail)
    assert tail[-1] == pytest.approx(1)
