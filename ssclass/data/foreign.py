"""Data sets as other tools write them: Roboflow, Label Studio, CVAT, WebDataset, Hugging Face's ImageFolder.

Each reader gives the photos' files with the label and the side that the tool's own file says. Labels never come from
anywhere else, and a photo without a label is left out: tools list those that nobody has looked at yet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ssclass.data.folders import LabelledFile, spelt
from ssclass.data.lists import PATHS, SIDES, check_labels, located, read_list, text_of
from ssclass.data.manifest import MANIFEST_LIMIT
from ssclass.errors import BatchError
from ssclass.text import composed, quoted, shown

IN_A_FOLDER = ("_classes.csv", "metadata.csv", "metadata.jsonl")
"""Lists that stand among their photos: Roboflow's, and those of ImageFolder."""
PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
LABELS = ("choice", "label", "class", "category")


def is_foreign(path: Path) -> bool:
    """Whether a path is a file, or a folder of files, that this module reads."""
    try:
        if path.is_dir():
            return bool(_tars(path) or _lists_in(path))
        if path.suffix.lower() == ".json" and path.is_file():
            with path.open("rb") as file:
                return file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError:  # who reads it next says why it cannot be read
        return False
    return path.is_file() and path.suffix.lower() in (".xml", ".tar")


def read_foreign(path: Path, classes: Sequence[str], scratch: Path) -> list[LabelledFile]:
    """The labelled photos of a data set of another tool, in its order; tars are unpacked into the folder `scratch`.

    BatchError names the file and what in it cannot be used, or says that no label is a class.
    """
    if path.suffix.lower() == ".xml":
        found = list(_cvat(path))
    elif path.suffix.lower() == ".json":
        found = list(_label_studio(path))
    elif tars := [path] if path.is_file() else _tars(path):
        found = []
        for tar in tars:
            found += _webdataset(tar, classes, Path(mkdtemp(dir=scratch)))
    else:
        found = [file for each in _lists_in(path) for file in _beside(path, each, classes)]
    times = Counter(file.key for file in found)
    if twice := next((key for key, count in times.items() if count > 1), None):
        raise BatchError(f"{path}: {shown(twice)} is listed twice; take one of them out")
    check_labels(path, found, classes, "no labelled photos")
    return found


def _tars(folder: Path) -> list[Path]:
    return sorted(each for each in folder.glob("*.tar") if each.is_file())


def _lists_in(folder: Path) -> list[Path]:
    """Lists that stand among their photos: in the folder, or in its folders train, valid and test."""
    folders = [folder, *sorted(each for each in folder.iterdir() if each.is_dir() and each.name.lower() in SIDES)]
    return [each / name for each in folders for name in IN_A_FOLDER if (each / name).is_file()]


def _beside(root: Path, path: Path, classes: Sequence[str]) -> Iterator[LabelledFile]:
    """The photos of a list that stands among them; the folder that it is in says their side, where it says none.

    Whoever made the data set wrote the list: what it names outside of its folder may be any file of this machine.
    """
    inside = "" if path.parent == root else f"{path.parent.name}/"
    around = Path(os.path.normpath(root.absolute()))
    for file in read_list(path, classes):
        if not Path(os.path.normpath(file.path.absolute())).is_relative_to(around):
            raise BatchError(
                f"{path}: {shown(file.path)}: outside of the data set; take the line out, or name the list itself if "
                "you wrote it"
            )
        side = file.split or (SIDES[path.parent.name.lower()] if inside else None)
        yield LabelledFile(file.path, f"{inside}{file.key}", file.label, side)


def _text(path: Path) -> str:
    return text_of(path, 10 * MANIFEST_LIMIT, "name a file that can be read", "export fewer photos at a time")


def _label_studio(path: Path) -> Iterator[LabelledFile]:
    """Label Studio's JSON and JSON-MIN: a list of tasks."""
    try:
        tasks = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise BatchError(f"{path}: not JSON ({shown(str(error), 100)}); export it again") from error
    for number, task in enumerate(tasks, 1):
        where = f"{path}: task {number}"
        if not isinstance(task, dict):
            raise BatchError(f"{where}: no object; export it as JSON or JSON-MIN")
        labels = _choices(task)
        if len(labels) > 1:
            raise BatchError(f"{where}: more than one choice ({', '.join(map(quoted, sorted(labels)))}); keep one")
        about = task["data"] if isinstance(task.get("data"), dict) else task
        name = next((about[key] for key in PATHS if isinstance(about.get(key), str)), None)
        if labels and name is None:
            raise BatchError(f"{where}: it names no image ({', '.join(PATHS[:4])}); export it with its data")
        for label in labels:
            yield _photo(path, where, str(name), label, None)


