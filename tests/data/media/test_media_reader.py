"""Arrays of files: kept within bounds, laid in their slots, and of one form."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from instructrec_jax.data.media import media_reader
from instructrec_jax.data.media.media_reader import MediaReader
from instructrec_jax.data.media.picture import Picture, picture


@dataclass(frozen=True)
class Bytes(MediaReader):
    """The bytes of a file."""

    def decode(self, picture: Picture) -> np.ndarray:
        return np.frombuffer(picture.read(), np.uint8).astype(np.float32)


FILES = [picture(bytes([number, 2 * number])) for number in range(9)]


def test_arrays_lie_in_their_slots() -> None:
    laid = np.zeros((2, 2, 2), np.float32)
    Bytes((2,), 1).into(laid, [(1, 0), (0, 1)], [FILES[3], FILES[4]])
    assert laid.tolist() == [[[0, 0], [4, 8]], [[3, 6], [0, 0]]]


def test_what_is_kept_is_bounded_and_stays_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Bytes((2,), 1)
    monkeypatch.setattr(media_reader, "KEPT", 3 * read(FILES[0]).nbytes)
    for one in FILES:
        read(one)
    assert len(read._kept.found) == 3 and read(FILES[8]) is read(FILES[8])
    again = pickle.loads(pickle.dumps(read))
    assert again == read and not again._kept.found


def test_an_array_of_another_form_is_named() -> None:
    with pytest.raises(ValueError, match="the picture of 3 bytes becomes 3 values, but the network reads 2"):
        Bytes((2,), 1)(picture(b"abc"))
