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
from ssclass.data.pixels import shrunk
from ssclass.data.structure import segments
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF", "JPEG2000", "GIF"])
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


@pytest.mark.parametrize("kind", ["PPM", "TGA", "DIB"])
def test_formats_that_nobody_photographs_in_are_refused_and_stay_readable(scene: Image.Image, kind: str) -> None:
    data = saved(scene, kind)
    assert refusal(data).reason == "not an image"
    assert close(data, scene), "earlier versions let it in, so a data set may have it"


def in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in any mode that Pillow has, whether or not it converts to it."""
    if mode in ("PA", "La", "RGBa"):
        return picture.convert({"PA": "P", "La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode == "LAB":
        return ImageCms.profileToProfile(
            picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode.startswith("I;16"):
        wide = np.asarray(picture.convert("L")).astype(">u2" if mode == "I;16B" else "<u2") * 257
        return Image.frombytes(mode, picture.size, wide.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    return picture.convert("L" if mode in ("I", "F", "LA") else "RGB").convert(mode)


@pytest.mark.parametrize("enlarged", [1, 6])
@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_that_pillow_knows_shows_the_picture(scene: Image.Image, mode: str, enlarged: int) -> None:
    large = scene.resize((scene.width * enlarged, scene.height * enlarged))
    made = shrunk(in_mode(large, mode), 64)
    assert (made.mode, made.width >= 128) == ("RGB", True)
    bands = Image.getmodebands(mode)
    grey = (bands == 1 and mode != "P") or mode in ("LA", "La")
    expected = scene.convert("1" if mode == "1" else "L") if grey else scene
    shown = [
        np.asarray(each.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), float) for each in (made, expected)
    ]
    assert np.abs(shown[0] - shown[1]).mean() < 6


def test_a_large_palette_with_alpha_is_averaged_as_colours(scene: Image.Image) -> None:
    large = scene.resize((1500, 900)).convert("P")
    both = Image.merge("LA", (Image.frombytes("L", large.size, large.tobytes()), Image.new("L", large.size, 255)))
    picture = Image.frombytes("PA", large.size, both.tobytes())
    picture.putpalette(large.getpalette())
    data = saved(picture, "TIFF")
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "PA"
    assert close(data, scene, most=6)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, clear: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tRNS", clear), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@pytest.mark.parametrize(("depth", "colour"), [(16, 0), (16, 2), (8, 0), (8, 2), (4, 0), (2, 0), (1, 0)])
def test_the_transparent_colour_of_a_png_is_white_whatever_its_depth(depth: int, colour: int) -> None:
    top = (1 << depth) - 1
    clear = 1 if depth == 1 else top // 2
    samples = 3 if colour else 1

    def row(left: int, right: int) -> bytes:
        values = [left] * (32 * samples) + [right] * (32 * samples)
        if depth == 16:
            return b"\0" + struct.pack(f">{len(values)}H", *values)
        bits = "".join(f"{value:0{depth}b}" for value in values)
        return b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")

    pixels = decode(png(64, 64, depth, colour, row(clear, 0) * 64, struct.pack(">H", clear) * samples), 64)
    assert (pixels[:, :30] == 255).all()
    assert (pixels[:, 34:] == 0).all()


def raw_file(kind: str, preview: Image.Image) -> bytes:
    """A camera's TIFF: its first page a preview, the sensor's values in a folder beside it."""
    plain = saved(preview, "TIFF")
    with Image.open(io.BytesIO(plain)) as picture:
        strip = plain[picture.tag_v2[273][0] :][: picture.tag_v2[279][0]]
    width, height = preview.size
    tags = {254: 1, 256: width, 257: height, 258: 8, 259: 1, 262: 2, 277: 3, 278: height, 279: len(strip), 284: 1}
    tags |= {"DNG": {0xC612: 0x00000401}, "NEF": {271: 0}, "large": {}}[kind]
    inside = {254: 0, 256: 4000, 257: 3000, 258: 16, 259: 1, 262: 1 if kind == "large" else 32803, 277: 1}
    if kind == "DNG":
        inside = {}
    tags |= {273: 0} | ({330: 0} if inside else {})
    at = 8 + 2 + 12 * len(tags) + 4
    tags[273] = at + (2 + 12 * len(inside) + 4 if inside else 0)
    if inside:
        tags[330] = at

    def folder(entries: dict[int, int]) -> bytes:
        body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
        return struct.pack("<H", len(entries)) + body + bytes(4)

    return b"II*\0\x08\0\0\0" + folder(tags) + (folder(inside) if inside else b"") + strip


@pytest.mark.parametrize(("kind", "said"), [("DNG", "DNG"), ("NEF", "mosaic"), ("large", "4000 x 3000")])
def test_a_raw_files_preview_is_not_taken_for_the_photo(scene: Image.Image, kind: str, said: str) -> None:
    data = raw_file(kind, scene)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == scene.size, "Pillow opens it"
    refused = refusal(data)
    assert refused.reason == "raw file"
    assert said in refused.detail
    assert "send a JPEG" in refused.detail


def test_of_a_tiff_that_begins_with_its_preview_the_largest_page_counts(scene: Image.Image) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    reduced = ImageFileDirectory_v2()
    reduced[254] = 1
    out = io.BytesIO()
    Image.new("RGB", (100, 60)).save(out, "TIFF", tiffinfo=reduced, save_all=True, append_images=[scene])
    seen = inspect(out.getvalue(), LIMITS)
    assert (seen.width, seen.height) == scene.size
    assert close(out.getvalue(), scene)


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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "HEIF", "AVIF", "GIF", "JPEG2000"])
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


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_end_is_whole(photos: Path, progressive: bool) -> None:
    for path in sorted(photos.glob("*/*.jpg"))[:6]:
        with Image.open(path) as photo:
            data = saved(photo.convert("RGB").resize((1200, 900)), "JPEG", progressive=progressive)
        for missing in (1, 2):
            cut = data[:-missing]
            seen, whole = inspect(cut, LIMITS), inspect(data, LIMITS)
            assert (seen.ended, whole.ended) == (False, True)
            assert seen.dhash == whole.dhash
            assert decode(cut, 320).tobytes() == decode(data, 320).tobytes()
        for missing in (40, 400):
            assert refusal(data[:-missing]).reason == "truncated"


def test_a_progressive_jpeg_that_lacks_a_scan_is_not_whole(scene: Image.Image) -> None:
    data = saved(scene, "JPEG", progressive=True)
    scans = [at for marker, at in segments(data) if marker == 0xDA]
    assert len(scans) > 5
    for at in scans[1:]:
        assert refusal(data[:at]).reason == "truncated"


def test_a_jpeg_of_countless_scans_is_refused_everywhere(scene: Image.Image) -> None:
    data = saved(scene.convert("L"), "JPEG", progressive=True)
    empty = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0x10) + b"\0"
    few, many = (data[:-2] + empty * count + data[-2:] for count in (20, 1000))
    assert inspect(few, LIMITS).width == 200
    refused = refusal(many)
    assert (refused.reason, "scans" in refused.detail) == ("corrupt", True)
    with pytest.raises(Refused, match="scans"):
        decode(many, 64)
    film = bytes(range(256)).replace(b"\xff", b"\xff\xda") * 2000  # after the end, as motion photos have it
    assert inspect(data + film, LIMITS).ended


@pytest.mark.parametrize("movie", [False, True])
def test_an_avif_whose_header_belies_what_is_coded_is_refused_everywhere(movie: bool) -> None:
    big = Image.new("RGB", (3000, 2000), "red")
    data = saved(big, "AVIF", speed=10, **({"save_all": True, "append_images": [big, big]} if movie else {}))
    size = struct.pack(">II", 3000, 2000)
    small = data.replace(b"ispe\0\0\0\0" + size, b"ispe\0\0\0\0" + struct.pack(">II", 64, 64))
    small = small.replace(struct.pack(">II", 3000 << 16, 2000 << 16), struct.pack(">II", 64 << 16, 64 << 16))
    small = small.replace(struct.pack(">HH", 3000, 2000), struct.pack(">HH", 64, 64))
    with Image.open(io.BytesIO(small)) as opened:
        assert opened.size == (64, 64)
    assert "6,000,000 pixels are coded" in refusal(small).detail
    with pytest.raises(Refused, match="coded"):
        decode(small, 64)
    assert inspect(data, LIMITS).width == 3000


def test_text_of_a_file_does_not_reach_a_reason_as_it_is() -> None:
    told = Refused("corrupt", "GIF: \x1b[31m\nforged\u202e" + "x" * 5000)
    assert told.detail.isprintable()
    assert len(told.detail) < 400
    assert refusal(b"\x1b]0;title\x07" + bytes(30)).detail.isprintable()


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


@pytest.mark.parametrize("shape", [(64, 48), (5, 7), (2, 9), (1, 1)])
def test_what_is_flat_is_found_as_pillows_filters_find_it(shape: tuple[int, int]) -> None:
    from PIL import ImageFilter

    from ssclass.data.palette import _over_squares

    canvas = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for by, pick in ((ImageFilter.MaxFilter(5), np.maximum), (ImageFilter.MinFilter(5), np.minimum)):
        expected = np.asarray(Image.fromarray(canvas).filter(by))
        np.testing.assert_array_equal(_over_squares(canvas, pick), expected)
