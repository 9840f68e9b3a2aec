"""What tasks make of examples survives being written, bit for bit; nothing else is accepted."""

from dataclasses import dataclass, field

import msgpack
import numpy as np
import pytest

from instructrec_jax.data.batch import Text
from instructrec_jax.data.codec import pack, storable, unpack


@storable
@dataclass(frozen=True)
class Kept:
    array: np.ndarray
    texts: tuple[Text, ...] = ()
    more: "Kept | None" = None
    number: float = 0.5
    flag: bool = True
    names: tuple[str, ...] = field(default=("a", "é😀"))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 2), (0, 4)])
def test_arrays_come_back_in_their_own_type(dtype: str, shape: tuple[int, ...]) -> None:
    for scale in (1, 100, 300, 70_000):
        array = (np.arange(np.prod(shape, dtype=int)).reshape(shape) * scale).astype(dtype)
        for each in (array, -array if dtype not in ("bool", "uint8") else array):
            found = unpack(pack(each))
            assert isinstance(found, np.ndarray) and found.dtype == each.dtype and found.shape == each.shape
            assert np.array_equal(found, each)
            assert found.flags.writeable


def test_token_numbers_take_two_bytes() -> None:
    tokens = np.arange(1000, dtype=np.int32) * 60
    assert len(pack(tokens)) < 2_050
    assert len(pack((tokens > 5).astype(np.int32))) < 1_050


def test_nested_dataclasses() -> None:
    inner = Kept(np.array([1.5], np.float32), (Text(np.arange(3, dtype=np.int32)),))
    found = unpack(pack(Kept(np.zeros(2, np.int32), more=inner, number=-3)))
    assert isinstance(found, Kept) and isinstance(found.more, Kept)
    assert found.names == ("a", "é😀") and found.number == -3 and found.flag is True
    assert found.more.texts[0].tokens.tolist() == [0, 1, 2] and found.more.texts[0].types is None


def test_equal_texts_in_targets_are_one_object() -> None:
    one, other = (unpack(pack(Kept(np.zeros(1), (Text(np.arange(5, dtype=np.int32)),)))) for _ in range(2))
    assert isinstance(one, Kept) and isinstance(other, Kept)
    assert one.texts[0] is other.texts[0]


@dataclass
class Stranger:
    x: int = 1


@pytest.mark.parametrize("value", [Stranger(), np.float32(1), object(), {1, 2}])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="storable"):
        pack(value)


def test_names_are_unique() -> None:
    with pytest.raises(TypeError, match="Kept"):
        storable(dataclass(type("Kept", (), {"__annotations__": {"y": int}})))
    with pytest.raises(TypeError, match="dataclass"):
        storable(type("Plain", (), {}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x93\x01", msgpack.packb(msgpack.ExtType(1, b"\xff\x00\x01"))])
def test_other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        unpack(data)
