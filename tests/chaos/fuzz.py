"""`python -m tests.chaos.fuzz KIND SEED SECONDS FOLDER`: damaged and crafted input of a kind, to its reader.

Whatever comes in: it is read, or refused by an error of ours whose message is one legible line; no code runs, no file
outside FOLDER is written, and time and memory of one input are bounded. What is found is printed as JSON, the inputs
lie in FOLDER then.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssclass.errors import SsclassError
from ssclass.settings import CHECKOUT
from ssclass.text import message

MEMORY = 4 << 30
"""Bytes of address space that a reader has, TensorFlow's libraries apart."""
CPU = 40
"""Seconds of a processor after which one input counts as endless."""
GOLDEN = CHECKOUT / "tests" / "golden"

NASTY: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 2**64, -(2**70), 10**400, 1e308, float("inf"), float("nan")),
    *("", " ", "..", "../../x", "/etc/passwd", "a\0b", "\x1b[2J", "\u202e", "\ud800", "x" * 100_000, "é" * 500),
    *("con", "__class__", "{0.__class__}", "%s%n", "$(touch pwned)", "`touch pwned`", "2024-13-45", "1e5", "0x10"),
    *([], {}, [[]], {"": {}}, ["x"] * 5000, {"schema": 1}, {str(n): n for n in range(3000)}),
]


class Endless(BaseException):
    """One input took too much of a processor."""


# -- damage ---------------------------------------------------------------------------------------------------


def damaged(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Bytes with a few faults: flipped, cut, doubled, replaced by numbers that are sizes elsewhere, spliced."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8, 30))):
        at = chance.randrange(len(made) + 1)
        what = chance.randrange(7)
        if what == 0 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            del made[at:]
        elif what == 2:
            made[at:at] = made[at : at + chance.choice((1, 4, 64, 4096))] * chance.choice((1, 2, 50))
        elif what == 3:
            size = chance.choice("bBhHiIqQ")
            number = chance.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1))
            packed = struct.pack(chance.choice("<>") + size.upper(), number % 2 ** (8 * struct.calcsize(size)))
            made[at : at + len(packed)] = packed
        elif what == 4:
            made[at : at + chance.choice((1, 8, 200))] = chance.randbytes(chance.choice((0, 1, 8, 200)))
        elif what == 5:
            start = chance.randrange(len(other) + 1)
            made[at:] = other[start:]
        else:
            del made[at : at + chance.choice((1, 2, 16, 1000))]
    return bytes(made[: 4 << 20])


def changed(value: Any, chance: random.Random, depth: int = 0) -> Any:
    """A JSON-able value with one of its parts replaced, doubled, renamed or left out; or nested without measure."""
    if depth == 0 and chance.random() < 0.03:
        nested: Any = value
        for _ in range(chance.choice((50, 900, 20_000))):
            nested = [nested] if chance.random() < 0.5 else {"a": nested}
        return nested
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        made = dict(value)
        how = chance.random()
        if how < 0.1:
            del made[name]
        elif how < 0.2:
            made[str(chance.choice(NASTY))[:2000]] = made.pop(name)
        else:
            made[name] = changed(value[name], chance, depth + 1)
        return made
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        if chance.random() < 0.1:
            return value * chance.choice((0, 2, 100))
        return [*value[:at], changed(value[at], chance, depth + 1), *value[at + 1 :]]
    return chance.choice(NASTY)


def dumped(value: Any) -> bytes:
    """As JSON, deep ones too."""
    try:
        return json.dumps(value).encode()
    except (RecursionError, ValueError):
        return b"[" * 100_000 + b"]" * 100_000


def rezipped(data: bytes, chance: random.Random, damage: Callable[[str, bytes], bytes]) -> bytes:
    """A zip whose members are damaged, but not their sums; sometimes one of them is zeros that unpack to gigabytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        names = source.namelist()
        wrong = chance.choice(names)
        for name in names:
            body = source.read(name)
            if name == wrong:
                body = damage(name, body)
                name = chance.choice((name, name, name, f"../{name}", "x" * 300, f"{name}\n"))
            target.writestr(name, body)
    return out.getvalue()


def bomb(name: str, header: bytes = b"") -> bytes:
    """A small zip with a member of 8 GB of zeros."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open(name, "w", force_zip64=True) as entry,
    ):
        entry.write(header)
        for _ in range(8 << 10):
            entry.write(bytes(1 << 20))
    return out.getvalue()


