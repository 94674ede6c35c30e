"""Why a file cannot be taken, in words that its sender understands."""

from __future__ import annotations

import struct

from ssclass.text import message

LONGEST = 300  # letters of a detail; what a decoder says may hold as much of the file as it likes


class Refused(Exception):
    """A photo that cannot be taken: `reason` is a short code, `detail` names what is wrong, in one printable line."""

    def __init__(self, reason: str, detail: str) -> None:
        detail = message(detail, LONGEST)
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


# First bytes of formats, to say what a file is (or was) that does not open.
_PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_OTHERS = {
    b"%PDF": "a PDF",
    b"%!PS": "PostScript",
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an icon",
    b"\x7fELF": "a program",
    b"<svg": "SVG",
    b"<": "HTML or XML",
    b"qoif": "a QOI",
    b"\x59\xa6\x6a\x95": "a Sun raster",
    b"FUJIFILMCCD-RAW": "a camera's raw file (RAF)",
    b"IIRO": "a camera's raw file (ORF)",
    b"IIU\0": "a camera's raw file (RW2)",
    **{f"P{n}".encode(): "a PPM" for n in "1234567fF"},
}


_COMPUTERS = ("a PPM", "a QOI", "a Sun raster", "an icon", "a Photoshop file")
"""Pictures, but none that a camera, a phone or an app takes or sends."""


def unopened(data: bytes, error: Exception) -> Refused:
    """A file of which not even the header can be read; `error` is what Pillow raised."""
    from PIL import UnidentifiedImageError

    said = "its header is damaged or cut off" if isinstance(error, UnidentifiedImageError) else _message(error)
    for magic, name in _PICTURES.items():
        if data.startswith(magic):
            return Refused("corrupt", f"begins like a {name}, but: {said}")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        cut = len(data) < 12 or struct.unpack("<I", data[4:8])[0] + 8 > len(data)
        return Refused(
            "truncated" if cut else "corrupt", f"begins like a WEBP, but: {'it is cut off' if cut else said}"
        )
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("latin-1")
        if not brand.startswith(("hei", "hev", "mif", "msf", "avi")):
            return Refused("not an image", f"this is a film or sound file ({brand!r})")
        cut = _boxes_end(data) > len(data)
        return Refused(
            "truncated" if cut else "corrupt", f"begins like a {brand!r}, but: {'it is cut off' if cut else said}"
        )
    for magic, name in _OTHERS.items():
        if data[:200].lstrip().startswith(magic):
            more = "; send it as JPEG or PNG" if name in _COMPUTERS or "raw" in name else ""
            return Refused("not an image", f"this is {name}{more}")
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return Refused("not an image", "this is a TGA; send it as JPEG or PNG")
    text = data[:200].decode("utf-8", "replace").rstrip("\ufffd")
    if "\ufffd" not in text and all(letter.isprintable() or letter.isspace() for letter in text):
        return Refused("not an image", "this is text")
    return Refused("not an image", f"no known picture format begins with {data[:8]!r}")


def _boxes_end(data: bytes) -> int:
    """Where the boxes of an ISO base media file (HEIF, AVIF) say that it ends."""
    at = 0
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack(">Q", data[at + 8 : at + 16])
        if size < 8:  # 0: to the end of the file
            return len(data)
        at += size
    return at


def undecoded(kind: str | None, error: Exception) -> Refused:
    """A file of this format whose header is in order and whose pixels are not."""
    said = _message(error)
    cut = isinstance(error, EOFError) or any(word in said.lower() for word in ("truncat", "end of file", "not enough"))
    return Refused("truncated" if cut else "corrupt", f"{kind}: {said}")


def _message(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
