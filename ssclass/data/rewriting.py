"""A photo's file written anew from what its pixels and colours need, format by format; all else is left behind.

Every function takes a whole file and gives one of the same format with the same pixels, coded by the same bytes. What
is kept is listed; what is not listed goes, known or not: EXIF, XMP in one or many parts, IPTC, JUMBF, comments,
previews, other pictures, and what lies between or after the parts. ValueError or IndexError where a file is not as its
format says. `tag` is EXIF's orientation; `profile` says what becomes of the colour profile.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

from ssclass.data.structure import next_marker

Profile = Callable[[bytes], bytes]
ORIENTATION = 0x0112
_ICC = b"ICC_PROFILE\0"


def orientation_alone(tag: int) -> bytes:
    """EXIF with one entry, for a photo that is not upright as stored; empty for one that is."""
    if tag not in range(2, 9):
        return b""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, tag, 0, 0)


# -- JPEG ---------------------------------------------------------------------------------------------------------

_JPEG_TABLES = {*range(0xC0, 0xD0), 0xDB, 0xDC, 0xDD} - {0xC8}  # frames, Huffman and arithmetic tables, lines, restarts


def jpeg(data: bytes, tag: int, profile: Profile) -> bytes:
    """The first picture of a JPEG."""
    parts: list[bytes] = []
    icc: dict[int, bytes] = {}
    jfif = adobe = b""
    at = 2
    while (at := next_marker(data, at)) >= 0:
        marker = data[at + 1]
        if marker == 0xD9:
            break
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        if size < 2 or len(body) != size - 2:
            raise ValueError("a segment is cut off")
        if marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14 and not jfif:
            jfif = _segment(0xE0, body[:12] + b"\0\0")
        elif marker == 0xE2 and body[:12] == _ICC and len(body) > 14:
            icc.setdefault(body[12], body[14:])
        elif marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe = _segment(0xEE, body[:12])
        elif marker in _JPEG_TABLES:
            parts.append(data[at : at + 2 + size])
        elif marker == 0xDA:
            end = next_marker(data, at + 2 + size)
            parts.append(data[at : len(data) if end < 0 else end])
        at += 2 + size
    exif = orientation_alone(tag)
    head = [jfif, _segment(0xE1, b"Exif\0\0" + exif) if exif else b"", *_jpeg_profile(icc, profile), adobe]
    return b"\xff\xd8" + b"".join(head + parts) + b"\xff\xd9"


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _jpeg_profile(parts: dict[int, bytes], profile: Profile) -> Iterator[bytes]:
    if parts and (whole := profile(b"".join(parts[number] for number in sorted(parts)))):
        cut = [whole[at : at + 65_519] for at in range(0, len(whole), 65_519)]
        for number, part in enumerate(cut, 1):
            yield _segment(0xE2, _ICC + bytes([number, len(cut)]) + part)


# -- PNG ----------------------------------------------------------------------------------------------------------

_PNG = {b"IHDR": 13, b"PLTE": 768, b"IDAT": 2**31, b"tRNS": 256, b"cHRM": 32, b"gAMA": 4, b"sBIT": 4, b"sRGB": 1}
_PNG |= {b"pHYs": 9, b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"acTL": 8, b"fcTL": 26, b"fdAT": 2**31}
"""Chunks that stay, and the most bytes that each may have."""


def png(data: bytes, tag: int, profile: Profile) -> bytes:
    """The chunks of a PNG that its pixels and colours need, those of an animation's frames included."""
    parts, at, exif = [data[:8]], 8, orientation_alone(tag)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if len(body) != size:
            raise ValueError("a chunk is cut off")
        if name == b"IDAT" and exif:
            parts.append(_chunk(b"eXIf", exif))
            exif = b""
        if name == b"iCCP":
            packed = body[body.index(b"\0") + 2 :]
            unpacked = zlib.decompressobj().decompress(packed, 10_000_000)
            if whole := profile(unpacked):
                same = whole == unpacked
                parts.append(_chunk(name, body if same else b"profile\0\0" + zlib.compress(whole)))
        elif size <= _PNG.get(name, -1):
            parts.append(_chunk(name, body))
        at += 12 + size
        if name == b"IEND":
            break
    return b"".join([*parts, _chunk(b"IEND", b"")])


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# -- WebP ---------------------------------------------------------------------------------------------------------


def webp(data: bytes, tag: int, profile: Profile) -> bytes:
    """The chunks of a WebP that its pixels and colours need, those of an animation's frames included."""
    chunks: list[tuple[bytes, bytes]] = []
    exif = orientation_alone(tag)
    for name, body in _riff(data, 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))):
        if name == b"ICCP":
            body = profile(body)
        elif name == b"ANMF":
            inside = [(n, b) for n, b in _riff(body, 16, len(body)) if n in (b"ALPH", b"VP8 ", b"VP8L")]
            body = body[:16] + _packed(inside)
        elif name == b"VP8X":
            body = body[:10]
        elif name == b"ANIM":
            body = body[:6]
        elif name not in (b"ALPH", b"VP8 ", b"VP8L"):
            continue
        if body:
            chunks.append((name, body))
    if exif:
        chunks.append((b"EXIF", exif))
    if chunks and chunks[0][0] == b"VP8X":
        flags = chunks[0][1][0] & 0x12  # alpha and animation
        flags |= 0x20 * any(name == b"ICCP" for name, _ in chunks) | 0x08 * bool(exif)
        chunks[0] = b"VP8X", bytes([flags, 0, 0, 0]) + chunks[0][1][4:]
    packed = _packed(chunks)
    return b"RIFF" + (len(packed) + 4).to_bytes(4, "little") + b"WEBP" + packed


def _riff(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    while at + 8 <= end:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > end:
            raise ValueError("a chunk is cut off")
        yield data[at : at + 4], data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _packed(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2) for name, body in chunks)


# -- GIF ----------------------------------------------------------------------------------------------------------


def gif(data: bytes, tag: int, profile: Profile) -> bytes:
    """The frames of a GIF, how long each is shown, and how often all are."""
    at = 13 + _colours(data[10])
    parts = [data[:at]]
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            begin, at = at, at + 10 + _colours(data[at + 9]) + 1
            at = _blocks_end(data, at)
            parts.append(data[begin:at])
        elif data[at] == 0x21:
            end = _blocks_end(data, at + 2)
            if data[at + 1] == 0xF9 and end - at == 8:
                parts.append(data[at:end])
            elif (
                data[at + 1] == 0xFF and data[at + 3 : at + 14] == b"NETSCAPE2.0" and data[at + 14 : at + 16] == b"\3\1"
            ):
                parts.append(data[at : at + 18] + b"\0")
            at = end
        else:
            raise ValueError("no block of a GIF")
    return b"".join(parts) + b"\x3b"


def _colours(packed: int) -> int:
    """Bytes of a colour table."""
    return 3 << (packed & 7) + 1 if packed & 0x80 else 0


def _blocks_end(data: bytes, at: int) -> int:
    while size := data[at]:
        at += 1 + size
    return at + 1
