"""manifest.json, read as a stream: each entry is checked as it comes, and the first that is wrong ends the reading.

Whoever may send photos may send a manifest of any shape, so that what it costs must not depend on what is in it: memory
is bounded by MANIFEST_LIMIT bytes and ENTRIES entries, and nothing nested is built: `metadata`, which is free and never
interpreted, stays text until somebody asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ssclass.errors import BatchError
from ssclass.text import composed, message, shown

MANIFEST_LIMIT = 256_000_000  # bytes
ENTRIES = 1_000_000  # photos and corrections
KEY_LIMIT = 900  # bytes of UTF-8: with any batch's prefix it stays within the 1024 of S3
MAIN = "main"
"""The source of a batch whose manifest names none."""
SOURCE = r"^[A-Za-z0-9_-]{1,50}$"
_FIELDS = 50  # of one entry, before it is looked at; a photo has at most 6
_DEEP = 100  # objects and lists in each other
_NESTED: dict[str, Any] = {"start_map": {}, "start_array": []}
_LONG = re.compile(rb"(?<=[:,\[\s-])[0-9]{4000}")  # Python turns none of more than 4,300 digits into a number
_SHA256 = r"^[0-9a-f]{64}$"


@dataclass(frozen=True, slots=True)
class Entry:
    """A photo as its sender describes it; `key` is relative to the batch, `size` in bytes, `label` in NFC."""

    key: str
    label: str
    sha256: str | None = None
    split: str | None = None
    size: int | None = None
    metadata_json: str = "{}"

    @property
    def metadata(self) -> dict[str, Any]:
        """What the sender says beside, built anew at each call."""
        return json.loads(self.metadata_json)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Manifest:
    """What a manifest says: photos, and corrections of earlier ones (sha256 → label; sha256s)."""

    source: str = MAIN
    photos: tuple[Entry, ...] = ()
    relabel: dict[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class _Json(str):
    """The text of an object that is not built."""


_NONE = _Json("{}")


class _Photo(_Strict):
    key: str = Field(min_length=1)
    label: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern=_SHA256)
    split: Literal["train", "holdout"] | None = None
    size: int | None = Field(None, ge=0)
    metadata: _Json = _NONE

    @field_validator("key")
    @classmethod
    def _inside(cls, value: str) -> str:
        if any(part in ("", ".", "..") for part in value.split("/")) or "\0" in value:
            raise ValueError("give the key relative to the batch's folder, like sushi/1.jpg")
        if len(value.encode("utf-8", "replace")) > KEY_LIMIT:
            raise ValueError(f"a key has at most {KEY_LIMIT} bytes of UTF-8")
        return value


class _Relabel(_Strict):
    sha256: str = Field(pattern=_SHA256)
    label: str = Field(min_length=1)


class _Remove(_Strict):
    sha256: str = Field(pattern=_SHA256)


class _Head(_Strict):
    schema_: Literal[1] = Field(alias="schema")
    source: str = Field(MAIN, pattern=SOURCE)


_LISTS: dict[str, type[_Strict]] = {"photos": _Photo, "relabel": _Relabel, "remove": _Remove}


class _Wrong(Exception):
    """What is wrong with a manifest, and where in it."""


def parse_manifest(data: bytes, at: str, remedy: str) -> Manifest:
    """Check a manifest's bytes; BatchError names `at`, the entry and field, what is wrong with it, and the remedy."""
    import ijson

    if len(data) > MANIFEST_LIMIT:
        raise BatchError(f"{at}: more than {MANIFEST_LIMIT:,} bytes; send the photos as several batches")
    try:
        data = _plain_json(data)
        if _LONG.search(data):
            raise _Wrong("a number of more than 4,000 digits")
        return _folded(_checked(_values(data)))
    except _Wrong as error:
        raise BatchError(f"{at}: {error}; {remedy}") from error
    except (ijson.JSONError, ValueError, ArithmeticError, SystemError) as error:
        said = str(error).partition("\n")[0].removeprefix("b'").partition("\\n")[0]
        raise BatchError(f"{at}: not readable as JSON ({message(said, 200)}); {remedy}") from error


