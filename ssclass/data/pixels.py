"""A picture of any mode that Pillow knows, shrunk and as 8-bit sRGB on white.

By rule, not by list: what a mode stores (a palette, alpha, premultiplied alpha, wide numbers) says what is done.
Change what comes out and `images.DECODE_VERSION` must go up.
"""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


@cache
def pillow() -> Any:
    """Pillow's Image module, with HEIF; its warnings (large pictures, odd EXIF) give way to our own checks."""
    import pillow_heif
    from PIL import Image

    pillow_heif.register_heif_opener()
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


def shrunk(picture: PilImage, side: int, depth: int | None = None) -> PilImage:
    """A loaded picture as 8-bit sRGB, what is transparent white, at least twice `side` where it has that.

    `depth`: bits a sample had in a PNG, whose transparent colour is named in them.
    """
    picture = _averageable(picture, depth)
    shrink = max(1, picture.width // (2 * side)), max(1, picture.height // (2 * side))
    if shrink != (1, 1):
        profile = picture.info.get("icc_profile")
        picture = picture.reduce(shrink)
        picture.info["icc_profile"] = profile
    if picture.mode in ("I", "F"):
        picture = pillow().fromarray(_eight_bits(np.asarray(picture)))
    elif picture.has_transparency_data and picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    if picture.mode != "RGBA":
        return _to_srgb(picture)
    white = pillow().new("RGB", picture.size, "white")
    white.paste(_to_srgb(picture), mask=picture.getchannel("A"))
    return white  # type: ignore[no-any-return]


def _averageable(picture: PilImage, depth: int | None) -> PilImage:
    """The picture in a mode of which neighbours can be averaged: no palette, no 16-bit words, no named transparency."""
    if picture.mode.startswith("I;16"):
        return _from_16_bits(picture)
    clear = picture.info.get("transparency")
    if picture.mode == "1":
        picture = picture.convert("L")
        if clear is not None:  # 0 or 255 already
            picture.info["transparency"] = clear
    if depth is not None and clear is not None and picture.mode in ("L", "RGB"):
        picture.info["transparency"] = _in_8_bits(clear, depth)
    if picture.mode == "La":
        return picture.convert("LA")
    if picture.mode in ("RGBa", "PA") or (picture.has_transparency_data and picture.mode in ("P", "L", "RGB")):
        return picture.convert("RGBA")
    if picture.mode in ("P", "HSV"):  # a hue is an angle
        return picture.convert("RGB")
    return picture


def _from_16_bits(picture: PilImage) -> PilImage:
    """Grey of 16 bits as 8, and white where it is the colour that stands for transparent."""
    values = np.asarray(picture)
    grey = (values >> 8).astype(np.uint8)
    if isinstance(clear := picture.info.get("transparency"), int):
        grey[values == clear] = 255
    return pillow().fromarray(grey)  # type: ignore[no-any-return]


def _in_8_bits(clear: Any, depth: int) -> Any:
    """The transparent colour of a PNG (samples of `depth` bits) in the samples that Pillow makes of its pixels."""
    if isinstance(clear, tuple):
        return tuple(_in_8_bits(each, depth) for each in clear)
    if not isinstance(clear, int):
        return clear
    return clear >> 8 if depth == 16 else clear * 255 // ((1 << depth) - 1)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey of 32 bits or floats, [h, w] → uint8: 0-1, 0-255, 0-65535 or up to the highest value, whichever fits."""
    values = np.nan_to_num(values.astype(np.float32))
    top = float(values.max())
    full = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    return (values.clip(0, full) * (255 / full)).astype(np.uint8)


def _to_srgb(picture: PilImage) -> PilImage:
    """RGB by the embedded profile; without one, or with a broken one or one for other channels, as it stands."""
    from PIL import ImageCms

    if picture.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture, lab, _srgb(), outputMode="RGB") or picture.convert("RGB")
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
