"""What a file's own structure says before it is unpacked: that it lies, costs too much, or is a raw file."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from ssclass.data.av1 import coded_pixels
from ssclass.data.pixels import pillow
from ssclass.data.refusals import Refused

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

SCANS = 100  # of a JPEG; cameras write 1, the web's progressive ones 10, the most eager optimiser 64
SLACK = 2  # times as many pixels as the header says may be coded: frames are padded
TILE = 512 * 512  # pixels that may be coded whatever the header says: a tile may overhang a small picture
REMARKS = 100  # in a PPM written as text; each makes Pillow copy what it has read
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of JPEG: no stuffing, filling or restart

# TIFF tags, and the ways to code colours (PhotometricInterpretation) that only a raw file has.
_SUBFILE, _PHOTOMETRIC, _WIDTH, _HEIGHT, _FOLDERS, _DNG = 0x00FE, 0x0106, 0x0100, 0x0101, 0x014A, 0xC612
_SENSOR = {32803: "a sensor's mosaic", 34892: "a sensor's linear values"}


def check_structure(data: bytes, picture: PilImage) -> None:
    """Refused for a JPEG of too many scans, and for an AVIF whose frames are larger than its header says.

    Both take time and memory that the header gives no hint of.
    """
    width, height = picture.size
    if picture.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > SCANS:
        scans = sum(1 for marker, _ in segments(data) if marker == 0xDA)
        if scans > SCANS:
            raise Refused("corrupt", f"a JPEG of {scans:,} scans; no camera or program writes more than {SCANS}")
    if data[:2] in (b"P1", b"P2", b"P3") and data.count(b"#") > REMARKS:
        raise Refused("corrupt", f"a PPM as text with more than {REMARKS} comments")
    if picture.format == "AVIF":
        coded = coded_pixels(data)
        if coded > max(TILE, SLACK * width * height):
            raise Refused("corrupt", f"its header says {width} x {height}, but {coded:,} pixels are coded in it")


def declared_pixels(data: bytes) -> int:
    """Pixels of a WebP by its bytes, 0 for other formats: Pillow takes memory for two pictures when it opens one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0
    kind = data[12:16]
    if kind == b"VP8X":
        return (1 + int.from_bytes(data[24:27], "little")) * (1 + int.from_bytes(data[27:30], "little"))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (1 + (bits & 0x3FFF)) * (1 + (bits >> 14 & 0x3FFF))
    return (int.from_bytes(data[26:28], "little") & 0x3FFF) * (int.from_bytes(data[28:30], "little") & 0x3FFF)


def check_developed(data: bytes, picture: PilImage) -> None:
    """Refused for a camera's raw file (DNG, NEF, CR2, …), of which Pillow opens the small preview."""
    if picture.format != "TIFF":
        return
    kind = _raw(data, picture)
    if kind:
        detail = f"{kind}, of which only a preview can be read; develop it, and send a JPEG"
        raise Refused("raw file", detail)


def _raw(data: bytes, picture: PilImage) -> str:
    """What makes this TIFF a raw file, or one whose first page is the preview of a larger one; else nothing."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = picture.tag_v2  # type: ignore[attr-defined]
    if _DNG in tags:
        return "a camera's raw file (DNG)"
    if data[8:10] == b"CR":
        return "a camera's raw file (CR2)"
    if (coded := tags.get(_PHOTOMETRIC)) in _SENSOR:
        return f"a camera's raw file ({_SENSOR[coded]})"
    width, height = picture.size
    places = tags.get(_FOLDERS, ())
    for place in [places] if isinstance(places, int) else list(places)[:20]:
        try:
            file = io.BytesIO(data)
            file.seek(int(place))
            inside = ImageFileDirectory_v2(data[:8])
            inside.load(file)
            coded, size = inside.get(_PHOTOMETRIC), (inside.get(_WIDTH), inside.get(_HEIGHT))
        except Exception:  # a TIFF inside the photo: Pillow raises whatever it likes
            continue
        if coded in _SENSOR:
            return f"a camera's raw file ({_SENSOR[coded]})"
        across, down = size
        if isinstance(across, int) and isinstance(down, int) and across * down > width * height:
            return f"a TIFF that begins with a preview ({width} x {height} of {across} x {down})"
    return ""


def largest_page(picture: PilImage) -> int:
    """Of a TIFF whose first page says that it is a reduced one, the number of the page with most pixels; else 0."""
    if picture.format != "TIFF" or not picture.tag_v2.get(_SUBFILE, 0) & 1:  # type: ignore[attr-defined]
        return 0
    sizes: list[int] = []
    try:
        for page in range(min(picture.n_frames, 20)):  # type: ignore[attr-defined]
            picture.seek(page)
            sizes.append(picture.width * picture.height)
    except Exception:  # as above
        pass
    picture.seek(0)
    return sizes.index(max(sizes)) if sizes else 0


def next_marker(data: bytes, at: int) -> int:
    """Where the next marker of a JPEG is, but for restarts; -1 where there is none."""
    match = _MARKER.search(data, at)
    return match.start() if match else -1


def segments(data: bytes, at: int = 2) -> list[tuple[int, int]]:
    """(marker, its place) of each segment of a JPEG's first picture, the end marker included."""
    found = []
    while (at := next_marker(data, at)) >= 0:
        marker = data[at + 1]
        found.append((marker, at))
        if marker == 0xD9 or len(found) > 100_000:
            break
        at += 2 + (0 if marker == 0x01 else int.from_bytes(data[at + 2 : at + 4], "big"))
    return found


def completed(data: bytes) -> bytes | None:
    """A JPEG that lacks only its last bytes with an end put to it; None where some of the picture is missing.

    Complete is what comes out the same whatever bits follow, once every coefficient of every component was sent.
    """
    markers = segments(data)
    if not markers or markers[-1][0] == 0xD9 or not _all_sent(data, markers):
        return None
    data = data.removesuffix(b"\xff")
    seen = set()
    for more in (b"\0" * 64, b"\xff\0" * 64, b"\x55" * 64, b"\xaa" * 64):
        with pillow().open(io.BytesIO(data + more + b"\xff\xd9"), formats=("JPEG",)) as picture:
            picture.load()
            seen.add(hash(picture.tobytes()))
    return data + b"\xff\xd9" if len(seen) == 1 else None


def _all_sent(data: bytes, markers: list[tuple[int, int]]) -> bool:
    """Whether the scans that begin in a JPEG cover each component to the last bit (ISO/IEC 10918-1, B.2.3, G)."""
    wanted: set[int] = set()
    sent: set[tuple[int, int]] = set()
    for marker, at in markers:
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 10 <= len(data):
            wanted = {data[place] for place in range(at + 10, min(at + 10 + 3 * data[at + 9], len(data)), 3)}
        elif marker == 0xDA and at + 5 <= len(data):
            count = data[at + 4]
            if at + 8 + 2 * count > len(data):
                return False
            first, last, bits = data[at + 5 + 2 * count : at + 8 + 2 * count]
            if bits & 15 == 0:
                ids = (data[at + 5 + 2 * n] for n in range(count))
                sent |= {(each, k) for each in ids for k in range(first, min(last, 63) + 1)}
    return bool(wanted) and all((each, k) in sent for each in wanted for k in range(64))
