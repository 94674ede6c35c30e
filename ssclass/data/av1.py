"""How large the pictures are that an AVIF file is coded in, whatever its container says."""

from __future__ import annotations

from collections.abc import Iterator

from ssclass.data.boxes import boxes, find, number, read_stills


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
                first = number(data, tables[b"co64" if wide else b"stco"] + 8, 8 if wide else 4)
                at = tables[b"stsz"]
                size = number(data, at + 4, 4) or number(data, at + 12, 4)
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
