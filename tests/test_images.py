"""Whatever a sender's file is: a refusal that names what is wrong, or the same pixels everywhere."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from ssclass.data.images import Refused, decode, inspect
from ssclass.demo.drawings import draw, junk
from ssclass.params import IngestParams

# In production `images` silences Pillow once; pytest undoes that for each test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
LIMITS = IngestParams()
pillow_heif.register_heif_opener()  # so that tests can write them


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    """A picture of 200 x 120 without symmetry: four differently coloured quarters on a slope."""
    slope = np.linspace(0, 60, 200)[None, :, None] + np.linspace(0, 40, 120)[:, None, None]
    pixels = np.zeros((120, 200, 3)) + slope
    pixels[:60, :100] += (150, 0, 0)
    pixels[:60, 100:] += (0, 150, 0)
    pixels[60:, :100] += (0, 0, 150)
    return Image.fromarray(pixels.astype(np.uint8))


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def close(data: bytes, picture: Image.Image, most: float = 4.0) -> bool:
    """Whether a file decodes to this picture, but for compression."""
    expected = np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), dtype=float)
    return float(np.abs(decode(data, 64) - expected).mean()) < most


def refusal(data: bytes, limits: IngestParams = LIMITS) -> Refused:
    with pytest.raises(Refused) as caught:
        inspect(data, limits)
    return caught.value


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF", "JPEG2000", "PPM", "GIF"])
def test_every_format_shows_the_same_picture(scene: Image.Image, kind: str) -> None:
    data = saved(scene, kind)
    assert (inspect(data, LIMITS).width, inspect(data, LIMITS).height) == (200, 120)
    assert close(data, scene, most=8 if kind == "GIF" else 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_all_eight_orientations_come_out_upright(scene: Image.Image, kind: str, tag: int) -> None:
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[tag]
    stored = scene if undo is None else scene.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = tag
    data = saved(stored, kind, exif=exif)
    seen, plain = inspect(data, LIMITS), inspect(saved(scene, kind), LIMITS)
    assert (seen.width, seen.height) == (200, 120)
    assert close(data, scene)
    assert (int(seen.dhash, 16) ^ int(plain.dhash, 16)).bit_count() <= 3


def test_of_heif_only_the_container_says_what_is_upright(scene: Image.Image) -> None:
    # ISO/IEC 23008-12: readers apply irot and imir (libheif does), and ignore EXIF's orientation.
    exif = Image.Exif()
    exif[0x0112] = 6
    assert close(saved(scene, "HEIF", exif=exif), scene)


def test_modes_that_are_not_rgb(scene: Image.Image) -> None:
    assert close(saved(scene.convert("CMYK"), "JPEG"), scene, most=6)
    assert close(saved(scene.convert("CMYK"), "TIFF"), scene, most=6)
    assert close(saved(scene.convert("L"), "JPEG"), scene.convert("L"))
    assert close(saved(scene.convert("P"), "PNG"), scene, most=8)
    assert close(saved(scene.convert("1"), "PNG"), scene.convert("1").convert("L"))


def test_16_bit_grey_is_scaled_not_clipped(scene: Image.Image) -> None:
    grey = scene.convert("L")
    wide = np.asarray(grey).astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        assert close(saved(Image.fromarray(wide), kind), grey)
    big_endian = Image.frombytes("I;16B", grey.size, wide.astype(">u2").tobytes())
    assert close(saved(big_endian, "TIFF"), grey)
    assert close(saved(Image.fromarray(np.asarray(grey, dtype=np.float32) / 255), "TIFF"), grey)
    assert close(saved(Image.fromarray(wide.astype(np.int32)), "TIFF"), grey)


def test_what_is_transparent_is_white(scene: Image.Image) -> None:
    half = scene.convert("RGBA")
    half.paste((10, 20, 30, 0), (0, 0, 100, 120))
    expected = Image.alpha_composite(Image.new("RGBA", scene.size, "white"), half)
    for kind in ("PNG", "WEBP", "TIFF"):
        assert close(saved(half, kind), expected)
    palette = scene.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    clear = palette.getpixel((5, 5))
    shown = palette.convert("RGB")
    shown.paste("white", mask=Image.fromarray(np.asarray(palette) == clear))
    assert close(saved(palette, "PNG", transparency=clear), shown)
    assert close(saved(palette, "GIF", transparency=clear), shown)
    assert close(saved(scene.convert("LA"), "PNG"), scene.convert("L"))


def test_icc_profiles_are_applied_and_broken_ones_ignored(scene: Image.Image) -> None:
    # A profile for Lab-like colours cannot apply to RGB; rubbish is no profile at all.
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"rubbish" * 40, lab):
        assert close(saved(scene, "JPEG", icc_profile=profile), scene)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert close(saved(scene, "JPEG", icc_profile=srgb), scene)
    swapped = _swap_red_and_blue(srgb)
    red, green, blue = scene.split()
    assert close(saved(Image.merge("RGB", (blue, green, red)), "PNG", icc_profile=swapped), scene)


def _swap_red_and_blue(profile: bytes) -> bytes:
    """The profile with its rXYZ and bXYZ tags renamed to each other: red's numbers mean blue."""
    return profile.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(scene: Image.Image, kind: str) -> None:
    later = [Image.new("RGB", scene.size, colour) for colour in ("black", "white")]
    data = saved(scene, kind, save_all=True, append_images=later, duration=100)
    assert close(data, scene, most=8)


