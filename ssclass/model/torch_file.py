"""Read tensors from a torch file of the old format (before torch 1.6), without torch and without running its code.

Such a file is four pickles one after the other (a magic number, the protocol, what the machine was like, and the object
itself, in which tensors name their storages), then a pickled list of storage keys, then each storage: its length as
int64 and its values. A pickle can call anything that it can name; here it can name tensors and ordered dicts alone.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


def read_torch_file(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a saved ``state_dict`` by name, float32 or int64; ValueError when the file is no such thing."""
    file = io.BytesIO(data)
    try:
        header = [_Unpickler(file).load() for _ in range(3)]
        if header[:2] != [MAGIC, PROTOCOL] or header[2].get("little_endian") is not True:
            raise ValueError("not a torch file of the old format")
        named = _Unpickler(file).load()
        wanted = {tensor.storage.key: tensor.storage for tensor in named.values()}
        storages = {key: _read_storage(file, wanted[key]) for key in _Unpickler(file).load()}
        return {str(name): tensor.read(storages[tensor.storage.key]) for name, tensor in named.items()}
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"not a torch file of tensors ({error})") from error


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor before its storage was read: offset and strides count values, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, values: np.ndarray) -> np.ndarray:
        """Copy the tensor out of the values of its storage; ValueError when it lies beyond their end."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(number < 0 for number in numbers):
            raise ValueError("a tensor has no possible shape")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if prod(self.shape) > len(values):
            raise ValueError("a tensor is larger than its storage")
        if prod(self.shape) and last >= len(values):
            raise ValueError("a tensor lies beyond the end of its storage")
        steps = [stride * values.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False).copy()


def _read_storage(file: io.BytesIO, storage: _Storage) -> np.ndarray:
    """Read the values of the next storage, one-dimensional."""
    (length,) = struct.unpack("<q", file.read(8))
    data = file.read(storage.length * np.dtype(storage.dtype).itemsize)
    if length != storage.length or len(data) != length * np.dtype(storage.dtype).itemsize:
        raise ValueError("a storage is cut off")
    return np.frombuffer(data, storage.dtype)


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes tensors and ordered dicts, and refuses whatever else a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any] | str] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length, _ = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            raise pickle.UnpicklingError("it names something that is no storage of tensors")
        return _Storage(key, dtype, length)


def _rebuilt(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)
