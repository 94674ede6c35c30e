"""Files that say who took a photo, in every place where a format has room for it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ssclass.data.boxes import read_stills

NAME = "Jane Q. Personal"
_NAME = NAME.encode()
XMP = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{NAME}</dc:creator></x:xmpmeta>'.encode()
VIDEO = struct.pack(">I", 24) + b"ftypmp42\0\0\0\0mp42isom" + struct.pack(">I", 8 + 400) + b"mdat" + (_NAME * 25)
pillow_heif.register_heif_opener()


def picture(mode: str = "RGB") -> Image.Image:
    """120 x 80, no two parts of it alike."""
    ramp = np.arange(120 * 80 * 3, dtype=np.uint32).reshape(80, 120, 3)
    return Image.fromarray((ramp // 97 % 256).astype(np.uint8)).convert(mode)


def saved(kind: str, made: Image.Image | None = None, **options: Any) -> bytes:
    """The picture as a file."""
    out = io.BytesIO()
    (made or picture()).save(out, kind, **options)
    return out.getvalue()


def exif(tag: int = 6) -> Image.Exif:
    """Who, where, and how to turn it."""
    told = Image.Exif()
    told[0x0112], told[0x013B] = tag, NAME
    told.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + _NAME
    told.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    return told


def profile() -> bytes:
    """sRGB, as a monitor's owner calls it."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    at = made.index(b"sRGB built-in".decode().encode("utf-16-be"))
    named = NAME[:13].ljust(13).encode("utf-16-be")
    return made[:at] + named + made[at + len(named) :]


def segment(marker: int, body: bytes) -> bytes:
    """Of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def chunk(name: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def riff(name: bytes, body: bytes) -> bytes:
    """A chunk of a WebP."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def box(name: bytes, body: bytes) -> bytes:
    """Of HEIF, AVIF and JPEG 2000."""
    return struct.pack(">I", len(body) + 8) + name + body


def variants() -> Iterator[tuple[str, str, bytes]]:
    """(kind, what tells, file)."""
    for maker in (_jpeg, _png, _gif, _bmp, _webp, _tiff, _heif, _jpeg2000):
        yield from maker()


def _jpeg() -> Iterator[tuple[str, str, bytes]]:
    plain = saved("JPEG")
    guid = b"0123456789ABCDEF0123456789ABCDEF"
    extended = b"http://ns.adobe.com/xmp/extension/\0" + guid + struct.pack(">II", len(XMP), 0) + XMP
    for what, marker, body in (
        ("comment", 0xFE, _NAME),
        ("xmp", 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        ("extended xmp", 0xE1, extended),
        (
            "iptc",
            0xED,
            b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + struct.pack(">I", len(_NAME) + 5) + b"\x1c\2\x50\0\x10" + _NAME,
        ),
        ("jumbf", 0xEB, b"JP\0\1\0\0\0\1" + box(b"jumb", box(b"jumd", _NAME))),
        ("flashpix", 0xE2, b"FPXR\0" + _NAME),
        ("a maker's", 0xE7, _NAME),
        ("unknown", 0xEF, _NAME),
        ("jfxx preview", 0xE0, b"JFXX\0\x10" + _NAME),
    ):
        yield "JPEG", what, plain[:20] + segment(marker, body) + plain[20:]
    jfif = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\6\1" + _NAME + b"..")
    yield "JPEG", "jfif preview", plain[:2] + jfif + plain[20:]
    yield "JPEG", "exif", saved("JPEG", exif=exif())
    yield "JPEG", "exif that need not be turned", saved("JPEG", exif=exif(1))
    yield "JPEG", "rubbish exif", plain[:20] + segment(0xE1, b"Exif\0\0rubbish " + _NAME) + plain[20:]
    yield "JPEG", "profile", saved("JPEG", icc_profile=profile())
    yield "JPEG", "trailer", plain + _NAME
    yield "JPEG", "motion photo", plain + VIDEO
    yield "JPEG", "two pictures", plain + saved("JPEG", comment=NAME)
    scans = saved("JPEG", progressive=True)
    at = scans.rindex(b"\xff\xda")
    yield "JPEG", "comment between scans", scans[:at] + segment(0xFE, _NAME) + scans[at:]
    yield "MPO", "second picture", saved("MPO", exif=exif(), save_all=True, append_images=[picture().rotate(180)])


def _png() -> Iterator[tuple[str, str, bytes]]:
    plain, end = saved("PNG"), -12
    for name, body in (
        (b"tEXt", b"Author\0" + _NAME),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"eXIf", b"rubbish " + _NAME),
        (b"caBX", box(b"jumb", _NAME)),
        (b"prVt", _NAME),
        (b"sPLT", _NAME + b"\0\x08" + bytes(6)),
        (b"tIME", bytes([7, 234, 11, 28, 13, 0, 0])),
    ):
        for where, at in (("before", 33), ("after", len(plain) + end)):
            yield "PNG", f"{name.decode()} {where}", plain[:at] + chunk(name, body) + plain[at:]
    yield "PNG", "exif", saved("PNG", exif=exif())
    info = PngInfo()
    info.add_text("Author", NAME, zip=True)
    yield "PNG", "zTXt", saved("PNG", pnginfo=info)
    yield "PNG", "profile", saved("PNG", icc_profile=profile())
    named = _NAME + b"\0\0" + zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    yield "PNG", "name of the profile", plain[:33] + chunk(b"iCCP", named) + plain[33:]
    yield "PNG", "trailer", plain + _NAME
    film = saved("PNG", save_all=True, append_images=[picture().rotate(90)])
    yield "PNG", "text in an animation", film[:33] + chunk(b"tEXt", b"Author\0" + _NAME) + film[33:]


