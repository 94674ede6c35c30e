"""What a photo's file says beside its pixels: where it was taken, by whom, with what. Found, and taken out.

A photo without it is always a file written anew: what its pixels and colours need is copied, the rest is not
(`ssclass.data.rewriting`, `ssclass.data.stills`). The new file is compared with the old one, pixel by pixel; where they
differ, or the file is not as its format says, the photo becomes a PNG of its pixels. Orientation and colours stay:
without them the photo would look another.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

from ssclass.data.images import FORMATS, FORMER, pillow, thumbnail
from ssclass.data.rasters import bmp, jpeg2000
from ssclass.data.refusals import Refused
from ssclass.data.rewriting import ORIENTATION, gif, jpeg, png, webp
from ssclass.data.stills import says_more, still
from ssclass.data.structure import largest_page

TECHNICAL = {ORIENTATION, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0111, 0x0115, 0x0116, 0x0117, 0x011A, 0x011B}
TECHNICAL |= {0x00FE, 0x011C, 0x0128, 0x013D, 0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x0152, 0x0153, 0x0213, 0x8773}
"""Tags of a TIFF's picture itself (sizes, strips, resolution, colour); other tags tell of a person or a place."""
FRAMES = 1000  # of an animation that are compared; a longer one becomes a PNG of its first
_REWRITE = {"JPEG": jpeg, "MPO": jpeg, "PNG": png, "WEBP": webp, "GIF": gif, "BMP": bmp, "JPEG2000": jpeg2000}
_REWRITE |= {"HEIF": still, "AVIF": still}


def personal(data: bytes) -> bool:
    """Whether a photo that opens says more than its pixels, colours and orientation, or cannot be told not to."""
    try:
        with pillow().open(io.BytesIO(data), formats=FORMATS + FORMER) as picture:
            if picture.format in ("HEIF", "AVIF"):
                return says_more(data)
            if picture.format in _REWRITE:
                return bool(_REWRITE[picture.format](data, _tag(picture), lambda profile: profile) != data)
            if picture.format == "TIFF":
                return bool(set(picture.tag_v2) - TECHNICAL or picture.n_frames > 1)
            return True  # PPM, TGA, DIB, which earlier versions let in
    except Exception:  # decoders and EXIF raise whatever they like
        return True


def strip(data: bytes) -> bytes:
    """The same photo, its file written anew without what `personal` finds; Refused when it cannot be decoded.

    The pixels are the same, bit for bit, in the same format; a PNG where that cannot be done, or where the format is
    one that is no longer let in.
    """
    try:
        made = _rewritten(data)
        if made == data:
            return data
        if _alike(data, made):
            return made
    except Exception:  # as above
        pass
    try:
        return _as_png(data)
    except Exception as error:
        raise Refused("corrupt", f"no copy can be made of it ({type(error).__name__})") from error


def _rewritten(data: bytes) -> bytes:
    with pillow().open(io.BytesIO(data), formats=FORMATS + FORMER) as picture:
        if picture.format == "TIFF":
            return _saved_anew(picture)
        return _REWRITE[picture.format](data, _tag(picture), plain_profile)


def _tag(picture: Any) -> int:
    """How a photo is to be turned (EXIF 0x0112); 1, not at all, where rubbish says it."""
    try:
        tag = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF is a TIFF inside the photo
        return 1
    return tag if isinstance(tag, int) else 1


def _alike(one: bytes, other: bytes) -> bool:
    """Whether two files show the same: every stored pixel of every frame, and what is made of the colour profile."""
    image = pillow()
    with image.open(io.BytesIO(one)) as old, image.open(io.BytesIO(other)) as new:
        if page := largest_page(old):
            old.seek(page)
        moving = old.format in ("GIF", "PNG", "WEBP")
        frames = getattr(old, "n_frames", 1) if moving else 1
        if frames != (getattr(new, "n_frames", 1) if moving else 1) or frames > FRAMES:
            return False
        for frame in range(frames):
            if frame:
                old.seek(frame)
                new.seek(frame)
            if _stored(old) != _stored(new):
                return False
    return bool(np.array_equal(thumbnail(one, 512), thumbnail(other, 512)))


def _stored(picture: Any) -> tuple[Any, ...]:
    picture.load()
    palette = picture.getpalette("RGBA") if picture.mode in ("P", "PA") else None
    return picture.mode, picture.size, palette, picture.info.get("transparency"), picture.tobytes()


def _saved_anew(picture: Any) -> bytes:
    """A TIFF's picture, upright as Pillow gives it, as a TIFF of one page."""
    out = io.BytesIO()
    profile = picture.info.get("icc_profile")
    if page := largest_page(picture):
        picture.seek(page)
    picture.load()
    plain = pillow().frombytes(picture.mode, picture.size, picture.tobytes())
    if picture.mode in ("P", "PA"):
        plain.putpalette(picture.getpalette())
    profile = plain_profile(profile) if profile else None
    plain.save(out, "TIFF", compression="tiff_adobe_deflate", icc_profile=profile)
    return out.getvalue()


def _as_png(data: bytes) -> bytes:
    """All pixels of the photo, upright, 8 bits a colour, as they look: sRGB on white."""
    with pillow().open(io.BytesIO(data), formats=FORMATS + FORMER) as picture:
        longest = max(picture.size)
    out = io.BytesIO()
    pillow().fromarray(thumbnail(data, longest)).save(out, "PNG")
    return out.getvalue()


_COLOUR_TAGS = {b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt", b"bkpt", b"rTRC", b"gTRC", b"bTRC", b"kTRC", b"chad", b"cicp"}
_COLOUR_TAGS |= {kind + b"%d" % n for kind in (b"A2B", b"B2A", b"D2B", b"B2D") for n in range(4)}
_NAMED = b"desc\0\0\0\0\0\0\0\x08profile\0" + bytes(78)
_NAMED_4 = b"mluc\0\0\0\0\0\0\0\1\0\0\0\x0cenUS\0\0\0\x0e\0\0\0\x1c" + "profile".encode("utf-16-be") + b"\0\0"


def plain_profile(profile: bytes) -> bytes:
    """A colour profile (ICC.1) with what the colours need: a monitor's has its owner's name for it, and when.

    Empty where it is no profile, which says nothing of colours.
    """
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return b""
    (count,) = struct.unpack(">I", profile[128:132])
    entries = [struct.unpack(">4sII", profile[at : at + 12]) for at in range(132, 132 + 12 * min(count, 100), 12)]
    named = _NAMED if profile[8] < 4 else _NAMED_4
    bodies = {b"desc": named, b"cprt": named if profile[8] >= 4 else b"text\0\0\0\0none\0\0\0\0"}
    bodies |= {sign: profile[at : at + size] for sign, at, size in entries if sign in _COLOUR_TAGS}
    table, packed, places = b"", b"", dict[bytes, int]()
    start = 132 + 12 * len(bodies)
    for sign, body in bodies.items():
        if body not in places:
            places[body] = start + len(packed)
            packed += body + bytes(-len(body) % 4)
        table += struct.pack(">4sII", sign, places[body], len(body))
    head = bytearray(profile[:128])
    for begin, end in ((4, 8), (24, 36), (40, 44), (48, 56), (80, 128)):
        head[begin:end] = bytes(end - begin)
    head[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    head[:4] = struct.pack(">I", start + len(packed))
    return bytes(head) + struct.pack(">I", len(bodies)) + table + packed
