"""Entries are made when they are read, from those of sequences of one length."""

import numpy as np
import pytest

from instructrec_jax.data.mapped import Mapped


def test_entries_are_made_when_they_are_read() -> None:
    made: list[int] = []

    def make(number: int, half: float) -> str:
        made.append(number)
        return f"{number} {half:g}"

    found = Mapped(make, range(4), np.arange(4) / 2)
    assert len(found) == 4 and made == []
    assert found[-1] == "3 1.5" and found[1:3] == ["1 0.5", "2 1"] and made == [3, 1, 2]
    assert list(found) == ["0 0", "1 0.5", "2 1", "3 1.5"] == [*found]
    with pytest.raises(IndexError):
        found[4]


def test_sequences_of_different_lengths_are_named() -> None:
    with pytest.raises(ValueError, match=r"lengths \[2, 3\]"):
        Mapped(max, [1, 2], [1, 2, 3])
