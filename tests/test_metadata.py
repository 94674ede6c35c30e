"""What a photo says of its owner is taken out on request, and nothing else of it; and no report has it."""

from __future__ import annotations

import io
import json
import re
import subprocess
from base64 import b64decode
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ssclass.data.images import decode, inspect
from ssclass.data.metadata import personal, strip
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.history.batches import story
from ssclass.params import IngestParams
from ssclass.store import Store
from ssclass.workspace.create import create
from tests.support.pipelines import CLASSES, REAL, Command, Pipeline, ingest_all, real_photos

NAME = "Jane Q. Personal"
KINDS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "HEIF", "AVIF")
pillow_heif.register_heif_opener()
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def telling(kind: str, tag: int = 6) -> bytes:
    """A picture of 120 x 80 that says who took it, where, and how it is to be turned."""
    ramp = np.arange(120 * 80 * 3, dtype=np.uint32).reshape(80, 120, 3)
    picture = Image.fromarray((ramp // 97 % 256).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = tag, NAME
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + NAME.encode()  # UserComment
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    options: dict[str, object] = {"exif": exif}
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{NAME}</dc:creator></x:xmpmeta>'.encode()
    if kind in ("JPEG", "WEBP", "AVIF", "HEIF"):
        options["xmp"] = xmp
    if kind == "JPEG":
        options["comment"] = NAME
    if kind == "PNG":
        info = PngInfo()
        info.add_text("Author", NAME)
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options["pnginfo"] = info
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [picture.rotate(180)]}
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("tag", [1, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_person_and_place_go_and_the_picture_stays(kind: str, tag: int):
    data = telling(kind, tag)
    assert NAME.encode() in data
    assert personal(data)
    stripped = strip(data)
    assert NAME.encode() not in stripped
    with Image.open(io.BytesIO(stripped)) as picture:
        assert picture.format == ("JPEG" if kind == "MPO" else kind)
        assert not picture.getexif().get_ifd(0x8825)
        assert getattr(picture, "n_frames", 1) == 1
    np.testing.assert_array_equal(decode(stripped, 64), decode(data, 64))
    before, after = inspect(data, IngestParams()), inspect(stripped, IngestParams())
    assert (after.width, after.height) == (before.width, before.height)
    assert not personal(stripped)
    assert strip(stripped) is stripped


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "JPEG2000", "PPM"])
def test_a_picture_that_says_nothing_is_left_alone(kind: str):
    out = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(out, kind)
    assert strip(out.getvalue()) == out.getvalue()


@pytest.mark.skipif(not real_photos(), reason="needs the real photos")
def test_real_photos_look_the_same():
    told = 0
    for path in sorted(REAL.rglob("*.jpg"))[::4]:
        data = path.read_bytes()
        if personal(data):
            told += 1
            stripped = strip(data)
            assert not personal(stripped)
            np.testing.assert_array_equal(decode(stripped, 64), decode(data, 64))
    assert told > 10


def test_no_report_has_it_and_an_export_has_it_only_unasked(s3: Store, tmp_path: Path, ssclass: Command):
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    workspace = create(tmp_path / "workspace", at)
    draw(tmp_path / "photos", CLASSES, 4)
    telling_photo = tmp_path / "photos" / "sushi" / "told.jpg"
    telling_photo.write_bytes(telling("JPEG"))
    (tmp_path / "photos" / "sushi" / "cut.jpg").write_bytes(telling("JPEG")[:-400])  # to quarantine, with a reason
    submit(s3, tmp_path / "photos", "one", CLASSES)
    ingest_all(workspace)

    dump = ["git", "-C", str(workspace.root), "cat-file", "--batch", "--batch-all-objects"]
    told = subprocess.run(dump, capture_output=True, check=True).stdout
    told += json.dumps(story(workspace, "one").as_dict()).encode()
    told += s3.get("quarantine/one/reasons.json") or b""
    assert b"cut.jpg" in told
    assert NAME.encode() not in told
    assert b"52.0" not in told

    done = ssclass("export", tmp_path / "out", "--workspace", workspace.root)
    assert "1 of them" in done.stdout
    assert "`--strip`" in done.stdout
    (exported,) = (tmp_path / "out").rglob("*-told.jpg")
    assert exported.read_bytes() == telling_photo.read_bytes(), "as it was received"
    done = ssclass("export", tmp_path / "out2", "--strip", "--workspace", workspace.root)
    assert done.returncode == 0, done.stderr
    (exported,) = (tmp_path / "out2").rglob("*-told.jpg")
    assert NAME.encode() not in exported.read_bytes()
    np.testing.assert_array_equal(decode(exported.read_bytes(), 64), decode(telling_photo.read_bytes(), 64))


def test_no_artifact_and_no_page_has_it(pipeline: Pipeline, tmp_path: Path, ssclass: Command):
    """A retrain with altered copies, `look` and `data suspects`: their pictures are of the photo, and of it alone."""
    workspace = pipeline.workspace(tmp_path / "workspace", head="linear", copies="1")
    draw(tmp_path / "photos", CLASSES, 12)
    for label in CLASSES:
        for path in sorted((tmp_path / "photos" / label).iterdir()):
            with Image.open(path) as picture:
                exif = Image.Exif()
                exif[0x013B] = NAME
                exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
                picture.save(path, exif=exif, comment=NAME)
            assert NAME.encode() in path.read_bytes()
    pipeline.deliver(workspace, tmp_path / "photos", "one")
    pages = tmp_path / "pages"
    for command in (
        ("look", tmp_path / "photos", "--out", pages / "look", "--log"),
        ("data", "suspects", "--top", 100, "--html", pages / "suspects.html"),
    ):
        done = ssclass(*command, "--workspace", workspace.root)
        assert done.returncode == 0, done.stderr
    files = [path for root in (workspace.private / "mlflow", pages) for path in root.rglob("*") if path.is_file()]
    assert {"augmentation.png", "suspects.html", "decision.md"} <= {path.name for path in files}
    pictures = 0
    for path in files:
        data = path.read_bytes()
        embedded = [b64decode(found) for found in re.findall(rb"data:image/\w+;base64,([A-Za-z0-9+/=]+)", data)]
        for each in (data, *embedded):
            assert NAME.encode() not in each, path
        for each in embedded + ([data] if path.suffix in (".png", ".jpg", ".webp") else []):
            with Image.open(io.BytesIO(each)) as picture:
                assert not picture.getexif(), path
                assert not {"exif", "xmp", "comment", "photoshop"} & set(picture.info), path
            pictures += 1
    assert pictures > 20
