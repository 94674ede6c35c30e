"""Torch files of the old format: what is read of them, and that a pickle in one can run nothing."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ssclass.model.torch_file import MAGIC, PROTOCOL, read_torch_file


class Stored:
    """A tensor to be written: the values of its storage, and where in them it lies."""

    def __init__(self, values: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> None:
        self.values, self.shape, self.strides, self.offset = values, shape, strides, offset
        self.key = str(id(self))


class Storage:
    def __init__(self, stored: Stored) -> None:
        self.stored = stored


class Pickler(pickle.Pickler):
    """Writes tensors as torch does: a call of its function, with a storage that lies after the pickle."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Stored):
            function = sys.modules["torch._utils"]._rebuild_tensor_v2  # type: ignore[attr-defined]
            return function, (Storage(thing), thing.offset, thing.shape, thing.strides, False, OrderedDict())
        return NotImplemented

    def persistent_id(self, thing: Any) -> Any:
        if not isinstance(thing, Storage):
            return None
        name = {"<f4": "FloatStorage", "<i8": "LongStorage"}[thing.stored.values.dtype.str]
        kind = getattr(sys.modules["torch"], name)
        return "storage", kind, thing.stored.key, "cpu", len(thing.stored.values), None


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What a pickle names must have its name in a module; only the names are written."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")

    def named(name: str, module: ModuleType, thing: Any) -> None:
        thing.__name__ = thing.__qualname__ = name
        thing.__module__ = module.__name__
        setattr(module, name, thing)

    named("FloatStorage", torch, type("FloatStorage", (), {}))
    named("LongStorage", torch, type("LongStorage", (), {}))
    named("_rebuild_tensor_v2", utils, lambda *values: None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def written(state: dict[str, Stored], *, magic: int = MAGIC, little_endian: bool = True) -> bytes:
    """A file as torch wrote them up to version 1.5."""
    out = io.BytesIO()
    for header in (magic, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": little_endian}):
        pickle.dump(header, out, protocol=2)
    Pickler(out, protocol=2).dump(OrderedDict(state))
    pickle.dump([stored.key for stored in state.values()], out, protocol=2)
    for stored in state.values():
        out.write(struct.pack("<q", len(stored.values)) + stored.values.tobytes())
    return out.getvalue()


def some_state() -> dict[str, Stored]:
    return {
        "plain": Stored(np.arange(6, dtype="<f4"), (2, 3), (3, 1)),
        "transposed": Stored(np.arange(6, dtype="<f4"), (3, 2), (1, 3)),
        "part": Stored(np.arange(10, dtype="<f4"), (2, 2), (4, 1), offset=3),
        "count": Stored(np.array([7], "<i8"), (), ()),
    }


def test_tensors_are_read_by_name_with_their_strides_and_offsets(torch: ModuleType) -> None:
    found = read_torch_file(written(some_state()))
    assert list(found) == ["plain", "transposed", "part", "count"]
    np.testing.assert_array_equal(found["plain"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["transposed"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["part"], [[3, 4], [7, 8]])
    assert found["count"] == 7
    assert found["plain"].dtype == np.float32


@pytest.mark.parametrize(
    "stored",
    [
        Stored(np.zeros(6, "<f4"), (2, 4), (4, 1)),
        Stored(np.zeros(6, "<f4"), (2, 3), (3, 1), offset=1),
        Stored(np.zeros(6, "<f4"), (2, 3), (3, 1), offset=-1),
        Stored(np.zeros(6, "<f4"), (2, 3), (-3, 1)),
        Stored(np.zeros(6, "<f4"), (2**40,), (2**20,)),
        Stored(np.zeros(6, "<f4"), (2, 3), (3,)),
    ],
    ids=["too large", "too far", "before the start", "backwards", "huge", "no stride"],
)
def test_a_tensor_that_lies_outside_its_storage_is_refused(stored: Stored, torch: ModuleType) -> None:
    with pytest.raises(ValueError, match="tensor"):
        read_torch_file(written({"one": stored}))


class Evil:
    """Asks the reader to call something."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.call = function, values

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    "evil",
    [
        Evil(os.mkdir, "made"),
        Evil(eval, "open('made', 'w')"),
        Evil(exec, "import os; os.mkdir('made')"),
        Evil(getattr, OrderedDict, "mro"),
    ],
    ids=["os", "eval", "exec", "getattr"],
)
def test_a_pickle_that_names_anything_else_is_refused_before_it_runs(
    evil: Evil, place: int, torch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the five pickles it is in: nothing is called, and the words say what was named."""
    monkeypatch.chdir(tmp_path)
    out = io.BytesIO()
    for number, body in enumerate((MAGIC, PROTOCOL, {"little_endian": True}, OrderedDict(), [])):
        pickle.dump(evil if number == place else body, out, protocol=2)
    with pytest.raises(ValueError, match="which is no tensor"):
        read_torch_file(out.getvalue())
    assert not (tmp_path / "made").exists()


def test_other_files_are_refused(torch: ModuleType) -> None:
    whole = written(some_state())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:  # torch's format since 1.6
        file.writestr("archive/data.pkl", pickle.dumps({}))
    others = [b"", b"junk", archive.getvalue(), pickle.dumps({"a": 1}), written(some_state(), magic=1)]
    others += [written(some_state(), little_endian=False), whole[:-1]]
    others += [whole[:at] for at in range(1, len(whole), 37)]
    for other in others:
        with pytest.raises(ValueError, match="not a torch file"):
            read_torch_file(other)
