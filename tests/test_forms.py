"""A data set comes as a list and leaves in the forms that people's tools read, as it is in force."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssclass.data.batches import list_batches
from ssclass.data.lists import read_list
from ssclass.data.submit import find_files, import_folder, submit, submit_corrections
from ssclass.demo.drawings import draw
from ssclass.errors import BatchError
from ssclass.history.export import export
from ssclass.store import Store
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder, CLASSES, 8, seed=5)
    return folder


def paths(pictures: Path) -> list[Path]:
    return sorted(pictures.rglob("*.jpg"))


@pytest.fixture
def workspace(s3: Store, tmp_path: Path) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    return create(tmp_path / "shop", at)


@pytest.mark.parametrize("kind", ["csv", "semicolons", "jsonl"])
def test_a_list_is_a_batch_with_its_labels_and_sides(kind: str, pictures: Path, workspace: Workspace, tmp_path: Path):
    """Columns that we do not know are left alone; a path may be relative or absolute."""
    held, *train = paths(pictures)
    lines = [(str(held), "sushi", "test"), *((str(path.relative_to(pictures)), path.parent.name, "") for path in train)]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": p, "class": label, "split": s, "n": 1}) for p, label, s in lines)
        listed = pictures / "list.jsonl"
    else:
        mark = ";" if kind == "semicolons" else ","
        text = "\r\n".join(mark.join(line) for line in [("Path", "Label", "Split"), *lines])
        text = ("\ufeff" if kind == "semicolons" else "") + text + "\r\n\r\n"
        listed = pictures / f"{kind}.csv"
    listed.write_text(text, encoding="utf-8", newline="")
    try:
        assert submit(workspace.store, listed, "day-1", CLASSES) == 16
        assert import_folder(workspace.store, listed, "set", CLASSES) == {"set": 16}
    finally:
        listed.unlink()
    assert [ref.id for ref in list_batches(workspace.store)] == ["day-1", "set"]
    ingest_all(workspace)
    rows = workspace.at().dataset.by_sha256
    assert len(rows) == 16
    row = rows[hashlib.sha256(held.read_bytes()).hexdigest()]
    assert (row.label, row.split) == ("sushi", "holdout"), "as the list says, whatever its folder is called"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "its first line names no path and label"),
        ("a.csv", "a.jpg,sushi\n", "its first line names no path and label"),
        ("a.csv", "path,label\nno.jpg,sushi\n", "line 2: no.jpg: no such file"),
        ("a.csv", "path,label,split\n{one},sushi,left\n", "line 2: split 'left' is none"),
        ("a.csv", "path,label\n{one},sushi\n{one},sandwich\n", "line 3: {one} is listed twice"),
        ("a.csv", "path,label\n{one},\n", "line 2: no label"),
        ("a.csv", "path,label\n{one},pizza\n", "no label is a class (found pizza"),
        ("a.csv", "path,label\n", "no label is a class (found no photos"),
        ("a.csv", "path,label\n" + "x" * 200_000 + ",sushi\n", "line "),
        ("a.csv", "path,label\na\0.jpg,sushi\n", "line 2"),
        ("a.jsonl", "{half\n", "line 1: not JSON"),
        ("a.jsonl", "[" * 5000 + "\n", "line 1: not JSON"),
        ("a.jsonl", "7\n", "line 1: no object"),
        ("a.jsonl", '{"path": 7, "label": "sushi"}\n', "line 1: no path"),
        ("a.jsonl", '{"path": "a.jpg", "label": ["sushi"]}\n', "line 1: no label"),
    ],
)
def test_a_list_that_cannot_be_used_is_told_by_its_line(name: str, text: str, said: str, pictures: Path):
    one = str(paths(pictures)[0].relative_to(pictures))
    listed = pictures / name
    listed.write_text(text.replace("{one}", one), newline="")
    try:
        with pytest.raises(BatchError) as raised:
            read_list(listed, CLASSES)
    finally:
        listed.unlink()
    assert said.replace("{one}", one) in str(raised.value)
    assert str(listed) in str(raised.value)


@pytest.fixture
def corrected(workspace: Workspace, pictures: Path, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """A data set with a relabelled and a removed photo; sha256 → label and split, as it is in force."""
    submit(workspace.store, pictures, "day-1", CLASSES)
    ingest_all(workspace)
    first, second, *_ = workspace.at().dataset.by_sha256
    label = CLASSES[1 - CLASSES.index(workspace.at().dataset.by_sha256[first].label)]
    manifest = tmp_path / "corrections.json"
    fixes = {"schema": 1, "relabel": [{"sha256": first, "label": label}], "remove": [{"sha256": second}]}
    manifest.write_text(json.dumps(fixes))
    submit_corrections(workspace.store, manifest, "day-2")
    ingest_all(workspace)
    found = {sha: (row.label, row.split) for sha, row in workspace.at().dataset.by_sha256.items()}
    assert found[first][0] == label
    assert len(found) == 15
    return {sha: (label, "test" if split == "holdout" else split) for sha, (label, split) in found.items()}


def test_every_form_is_the_data_set_as_it_is_in_force(
    corrected: dict[str, tuple[str, str]], workspace: Workspace, tmp_path: Path, ssclass: Command
):
    assert export(workspace, tmp_path / "folders") == (15, 0)
    files = {path for path in (tmp_path / "folders").rglob("*") if path.is_file()}
    found = {hashlib.sha256(p.read_bytes()).hexdigest(): (p.parent.name, p.parent.parent.name) for p in files}
    assert found == corrected
    assert {path.name for path in (tmp_path / "folders").iterdir()} <= {"train", "test"}

    done = ssclass("export", tmp_path / "parquet", "--format", "parquet", "--json", cwd=workspace.root)
    assert json.loads(done.stdout)["photos"] == 15, done.stderr
    found = {}
    for path in (tmp_path / "parquet").iterdir():
        table = pq.read_table(path)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        names = features["label"]["names"]
        assert (features["image"], names) == ({"_type": "Image"}, list(CLASSES))
        assert list(features) == table.column_names
        for row in table.to_pylist():
            data = row["image"]["bytes"]
            Image.open(io.BytesIO(data)).verify()
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            assert names[row["label"]] == row["class"]
            found[row["sha256"]] = (row["class"], path.stem)
    assert found == corrected

    assert export(workspace, tmp_path / "described", kind="croissant") == (15, 0)
    about = json.loads((tmp_path / "described" / "croissant.json").read_text())
    for each in about["distribution"]:
        file = tmp_path / "described" / each["contentUrl"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == each["sha256"]
    classes, *records = about["recordSet"]
    assert [each["classes/name"] for each in classes["data"]] == list(CLASSES)
    assert {each["@id"] for each in records} == {side for _, side in corrected.values()}
    for each in records:
        columns = pq.read_schema(tmp_path / "described" / f"{each['@id']}.parquet").names
        assert {one["source"]["extract"]["column"] for one in each["field"]} <= set(columns)

    describes(tmp_path / "described", corrected)

    assert export(workspace, tmp_path / "tars", kind="webdataset") == (15, 0)
    again = find_files(tmp_path / "tars", CLASSES, tmp_path)
    assert {hashlib.sha256(f.path.read_bytes()).hexdigest(): f.label for f in again} == {
        sha256: label for sha256, (label, _) in corrected.items()
    }
    classes = json.loads((tmp_path / "tars" / "classes.json").read_text())
    found = {}
    for path in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {each.name: tar.extractfile(each).read() for each in tar}
        assert [name.partition(".")[0] for name in members][::3] == [n.partition(".")[0] for n in members][2::3]
        for name, data in members.items():
            if name.endswith(".json"):
                about, key = json.loads(data), name.removesuffix(".json")
                assert hashlib.sha256(members[f"{key}.jpg"]).hexdigest() == about["sha256"]
                assert classes[int(members[f"{key}.cls"])] == about["label"]
                found[about["sha256"]] = (about["label"], path.name.partition("-")[0])
    assert found == corrected


def test_large_tars_are_several(
    corrected: dict[str, tuple[str, str]], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ssclass.history.forms.SHARD_BYTES", 20_000)
    export(workspace, tmp_path / "tars", kind="webdataset")
    tars = sorted((tmp_path / "tars").glob("train-*.tar"))
    assert [path.name for path in tars] == [f"train-{number:06}.tar" for number in range(len(tars))]
    assert len(tars) > 1
    count = 0
    for path in (tmp_path / "tars").glob("*.tar"):
        with tarfile.open(path) as tar:
            count += len(tar.getnames())
    assert count == 45


def describes(folder: Path, photos: dict[str, tuple[str, str]]) -> None:
    """MLCommons' own validator finds nothing wrong with a description, and its loader gives every photo by it.

    What only its owner can say of a data set (licence, citation, version, date) is missing, and nothing else.
    """
    mlcroissant = pytest.importorskip("mlcroissant", reason="MLCommons' mlcroissant is not installed")
    command = [str(Path(sys.executable).parent / "mlcroissant"), "validate", "--jsonld", str(folder / "croissant.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "WARNING" in line or "Property" in line or "rror" in line]
    assert {re.findall(r"/(\w+)\"", line)[0] for line in said} == {"citeAs", "datePublished", "license", "version"}

    read = mlcroissant.Dataset(str(folder / "croissant.json"))
    found = {}
    for side in {side for _, side in photos.values()}:
        for record in read.records(side):
            sha256 = record[f"{side}/sha256"].decode()
            found[sha256] = record[f"{side}/class"].decode(), side
            assert min(record[f"{side}/image"].size) > 0
    assert found == photos
