"""Data sets of other tools come in as the tools write them: the shapes are those of each tool's documentation."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from ssclass.data.folders import LabelledFile
from ssclass.data.submit import find_files, import_folder, is_photos
from ssclass.demo.drawings import draw
from ssclass.errors import BatchError
from ssclass.store import Store
from tests.support.pipelines import CLASSES


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, CLASSES, 2, seed=6)
    return sorted(folder.rglob("*.jpg"))


def lay(drawn: list[Path], folder: Path, *names: str) -> None:
    """Put drawn photos into a folder under these names."""
    for path, name in zip(drawn, names, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)


def told(files: list[LabelledFile]) -> list[tuple[str, str, str | None]]:
    return [(file.key, file.label, file.split) for file in files]


def read(source: Path, scratch: Path) -> list[tuple[str, str, str | None]]:
    (scratch := scratch / "scratch").mkdir()
    found = find_files(source, CLASSES, scratch)
    assert all(file.path.read_bytes()[:2] == b"\xff\xd8" for file in found), "the photos themselves"
    return told(found)


def test_roboflow(drawn: list[Path], tmp_path: Path):
    """Multi-label classification as CSV: a column a class, in folders train, valid and test; spaces after commas."""
    lay(drawn, tmp_path / "set", "train/a.jpg", "train/b.jpg", "valid/c.jpg", "test/d.jpg")
    for side, lines in {
        "train": ["a.jpg, 0, 1, 0", "b.jpg, 1, 0, 0", "nobody-looked.jpg, 0, 0, 0"],
        "valid": ["c.jpg, 1, 0, 0"],
        "test": ["d.jpg, 0, 1, 0"],
    }.items():
        text = "\n".join(["filename, sandwich, sushi, other", *lines])
        (tmp_path / "set" / side / "_classes.csv").write_text(text)
    assert read(tmp_path / "set", tmp_path) == [
        ("test/d.jpg", "sushi", "holdout"),
        ("train/a.jpg", "sushi", "train"),
        ("train/b.jpg", "sandwich", "train"),
        ("valid/c.jpg", "sandwich", "train"),
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_imagefolder(name: str, drawn: list[Path], tmp_path: Path):
    lay(drawn, tmp_path / "set", "one.jpg", "sub/two.jpg")
    rows = [("one.jpg", "sushi"), ("sub/two.jpg", "sandwich")]
    lines = [json.dumps({"file_name": file, "label": label, "text": "a dish, on a table"}) for file, label in rows]
    if name.endswith(".csv"):
        lines = ["file_name,label,text", *(f'{file},{label},"a dish, on a table"' for file, label in rows)]
    (tmp_path / "set" / name).write_text("\n".join(lines))
    assert read(tmp_path / "set", tmp_path) == [("one.jpg", "sushi", None), ("sub/two.jpg", "sandwich", None)]


def task(number: int, image: str, *choices: str, **more: object) -> dict[str, object]:
    result = [{"from_name": "dish", "to_name": "image", "type": "choices", "value": {"choices": [*choices]}}]
    annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "result": result if choices else [], **more}
    return {"id": number, "data": {"image": image}, "annotations": [annotation], "predictions": []}


def test_label_studio(drawn: list[Path], tmp_path: Path):
    """Uploaded, served from a folder, and in a bucket; skipped and empty tasks are left out."""
    lay(drawn, tmp_path, "1a2b3c4d-up.jpg", "original.jpg", "shop/served.jpg", "images/far.jpg")
    tasks = [
        task(1, "/data/upload/3/1a2b3c4d-up.jpg", "sushi"),
        task(2, "/data/upload/3/99887766-original.jpg", "sandwich"),
        task(3, "/data/local-files/?d=photos/shop/served.jpg", "sushi"),
        task(4, "s3://bucket/2026/far.jpg", "sandwich"),
        task(5, "/data/upload/3/skipped.jpg", "sushi", was_cancelled=True),
        task(6, "/data/upload/3/nobody-looked.jpg"),
    ]
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    expected = [
        ("1a2b3c4d-up.jpg", "sushi", None),
        ("original.jpg", "sandwich", None),
        ("shop/served.jpg", "sushi", None),
        ("images/far.jpg", "sandwich", None),
    ]
    assert read(tmp_path / "project.json", tmp_path) == expected

    least = [
        {"image": each["data"]["image"], "id": each["id"], "choice": label, "annotator": 1, "lead_time": 3.2}  # type: ignore[index]
        for each, (_, label, _) in zip(tasks, expected, strict=False)
    ]
    (tmp_path / "min.json").write_text(json.dumps([*least, {"image": "/data/upload/3/nobody-looked.jpg", "id": 6}]))
    assert told(find_files(tmp_path / "min.json", CLASSES, tmp_path)) == expected

    lines = [f"{n},1,{each['choice']},2026-11-02T09:00:00Z,{n},{each['image']},3.2" for n, each in enumerate(least)]
    (tmp_path / "table.csv").write_text(
        "\n".join(["annotation_id,annotator,choice,created_at,id,image,lead_time", *lines])
    )
    by_csv = told(find_files(tmp_path / "table.csv", CLASSES, tmp_path))
    assert by_csv[:3] == expected[:3]


def test_cvat(drawn: list[Path], tmp_path: Path):
    lay(drawn, tmp_path, "images/a.jpg", "images/sub/b.jpg")
    (tmp_path / "annotations.xml").write_text("""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>7</id><labels><label><name>sushi</name><type>tag</type></label></labels></task></meta>
  <image id="0" name="a.jpg" subset="Test" task_id="7" width="64" height="64">
    <tag label="sushi" source="manual"></tag>
    <box label="chopsticks" source="manual" occluded="0" xtl="1" ytl="2" xbr="3" ybr="4" z_order="0"></box>
  </image>
  <image id="1" name="sub/b.jpg" width="64" height="64"><tag label="sandwich" source="manual"></tag></image>
  <image id="2" name="nobody-looked.jpg" width="64" height="64"></image>