def _plain_json(data: bytes) -> bytes:
    """The same JSON in UTF-8, without a byte-order mark, and with null for what Python calls NaN and Infinity."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16").encode()
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"NaN" in data or b"Infinity" in data:
        return re.sub(rb'"(?:[^"\\]|\\.)*+"|-?Infinity|NaN', lambda m: m[0] if m[0][:1] == b'"' else b"null", data)
    return data


def _values(data: bytes) -> Iterator[tuple[str, int | None, Any]]:
    """(field, None, value) of the fields at the top, (list, place, value) of each entry of the three lists.

    A value that is nested where it may not be comes as an empty object or list: its kind is what is wrong with it.
    """
    import ijson

    events = ijson.basic_parse(BytesIO(data))
    if next(events, ("", None))[0] != "start_map":
        for _ in islice(events, ENTRIES):  # what is no JSON at all is said first
            pass
        raise _Wrong("manifest: Input should be an object")
    for event, name in events:
        if event == "end_map":  # what comes after it, ijson calls trailing garbage
            continue
        kind, value = next(events)
        if name in _LISTS and kind == "start_array":
            yield name, None, []
            for place, (item, content) in enumerate(events):
                if item == "end_array":
                    break
                yield name, place, _entry(events, item, content, f"{name}.{place}")
        else:
            yield str(name), None, _NESTED.get(kind, value)


def _entry(events: Iterator[tuple[str, Any]], kind: str, value: Any, where: str) -> Any:
    """One entry: an object whose fields are no objects, but for its metadata."""
    if kind != "start_map":
        return _NESTED.get(kind, value)
    found: dict[str, Any] = {}
    for event, name in events:
        if event == "end_map":
            break
        if len(found) == _FIELDS:
            raise _Wrong(f"{where}: more than {_FIELDS} fields")
        kind, value = next(events)
        if kind == "start_map" and name == "metadata":
            found[name] = _object_text(events, f"{where}.metadata")
        elif kind in _NESTED:
            raise _Wrong(f"{where}.{shown(name)}: Input should be no {'list' if kind == 'start_array' else 'object'}")
        elif name == "metadata":
            raise _Wrong(f"{where}.metadata: Input should be an object")
        else:
            found[name] = value
    return found


def _object_text(events: Iterator[tuple[str, Any]], where: str) -> _Json:
    """The JSON of an object whose first brace was read, to its last."""
    text = StringIO()  # a list of the parts would take ten times what they say
    text.write("{")
    closing = ["}"]
    comma = False
    while closing:
        kind, value = next(events)
        if kind.startswith("end_"):
            text.write(closing.pop())
            comma = True
            continue
        text.write("," if comma else "")
        comma = kind not in ("map_key", "start_map", "start_array")
        if kind.startswith("start_"):
            if len(closing) == _DEEP:
                raise _Wrong(f"{where}: nested more than {_DEEP} deep")
            text.write("{" if kind == "start_map" else "[")
            closing.append("}" if kind == "start_map" else "]")
        elif kind == "number":
            text.write(str(value))
        else:
            text.write(json.dumps(value, ensure_ascii=False) + (":" if kind == "map_key" else ""))
    return _Json(found) if (found := text.getvalue()) != _NONE else _NONE


def _checked(values: Iterator[tuple[str, int | None, Any]]) -> Iterator[tuple[str, _Strict]]:
    """The same, each as its model; the head comes last."""
    head: dict[str, Any] = {}
    seen: set[str] = set()
    count = 0
    for name, place, value in values:
        if place is None and name in seen:
            raise _Wrong(f"{shown(name)}: stands there twice")
        seen.add(name)
        if place is not None:
            count += 1
            if count > ENTRIES:
                raise _Wrong(f"{name}.{place}: more than {ENTRIES:,} entries")
            yield name, _model(_LISTS[name], value, f"{name}.{place}")
        elif name not in _LISTS:
            head[name] = value
            if name != "source":  # a newer schema, or a field that there is not, is said before what follows from it
                _model(_Head, head if name == "schema" else {"schema": 1, **head}, "")
        elif not isinstance(value, list):
            raise _Wrong(f"{name}: Input should be a list")
    yield "", _model(_Head, head, "")


def _model(model: type[_Strict], value: Any, where: str) -> _Strict:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        parts = [where, *(shown(part) for part in first["loc"])]
        raise _Wrong(f"{'.'.join(part for part in parts if part)}: {shown(first['msg'], 300)}") from error


def _folded(items: Iterator[tuple[str, _Strict]]) -> Manifest:
    photos: list[Entry] = []
    relabel: dict[str, str] = {}
    remove: dict[str, None] = {}
    labels: dict[str, str] = {}  # one string a label, however many photos have it
    place = {"relabel": 0, "remove": 0}
    source = MAIN
    for name, item in items:
        match item:
            case _Photo():
                label = labels.setdefault(item.label, composed(item.label))
                photos.append(Entry(item.key, label, item.sha256, item.split, item.size, item.metadata))
            case _Head():
                source = item.source
            case _Relabel() | _Remove():
                if item.sha256 in relabel or item.sha256 in remove:
                    where = f"{name}.{place[name]}.sha256"
                    raise _Wrong(f"{where}: a sha256 stands in relabel and remove, or in one of them twice")
                place[name] += 1
                if isinstance(item, _Relabel):
                    relabel[item.sha256] = composed(item.label)
                else:
                    remove[item.sha256] = None
    return Manifest(source, tuple(photos), relabel, tuple(remove))
