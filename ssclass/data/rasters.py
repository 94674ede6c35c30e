"""BMP and JPEG 2000 written anew, as `ssclass.data.rewriting` does it with the formats of the web."""

from __future__ import annotations

import re
import struct

from ssclass.data.boxes import boxes
from ssclass.data.rewriting import Profile

# -- BMP ----------------------------------------------------------------------------------------------------------


def bmp(data: bytes, tag: int, profile: Profile) -> bytes:
    """Header, colour table and rows of a BMP."""
    begin, size = struct.unpack("<I", data[10:14])[0], struct.unpack("<I", data[14:18])[0]
    if size not in (40, 52, 56, 108, 124):
        raise ValueError("an old header")
    width, height, _, bits, packing = struct.unpack("<iiHHI", data[18:34])
    if packing not in (0, 3, 6):
        raise ValueError("packed")
    rows = (width * bits + 31) // 32 * 4 * abs(height)
    pixels = data[begin : begin + rows]
    if len(pixels) != rows:
        raise ValueError("cut off")
    masks = {3: 12, 6: 16}.get(packing, 0) if size == 40 else 0
    used = struct.unpack("<I", data[46:50])[0]
    table = 4 * min(used or 1 << bits, 256) if bits <= 8 else 0
    if begin < 14 + size + masks + table:
        raise ValueError("no room for its colours")
    head = bytearray(data[14 : 14 + size])
    if size >= 108:  # colour space: sRGB; end points, gamma, and the place of a profile
        head[56:60] = b"BGRs"
        head[60:108] = bytes(48)
        head[112:124] = bytes(len(head[112:124]))
    rest = bytes(head) + data[14 + size : 14 + size + masks + table]
    return b"BM" + struct.pack("<IHHI", 14 + len(rest) + rows, 0, 0, 14 + len(rest)) + rest + pixels


# -- JPEG 2000 ----------------------------------------------------------------------------------------------------

_J2K = {0x50, 0x51, 0x52, 0x53, 0x55, 0x57, 0x58, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61, 0x63}
_ENCODER = re.compile(rb"\x00\x01Created by OpenJPEG version [0-9.]{1,20}")


def jpeg2000(data: bytes, tag: int, profile: Profile) -> bytes:
    """The codestream of a JPEG 2000, in the boxes that say what its colours are."""
    if data[:4] == b"\xff\x4f\xff\x51":
        return _codestream(data)
    made = [b"\0\0\0\x0cjP  \r\n\x87\n", _box(b"ftyp", b"jp2 \0\0\0\0jp2 ")]
    for name, begin, end in boxes(data):
        if name == b"jp2h":
            inside = [
                _box(each, _colour(data[at:stop], profile) if each == b"colr" else data[at:stop])
                for each, at, stop in boxes(data, begin, end)
                if each in (b"ihdr", b"bpcc", b"colr", b"pclr", b"cmap", b"cdef")
            ]
            made.append(_box(name, b"".join(inside)))
        elif name == b"jp2c":
            return b"".join([*made, _box(name, _codestream(data[begin:end]))])
    raise ValueError("no codestream")


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body


def _colour(body: bytes, profile: Profile) -> bytes:
    """A colr box of JPEG 2000: an enumerated space, or a profile."""
    return body[:3] + profile(body[3:]) if body[0] == 2 else body[:7]


def _codestream(data: bytes) -> bytes:
    """Markers from the start to the end of a codestream (ISO/IEC 15444-1, annex A) without remarks."""
    parts, at = [data[:2]], 2
    while data[at : at + 2] != b"\xff\xd9":
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF:
            raise ValueError("no marker")
        if marker == 0x90:
            length = int.from_bytes(data[at + 6 : at + 10], "big") or len(data) - 2 - at
            end = at + length
            if size != 10 or length < 14 or end > len(data):
                raise ValueError("a tile is cut off")
            head, inside = b"", at + 12
            while data[inside : inside + 2] != b"\xff\x93":
                step = 2 + int.from_bytes(data[inside + 2 : inside + 4], "big")
                if inside + step > end:
                    raise ValueError("a tile without data")
                if data[inside + 1] not in _J2K:
                    raise ValueError("a remark in a tile")
                head += data[inside : inside + step]
                inside += step
            parts += [data[at : at + 12], head, data[inside:end]]
            at = end
            continue
        body = data[at + 4 : at + 2 + size]
        if marker in _J2K or (marker == 0x64 and _ENCODER.fullmatch(body)):
            parts.append(data[at : at + 2 + size])
        at += 2 + size
        if at + 2 > len(data):
            raise ValueError("no end")
    return b"".join([*parts, b"\xff\xd9"])
