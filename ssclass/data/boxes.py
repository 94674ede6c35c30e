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
        size, head = number(data, begin, 4), 8
        if size == 1:
            size, head = number(data, begin + 8, 8), 16
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
    primary = number(data, begin + 4, 4 if data[begin] else 2)
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
            yield Item(number(data, at + 4, wide), kind, data[at + 10 + wide : stop].strip(b"\0"))


def _locate(data: bytes, begin: int, end: int, items: dict[int, Item], idat: tuple[int, int]) -> None:
    version = data[begin]
    sizes = [data[begin + 4] >> 4, data[begin + 4] & 15, data[begin + 5] >> 4, data[begin + 5] & 15]
    offset_size, length_size, base_size, index_size = sizes
    wide = 4 if version == 2 else 2
    at = begin + 6 + wide
    for _ in range(min(number(data, begin + 6, wide), MOST)):
        item = items.get(number(data, at, wide))
        at += wide
        method = 0
        if version:
            method = data[at + 1] & 15
            at += 2
        at += 2  # which file: this one
        base = number(data, at, base_size)
        at += base_size
        count = number(data, at, 2)
        at += 2
        for _ in range(count):
            if at > end:
                raise ValueError("iloc is cut off")
            if version:
                at += index_size
            start = base + number(data, at, offset_size)
            length = number(data, at + offset_size, length_size)
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
        count, at = number(data, at + 4, 4), at + 8
        for _ in range(min(count, MOST)):
            item = items.get(number(data, at, wide_id))
            at += wide_id + 1
            for _ in range(data[at - 1]):
                value = number(data, at, wide_index)
                at += wide_index
                top = 1 << (8 * wide_index - 1)
                place = (value & (top - 1)) - 1
                if item is not None and 0 <= place < len(known):
                    item.properties.append((*known[place], bool(value & top)))


def _refer(data: bytes, begin: int, end: int, items: dict[int, Item]) -> None:
    wide = 4 if data[begin] else 2
    for name, at, _stop in boxes(data, begin + 4, end):
        item = items.get(number(data, at, wide))
        count = number(data, at + wide, 2)
        ids = [number(data, at + wide + 2 + n * wide, wide) for n in range(min(count, MOST))]
        if item is not None:
            item.references.setdefault(name, []).extend(ids)


def number(data: bytes, at: int, size: int) -> int:
    """A number of so many bytes, big-endian; ValueError where the file ends before it."""
    if at + size > len(data):
        raise ValueError("the file is cut off")
    return int.from_bytes(data[at : at + size], "big")
