"""Bytes of a photo → checks, fingerprints, pixels. The file's name is never trusted, its bytes are.

One path from bytes to pixels (`_open`) serves the checks at ingest, training, evaluation and serving, so
whatever `inspect` lets in, `decode` can decode. Change what it yields and `DECODE_VERSION` must go up.

Bounded: the pixel count is read from the header before anything is unpacked, and a file whose structure belies its
header is refused; a large JPEG is unpacked at a fraction of its size; pictures that stay large are unpacked one at a
time, however many threads call. Photos of strangers are inspected in a process of their own (`ssclass.data.decoders`),
whose time and memory are limited too.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ssclass.data.palette import palette
from ssclass.data.pixels import pillow as pillow
from ssclass.data.pixels import shrunk
from ssclass.data.refusals import Refused as Refused
from ssclass.data.refusals import undecoded, unopened
from ssclass.data.shapes import Size, fitted
from ssclass.data.structure import check_developed, check_structure, completed, declared_pixels, largest_page

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

# Part of the feature fingerprint. It stayed 1 when palettes with alpha (TIFF), transparent colours of PNGs without 8
# bits a sample, and TIFFs that begin with a preview were put right: all other photos have the pixels that they had, and
# a champion of version 1 beside candidates of version 2 would have all features of all photos computed twice.
DECODE_VERSION = 1

# What cameras, phones and apps write; nothing else is let in. EPS and PDF would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "HEIF", "AVIF", "TIFF", "BMP", "JPEG2000")
FORMER = ("DIB", "PPM", "TGA")  # were let in by earlier versions, so a data set may have them
MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # whose frames are a film; of the others they are pages, or previews
LARGE = 4_000_000  # pixels; more than this in memory at once only in one thread
CANVAS = 256  # side of the square picture from which dhash and palette are taken


class Limits(Protocol):
    """What `inspect` asks of a photo; `ssclass.params.IngestParams` has it."""

    @property
    def max_bytes(self) -> int:
        """Bytes of the file."""
        ...

    @property
    def max_pixels(self) -> int:
        """Width times height."""
        ...

    @property
    def min_side(self) -> int:
        """Pixels of the shorter side."""
        ...

    @property
    def animated(self) -> str:
        """``first`` (frame), or ``refuse``."""
        ...


@dataclass(frozen=True)
class Picture:
    """What is known of a photo: sha256 of its bytes as received, width and height of the upright picture.

    `dhash`: 16 hex digits. `palette`: 512 bytes or none, of the colours of the picture or, where its background is
    plain, of its foreground. `ended`: the file has its end;
    else only bytes after the picture's are missing.
    """

    sha256: str
    width: int
    height: int
    dhash: str
    palette: bytes
    ended: bool = True


Room = Callable[[int], AbstractContextManager[object]]
"""Waits until a picture of so many pixels may be unpacked, and holds that right inside the block."""

_one_large = threading.Lock()


def one_large(pixels: int) -> AbstractContextManager[object]:
    """Of pictures of more than `LARGE` pixels, one at a time in this process."""
    return _one_large if pixels > LARGE else nullcontext()


def inspect(data: bytes, params: Limits, room: Room = one_large) -> Picture:
    """Decode a photo to its last byte and describe it; raises Refused."""
    if not data:
        raise Refused("empty", "the file has no bytes")
    if len(data) > params.max_bytes:
        raise Refused("too large", f"more than ingest.max_bytes ({params.max_bytes:,} bytes)")
    opened = _open(data, CANVAS, params, room)
    canvas = opened.picture.resize((CANVAS, CANVAS), pillow().BILINEAR)
    import imagehash

    dhash = str(imagehash.dhash(canvas))
    sha256 = hashlib.sha256(data).hexdigest()
    return Picture(sha256, *opened.size, dhash, palette(np.asarray(canvas)), opened.ended)


def decode(data: bytes, size: Size, limits: Limits | None = None, room: Room = one_large) -> np.ndarray:
    """The whole picture squeezed into a square, or in its own shape: uint8 [h, w, 3], RGB, upright; raises Refused.

    `limits`: what a photo must keep to; without them, whatever earlier versions let in is decoded.
    """
    opened = _open(data, size, limits, room)
    return np.asarray(opened.picture.resize(fitted(size, *opened.size), pillow().BILINEAR), dtype=np.uint8)


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """The whole picture in its own shape, its longer side `side` pixels: uint8 [h, w, 3], upright; raises Refused."""
    picture = _open(data, side).picture
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return np.asarray(picture.resize((width, height), pillow().BILINEAR), dtype=np.uint8)


@dataclass(frozen=True)
class _Opened:
    """`size` of the upright photo; an 8-bit RGB copy of at least twice the side wanted; `ended`: see `Picture`."""

    size: tuple[int, int]
    picture: PilImage
    ended: bool


def _open(data: bytes, size: Size, limits: Limits | None = None, room: Room = one_large) -> _Opened:
    """The photo in these bytes, of an animation the first frame; raises Refused.

    Without `limits`, what earlier versions let in opens too, and Pillow's own limit of pixels holds (179 million).
    """
    declared = declared_pixels(data)
    if limits and declared > limits.max_pixels:
        raise Refused("too many pixels", f"{declared:,} are more than ingest.max_pixels ({limits.max_pixels:,})")
    try:
        with room(declared) if declared else nullcontext():
            return _read(data, size, limits, nullcontext if declared else room)
    except _Cut as cut:
        opened = _open(cut.whole, size, limits, room)
        return _Opened(opened.size, opened.picture, ended=False)


class _Cut(Exception):
    """A JPEG lacks its end, and nothing else; `whole`: with an end."""

    def __init__(self, whole: bytes) -> None:
        self.whole = whole


def _read(data: bytes, size: Size, limits: Limits | None, room: Room) -> _Opened:
    image = pillow()
    try:
        picture = image.open(io.BytesIO(data), formats=FORMATS if limits else FORMATS + FORMER)
    except (image.DecompressionBombError, image.DecompressionBombWarning) as error:
        raise Refused("too many pixels", f"a decompression bomb by its header ({error})") from None
    except MemoryError:
        raise Refused("too costly", "opening it takes more memory than a photo may") from None
    except Exception as error:  # decoders raise whatever they like on damaged headers
        raise unopened(data, error) from None
    kind = picture.format
    with picture:
        try:
            if page := largest_page(picture):
                picture.seek(page)
            if limits:
                _check(data, picture, limits)
            check_structure(data, picture)
            width, height = picture.size
            with room(width * height):
                try:
                    return _unpack(data, picture, size)
                except Exception as error:  # as above
                    if kind in ("JPEG", "MPO") and (whole := _completed(data, error)):
                        raise _Cut(whole) from None
                    raise
        except (Refused, _Cut):
            raise
        except MemoryError:
            raise Refused("too costly", f"a {kind} that takes more memory than {width} x {height} pixels may") from None
        except Exception as error:  # as above
            raise undecoded(kind, error) from None


def _check(data: bytes, picture: PilImage, limits: Limits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise Refused("too many pixels", f"{width} x {height} is more than ingest.max_pixels ({limits.max_pixels:,})")
    check_developed(data, picture)
    if min(width, height) < limits.min_side:
        raise Refused("too small", f"{width} x {height}; ingest.min_side is {limits.min_side}")
    if limits.animated == "refuse" and picture.format in MOVING and getattr(picture, "is_animated", False):
        frames = picture.n_frames  # type: ignore[attr-defined]
        raise Refused("animated", f"a {picture.format} of {frames} frames; ingest.animated is refuse")


def _unpack(data: bytes, picture: PilImage, size: Size) -> _Opened:
    """Every byte of the first frame decoded; upright."""
    image = pillow()
    width, height = picture.size
    side = max(fitted(size, width, height))
    if picture.format in ("JPEG", "MPO"):
        picture.draft(None, (2 * side, 2 * side))  # unpack at 1/2, 1/4 or 1/8; elsewhere draft may take a thumbnail
    picture.load()
    small = shrunk(picture, side, data[24] if picture.format == "PNG" else None)
    if (turned := _orientation(picture)) is not None:
        small = small.transpose(turned)
    swaps = turned in (image.ROTATE_90, image.ROTATE_270, image.TRANSPOSE, image.TRANSVERSE)
    return _Opened((height, width) if swaps else (width, height), small, ended=True)


def _completed(data: bytes, error: Exception) -> bytes | None:
    """The JPEG with its end, where `error` says that it is cut off and all of the picture is there all the same."""
    try:
        return completed(data) if "truncat" in str(error).lower() else None
    except Exception:  # as above
        return None


def _orientation(picture: PilImage) -> Any:
    """The transpose that puts the photo upright (EXIF tag 0x0112), or None; broken EXIF says nothing."""
    image = pillow()
    try:
        tag = picture.getexif().get(0x0112)
    except Exception:  # EXIF is a TIFF inside the photo: as above
        return None
    turns = {
        2: image.FLIP_LEFT_RIGHT,
        3: image.ROTATE_180,
        4: image.FLIP_TOP_BOTTOM,
        5: image.TRANSPOSE,
        6: image.ROTATE_270,
        7: image.TRANSVERSE,
        8: image.ROTATE_90,
    }
    return turns.get(tag) if isinstance(tag, int) else None
