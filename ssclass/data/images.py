"""Bytes of a photo → checks, fingerprints, pixels. The file's name is never trusted, its bytes are.

One path from bytes to pixels (`_open`) serves the checks at ingest, training, evaluation and serving, so
whatever `inspect` lets in, `decode` can decode. Change what it yields and `DECODE_VERSION` must go up.

Bounded: the pixel count is read from the header before anything is unpacked; a large JPEG is unpacked at a
fraction of its size; pictures that stay large are unpacked one at a time, however many threads call.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclass.data.refusals import Refused as Refused
from ssclass.data.refusals import undecoded, unopened
from ssclass.params import IngestParams

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

DECODE_VERSION = 1  # part of the feature fingerprint

# What is tried. Left out on purpose: EPS and PDF (they start other programs), and formats no camera or app writes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "HEIF", "AVIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "TGA")
MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # whose frames are a film; of the others they are pages, or previews
LARGE = 4_000_000  # pixels; more than this in memory at once only in one thread
CANVAS = 256  # side of the square picture from which dhash and palette are taken
PLAIN = 12.0  # effective colours (exp of the entropy); 2 % of the 741 real photos have fewer


@dataclass(frozen=True)
class Picture:
    """What is known of a photo: sha256 of its bytes as received, width and height of the upright picture.

    `dhash`: 16 hex digits. `palette`: the square root of its 8x8x8 colour histogram, 512 bytes (0-255, its
    length about 255), or empty for a picture with too few colours to be told by them.
    """

    sha256: str
    width: int
    height: int
    dhash: str
    palette: bytes


def inspect(data: bytes, params: IngestParams) -> Picture:
    """Decode a photo to its last byte and describe it; raises Refused."""
    if not data:
        raise Refused("empty", "the file has no bytes")
    if len(data) > params.max_bytes:
        raise Refused("too large", f"more than ingest.max_bytes ({params.max_bytes:,} bytes)")
    (width, height), picture = _open(
        data, CANVAS, max_pixels=params.max_pixels, min_side=params.min_side, animated=params.animated == "first"
    )
    canvas = picture.resize((CANVAS, CANVAS), pillow().BILINEAR)
    import imagehash

    sha256 = hashlib.sha256(data).hexdigest()
    return Picture(sha256, width, height, str(imagehash.dhash(canvas)), _palette(np.asarray(canvas)))


def decode(data: bytes, size: int) -> np.ndarray:
    """The whole picture squeezed into a square: uint8 [size, size, 3], RGB, upright; raises Refused."""
    _, picture = _open(data, size)
    return np.asarray(picture.resize((size, size), pillow().BILINEAR), dtype=np.uint8)


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """The whole picture in its own shape, its longer side `side` pixels: uint8 [h, w, 3], upright; raises Refused."""
    _, picture = _open(data, side)
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return np.asarray(picture.resize((width, height), pillow().BILINEAR), dtype=np.uint8)


@cache
def pillow() -> Any:
    """Pillow's Image module, with HEIF; its warnings (large pictures, odd EXIF) give way to our own checks."""
    import pillow_heif
    from PIL import Image

    pillow_heif.register_heif_opener()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


_one_large = threading.Lock()


def _open(
    data: bytes, side: int, max_pixels: int | None = None, min_side: int = 1, *, animated: bool = True
) -> tuple[tuple[int, int], PilImage]:
    """(width, height) of the upright photo, and an 8-bit RGB copy of it of at least twice `side`, if it has that.

    Of an animation the first frame, unless `animated` is off.

    Without `max_pixels`, Pillow's own limit holds (179 million).
    """
    image = pillow()
    try:
        picture = image.open(io.BytesIO(data), formats=FORMATS)
    except (image.DecompressionBombError, image.DecompressionBombWarning) as error:
        raise Refused("too many pixels", f"a decompression bomb by its header ({error})") from None
    except Exception as error:  # decoders raise whatever they like on damaged headers
        raise unopened(data, error) from None
    with picture:
        width, height = picture.size
        if max_pixels is not None and width * height > max_pixels:
            raise Refused("too many pixels", f"{width} x {height} is more than ingest.max_pixels ({max_pixels:,})")
        if min(width, height) < min_side:
            raise Refused("too small", f"{width} x {height}; ingest.min_side is {min_side}")
        try:
            if not animated and picture.format in MOVING and getattr(picture, "is_animated", False):
                raise Refused("animated", f"a {picture.format} of {picture.n_frames} frames; ingest.animated is refuse")
            if width * height > LARGE:
                with _one_large:
                    small = _unpack(picture, side)
            else:
                small = _unpack(picture, side)
            turned = _orientation(picture)
        except Refused:
            raise
        except Exception as error:  # as above
            raise undecoded(picture.format, error) from None
    if turned is not None:
        small = small.transpose(turned)
    swaps = turned in (image.ROTATE_90, image.ROTATE_270, image.TRANSPOSE, image.TRANSVERSE)
    return ((height, width) if swaps else (width, height)), small


def _unpack(picture: PilImage, side: int) -> PilImage:
    """Every byte decoded, the first frame shrunk to little more than twice `side`, 8-bit sRGB, alpha on white."""
    image = pillow()
    if picture.format in ("JPEG", "MPO"):
        picture.draft(None, (2 * side, 2 * side))  # unpack at 1/2, 1/4 or 1/8; elsewhere draft may take a thumbnail
    picture.load()
    if picture.mode.startswith("I;16"):
        picture = image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.has_transparency_data and picture.mode in ("P", "L", "RGB"):
        picture = picture.convert("RGBA")
    elif picture.mode == "P":
        picture = picture.convert("RGB")
    shrink = max(1, picture.width // (2 * side)), max(1, picture.height // (2 * side))
    if shrink != (1, 1):
        profile = picture.info.get("icc_profile")
        picture = picture.reduce(shrink)
        picture.info["icc_profile"] = profile
    if picture.mode in ("I", "F"):
        picture = image.fromarray(_eight_bits(np.asarray(picture)))
    elif picture.has_transparency_data and picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    if picture.mode != "RGBA":
        return _to_srgb(picture)
    white = image.new("RGB", picture.size, "white")
    white.paste(_to_srgb(picture), mask=picture.getchannel("A"))
    return white  # type: ignore[no-any-return]


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of 32 bits or floats, [h, w] → uint8: 0-1, 0-255, 0-65535 or up to the highest value, whichever fits."""
    values = np.nan_to_num(values.astype(np.float32))
    top = float(values.max())
    full = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    return (values.clip(0, full) * (255 / full)).astype(np.uint8)


def _to_srgb(picture: PilImage) -> PilImage:
    """RGB by the embedded profile; without one, or with a broken one or one for other channels, as it stands."""
    from PIL import ImageCms

    colours = picture.convert("RGB") if picture.mode in ("RGBA", "LA", "P", "PA") else picture
    profile = picture.info.get("icc_profile")
    if profile and colours.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if made := ImageCms.profileToProfile(colours, source, _srgb(), outputMode="RGB"):
                return made
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            return colours.convert("RGB")
    return colours.convert("RGB")


@cache
def _srgb() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")


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


def _palette(canvas: np.ndarray) -> bytes:
    """Colour histogram of uint8 [h, w, 3], as `Picture.palette`."""
    r, g, b = (canvas >> 5).astype(np.int64).reshape(-1, 3).T
    share = np.bincount(r << 6 | g << 3 | b, minlength=512) / r.size
    some = share[share > 0]
    if np.exp(-(some * np.log(some)).sum()) < PLAIN:
        return b""
    return bytes(np.rint(np.sqrt(share) * 255).astype(np.uint8))