# -- kinds ----------------------------------------------------------------------------------------------------


def _pictures() -> list[bytes]:
    import numpy as np
    from PIL import Image

    from ssclass.data.pixels import pillow

    pillow()
    slope = np.add.outer(np.arange(96), np.arange(120)).astype(np.uint8)
    picture = Image.fromarray(np.stack([slope, slope[::-1], slope[:, ::-1]], -1))
    ways: list[tuple[str, str, dict[str, Any]]] = [
        *(("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK")),
        ("JPEG", "RGB", {"progressive": True, "exif": b"Exif\0\0" + bytes(200)}),
        *(("PNG", mode, {}) for mode in ("RGB", "RGBA", "P", "L", "1", "I;16", "LA")),
        *(("WEBP", "RGB", {"lossless": lossless}) for lossless in (True, False)),
        *(("TIFF", "RGB", {"compression": each}) for each in (None, "tiff_lzw", "jpeg", "tiff_deflate", "packbits")),
        *((kind, "RGB", {}) for kind in ("GIF", "BMP", "AVIF", "HEIF", "JPEG2000")),
    ]
    made = []
    for kind, mode, options in ways:
        out = io.BytesIO()
        shown = picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        shown.save(out, kind, **options)
        made.append(out.getvalue())
    return made


def photo(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """Photos, as the ingest looks at them."""
    from ssclass.data.decoders import Decoders
    from ssclass.data.images import decode
    from ssclass.data.refusals import Refused
    from ssclass.params import IngestParams

    seeds, decoders, limits = _pictures(), Decoders(1), IngestParams()

    def read(data: bytes) -> None:
        try:
            seen = decoders.inspect(data, limits)
        except Refused as refused:
            raise SsclassError(f"{refused.reason}: {refused.detail}") from refused
        assert seen.width > 0, "a picture without width"
        assert decode(data, 64).shape == (64, 64, 3), "what the ingest lets in, training cannot read"

    return (damaged(chance.choice(seeds), chance.choice(seeds), chance) for _ in iter(int, 1)), read


def manifest(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """manifest.json, with the keys and labels in it."""
    from ssclass.data.manifest import parse_manifest

    seed = json.loads((GOLDEN / "manifest-1.json").read_text())
    text = json.dumps(seed).encode()

    def made() -> bytes:
        return dumped(changed(seed, chance)) if chance.random() < 0.7 else damaged(text, text, chance)

    def read(data: bytes) -> None:
        for entry in parse_manifest(data, "s3://bucket/incoming/x/manifest.json", "send it again").photos:
            assert len(entry.key.encode("utf-8", "replace")) <= 900, "a key that S3 cannot have"
            assert isinstance(entry.metadata, dict)

    return (made() for _ in iter(int, 1)), read


def batch_id(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """Ids of batches: folders in S3, file names, parts of git's tags."""
    import re

    from ssclass.data.batches import check_id

    parts = [
        "a",
        "B",
        "0",
        ".",
        "..",
        "-",
        "_",
        "/",
        "\n",
        "\0",
        " ",
        ".lock",
        "~",
        "^",
        ":",
        "@{",
        "é",
        "%2e",
        "x" * 99,
    ]

    def read(data: bytes) -> None:
        name = data.decode("utf-8", "replace")
        check_id(name)
        assert re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII), f"{name!r} is no file name"

    return ("".join(chance.choices(parts, k=chance.randrange(1, 6))).encode() for _ in iter(int, 1)), read


YAML = [
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [['touch', 'pwned']]",
    "&a [*a, *a]",
    "&a {x: *a}",
    "{<<: {<<: {}}}",
    "2024-13-45",
    "!!int abc",
    "!!binary '=='",
    ".inf",
    "[" * 3000,
    "0o17",
    "1_000",
    "? [a]\n: b",
    "--- 1\n--- 2",
    "%TAG ! x",
]


def params(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """params.yaml; YAML's own tags and references too."""
    from ssclass.params import parse_params, parse_yaml

    text = (CHECKOUT / "ssclass" / "template" / "params.yaml").read_text()
    body, lines = parse_yaml(text, "params.yaml"), text.splitlines()

    def made() -> bytes:
        how = chance.random()
        if how < 0.4:
            return dumped(changed(body, chance))  # JSON is YAML
        if how < 0.8:
            each, at = list(lines), chance.randrange(len(lines))
            name = each[at].partition(":")[0]
            each[at] = f"{name}: {chance.choice(YAML)}"
            return "\n".join(each).encode()
        laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" if n else "a0: &a0 [x]" for n in range(30))
        return laughs.encode() if how < 0.83 else damaged(text.encode(), text.encode(), chance)

    return (made() for _ in iter(int, 1)), lambda data: parse_params(data, "params.yaml")


def settings(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """ssclass.toml."""
    from ssclass.settings import SETTINGS_FILE, load_settings

    seed = {
        "bucket": "photos",
        "name": "shop",
        "s3_prefix": "a/b",
        "s3_endpoint": "http://127.0.0.1:9000",
        "mlflow_uri": "http://h:1",
        "prefect_url": "http://h:2/api",
        "sweep": 3.5,
        "patience": 1,
        "git": "/x.git",
    }

    def made() -> bytes:
        body = changed(seed, chance)
        body = body if isinstance(body, dict) else {"bucket": body}
        lines = (f"{name} = {dumped(value).decode()}" for name, value in body.items())
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        return text if chance.random() < 0.7 else damaged(text, text, chance)

    def read(data: bytes) -> None:
        (folder / SETTINGS_FILE).write_bytes(data)
        found = load_settings(folder)
        assert ".." not in found.s3_prefix.split("/"), "a prefix that leaves its place"

    return (made() for _ in iter(int, 1)), read


def ledger(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """ledger.jsonl, read and added up."""
    from ssclass.workspace.ledger import fold, parse

    text = (GOLDEN / "ledger-1.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]

    def made() -> bytes:
        if chance.random() < 0.3:
            return damaged(text.encode(), text.encode(), chance)
        at = chance.randrange(len(lines))
        each = [*lines[:at], changed(lines[at], chance), *lines[at + 1 :]]
        return b"\n".join(dumped(line) for line in each)

    return (made() for _ in iter(int, 1)), lambda data: fold(parse(data.decode("utf-8", "replace")))


def shard(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """Shards: Parquet, and the receipt in it."""
    import pyarrow as pa
    from pyarrow import parquet

    from ssclass.data.shards import iter_photos, read_shard

    seeds = [(GOLDEN / f"shard-{number}.parquet").read_bytes() for number in (1, 2)]
    table = parquet.read_table(io.BytesIO(seeds[1]))

    def made() -> bytes:
        if chance.random() < 0.7:
            return damaged(chance.choice(seeds), chance.choice(seeds), chance)
        told = dict(table.schema.metadata)
        name = chance.choice([b"ssclass.receipt", b"ssclass.schema"])
        told[name] = dumped(changed(json.loads(told[name]), chance))
        out, kept = pa.BufferOutputStream(), [each for each in table.column_names if chance.random() < 0.97]
        parquet.write_table(table.select(kept).replace_schema_metadata(told), out)
        return bytes(out.getvalue())

    def read(data: bytes) -> None:
        read_shard(io.BytesIO(data))
        list(iter_photos(io.BytesIO(data)))

    return (made() for _ in iter(int, 1)), read


def features(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """Features that another machine computed: damaged ones are computed again."""
    import numpy as np

    from ssclass.model.features import Features, pack, unpack

    names = tuple(f"{number:064x}" for number in range(5))
    seed = pack(Features(names, {"maps": np.ones((5, 8, 8), np.float16)}))
    with io.BytesIO() as out:
        np.lib.format.write_array(out, np.array([{}], object), allow_pickle=True)
        pickled = out.getvalue()
    crafted = [seed, bomb("sha256s.npy"), bomb("maps.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 0))]

    def damage(name: str, body: bytes) -> bytes:
        return pickled if chance.random() < 0.2 else damaged(body, body, chance)

    def made() -> bytes:
        if crafted:
            return crafted.pop(0)
        return rezipped(seed, chance, damage) if chance.random() < 0.7 else damaged(seed, seed, chance)

    def read(data: bytes) -> None:
        found = unpack(io.BytesIO(data), names, chance.choice((None, ("maps",))))
        assert found is None or len(found) == len(names)

    return (made() for _ in iter(int, 1)), read


def result(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """result.json that a worker wrote to S3."""
    from ssclass.retrain.result import Result

    seed = {
        "key": "k",
        "data_version": "data/1",
        "head": "rbf",
        "fingerprint": "f",
        "size": 32,
        "train_size": 9,
        "batches": ["one", "two"],
        "champion_key": None,
        "cross_validation": {"rbf": [0.5]},
        "history": {},
        "saved_alike": True,
        "seconds": {"train": 1.5},
        "sources": {"main": {"train": 9}},
        "holdout": ["a", "b"],
        "classes": ["x", "y"],
        "labels": [0, 1],
        "candidate": [[0.1, 0.9], [0.5, 0.5]],
        "candidate_class": [1, 0],
        "champion": None,
        "champion_class": None,
    }

    def made() -> bytes:
        return dumped(changed(seed, chance)) if chance.random() < 0.8 else damaged(dumped(seed), dumped(seed), chance)

    def read(data: bytes) -> None:
        path = folder / "result.json"
        path.write_bytes(data)
        Result.read(path)

    return (made() for _ in iter(int, 1)), read


def model(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """The folder of a classifier, and a .keras file that a person adopts."""
    from ssclass.model.adopted import check_safe, open_classifier

    keras = (GOLDEN / "classifier-2" / "head.keras").read_bytes()
    about = json.loads((GOLDEN / "classifier-2" / "classifier.json").read_text())
    with zipfile.ZipFile(io.BytesIO(keras)) as file:
        config = json.loads(file.read("config.json"))
    crafted = [b"K" + keras, b"K" + bomb("config.json")]

    def damage(name: str, body: bytes) -> bytes:
        if name == "config.json" and chance.random() < 0.8:
            unsafe = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "import os"}}
            return dumped(unsafe if chance.random() < 0.1 else changed(config, chance))
        return damaged(body, body, chance)

    def made() -> bytes:
        if crafted:
            return crafted.pop(0)
        if chance.random() < 0.4:
            return b"A" + dumped(changed(about, chance))
        return b"K" + (rezipped(keras, chance, damage) if chance.random() < 0.7 else damaged(keras, keras, chance))

    def read(data: bytes) -> None:
        kind, body = data[:1], data[1:]
        (folder / "classifier.json").write_bytes(body if kind == b"A" else json.dumps(about).encode())
        (folder / "head.keras").write_bytes(keras if kind == b"A" else body)
        if kind == b"K":
            check_safe(folder / "head.keras")
        open_classifier(folder)

    return (made() for _ in iter(int, 1)), read


def weights(folder: Path, chance: random.Random) -> tuple[Iterator[bytes], Callable[[bytes], Any]]:
    """Weights of another network: torch's file, which is a pickle."""
    from ssclass.model.torch_file import MAGIC, PROTOCOL, read_torch_file

    def pickled(body: bytes) -> bytes:
        return b"\x80\x02" + body + b"."

    def number(value: int) -> bytes:
        packed = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(packed)]) + packed

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def tensor(shape: tuple[int, ...], strides: tuple[int, ...], length: int) -> bytes:
        numbers = [b"(" + b"".join(map(number, each)) + b"t" for each in (shape, strides)]
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(length) + b"NtQ"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + numbers[0] + numbers[1] + b"tR"

    def file(shape: tuple[int, ...], strides: tuple[int, ...], length: int) -> bytes:
        parts = [number(MAGIC), number(PROTOCOL), b"}" + text("little_endian") + b"\x88s"]
        parts += [b"}" + text("w") + tensor(shape, strides, length) + b"s", b"]" + text("0") + b"a"]
        return b"".join(map(pickled, parts)) + struct.pack("<q", length) + bytes(4 * min(length, 6))

    seed = file((2, 3), (3, 1), 6)
    evil = pickled(b"cos\nsystem\n(" + text("touch pwned") + b"tR")
    crafted = [
        seed,
        evil,
        evil + seed,
        file((10**9,), (0,), 6),
        file((10**6, 10**6), (0, 0), 6),
        file((2,), (1,), 2**62),
    ]

    def made() -> bytes:
        return crafted.pop(0) if crafted else damaged(seed, evil, chance)

    def read(data: bytes) -> None:
        try:
            for array in read_torch_file(data).values():
                assert array.nbytes <= len(data), "a tensor larger than its file"
        except ValueError as error:  # where it is read, it becomes a WeightsError
            raise SsclassError(str(error)) from error

    return (made() for _ in iter(int, 1)), read


KINDS = {
    each.__name__: each
    for each in (photo, manifest, batch_id, params, settings, ledger, shard, features, result, model, weights)
}

# -- the watch ------------------------------------------------------------------------------------------------

RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"}
WRITES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod", "shutil.rmtree"}
PICKLED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch", "FloatStorage"),
    ("torch", "LongStorage"),
}


class Watch:
    """What Python itself reports while an input is read: processes, connections, writes outside the folder."""

    def __init__(self, folder: Path, *, children: bool) -> None:
        self.folder, self.children = folder.resolve(), children
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if self.on and self._wrong(event, given):
            self.seen.append(f"{event} {given!r}"[:300])

    def _wrong(self, event: str, given: tuple[Any, ...]) -> bool:
        if event in ("socket.connect", "socket.getaddrinfo"):
            return True
        if event in RUNS:
            return not self.children
        if event == "pickle.find_class":
            return tuple(given[:2]) not in PICKLED
        if event == "open" and not (isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)):
            return False
        if event not in (*WRITES, "open") or not isinstance(given[0], str | bytes | os.PathLike):
            return False
        path = Path(os.fsdecode(given[0])).resolve()
        inside = path.is_relative_to(self.folder) or str(path).startswith(("/dev/", "/proc/"))
        return not inside and not path.name.endswith(".pyc") and "__pycache__" not in path.parts


def fuzz(kind: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Try inputs of a kind until the time is over; how many were tried, refused, and what was found."""
    chance = random.Random(f"{kind} {seed}")
    os.environ["TMPDIR"] = str(folder)
    inputs, read = KINDS[kind](folder, chance)
    first = next(inputs)
    _try(read, first)  # imports what it needs
    watch = Watch(folder, children=kind == "photo")
    roof = MEMORY + (24 << 30 if kind == "model" else 0)  # TensorFlow maps a lot, and uses little of it
    resource.setrlimit(resource.RLIMIT_AS, (roof, roof))

    def stop(*_: Any) -> None:
        raise Endless

    signal.signal(signal.SIGPROF, stop)
    told: dict[str, Any] = {"kind": kind, "tried": 0, "refused": 0, "found": []}
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(told["found"]) < 5:
        data = first if not told["tried"] else next(inputs)
        told["tried"] += 1
        watch.seen.clear()
        watch.on = True
        signal.setitimer(signal.ITIMER_PROF, CPU)
        try:
            wrong = _try(read, data)
        except Endless:
            wrong = f"took over {CPU} s of a processor"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            watch.on = False
        if wrong == "refused":
            told["refused"] += 1
            wrong = None
        if watch.seen:
            wrong = f"{wrong or 'read'}, and: {watch.seen[:3]}"
        if wrong:
            path = folder / f"found-{kind}-{seed}-{told['tried']}"
            path.write_bytes(data)
            told["found"].append({"what": wrong, "input": str(path), "begins": base64.b64encode(data[:300]).decode()})
    return told


def _try(read: Callable[[bytes], Any], data: bytes) -> str | None:
    """None where it was read, "refused" where it was refused as it should, else what is wrong."""
    try:
        read(data)
    except SsclassError as error:
        said = message(error)
        if not said.isprintable() or not said.strip() or len(said) > 2100:
            return f"illegible: {said[:200]!r}"
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


def main() -> None:
    """One kind, from the command line."""
    kind, seed, seconds, folder = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    print(json.dumps(fuzz(kind, seed, seconds, folder)), flush=True)


if __name__ == "__main__":
    main()
