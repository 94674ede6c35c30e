"""What a photo says of its owner is taken out on request, and nothing else of it; and no report has it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ssclass.data.images import Refused, decode, inspect
from ssclass.data.metadata import TECHNICAL, personal, strip
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw
from ssclass.history.batches import story
from ssclass.params import IngestParams
from ssclass.store import Store
from ssclass.workspace.create import create
from tests.support.pipelines import CLASSES, REAL, Command, Pipeline, ingest_all, real_photos
from tests.support.telling import NAME, XMP, chunk, exif, picture, saved, variants

KINDS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "HEIF", "AVIF")
VARIANTS = {f"{kind}: {what}": (kind, data) for kind, what, data in variants()}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def telling(kind: str, tag: int = 6) -> bytes:
    """A picture of 120 x 80 that says who took it, where, and how it is to be turned."""
    options: dict[str, object] = {"exif": exif(tag)}
    if kind in ("JPEG", "WEBP", "AVIF", "HEIF"):
        options["xmp"] = XMP
    if kind == "JPEG":
        options["comment"] = NAME
    if kind == "PNG":
        info = PngInfo()
        info.add_text("Author", NAME)
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options["pnginfo"] = info
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [picture().rotate(180)]}
    return saved(kind, **options)


def stored(data: bytes) -> list[bytes]:
    """Every pixel of every frame, as it is stored."""
    with Image.open(io.BytesIO(data)) as opened:
        frames = getattr(opened, "n_frames", 1) if opened.format in ("GIF", "PNG", "WEBP") else 1
        found = []
        for frame in range(frames):
            if frame:  # in HEIF, the first need not be the one that is shown
                opened.seek(frame)
            found.append(opened.convert("RGBA").tobytes() if opened.mode in ("P", "PA") else opened.tobytes())
    return found


def spelt(text: str) -> list[bytes]:
    """The ways in which a file may have it: as bytes, in UTF-16, packed."""
    return [text.encode(), text[:13].encode("utf-16-be"), text[:13].encode("utf-16-le")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_wherever_it_is_said_it_goes_and_every_pixel_stays(variant: str):
    kind, data = VARIANTS[variant]
    made = strip(data)
    assert made != data
    assert not any(name in made for name in spelt(NAME))
    with Image.open(io.BytesIO(made)) as opened:
        assert opened.format == ("JPEG" if kind == "MPO" else kind)
        assert not {"xmp", "XML:com.adobe.xmp", "photoshop", "Author"} & set(opened.info)
        assert opened.info.get("comment", b"").startswith(b"Created by OpenJPEG" if kind == "JPEG2000" else b"")
        assert kind == "JPEG2000" or "comment" not in opened.info
        assert set(opened.getexif()) <= TECHNICAL
    assert stored(made) == stored(data)
    np.testing.assert_array_equal(decode(made, 64), decode(data, 64))
    assert strip(made) is made, "again changes nothing"
    if "profile" not in variant:
        assert personal(data)
    assert not personal(made)


def test_the_variants_are_many():
    assert len(VARIANTS) > 100
    packed = {"PNG: zTXt", "PNG: profile", "PNG: tIME before", "PNG: tIME after"}
    told = {what for what, (_, data) in VARIANTS.items() if any(name in data for name in spelt(NAME))}
    assert set(VARIANTS) - told == packed


@pytest.mark.parametrize("kind", ["PPM", "TGA", "DIB"])
def test_what_earlier_versions_let_in_becomes_a_png(kind: str):
    made = strip(saved(kind))
    assert made.startswith(b"\x89PNG")
    assert stored(made) == stored(saved(kind))
    assert strip(made) is made


def test_a_file_that_is_not_as_its_format_says_becomes_a_png():
    whole = saved("AVIF", xmp=XMP)
    odd = whole.replace(b"pixi", b"abcd").replace(b"\x00\x00\x00\x07iloc", b"\x00\x00\x00\x07iloc")
    assert odd != whole
    for data in (odd, saved("JPEG", comment=NAME)[:-2]):
        made = strip(data)
        assert NAME.encode() not in made
        assert np.abs(decode(made, 64).astype(int) - decode(data, 64)).max() <= 1
    with pytest.raises(Refused):
        strip(b"no picture")


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "JPEG2000", "WEBP", "HEIF", "AVIF"])
def test_a_picture_that_says_nothing_is_left_alone(kind: str):
    out = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(out, kind)
    data = out.getvalue()
    if kind == "HEIF":  # in which the encoder leaves its settings
        data = strip(data)
    assert not personal(data)
    assert kind == "AVIF" or strip(data) == data  # of AVIF, boxes are put in another order
    assert strip(strip(data)) == strip(data)


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


def test_an_export_ends_whatever_the_photos_are_called_or_say(s3: Store, tmp_path: Path, ssclass: Command):
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    workspace = create(tmp_path / "workspace", at)
    draw(tmp_path / "photos", CLASSES, 8)
    drawn = iter([path.read_bytes() for path in sorted((tmp_path / "photos").rglob("*.jpg"))])
    long = "x" * 240 + ".jpg"
    odd = [long, "ü" * 120 + ".jpeg", "寿" * 80, "a\tb\x1b[31m.jpg", 'c:\\d*?"<>|.png', "." * 30, "e." + "f" * 200]
    with Image.open(io.BytesIO(next(drawn))) as photo:
        out = io.BytesIO()
        photo.save(out, "PNG")
    rubbish = out.getvalue()[:33] + chunk(b"eXIf", b"rubbish" + NAME.encode()) + out.getvalue()[33:]
    sent = {name: next(drawn) for name in odd} | {"rubbish.png": rubbish, "cut.jpg": next(drawn)[:-2]}
    photos = [{"key": f"sushi/{name}", "label": "sushi"} for name in sent]
    for name, data in sent.items():
        s3.put(f"incoming/one/sushi/{name}", data)
    s3.put("incoming/one/manifest.json", json.dumps({"schema": 1, "photos": photos}).encode())
    (taken,) = ingest_all(workspace)
    assert (taken.accepted, taken.refused) == (len(sent), 0)
    for options in ((), ("--strip",)):
        done = ssclass("export", tmp_path / f"out{len(options)}", *options, "--workspace", workspace.root)
        assert done.returncode == 0, done.stderr
        files = [path for path in (tmp_path / f"out{len(options)}").rglob("*") if path.is_file()]
        assert len(files) == len(sent)
        assert all(path.name.isprintable() and len(os.fsencode(path.name)) <= 255 for path in files)
        told = [path.read_bytes() for path in files]
        if options:
            assert not any(NAME.encode() in data for data in told)
        else:
            assert sorted(told) == sorted(sent.values())
    (tmp_path / "file").touch()
    for target, said in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "new", "cannot be written")):
        done = ssclass("export", target, "--workspace", workspace.root)
        assert done.returncode == 2
        assert said in done.stderr
        assert "DVC" not in done.stderr


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
