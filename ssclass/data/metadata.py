"""What a photo's file says beside its pixels: where it was taken, by whom, with what. Found, and taken out.

The pixels stay as they are, bit for bit, but for TIFF, which is saved anew (its first page, without loss). Orientation
and colour profile stay too: without them the photo would look another.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Literal

from ssclass.data.images import FORMATS, pillow

ORIENTATION = 0x0112
TECHNICAL = {ORIENTATION, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0111, 0x0115, 0x0116, 0x0117, 0x011A, 0x011B}
TECHNICAL |= {0x011C, 0x0128, 0x013D, 0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x0152, 0x0153, 0x0213, 0x8769, 0x8773}
"""EXIF tags of the picture itself (sizes, strips, resolution, colour); other tags tell of a person or a place."""
_BLOCKS = ("xmp", "XML:com.adobe.xmp", "comment", "photoshop")


def personal(data: bytes) -> bool:
    """Whether a photo that opens says more than its pixels, size, colours and orientation."""
    with pillow().open(io.BytesIO(data), formats=FORMATS) as picture:
        exif = picture.getexif()
        beside = set(exif) - TECHNICAL or exif.get_ifd(0x8769)
        texts = getattr(picture, "text", {}) if picture.format == "PNG" else {}
        blocks = [name for name in _BLOCKS if _said(picture.info.get(name))]
        if picture.format == "JPEG2000":  # whose comment names the encoder
            blocks = []
        return bool(beside or texts or blocks or (picture.format == "MPO" and picture.n_frames > 1))


def strip(data: bytes) -> bytes:
    """The same photo without what `personal` finds; the bytes as they are where it finds nothing."""
    if not personal(data):
        return data
    with pillow().open(io.BytesIO(data), formats=FORMATS) as picture:
        kind, tag = picture.format, picture.getexif().get(ORIENTATION, 1)
        if kind == "TIFF":
            return _saved_anew(picture)
        exif = _orientation_alone(tag) if tag != 1 else b""
        if kind in ("JPEG", "MPO"):
            return b"".join(_jpeg(data, exif))
        if kind == "PNG":
            return b"".join(_png(data, exif))
        if kind == "WEBP":
            return _webp(data, exif)
        return _blanked(data, picture)


def _orientation_alone(tag: int) -> bytes:
    """A TIFF header with one entry, which is what EXIF is."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, tag, 0, 0)


def _jpeg(data: bytes, exif: bytes) -> Iterator[bytes]:
    """What the first picture's pixels and colours need of its segments; nothing after its end."""
    yield data[:2]
    if exif:
        yield b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0xFF, 0x00, *range(0xD0, 0xD8)):  # entropy-coded, filling, restart
            end = data.find(b"\xff", at + 1 if data[at] != 0xFF or marker == 0xFF else at + 2)
            end = len(data) if end < 0 else end
        elif marker == 0xD9:
            break
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            profile = marker == 0xE2 and data.startswith(b"ICC_PROFILE\0", at + 4)
            if marker == 0xFE or (0xE1 <= marker <= 0xEF and marker != 0xEE and not profile):  # APP14: colour transform
                at = end
                continue
        yield data[at:end]
        at = end
    yield b"\xff\xd9"


def _png(data: bytes, exif: bytes) -> Iterator[bytes]:
    yield data[:8]
    at = 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if name == b"IDAT" and exif:
            yield struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
            exif = b""
        if name not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"tIME"):
            yield data[at : at + 12 + size]
        at += 12 + size
        if name == b"IEND":
            return


def _webp(data: bytes, exif: bytes) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size]
        if name == b"VP8X":
            flags = body[0] & ~0x0C | (0x08 if exif else 0)
            body = bytes([flags]) + body[1:]
        if name not in (b"EXIF", b"XMP "):
            chunks.append((name, body))
        at += 8 + size + size % 2
    if exif:
        chunks.append((b"EXIF", exif))
    packed = b"".join(name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2) for name, body in chunks)
    return b"RIFF" + (len(packed) + 4).to_bytes(4, "little") + b"WEBP" + packed


def _blanked(data: bytes, picture: Any) -> bytes:
    """HEIC, AVIF and others: the blocks overwritten where they lie, as every offset in such a file must stay true."""
    for name in _BLOCKS:
        block = picture.info.get(name)
        block = block.encode() if isinstance(block, str) else block
        if isinstance(block, bytes) and block:
            data = data.replace(block, b" " * len(block))
    blank = bytearray(data)
    for start in (b"MM\0*", b"II*\0"):
        at = data.find(start)
        while at >= 0:
            _blank_exif(blank, at, "big" if start == b"MM\0*" else "little")
            at = data.find(start, at + 4)
    return bytes(blank)


def _blank_exif(data: bytearray, start: int, order: Literal["big", "little"]) -> None:
    """Zeros for all that the EXIF at `start` holds but the orientation; nothing where this is no EXIF."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    spans: list[tuple[int, int]] = []
    kept = b""
    waiting, seen = [number(start + 4, 4)], set[int]()
    while waiting:
        folder = start + waiting.pop()
        count = number(folder, 2)
        if folder in seen or not 0 < count < 500 or folder + 2 + 12 * count > len(data):
            continue
        seen.add(folder)
        spans.append((folder, folder + 6 + 12 * count))
        for at in range(folder + 2, folder + 2 + 12 * count, 12):
            tag, size = number(at, 2), _SIZES.get(number(at + 2, 2), 0) * number(at + 4, 4)
            if tag in (0x8769, 0x8825, 0xA005):
                waiting.append(number(at + 8, 4))
            elif tag == ORIENTATION:
                kept = bytes(data[at : at + 12])
            if 4 < size < len(data):
                spans.append((start + number(at + 8, 4), start + number(at + 8, 4) + size))
    for begin, end in spans:
        end = min(end, len(data))
        data[begin:end] = bytes(max(0, end - begin))
    if spans and kept:
        first = spans[0][0]
        data[first : first + 14] = (1).to_bytes(2, order) + kept


_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes of an EXIF value of each type."""


def _said(block: Any) -> bool:
    """Whether a block is there, and not blank."""
    return bool(block.strip(b" \0") if isinstance(block, bytes) else block)


def _saved_anew(picture: Any) -> bytes:
    """The first page, upright as Pillow gives it."""
    out = io.BytesIO()
    profile = picture.info.get("icc_profile")
    picture.load()
    plain = pillow().frombytes(picture.mode, picture.size, picture.tobytes())
    if picture.mode == "P":
        plain.putpalette(picture.getpalette())
    plain.save(out, "TIFF", compression="tiff_adobe_deflate", icc_profile=profile)
    return out.getvalue()