</annotations>
""")
    assert read(tmp_path / "annotations.xml", tmp_path) == [
        ("images/a.jpg", "sushi", "holdout"),
        ("images/sub/b.jpg", "sandwich", None),
    ]


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            (member := tarfile.TarInfo(name)).size = len(data)
            file.addfile(member, io.BytesIO(data))


def test_webdataset(drawn: list[Path], tmp_path: Path):
    a, b, c, d = (path.read_bytes() for path in drawn)
    (folder := tmp_path / "set").mkdir()
    (folder / "classes.json").write_text('["sandwich", "sushi"]')
    tar(folder / "train-000000.tar", {"0001.cls": b"1", "0001.jpg": a, "x/0002.jpg": b, "x/0002.cls": b"sandwich"})
    tar(folder / "train-000001.tar", {"0001.jpg": c, "0001.json": b'{"label": "sushi"}', "0009.jpg": b"nobody looked"})
    tar(folder / "test-000000.tar", {"0003.thumb.jpg": d, "0003.cls": b"0"})
    assert read(folder, tmp_path) == [
        ("test-000000/0003.thumb.jpg", "sandwich", "holdout"),
        ("train-000000/0001.jpg", "sushi", "train"),
        ("train-000000/x/0002.jpg", "sandwich", "train"),
        ("train-000001/0001.jpg", "sushi", "train"),
    ]


def test_folders_of_dates(drawn: list[Path], tmp_path: Path):
    (tmp_path / "2026" / "11" / "01").mkdir(parents=True)  # a day without photos
    lay(drawn, tmp_path, "2026/11/27/sushi/a.jpg", "2026/11/28/sandwich/a.jpg", "day=2026-11-29/sushi/b.jpg")
    assert told(find_files(tmp_path, CLASSES, tmp_path)) == [
        ("2026/11/27/sushi/a.jpg", "sushi", None),
        ("2026/11/28/sandwich/a.jpg", "sandwich", None),
        ("day=2026-11-29/sushi/b.jpg", "sushi", None),
    ]


def test_what_they_hold_arrives(drawn: list[Path], tmp_path: Path, s3: Store):
    tar(tmp_path / "photos.tar", {"1.jpg": drawn[0].read_bytes(), "1.cls": b"sushi"})
    assert import_folder(s3, tmp_path / "photos.tar", "tarred", CLASSES) == {"tarred": 1}
    assert s3.get("incoming/tarred/photos/1.jpg") == drawn[0].read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "[{", "not JSON"),
        ("a.json", "[7]", "task 1: no object"),
        ("a.json", json.dumps([task(1, "a.jpg", "sushi", "sandwich")]), "task 1: more than one choice"),
        ("a.json", json.dumps([task(1, "gone.jpg", "sushi")]), "task 1: gone.jpg: no such file"),
        ("a.json", json.dumps([task(1, "../../etc/passwd", "sushi")]), "no such file"),
        ("a.json", json.dumps([task(1, "a.jpg", "pizza")]), "no label is a class (found pizza"),
        ("a.json", json.dumps([task(1, "a.jpg", "sushi"), task(2, "x/a.jpg", "sushi")]), "a.jpg is listed twice"),
        ("a.json", '[{"choice": "sushi"}]', "task 1: it names no image"),
        ("a.json", "[]", "no label is a class (found no labelled photos"),
        ("a.xml", "<annotations><image", "not XML"),
        ("a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "it declares a document type"),
        (
            "a.xml",
            '<a><image name="a.jpg"><tag label="sushi"/><tag label="sandwich"/></image></a>',
            "more than one tag",
        ),
        ("a.tar", "no tar at all", "not a tar that can be read"),
        ("_classes.csv", "filename,sushi,sandwich\na.jpg,1,1\n", "line 2: more than one class"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_place(name: str, text: str, said: str, drawn: list[Path], tmp_path: Path):
    lay(drawn, tmp_path, "a.jpg")
    (tmp_path / name).write_text(text)
    assert is_photos(tmp_path / name)
    with pytest.raises(BatchError) as raised:
        find_files(tmp_path / name, CLASSES, tmp_path)
    assert said in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


def test_a_number_in_a_tar_needs_the_classes_beside_it(drawn: list[Path], tmp_path: Path):
    tar(tmp_path / "a.tar", {"1.jpg": drawn[0].read_bytes(), "1.cls": b"1"})
    with pytest.raises(BatchError, match=r"1\.cls says 1, and .*classes\.json does not say which class"):
        find_files(tmp_path / "a.tar", CLASSES, tmp_path)
    (tmp_path / "corrections.json").write_text('{"schema": 1, "photos": [], "remove": []}')
    assert not is_photos(tmp_path / "corrections.json"), "a manifest"


@pytest.mark.parametrize("name", ["../secret.txt", "{}/secret.txt", "train/../../secret.txt"])
@pytest.mark.parametrize("listed", ["_classes.csv", "metadata.csv", "metadata.jsonl"])
def test_a_data_set_of_others_cannot_have_files_of_this_machine_sent(
    name: str, listed: str, drawn: list[Path], tmp_path: Path
):
    """A list inside of what was downloaded named any file, and that was uploaded for its author to fetch."""
    lay(drawn, tmp_path / "set", "train/a.jpg")
    (tmp_path / "secret.txt").write_text("nobody's business")
    name = name.format(tmp_path)
    lines = {
        "_classes.csv": f"filename,sushi,sandwich\ntrain/a.jpg,1,0\n{name},1,0\n",
        "metadata.csv": f"file_name,label\ntrain/a.jpg,sushi\n{name},sushi\n",
        "metadata.jsonl": "\n".join(
            json.dumps({"file_name": each, "label": "sushi"}) for each in ("train/a.jpg", name)
        ),
    }
    (tmp_path / "set" / listed).write_text(lines[listed])
    with pytest.raises(BatchError, match=r"secret\.txt: outside of the data set"):
        find_files(tmp_path / "set", CLASSES, tmp_path)


def test_a_tar_is_not_unpacked_to_more_than_it_holds(drawn: list[Path], tmp_path: Path):
    """A sparse file is a few bytes in the tar and a full disk out of it."""
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as file:
        label = tarfile.TarInfo("1.cls")
        label.size = 5
        file.addfile(label, io.BytesIO(b"sushi"))
        bomb = tarfile.TarInfo("1.jpg")
        bomb.type, bomb.size = tarfile.GNUTYPE_SPARSE, 0
        block = bytearray(bomb.tobuf(tarfile.GNU_FORMAT))
        block[483:495] = b"77777777777\0"  # the real size, 8 GiB, after a map without entries
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        file.fileobj.write(block)
        file.offset += len(block)
    with pytest.raises(BatchError, match="larger than the tar"):
        find_files(path, CLASSES, tmp_path)


def test_an_address_that_is_none_is_a_file_that_is_not_there(drawn: list[Path], tmp_path: Path):
    lay(drawn, tmp_path, "a.jpg")
    (tmp_path / "a.json").write_text(json.dumps([task(1, "http://[::1/a.jpg", "sushi")]))
    (tmp_path / "a.csv").write_text("path,label\nhttp://[::1/a.jpg,sushi\n")
    for name in ("a.json", "a.csv"):
        with pytest.raises(BatchError, match="no such file"):
            find_files(tmp_path / name, CLASSES, tmp_path)
