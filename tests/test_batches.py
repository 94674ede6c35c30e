"""The contract with whoever sends photos, on a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ssclass.data.batches import BatchRef, list_batches, read_batch
from ssclass.data.submit import submit
from ssclass.errors import BatchError
from ssclass.store import Store

CLASSES = ("sandwich", "sushi")
SHA = "a" * 64


def send(store: Store, batch_id: str, manifest: Any) -> BatchRef:
    body = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    store.put(f"incoming/{batch_id}/manifest.json", body)
    return next(ref for ref in list_batches(store) if ref.id == batch_id)


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_submit_then_read_gives_every_file_and_its_digest(s3: Store, tmp_path: Path) -> None:
    names = ["sushi/a.jpg", "sushi/ü ber+100%?#&.jpg", "sushi/2024/寿司.png", "sandwich/no extension", "pizza/p.jpg"]
    files = {name: name.encode() for name in names}
    hidden = {"sushi/.DS_Store": b"x", ".git/config": b"x", "README.md": b"x"}
    folder = tree(tmp_path / "photos", {**files, **hidden})
    seen: list[tuple[int, int]] = []
    assert submit(s3, folder, "monday_1", CLASSES, lambda done, total: seen.append((done, total))) == 5
    assert seen == [(n, 5) for n in range(1, 6)]
    (ref,) = list_batches(s3)
    assert (ref.id, ref.marker) == ("monday_1", "manifest.json")
    assert ref.time.endswith("+00:00")
    batch = read_batch(s3, ref, CLASSES)
    assert sorted(entry.key for entry in batch.entries) == sorted(names)
    for entry in batch.entries:
        assert entry.label == entry.key.split("/")[0]
        data = s3.get(f"incoming/monday_1/{entry.key}")
        assert data == files[entry.key]
        assert (entry.sha256, entry.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_file_names_that_s3_cannot_take_are_spelt_out(s3: Store, tmp_path: Path) -> None:
    tree(tmp_path, {"sushi/new\nline\x01.jpg": b"1"})
    (tmp_path / "sushi" / os.fsdecode(b"latin\xe9.jpg")).write_bytes(b"2")
    assert submit(s3, tmp_path, "odd", CLASSES) == 2
    batch = read_batch(s3, list_batches(s3)[0], CLASSES)
    assert {entry.key for entry in batch.entries} == {"sushi/new\\x0aline\\x01.jpg", "sushi/latin\\xe9.jpg"}
    assert {s3.get(f"incoming/odd/{entry.key}") for entry in batch.entries} == {b"1", b"2"}


def test_the_same_batch_again_changes_nothing_and_another_content_is_refused(s3: Store, tmp_path: Path) -> None:
    folder = tree(tmp_path, {"sushi/a.jpg": b"1", "sandwich/b.jpg": b"2"})
    submit(s3, folder, "one", CLASSES)
    (before,) = list_batches(s3)
    assert submit(s3, folder, "one", CLASSES) == 2
    assert list_batches(s3) == [before]
    tree(folder, {"sushi/a.jpg": b"3"})
    with pytest.raises(BatchError, match="another content"):
        submit(s3, folder, "one", CLASSES)
    assert s3.get("incoming/one/sushi/a.jpg") == b"1"


def test_folders_that_cannot_be_submitted_are_named(s3: Store, tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"gone: no such folder"):
        submit(s3, tmp_path / "gone", "one", CLASSES)
    with pytest.raises(BatchError, match=r"no class folders \(found pizza; dataset.classes: sandwich, sushi\)"):
        submit(s3, tree(tmp_path / "other", {"pizza/a.jpg": b"1"}), "one", CLASSES)
    (tmp_path / "empty" / "sushi").mkdir(parents=True)
    with pytest.raises(BatchError, match="are empty"):
        submit(s3, tmp_path / "empty", "one", CLASSES)
    good = tree(tmp_path / "good", {"sushi/a.jpg": b"1"})
    for bad in ("", ".hidden", "a/b", "a b", "ä", "x" * 101, "a..b", "a.lock", "a."):
        with pytest.raises(BatchError, match="batch id"):
            submit(s3, good, bad, CLASSES)
    assert list(s3.list("incoming/")) == []


def test_without_its_marker_there_is_no_batch(s3: Store) -> None:
    s3.put("incoming/early/sushi/a.jpg", b"1")
    s3.put("incoming/manifest.json", b"stray")
    assert list_batches(s3) == []
    s3.put("incoming/early/_SUCCESS", b"")
    assert [(ref.id, ref.marker) for ref in list_batches(s3)] == [("early", "_SUCCESS")]


def test_success_beside_class_folders(s3: Store) -> None:
    for key in ("sushi/a.jpg", "sushi/x/b.jpg", "pizza/c.jpg", "loose.jpg", "sushi/.DS_Store", "sushi/", "_SUCCESS"):
        s3.put(f"incoming/b1/{key}", b"123" if "." in key else b"")
    (ref,) = list_batches(s3)
    labels = {entry.key: entry.label for entry in read_batch(s3, ref, CLASSES).entries}
    assert labels == {"sushi/a.jpg": "sushi", "sushi/x/b.jpg": "sushi", "pizza/c.jpg": "pizza", "loose.jpg": ""}


def test_listings_longer_than_a_page(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")
    for n in range(20):
        s3.put(f"incoming/many/sushi/{n}.jpg", b"1")
        s3.put(f"incoming/b{n}/_SUCCESS", b"")
    s3.put("incoming/many/_SUCCESS", b"")
    assert "NextContinuationToken" in s3.client.list_objects_v2(Bucket=s3.bucket)
    refs = list_batches(s3)
    assert len(refs) == 21
    assert len(read_batch(s3, next(ref for ref in refs if ref.id == "many"), CLASSES).entries) == 20


def test_batches_come_in_the_order_of_marker_time_then_id(s3: Store) -> None:
    for name in ("c", "a", "b"):
        send(s3, name, {"schema": 1, "photos": []})
    refs = list_batches(s3)
    assert refs == sorted(refs, key=lambda ref: (ref.time, ref.id))
    assert {ref.id for ref in refs} == {"a", "b", "c"}


def test_a_manifest_says_all_that_it_may(s3: Store) -> None:
    photo = {"key": "a.jpg", "label": "sushi", "sha256": SHA, "split": "holdout", "size": 7, "metadata": {"dish": 3}}
    corrections = {"relabel": [{"sha256": "b" * 64, "label": "sushi"}], "remove": [{"sha256": "c" * 64}]}
    batch = read_batch(s3, send(s3, "b1", {"schema": 1, "photos": [photo], **corrections}), CLASSES)
    (entry,) = batch.entries
    assert (entry.split, entry.size, entry.metadata) == ("holdout", 7, {"dish": 3})
    assert batch.relabel == {"b" * 64: "sushi"}
    assert batch.remove == ("c" * 64,)
    only = read_batch(s3, send(s3, "b2", {"schema": 1, **corrections}), CLASSES)
    assert only.entries == ()


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"{nope", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[]", "manifest: Input should be"),
        ({"photos": []}, "schema: Field required"),
        ({"schema": 2, "photos": []}, "schema: Input should be 1"),
        ({"schema": 1, "photos": [{"key": "a.jpg"}]}, "photos.0.label: Field required"),
        ({"schema": 1, "photos": [{"key": "a.jpg", "label": 3}]}, "photos.0.label"),
        ({"schema": 1, "photos": [{"key": "a.jpg", "label": "sushi", "spilt": "holdout"}]}, "photos.0.spilt"),
        ({"schema": 1, "photos": [{"key": "a.jpg", "label": "sushi", "split": "test"}]}, "photos.0.split"),
        ({"schema": 1, "photos": [{"key": "../b/a.jpg", "label": "sushi"}]}, "photos.0.key"),
        ({"schema": 1, "photos": [{"key": "/a.jpg", "label": "sushi"}]}, "photos.0.key"),
        ({"schema": 1, "photos": [{"key": "a.jpg", "label": "sushi", "sha256": "123"}]}, "photos.0.sha256"),
        ({"schema": 1, "remove": [{"sha256": SHA}, {"sha256": SHA}]}, "twice"),
        ({"schema": 1, "remove": [{"sha256": SHA}], "relabel": [{"sha256": SHA, "label": "sushi"}]}, "twice"),
        ({"schema": 1, "photos": []}, "an empty batch"),
        ({"schema": 1, "photos": [{"key": "a.jpg", "label": "pizza"}]}, "no photo has a known label"),
    ],
)
def test_an_unusable_manifest_names_object_field_and_remedy(s3: Store, manifest: Any, said: str) -> None:
    ref = send(s3, "bad", manifest)
    with pytest.raises(BatchError) as caught:
        read_batch(s3, ref, CLASSES)
    message = str(caught.value)
    assert f"s3://{s3.bucket}/incoming/bad/" in message
    assert said in message
    assert any(verb in message for verb in ("correct", "put photos in"))
    assert "\n" not in message


def test_a_folder_with_an_unsafe_name_is_a_batch_that_cannot_be_read(s3: Store) -> None:
    ref = send(s3, "not ok", {"schema": 1, "photos": [{"key": "a.jpg", "label": "sushi"}]})
    with pytest.raises(BatchError, match="batch id 'not ok'"):
        read_batch(s3, ref, CLASSES)


def test_batches_that_are_known_cost_no_request(s3: Store) -> None:
    for n in range(5):
        s3.put(f"incoming/b{n}/_SUCCESS", b"")
    asked: list[str] = []
    s3.client.meta.events.register("before-call.s3.HeadObject", lambda params, **_: asked.append(params["url_path"]))
    assert [ref.id for ref in list_batches(s3, known={"b0", "b1", "b2", "b4"})] == ["b3"]
    assert asked
    assert all("/b3/" in path for path in asked)
