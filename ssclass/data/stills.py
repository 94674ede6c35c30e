"""HEIF and AVIF files written anew: the picture, its tiles and its alpha, with the properties that decoding needs.

Film, previews, depth and gain maps, EXIF, XMP and all other items stay behind, and so do remarks inside the coded data
(SEI messages of HEVC, metadata of AV1). ValueError where an item or a property is not one of those that are known here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ssclass.data.boxes import Item, boxes, find, read_stills

Profile = Callable[[bytes], bytes]
_KINDS = (b"av01", b"hvc1", b"grid")
_PROPERTIES = (b"ispe", b"pixi", b"av1C", b"hvcC", b"irot", b"imir", b"clap", b"pasp", b"auxC", b"clli", b"mdcv")
_FILMS = (b"avis", b"msf1", b"hevc", b"hevx", b"iso8", b"isom")
_STILL = {b"avis": b"avif", b"msf1": b"mif1", b"hevc": b"heic", b"hevx": b"heix"}
_HEVC_SETS = (32, 33, 34)  # parameter sets; 39 and 40 are messages, of which a decoder needs none
_AV1_UNITS = (1, 2, 3, 4, 6, 7, 8)  # all but metadata (5) and padding (15)


def still(data: bytes, tag: int, profile: Profile) -> bytes:
    """The picture of a HEIF or AVIF file; `tag` is not needed, as the container says what is upright."""
    stills = read_stills(data)
    items = stills.of_picture()
    number = {item.id: n for n, item in enumerate(items, 1)}
    shelf: list[tuple[bytes, bytes]] = []
    owned: list[list[int]] = []
    coded: list[bytes] = []
    for item in items:
        if item.kind not in _KINDS:
            raise ValueError(f"an item of kind {item.kind!r}")
        owned.append([])
        for name, body, needed in item.properties:
            if name == b"colr":
                body = body if body[:4] == b"nclx" else body[:4] + profile(body[4:])
            elif name == b"hvcC":
                body = _settings(body)
            elif name not in _PROPERTIES:
                if needed:
                    raise ValueError(f"a property {name!r}")
                continue
            if (name, body) not in shelf:
                shelf.append((name, body))
            owned[-1].append(shelf.index((name, body)) + 1 | needed << 15)
        coded.append(_cleaned(item, _coded(data, item)))

    infos = [_full(b"infe", struct.pack(">HH", number[i.id], 0) + i.kind + b"\0", version=2) for i in items]
    owns = [struct.pack(f">HB{len(o)}H", n, len(o), *o) for n, o in enumerate(owned, 1)]
    ipma = _full(b"ipma", struct.pack(">I", len(owns)) + b"".join(owns), flags=1)
    links = [
        _box(name, struct.pack(f">HH{len(to)}H", number[item.id], len(to), *to))
        for item in items
        for name in (b"dimg", b"auxl")
        if (to := [number[each] for each in item.references.get(name, []) if each in number])
    ]
    fixed = [
        _full(b"hdlr", b"\0\0\0\0pict" + bytes(13)),
        _full(b"pitm", struct.pack(">H", 1)),
        _full(b"iinf", struct.pack(">H", len(infos)) + b"".join(infos)),
        _box(b"iprp", _box(b"ipco", b"".join(_box(*each) for each in shelf)) + ipma),
        *([_full(b"iref", b"".join(links))] if links else []),
    ]
    head = _box(b"ftyp", _brands(data, stills.brand))
    size = 14 * len(items) + 16  # of iloc
    at = len(head) + 12 + sum(map(len, fixed)) + size + 8
    places = b""
    for n, each in enumerate(coded, 1):
        places += struct.pack(">HHHII", n, 0, 1, at, len(each))
        at += len(each)
    iloc = _full(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)) + places)
    if len(iloc) != size:
        raise AssertionError("iloc has another size than its items say")
    return head + _full(b"meta", b"".join([*fixed, iloc])) + _box(b"mdat", b"".join(coded))


def says_more(data: bytes) -> bool:
    """Whether a HEIF or AVIF file holds more than `still` would copy; ValueError as there."""
    stills = read_stills(data)
    items, at = stills.of_picture(), 0
    room = 0
    for name, begin, end in boxes(data):
        if name not in (b"ftyp", b"meta", b"mdat"):
            return True
        room += (end - begin) * (name == b"mdat")
        at = end
    begin, end = find(data, b"meta")
    inside = {name for name, _, _ in boxes(data, begin + 4, end)}
    used = sum(end - begin for item in items for begin, end in item.extents)
    return (
        at != len(data)
        or len(items) < len(stills.items)
        or not inside <= {b"hdlr", b"pitm", b"iloc", b"iinf", b"iprp", b"iref"}
        or room > used
        or any(item.name not in (b"", b"Color", b"Alpha") for item in items)
        or any(name not in (*_PROPERTIES, b"colr") for item in items for name, _, _ in item.properties)
        or any(_cleaned(item, _coded(data, item)) != _coded(data, item) for item in items)
    )


def _coded(data: bytes, item: Item) -> bytes:
    return b"".join(data[begin:end] for begin, end in item.extents)


def _brands(data: bytes, major: bytes) -> bytes:
    size = int.from_bytes(data[:4], "big")
    listed = [data[at : at + 4] for at in range(16, min(size, 80), 4)]
    others = [brand for brand in listed if brand not in _FILMS and brand.isalnum()]
    return _STILL.get(major, major) + b"\0\0\0\0" + b"".join(others or [b"mif1"])


def _box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body


def _full(name: bytes, body: bytes, version: int = 0, flags: int = 0) -> bytes:
    return _box(name, struct.pack(">I", version << 24 | flags) + body)


def _cleaned(item: Item, coded: bytes) -> bytes:
    if item.kind == b"av01":
        return _units_of_av1(coded)
    if item.kind == b"hvc1":
        body = next(body for name, body, _ in item.properties if name == b"hvcC")
        return _units_of_hevc(coded, (body[21] & 3) + 1)
    return coded[:12]  # a grid's rows, columns and size


def _settings(body: bytes) -> bytes:
    """The decoder's configuration (ISO/IEC 14496-15, 8.3.3.1) with parameter sets alone."""
    sets, count, at = b"", 0, 23
    for _ in range(body[22]):
        kind, number, begin = body[at] & 63, int.from_bytes(body[at + 1 : at + 3], "big"), at
        at += 3
        for _ in range(number):
            at += 2 + int.from_bytes(body[at : at + 2], "big")
        if kind in _HEVC_SETS:
            sets, count = sets + body[begin:at], count + 1
    if at > len(body):
        raise ValueError("the decoder's configuration is cut off")
    return body[:22] + bytes([count]) + sets


def _units_of_hevc(coded: bytes, wide: int) -> bytes:
    kept, at = [], 0
    while at < len(coded):
        size = int.from_bytes(coded[at : at + wide], "big")
        end = at + wide + size
        if size < 2 or end > len(coded):
            raise ValueError("a unit is cut off")
        if (kind := coded[at + wide] >> 1 & 63) < 32 or kind in _HEVC_SETS:
            kept.append(coded[at:end])
        at = end
    return b"".join(kept)


def _units_of_av1(coded: bytes) -> bytes:
    kept, at = [], 0
    while at < len(coded):
        begin, head = at, coded[at]
        at += 2 if head & 4 else 1
        size = len(coded) - at
        if head & 2:
            size = shift = 0
            while True:
                byte = coded[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        if at + size > len(coded):
            raise ValueError("a unit is cut off")
        at += size
        if head >> 3 & 15 in _AV1_UNITS:
            kept.append(coded[begin:at])
    return b"".join(kept)
