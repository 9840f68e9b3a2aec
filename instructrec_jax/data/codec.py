"""Encoded examples as bytes, without pickle: MessagePack, with arrays and the dataclasses that tasks register.

Integer arrays are written in the narrowest type that holds them (token numbers mostly fit 16 bits) and read back in
their own.
"""

import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import TypeVar, cast

import msgpack
import numpy as np

from instructrec_jax.data.batch import Text

C = TypeVar("C")
_ARRAY, _RECORD = 1, 2
_DTYPES = [np.dtype(name) for name in "bool int8 uint8 int16 uint16 int32 uint32 int64 float32 float64".split()]
_NARROW = [(np.dtype(name), np.iinfo(name).min, np.iinfo(name).max) for name in ("uint8", "uint16", "int32")]
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_KINDS: dict[str, type] = {}


def storable(kind: type[C]) -> type[C]:
    """Registers a dataclass whose fields are numbers, texts, None, arrays, tuples of these, or other storable ones."""
    if not is_dataclass(kind) or kind.__name__ in _KINDS:
        raise TypeError(f"{kind.__name__} should be a dataclass with a name of its own among storable ones.")
    _KINDS[kind.__name__] = kind
    return kind


storable(Text)


def pack(value: object) -> bytes:
    """Raises TypeError for a value that is not storable."""
    return bytes(msgpack.packb(value, default=_extended))


def unpack(data: bytes) -> object:
    """The inverse of `pack`. Raises ValueError for other bytes."""
    return msgpack.unpackb(data, use_list=False, ext_hook=_read, strict_map_key=False)


def _extended(value: object) -> msgpack.ExtType:
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(_ARRAY, _array_bytes(value))
    if isinstance(value, np.generic):
        raise TypeError(f"{value!r} is a NumPy scalar: a storable field holds Python's own numbers.")
    name = type(value).__name__
    if _KINDS.get(name) is not type(value):
        raise TypeError(f"{name} is not storable: register it with `data.codec.storable`.")
    return msgpack.ExtType(_RECORD, pack((name, *(getattr(value, each.name) for each in fields(value)))))  # type: ignore[arg-type]


def _array_bytes(array: np.ndarray) -> bytes:
    stored = array
    if array.dtype.kind == "i" and array.size:
        least, most = int(array.min()), int(array.max())
        narrow = next((n for n, low, high in _NARROW if low <= least and most <= high), array.dtype)
        stored = array.astype(narrow) if narrow.itemsize < array.itemsize else array
    head = bytes((_CODES[array.dtype], _CODES[stored.dtype], array.ndim))
    return head + struct.pack(f"={array.ndim}I", *array.shape) + stored.tobytes()


def _array(data: bytes) -> np.ndarray:
    own, stored, dimensions = _DTYPES[data[0]], _DTYPES[data[1]], data[2]
    start = 3 + 4 * dimensions
    shape = np.frombuffer(data[3:start], np.uint32)
    return np.frombuffer(data, stored, offset=start).reshape(shape).astype(own)  # astype copies, so it is writable


@lru_cache(maxsize=4096)
def _text(data: bytes) -> object:
    """Equal texts within targets (the names of labels, say) are one object again, which is predicted once."""
    return _record(data)


def _record(data: bytes) -> object:
    name, *values = cast(tuple[str, ...], unpack(data))
    return _KINDS[name](*values)


def _read(code: int, data: bytes) -> object:
    read: Callable[[bytes], object] = _array
    if code == _RECORD:
        read = _text if data[1:].startswith(b"\xa4Text") else _record
    return read(data)