def test_an_animation_is_refused_where_the_params_say_so(scene: Image.Image) -> None:
    still = IngestParams(animated="refuse")
    for kind in ("GIF", "WEBP", "PNG"):
        film = saved(scene, kind, save_all=True, append_images=[scene.rotate(90), scene.rotate(180)])
        refused = refusal(film, still)
        assert refused.reason == "animated"
        assert "3 frames" in refused.detail
        inspect(saved(scene, kind), still)
    for kind in ("MPO", "TIFF"):  # a camera's preview, and pages: no animations
        inspect(saved(scene, kind, save_all=True, append_images=[scene.rotate(90)]), still)


def test_a_wrong_extension_does_not_matter_and_rubbish_after_the_end_neither(scene: Image.Image) -> None:
    data = saved(scene, "JPEG", quality=95)
    assert decode(data + b"motion photo" * 100, 64).tobytes() == decode(data, 64).tobytes()


def test_a_large_photo_is_unpacked_small_and_looks_the_same(scene: Image.Image) -> None:
    large = scene.resize((4000, 2400), Image.Resampling.BICUBIC)
    for kind in ("JPEG", "PNG"):
        data = saved(large, kind)
        seen = inspect(data, LIMITS)
        assert (seen.width, seen.height) == (4000, 2400)
        assert close(data, scene)
        small = inspect(saved(scene, "PNG"), LIMITS)
        assert (int(seen.dhash, 16) ^ int(small.dhash, 16)).bit_count() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF", "GIF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(photos: Path, kind: str, share: float) -> None:
    with Image.open(sorted(photos.glob("*/*.jpg"))[0]) as photo:
        data = saved(photo, kind)
    refused = refusal(data[: int(len(data) * share)])
    assert refused.reason in ("truncated", "corrupt"), refused
    assert refused.detail


def test_truncated_progressive_and_large_jpegs_are_refused(scene: Image.Image) -> None:
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (1500, 2000, 3), dtype=np.uint8))
    for options in ({"progressive": True}, {}):
        data = saved(large, "JPEG", **options)
        assert refusal(data[: len(data) * 9 // 10]).reason == "truncated"


def test_bombs_are_refused_by_their_header() -> None:
    ten = IngestParams(max_pixels=10_000)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + b"\0\0\0\0"
    assert refusal(png).reason in ("too many pixels", "corrupt")
    refused = refusal(saved(Image.new("1", (9000, 9000)), "PNG"))
    assert refused.reason == "too many pixels"
    assert "9000 x 9000" in refused.detail
    assert refusal(saved(Image.new("RGB", (101, 100)), "JPEG"), ten).reason == "too many pixels"
    assert inspect(saved(Image.new("RGB", (100, 100)), "JPEG"), ten).width == 100


def test_a_bomb_in_a_side_chunk_is_refused_too() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 100, 8, 2, 0, 0, 0))
    for kind in (b"zTXt", b"iCCP"):
        bomb = chunk(kind, b"a\0\0" + zlib.compress(bytes(50_000_000), 9))
        refused = refusal(b"\x89PNG\r\n\x1a\n" + head + bomb + chunk(b"IDAT", zlib.compress(bytes(30_100))))
        assert "too large" in refused.detail


def test_refusals_name_what_is_wrong(scene: Image.Image) -> None:
    assert refusal(b"").reason == "empty"
    assert refusal(saved(scene, "PNG"), IngestParams(max_bytes=100)).reason == "too large"
    assert refusal(saved(scene.resize((31, 300)), "PNG")).reason == "too small"
    for data, said in [
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\3\4....", "zip"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<html>404</html>", "HTML"),
        ("Mittagessen im Büro".encode(), "text"),
        (bytes(range(256)), "no known picture format"),
    ]:
        refused = refusal(data)
        assert refused.reason == "not an image"
        assert said in refused.detail
    assert "JPEG" in refusal(b"\xff\xd8\xff\xe0" + bytes(2000)).detail


def test_flipped_bits_never_crash(photos: Path) -> None:
    rng = np.random.default_rng(0)
    with Image.open(sorted(photos.glob("*/*.jpg"))[0]) as photo:
        photo.thumbnail((160, 160))
        files = [saved(photo, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "HEIF", "AVIF", "JPEG2000")]
    refused: list[Refused] = []
    for data in files:
        for _ in range(25):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 10):
                damaged[place] ^= 1 << int(rng.integers(8))
            try:
                inspect(bytes(damaged), LIMITS)
            except Refused as error:
                refused.append(error)
            else:
                assert decode(bytes(damaged), 32).shape == (32, 32, 3)
    assert refused
    assert all(error.reason and error.detail for error in refused)


def test_decode_is_deterministic_and_exactly_as_asked(photos: Path) -> None:
    data = sorted(photos.glob("*/*.jpg"))[1].read_bytes()
    pixels = decode(data, 96)
    assert (pixels.shape, pixels.dtype) == ((96, 96, 3), np.uint8)
    assert pixels.tobytes() == decode(data, 96).tobytes()


def test_drawings_are_all_different_and_their_junk_is_all_refused(tmp_path: Path) -> None:
    from ssclass.data.split import Place, assign

    assert draw(tmp_path / "a", ("x", "y", "z"), per_class=8, seed=3) == 24
    draw(tmp_path / "b", ("x", "y", "z"), per_class=8, seed=3)
    files = sorted((tmp_path / "a").rglob("*.jpg"))
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in sorted((tmp_path / "b").rglob("*.jpg"))]
    pictures = [inspect(file.read_bytes(), LIMITS) for file in files]
    places = assign(pictures, [None] * 24, [], 0.2, 8)
    assert len({place.group for place in places if isinstance(place, Place)}) == 24
    for name in junk(tmp_path, seed=1):
        assert refusal((tmp_path / name).read_bytes()).detail
