"""The boxes of HEIF and AVIF files (ISO/IEC 14496-12, 23008-12): which pictures there are, and where their bytes lie.

Whatever is out of order is a ValueError, whatever length a box claims: nothing is copied or counted before it is
checked against the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MOST = 10_000  # items, properties, references of a file; a phone's has fewer than 100


@dataclass
class Item:
    """Something stored in the file: `kind` is its four letters, like av01, hvc1, grid or Exif.

    extents: (begin, end) in the file. properties: (name, body, whether a reader must know it). references: name → ids.
    """

    id: int
    kind: bytes = b""
    name: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    properties: list[tuple[bytes, bytes, bool]] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)


@dataclass
class Stills:
    """What the file's `meta` box says: its major brand, its items by id, and which of them is the picture."""

    brand: bytes
    items: dict[int, Item]
    primary: int

    def of_picture(self) -> list[Item]:
        """The primary item, its tiles, and what holds its alpha; the primary first."""
        found, waiting = {}, [self.primary]
        while waiting:
            if (each := waiting.pop()) in found or each not in self.items:
                continue
            found[each] = self.items[each]
            waiting += self.items[each].references.get(b"dimg", [])
            waiting += [other.id for other in self.items.values() if _alpha_of(other, each)]
        return list(found.values())


def _alpha_of(item: Item, picture: int) -> bool:
    roles = [body for name, body, _ in item.properties if name == b"auxC"]
    return picture in item.references.get(b"auxl", []) and any(b"alpha" in b or b"auxid:1" in b for b in roles)