def _gif() -> Iterator[tuple[str, str, bytes]]:
    plain = saved("GIF")
    at = 13 + (3 << (plain[10] & 7) + 1)
    blocks = bytes([len(_NAME)]) + _NAME + b"\0"
    toc = bytes([1, *range(255, -1, -1), 0])
    for what, body in (
        ("comment", b"\x21\xfe" + blocks),
        ("xmp", b"\x21\xff\x0bXMP DataXMP" + XMP + toc),
        ("another program's", b"\x21\xff\x0bMGK8BIM0000" + blocks),
        ("text", b"\x21\x01\x0c" + bytes(12) + blocks),
    ):
        yield "GIF", what, plain[:at] + body + plain[at:]
        yield "GIF", f"{what} at the end", plain[:-1] + body + plain[-1:]
    yield "GIF", "trailer", plain + _NAME
    film = saved("GIF", save_all=True, append_images=[picture().rotate(90)], duration=50, loop=0, comment=NAME)
    yield "GIF", "comment in an animation", film


def _bmp() -> Iterator[tuple[str, str, bytes]]:
    for mode in ("RGB", "P", "L", "1", "RGBA"):
        plain = saved("BMP", picture(mode))
        at = struct.unpack("<I", plain[10:14])[0]
        moved = plain[:10] + struct.pack("<I", at + len(_NAME)) + plain[14:]
        yield "BMP", f"gap, {mode}", moved[:at] + _NAME + moved[at:]
        yield "BMP", f"trailer, {mode}", plain + _NAME
    plain = saved("BMP")
    head = struct.pack("<I", 124) + plain[18:54] + bytes(16) + b"DEBM" + bytes(48) + struct.pack("<IIII", 4, 124, 16, 0)
    yield "BMP", "profile", plain[:10] + struct.pack("<I", 138 + 16) + head + _NAME + plain[54:]


def _webp() -> Iterator[tuple[str, str, bytes]]:
    for how in ({}, {"lossless": True}):
        plain = saved("WEBP", **how)
        inside = plain[12:]
        for name in (b"JUMB", b"XMP ", b"prVt"):
            body = inside + riff(name, XMP)
            yield "WEBP", f"{name.decode()} {how}", b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
        yield "WEBP", f"trailer {how}", plain + _NAME
        yield "WEBP", f"exif and xmp {how}", saved("WEBP", exif=exif(), xmp=XMP, **how)
    yield "WEBP", "profile", saved("WEBP", icc_profile=profile())
    film = saved("WEBP", picture("RGBA"), save_all=True, append_images=[picture().rotate(90)], xmp=XMP, exif=exif())
    yield "WEBP", "in an animation", film


def _tiff() -> Iterator[tuple[str, str, bytes]]:
    for mode in ("RGB", "L", "P", "PA", "CMYK", "RGBA", "F"):
        told = ImageFileDirectory_v2()
        told[315], told[700], told[33723], told[65000] = NAME, XMP, _NAME, NAME
        yield (
            "TIFF",
            f"tags, {mode}",
            saved("TIFF", picture("P" if mode == "PA" else mode).convert(mode), tiffinfo=told),
        )
    yield "TIFF", "exif", saved("TIFF", exif=exif())
    yield "TIFF", "trailer", saved("TIFF", tiffinfo=told) + _NAME
    yield "TIFF", "second page", saved("TIFF", save_all=True, append_images=[picture().rotate(90)], exif=exif())
    yield "TIFF", "profile", saved("TIFF", icc_profile=profile())


def _heif() -> Iterator[tuple[str, str, bytes]]:
    for kind in ("HEIF", "AVIF"):
        for what, options in (
            ("exif and xmp", {"exif": exif(), "xmp": XMP}),
            ("profile", {"icc_profile": profile()}),
            ("alpha and exif", {"exif": exif()}),
        ):
            made = picture("RGBA") if "alpha" in what else picture()
            if "alpha" in what:
                made.putalpha(Image.linear_gradient("L").resize(made.size))
            yield kind, what, saved(kind, made, **options)
        plain = saved(kind)
        for name in (b"free", b"skip", b"uuid", b"jumb", b"udta", b"mpvd"):
            yield kind, f"{name.decode()} at the end", plain + box(name, _NAME * 3)
        yield kind, "trailer", plain + _NAME
        yield kind, "motion photo", plain + VIDEO
    yield "HEIF", "a grid's", grid(exif().tobytes())
    film = saved("AVIF", save_all=True, append_images=[picture().rotate(90)], xmp=XMP)
    yield "AVIF", "in an animation", film


