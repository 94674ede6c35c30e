"""The contract with whoever sends photos, on a real S3 server."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from ssclass.data.batches import BatchRef, list_batches, read_batch
from ssclass.data.folders import class_folders, files_in, labelled_files
from ssclass.data.manifest import parse_manifest
from ssclass.data.submit import find_files, submit
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
    hidden = ("sushi/.DS_Store", "sushi/", "_SUCCESS", "_committed_1", ".git/a.jpg", "sushi/.thumbs/a.jpg")
    for key in ("sushi/a.jpg", "sushi/x/b.jpg", "sushi/_DSC0001.jpg", "pizza/c.jpg", "loose.jpg", *hidden):
        s3.put(f"incoming/b1/{key}", b"123" if "." in key else b"")
    (ref,) = list_batches(s3)
    labels = {entry.key: entry.label for entry in read_batch(s3, ref, CLASSES).entries}
    of_sushi = dict.fromkeys(("sushi/a.jpg", "sushi/x/b.jpg", "sushi/_DSC0001.jpg"), "sushi")
    assert labels == of_sushi | {"pizza/c.jpg": "pizza", "loose.jpg": ""}


def test_names_of_macos_are_the_classes_they_show(s3: Store, tmp_path: Path) -> None:
    """macOS writes é as e and an accent (NFD); people write params in NFC; both are the class that they look like."""
    classes = ("café", "ガレット")
    apart = [unicodedata.normalize("NFD", name) for name in classes]
    assert apart != list(classes)
    folder = tree(tmp_path / "photos", {f"{name}/é.jpg": name.encode() for name in apart})
    assert submit(s3, folder, "submitted", classes) == 2
    for name in apart:
        s3.put(f"incoming/folders/{name}/1.jpg", b"1")
    s3.put("incoming/folders/_SUCCESS", b"")
    photos = [{"key": f"{place}.jpg", "label": name} for place, name in enumerate(apart)]
    send(s3, "manifest", {"schema": 1, "photos": photos, "relabel": [{"sha256": SHA, "label": apart[0]}]})
    for ref in list_batches(s3):
        batch = read_batch(s3, ref, classes)
        assert {entry.label for entry in batch.entries} == set(classes), ref.id
        if ref.id != "manifest":
            assert all(s3.head(f"incoming/{ref.id}/{entry.key}") for entry in batch.entries), "keys are as they came"
        assert set(batch.relabel.values()) <= set(classes)
    assert {file.label for file in labelled_files(folder, classes, only=True)} == set(classes)
    assert {file.label for file in find_files(folder, classes, tmp_path)} == set(classes)


def test_one_rule_for_hidden_files_whoever_reads(s3: Store, tmp_path: Path) -> None:
    seen = {"sushi/a.jpg", "sushi/_DSC1.jpg", "sushi/deep/b.jpg", "sandwich/Thumbs.db"}
    unseen = {"sushi/.a.jpg", "sushi/.cache/b.jpg", ".git/c.jpg", "sandwich/._d.jpg"}
    folder = tree(tmp_path, {name: name.encode() for name in seen | unseen})
    submit(s3, folder, "b1", CLASSES)
    (ref,) = list_batches(s3)
    for name in seen | unseen:
        s3.put(f"incoming/b2/{name}", b"1")
    s3.put("incoming/b2/_SUCCESS", b"")
    assert {entry.key for entry in read_batch(s3, ref, CLASSES).entries} == seen
    (other,) = list_batches(s3, known={"b1"})
    assert {entry.key for entry in read_batch(s3, other, CLASSES).entries} == seen
    assert {file.key for file in labelled_files(folder, CLASSES, only=True)} == seen
    assert {file.key for file in find_files(folder, CLASSES, tmp_path)} == seen
    found = {path.relative_to(folder).as_posix() for inside in class_folders(folder) for path in files_in(inside)}
    assert found == seen


def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, {"sushi/a.jpg": b"1", "sushi/locked/b.jpg": b"2"})
    real = os.scandir

    def scandir(path: Any) -> Any:  # tests may run as root, for whom nothing is locked
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(BatchError, match=r"locked: cannot be read \(Permission denied\)"):
        labelled_files(tmp_path, CLASSES)


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
        (b"", "not readable as JSON"),
        (b'{"schema": 1}{}', "not readable as JSON"),
        (b'{"schema": 1, "photos": [{"key": "a", "label": "sushi"}', "not readable as JSON"),
        (b'{"schema": 1, "photos": [{"key": "a\0", "label": "sushi"}]}', "not readable as JSON"),
        (b'{"schema": 1, "photos": [{"key": "\xff", "label": "sushi"}]}', "not readable as JSON"),
        (b'{"schema": 1, "photos": [{"key": "a", "label": "sushi", "size": ' + b"9" * 5000 + b"}]}", "4,000 digits"),
        (b'{"schema": 1, "schema": 1}', "schema: stands there twice"),
        (b'{"schema": 1, "photos": [], "photos": []}', "photos: stands there twice"),
        ({"schema": 1, "photos": None}, "photos: Input should be a list"),
        ({"schema": 1, "photos": {}}, "photos: Input should be a list"),
        ({"schema": [1], "photos": []}, "schema: Input should be 1"),
        ({"schema": 1, "photoz": [[[]]]}, "photoz: Extra inputs"),
        ({"schema": 1, "photos": [[{}]]}, "photos.0: Input should be"),
        ({"schema": 1, "photos": [{"key": "a", "label": ["sushi"]}]}, "photos.0.label: Input should be no list"),
        ({"schema": 1, "photos": [{"key": "a", "label": "sushi", "size": 1.5}]}, "photos.0.size"),
        ({"schema": 1, "photos": [{"key": "a", "label": "sushi", "metadata": [1]}]}, "photos.0.metadata"),
        ({"schema": 1, "photos": [{"key": "寿" * 301, "label": "sushi"}]}, "at most 900 bytes"),
        ({"schema": 1, "photos": [{str(n): 1 for n in range(60)}]}, "photos.0: more than 50 fields"),
        ({"schema": 1, "\x1b[31mred": 1}, "\\x1b[31mred: Extra inputs"),
        ({"schema": 1, "photos": [{"key": "a", "label": "\x1b]0;x\x07" + "y" * 5_000_000}]}, "5,000,006 characters"),
        ({"schema": 1, "remove": [{"sha256": SHA}, {}]}, "remove.1.sha256: Field required"),
        ({"schema": 1, "source": "a\nb"}, "source: String should match"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusable_manifest_names_object_field_and_remedy(s3: Store, manifest: Any, said: str) -> None:
    ref = send(s3, "bad", manifest)
    with pytest.raises(BatchError) as caught:
        read_batch(s3, ref, CLASSES)
    message = str(caught.value)
    assert f"s3://{s3.bucket}/incoming/bad/" in message
    assert said in message
    assert any(verb in message for verb in ("correct", "put photos in"))
    assert message.isprintable(), "one line, and nothing that a terminal acts on"
    assert len(message) < 2500


def test_what_an_old_sender_writes_is_still_read(s3: Store) -> None:
    photo = '{"key": "NaN \\" Infinity.jpg", "label": "sushi", "metadata": {"a": NaN, "b": [-Infinity, {"c": 1e3}]}}'
    text = f'{{"photos": [{photo}], "schema": 1}}'
    for name, data in (("bom", b"\xef\xbb\xbf" + text.encode()), ("utf16", text.encode("utf-16"))):
        (entry,) = read_batch(s3, send(s3, name, data), CLASSES).entries
        assert entry.key == 'NaN " Infinity.jpg'
        assert entry.metadata == {"a": None, "b": [None, {"c": 1000}]}


MANIFESTS = {
    "empty entries": b'{"schema": 1, "photos": [' + b"{}," * 3_000_000 + b"{}]}",
    "deep metadata": b'{"schema": 1, "photos": [{"metadata": {"a":' + b"[" * 3_000_000,
    "deep": b"[" * 3_000_000,
    "many fields": b"{" + b",".join(b'"%d": 1' % n for n in range(300_000)) + b"}",
    "metadata of lists": b'{"schema": 1, "photos": [{"key": "a", "label": "b", "metadata": {"a": ['
    + b"[]," * 300_000
    + b"[]]}}]}",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_any_shape_takes_a_few_times_its_size(name: str) -> None:
    """tracemalloc sees what Python holds; `{}` entries of 30 MB once took 20 GB."""
    data = MANIFESTS[name]
    tracemalloc.start()
    try:
        with contextlib.suppress(BatchError):
            parse_manifest(data, "it", "mend it")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * len(data)


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