def boxes(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, end) of the body of each box between two places; ValueError for one that ends outside."""
    end = len(data) if end is None else end
    while begin + 8 <= end:
        size, head = _number(data, begin, 4), 8
        if size == 1:
            size, head = _number(data, begin + 8, 8), 16
        elif size == 0:
            size = end - begin
        if size < head or begin + size > end:
            raise ValueError(f"a box {data[begin + 4 : begin + 8]!r} ends outside of what holds it")
        yield data[begin + 4 : begin + 8], begin + head, begin + size
        begin += size


def find(data: bytes, path: bytes, begin: int = 0, end: int | None = None) -> tuple[int, int]:
    """Where the body of the first box of a path, like ``moov/trak``, lies; ValueError when it is not there."""
    for part in path.split(b"/"):
        for name, *span in boxes(data, begin, end):
            if name == part:
                begin, end = span
                break
        else:
            raise ValueError(f"no {path.decode('latin-1')}")
    return begin, len(data) if end is None else end


def read_stills(data: bytes) -> Stills:
    """Read the `meta` box of a HEIF or AVIF file."""
    at, end = find(data, b"ftyp")
    brand = data[at : min(at + 4, end)]
    at, end = find(data, b"meta")
    inside = {name: (begin, stop) for name, begin, stop in boxes(data, at + 4, end)}
    for needed in (b"pitm", b"iinf", b"iloc", b"iprp"):
        if needed not in inside:
            raise ValueError(f"meta without {needed.decode()}")
    items = {each.id: each for each in _infos(data, *inside[b"iinf"])}
    idat = inside.get(b"idat", (0, 0))
    _locate(data, *inside[b"iloc"], items, idat)
    _describe(data, *inside[b"iprp"], items)
    if b"iref" in inside:
        _refer(data, *inside[b"iref"], items)
    begin, _ = inside[b"pitm"]
    primary = _number(data, begin + 4, 4 if data[begin] else 2)
    if primary not in items:
        raise ValueError("its picture is none of its items")
    return Stills(brand, items, primary)


def _infos(data: bytes, begin: int, end: int) -> Iterator[Item]:
    for n, (name, at, stop) in enumerate(boxes(data, begin + (8 if data[begin] else 6), end)):
        if n > MOST:
            raise ValueError("too many items")
        if name == b"infe" and data[at] >= 2:
            wide = 4 if data[at] == 3 else 2
            kind = data[at + 6 + wide : min(at + 10 + wide, stop)]
            yield Item(_number(data, at + 4, wide), kind, data[at + 10 + wide : stop].strip(b"\0"))


def _locate(data: bytes, begin: int, end: int, items: dict[int, Item], idat: tuple[int, int]) -> None:
    version = data[begin]
    sizes = [data[begin + 4] >> 4, data[begin + 4] & 15, data[begin + 5] >> 4, data[begin + 5] & 15]
    offset_size, length_size, base_size, index_size = sizes
    wide = 4 if version == 2 else 2
    at = begin + 6 + wide
    for _ in range(min(_number(data, begin + 6, wide), MOST)):
        item = items.get(_number(data, at, wide))
        at += wide
        method = 0
        if version:
            method = data[at + 1] & 15
            at += 2
        at += 2  # which file: this one
        base = _number(data, at, base_size)
        at += base_size
        count = _number(data, at, 2)
        at += 2
        for _ in range(count):
            if at > end:
                raise ValueError("iloc is cut off")
            if version:
                at += index_size
            start = base + _number(data, at, offset_size)
            length = _number(data, at + offset_size, length_size)
            at += offset_size + length_size
            if method == 1:
                start += idat[0]
            elif method > 1:
                raise ValueError("an item made of other items' bytes")
            if item is not None:
                stop = start + length if length else len(data)
                if stop > len(data):
                    raise ValueError("an item ends outside of the file")
                item.extents.append((start, stop))


def _describe(data: bytes, begin: int, end: int, items: dict[int, Item]) -> None:
    at, stop = find(data, b"ipco", begin, end)
    known = [(name, data[start:last]) for name, start, last in boxes(data, at, stop)]
    for name, at, _stop in boxes(data, begin, end):
        if name != b"ipma":
            continue
        wide_id, wide_index = (4 if data[at] else 2), (2 if data[at + 3] & 1 else 1)
        count, at = _number(data, at + 4, 4), at + 8
        for _ in range(min(count, MOST)):
            item = items.get(_number(data, at, wide_id))
            at += wide_id + 1
            for _ in range(data[at - 1]):
                value = _number(data, at, wide_index)
                at += wide_index
                top = 1 << (8 * wide_index - 1)
                place = (value & (top - 1)) - 1
                if item is not None and 0 <= place < len(known):
                    item.properties.append((*known[place], bool(value & top)))


def _refer(data: bytes, begin: int, end: int, items: dict[int, Item]) -> None:
    wide = 4 if data[begin] else 2
    for name, at, _stop in boxes(data, begin + 4, end):
        item = items.get(_number(data, at, wide))
        count = _number(data, at + wide, 2)
        ids = [_number(data, at + wide + 2 + n * wide, wide) for n in range(min(count, MOST))]
        if item is not None:
            item.references.setdefault(name, []).extend(ids)


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise ValueError("the file is cut off")
    return int.from_bytes(data[at : at + size], "big")


def coded_pixels(data: bytes) -> int:
    """Pixels of the largest frame that the picture of an AVIF file, or the first of its film, is coded in; 0: unknown.

    What the container says of the size is not believed: the decoder goes by the sequence headers (AV1, 5.5.1).
    """
    most = 0
    for begin, end in _av1(data):
        for width, height in _sequences(data, begin, end):
            most = max(most, width * height)
    return most


def _av1(data: bytes) -> Iterator[tuple[int, int]]:
    """Where AV1 data of the picture, or of the first frame of each track, lies."""
    try:
        for item in read_stills(data).of_picture():
            if item.kind == b"av01":
                yield from item.extents
    except (ValueError, IndexError):
        pass
    try:
        for name, *track in boxes(data, *find(data, b"moov")):
            if name == b"trak":
                begin, end = find(data, b"mdia/minf/stbl", *track)
                tables = {name: place for name, place, _ in boxes(data, begin, end)}
                wide = b"co64" in tables
                first = _number(data, tables[b"co64" if wide else b"stco"] + 8, 8 if wide else 4)
                at = tables[b"stsz"]
                size = _number(data, at + 4, 4) or _number(data, at + 12, 4)
                yield first, min(first + size, len(data))
    except (ValueError, IndexError, KeyError):
        pass


def _sequences(data: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """(width, height) of every sequence header among the open bitstream units between two places."""
    while at < end:
        head = data[at]
        at += 2 if head & 4 else 1
        size = end - at
        if head & 2:
            size = shift = 0
            while at < end:
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128 or shift > 56:
                    break
        if (head >> 3) & 15 == 1:
            yield _sequence(data[at : min(at + min(size, 200), end)])
        at += size


def _sequence(header: bytes) -> tuple[int, int]:
    """(width, height) of an AV1 sequence header; (0, 0) for one that is cut off."""
    bits = int.from_bytes(header, "big")
    left = 8 * len(header)

    def read(count: int) -> int:
        nonlocal left
        left -= count
        return (bits >> left) & ((1 << count) - 1) if left >= 0 else 0

    read(4)  # profile, still picture
    if read(1):  # reduced header
        read(5)
    else:
        delay = 0
        if read(1):  # timing
            read(64)
            if read(1):  # equal intervals: a number in Exp-Golomb code
                zeros = 0
                while left > 0 and not read(1):
                    zeros += 1
                read(zeros)
            if read(1):  # decoder model
                delay = read(5) + 1
                read(42)
        model = delay > 0
        display = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if model and read(1):
                read(2 * delay + 1)
            if display and read(1):
                read(4)
    across, down = read(4) + 1, read(4) + 1
    width, height = read(across) + 1, read(down) + 1
    return (width, height) if left >= 0 else (0, 0)