def _choices(task: dict[str, Any]) -> set[str]:
    """The choices of a task's annotations, those taken back left out; of JSON-MIN, its one field."""
    found: set[str] = set()
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):
        said = next((task[name] for name in LABELS if task.get(name)), None)
        said = said.get("choices") if isinstance(said, dict) else said
        return {str(each) for each in (said if isinstance(said, list) else [said]) if each}
    for annotation in annotations:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or ():
            value = result.get("value") if isinstance(result, dict) else None
            if isinstance(value, dict) and isinstance(value.get("choices"), list):
                found |= {str(each) for each in value["choices"]}
    return found


def _cvat(path: Path) -> Iterator[LabelledFile]:
    """*CVAT for images*: an image's tag is its label, its subset its side."""
    text = _text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise BatchError(f"{path}: it declares a document type, which CVAT does not; export it again")
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise BatchError(f"{path}: not XML ({error}); export it again as CVAT for images") from error
    for number, image in enumerate(root.iter("image"), 1):
        where = f"{path}: image {number}"
        labels = {tag.get("label", "") for tag in image.findall("tag")} - {""}
        if len(labels) > 1:
            raise BatchError(f"{where}: more than one tag ({', '.join(map(quoted, sorted(labels)))}); keep one")
        for label in labels:
            yield _photo(path, where, image.get("name", ""), label, SIDES.get(image.get("subset", "").lower()))


def _photo(path: Path, where: str, name: str, label: str, side: str | None) -> LabelledFile:
    """A photo by the name that a tool has for it, in the folder of the tool's file, or in `images/` there."""
    if (found := located(path.parent, name)) is not None:
        return LabelledFile(found, spelt(found.relative_to(path.parent).as_posix()), composed(label), side)
    raise BatchError(f"{where}: {shown(name)}: no such file; put the photos beside {path.name}, or into images/ there")


def _webdataset(path: Path, classes: Sequence[str], scratch: Path) -> Iterator[LabelledFile]:
    """The photos of a tar of WebDataset; ``train-000000.tar`` says their side.

    A sample's label is `label` or `class` in its ``.json``, or its ``.cls``: a class, or a number where
    ``classes.json`` (a list of names) is beside the tar.
    """
    side = SIDES.get(re.split(r"[-_.]", path.name.lower())[0])
    try:
        with tarfile.open(path, "r:") as tar:
            sample: dict[str, tarfile.TarInfo] = {}
            of = None
            room = path.stat().st_size
            for member in (each for each in tar if each.isreg()):
                room -= member.size
                if room < 0:  # a sparse file of a few bytes may be as large as it says
                    raise BatchError(f"{path}: {shown(member.name)}: its files are larger than the tar; pack it anew")
                folder, _, name = member.name.rpartition("/")
                stem, _, end = name.partition(".")
                if (folder, stem) != of:
                    yield from _sample(path, tar, sample, classes, scratch, side)
                    sample, of = {}, (folder, stem)
                sample[end.lower()] = member
            yield from _sample(path, tar, sample, classes, scratch, side)
    except (tarfile.TarError, OSError) as error:
        raise BatchError(f"{path}: not a tar that can be read ({error}); unpack .tar.gz first") from error


def _sample(
    path: Path,
    tar: tarfile.TarFile,
    sample: dict[str, tarfile.TarInfo],
    classes: Sequence[str],
    scratch: Path,
    side: str | None,
) -> Iterator[LabelledFile]:
    photo = next((member for end, member in sample.items() if f".{end}".endswith(PHOTOS)), None)
    label = None if photo is None else _label_of(path, tar, sample, classes)
    if photo is None or label is None:
        return
    key = spelt(f"{path.stem}/{photo.name.lstrip('./')}")
    content = tar.extractfile(photo)
    to = scratch / str(photo.offset)
    assert content is not None, "a plain file"
    with content, to.open("wb") as file:
        shutil.copyfileobj(content, file)
    yield LabelledFile(to, key, composed(label), side)


def _label_of(
    path: Path, tar: tarfile.TarFile, sample: dict[str, tarfile.TarInfo], classes: Sequence[str]
) -> str | None:
    def said(end: str) -> str:
        content = tar.extractfile(sample[end])
        return content.read(MANIFEST_LIMIT).decode("utf-8", "replace").strip() if content else ""

    if "json" in sample:
        try:
            about = json.loads(said("json"))
        except (ValueError, RecursionError):
            about = None
        if isinstance(about, dict):
            found = next((about[name] for name in LABELS if isinstance(about.get(name), str)), None)
            if found:
                return str(found)
    if "cls" not in sample:
        return None
    label = said("cls")
    if not label.isdigit() or label in classes:
        return label or None
    names = path.parent / "classes.json"
    try:
        known = json.loads(names.read_text(encoding="utf-8"))
        return str(known[int(label)])
    except (OSError, ValueError, IndexError, TypeError, KeyError) as error:
        raise BatchError(
            f"{path}: {sample['cls'].name} says {label}, and {names} does not say which class that is; write the "
            'classes there in the order of their numbers: ["sandwich", "sushi"]'
        ) from error