def grid(more: bytes = b"") -> bytes:
    """A HEIC as phones write it: a grid of tiles, with `more` as its EXIF, and another picture's item beside it."""
    colours = ("red", "green", "blue", "white")
    tiles = [read_stills(data) for data in (saved("HEIF", Image.new("RGB", (64, 64), c)) for c in colours)]
    files = [saved("HEIF", Image.new("RGB", (64, 64), c)) for c in colours]
    coded, setups = [], []
    for file, tile in zip(files, tiles, strict=True):
        item = tile.items[tile.primary]
        coded.append(b"".join(file[begin:end] for begin, end in item.extents))
        setups.append(next(body for name, body, _ in item.properties if name == b"hvcC"))

    def full(name: bytes, body: bytes, head: int = 0) -> bytes:
        return box(name, struct.pack(">I", head) + body)

    kinds = [b"hvc1"] * 4 + [b"grid", b"Exif", b"hvc1"]
    coded += [struct.pack(">BBBBHH", 0, 0, 1, 1, 128, 128), bytes(4) + more, coded[0]]
    infos = [
        full(b"infe", struct.pack(">HH", n, 0) + kind + NAME.encode() + b"\0", 2 << 24)
        for n, kind in enumerate(kinds, 1)
    ]
    sizes = [full(b"ispe", struct.pack(">II", side, side)) for side in (64, 128)]
    ipco = box(
        b"ipco", b"".join([*(box(b"hvcC", setup) for setup in setups), *sizes, box(b"irot", b"\1"), box(b"udes", more)])
    )
    owned = [[0x8001, 5], [0x8002, 5], [0x8003, 5], [0x8004, 5], [6, 0x8007, 8], [], [0x8001, 5]]
    ipma = b"".join(struct.pack(f">HB{len(o)}H", n, len(o), *o) for n, o in enumerate(owned, 1) if o)
    links = box(b"dimg", struct.pack(">HH4H", 5, 4, 1, 2, 3, 4)) + box(b"cdsc", struct.pack(">HHH", 6, 1, 5))
    ftyp = box(b"ftyp", b"heic\0\0\0\0mif1heic")

    def meta(start: int) -> bytes:
        places, at = b"", start
        for n, each in enumerate(coded, 1):
            places += struct.pack(">HHHII", n, 0, 1, at, len(each))
            at += len(each)
        parts = [
            full(b"hdlr", b"\0\0\0\0pict" + bytes(13)),
            full(b"pitm", struct.pack(">H", 5)),
            full(b"iinf", struct.pack(">H", 7) + b"".join(infos)),
            box(b"iprp", ipco + full(b"ipma", struct.pack(">I", 6) + ipma, 1)),
            full(b"iref", links),
            full(b"iloc", struct.pack(">BBH", 0x44, 0, 7) + places),
        ]
        return full(b"meta", b"".join(parts))

    return ftyp + meta(len(ftyp) + len(meta(0)) + 8) + box(b"mdat", b"".join(coded))


def _jpeg2000() -> Iterator[tuple[str, str, bytes]]:
    plain = saved("JPEG2000")
    at = plain.index(b"jp2c") - 4
    for name in (b"uuid", b"xml ", b"jumb", b"asoc"):
        yield "JPEG2000", name.decode(), plain[:at] + box(name, XMP) + plain[at:]
    yield "JPEG2000", "box at the end", plain + box(b"xml ", XMP)
    yield "JPEG2000", "trailer", plain + _NAME
    stream = saved("JPEG2000", no_jp2=True)
    yield "JPEG2000", "trailer of a codestream", stream + _NAME
    siz = 2 + 2 + int.from_bytes(stream[4:6], "big")
    remark = b"\xff\x64" + struct.pack(">HH", len(_NAME) + 4, 1) + _NAME
    yield "JPEG2000", "remark", stream[:siz] + remark + stream[siz:]
    yield (
        "JPEG2000",
        "in the header's boxes",
        plain.replace(
            plain[plain.index(b"jp2h") - 4 :][: int.from_bytes(plain[plain.index(b"jp2h") - 4 :][:4], "big")],
            _with_inside(plain),
        ),
    )


def _with_inside(plain: bytes) -> bytes:
    begin = plain.index(b"jp2h") - 4
    size = int.from_bytes(plain[begin : begin + 4], "big")
    return box(b"jp2h", plain[begin + 8 : begin + size] + box(b"xml ", XMP))
