"""A data set that people have becomes batches; what is held out there stays held out; export and import agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssclass.data.batches import list_batches, read_batch
from ssclass.data.submit import find_files, import_folder
from ssclass.demo.drawings import draw
from ssclass.errors import BatchError
from ssclass.history.export import export
from ssclass.store import Store
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, deal, ingest_all


def workspace_in(folder: Path, s3: Store, bucket: str) -> Workspace:
    at = {"bucket": bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    made = create(folder, at)
    Store(made.settings).make_bucket()
    return made


def take_all(workspace: Workspace) -> None:
    ingest_all(workspace)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """train/ and test/ with class folders."""
    draw(tmp_path / "have" / "train", CLASSES, 8, 1)
    draw(tmp_path / "have" / "test", CLASSES, 3, 2)
    return tmp_path / "have"


def test_held_out_photos_stay_held_out_and_export_import_export_is_one_tree(s3, divided, tmp_path) -> None:
    first = workspace_in(tmp_path / "first", s3, s3.bucket)
    sent = import_folder(Store(first.settings), divided, "have", CLASSES)
    assert sent == {"have": 22}
    assert import_folder(Store(first.settings), divided, "have", CLASSES) == sent, "again changes nothing"
    take_all(first)
    rows = first.at().dataset.rows
    assert {row.split for row in rows if row.key.startswith("test/")} == {"holdout"}
    assert {row.split for row in rows if row.key.startswith("train/")} == {"train"}
    assert export(first, tmp_path / "out") == (len(rows), 0) == (22, 0)
    assert sorted(tree(tmp_path / "out").values()) == sorted(tree(divided).values())

    second = workspace_in(tmp_path / "second", s3, f"{s3.bucket}-2")
    import_folder(Store(second.settings), tmp_path / "out", "again", CLASSES, size=9)
    take_all(second)
    assert [shard.batch_id for shard in second.at().dataset.shards] == ["again-001", "again-002", "again-003"]
    export(second, tmp_path / "out2")
    assert tree(tmp_path / "out2") == tree(tmp_path / "out")


@pytest.mark.slow
def test_hundreds_of_photos_in_and_out_again_are_the_same_bytes(s3, tmp_path) -> None:
    deal(tmp_path / "have" / "train", CLASSES, 100, 0)
    deal(tmp_path / "have" / "test", CLASSES, 20, 9)
    workspace = workspace_in(tmp_path / "workspace", s3, s3.bucket)
    import_folder(workspace.store, tmp_path / "have", "have", CLASSES)
    take_all(workspace)
    (shard,) = workspace.at().dataset.shards
    export(workspace, tmp_path / "out")
    refused = {tree(tmp_path / "have")[item.key] for item in shard.receipt.refused}
    assert len(refused) < 5, "near-copies in training and held out"
    assert set(tree(tmp_path / "out").values()) == set(tree(tmp_path / "have").values()) - refused


def test_big_sets_become_several_fair_batches(s3, tmp_path) -> None:
    draw(tmp_path / "have", CLASSES, 12, 3)
    assert import_folder(s3, tmp_path / "have", "big", CLASSES, size=12) == {"big-001": 12, "big-002": 12}
    for ref in list_batches(s3):
        assert {entry.label for entry in read_batch(s3, ref, CLASSES).entries} == set(CLASSES)


def test_a_set_in_s3_is_imported_by_the_command(s3, divided, tmp_path, ssclass: Command) -> None:
    workspace = workspace_in(tmp_path / "workspace", s3, f"{s3.bucket}-2")
    for name, data in tree(divided).items():
        s3.put(f"old/set/{name}", data)
    done = ssclass("import", f"s3://{s3.bucket}/old/set", "--workspace", workspace.root)
    assert done.returncode == 0, done.stderr
    assert "batch set: 22 photos" in done.stdout
    store = workspace.store
    (ref,) = list_batches(store)
    assert {entry.split for entry in read_batch(store, ref, CLASSES).entries} == {"train", "holdout"}
    nothing = ssclass("import", f"s3://{s3.bucket}/none", "--workspace", workspace.root)
    assert nothing.returncode == 2
    assert "nothing there" in nothing.stderr


def test_a_folder_without_classes_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "train" / "cats").mkdir(parents=True)
    with pytest.raises(BatchError, match="no class folders"):
        find_files(tmp_path, CLASSES, tmp_path)
    with pytest.raises(BatchError, match="no such folder"):
        find_files(tmp_path / "none", CLASSES, tmp_path)
