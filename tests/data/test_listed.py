"""What a caller may give as one value, a list or a table."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas
import pytest

from instructrec_jax.data.example import Example
from instructrec_jax.data.listed import check_type, listed

KINDS = (str, Mapping, Example)


def test_one_value_is_a_list_of_one() -> None:
    example = Example(instruction="a")
    for one in ("a", {"text": "a"}, example):
        assert listed(one, "records", KINDS, "texts") == [one]
        assert listed((one, one), "records", KINDS, "texts") == [one, one]
    assert listed((text for text in "ab"), "records", KINDS, "texts") == ["a", "b"]
    assert listed(np.array(["a", "b"]), "records", KINDS, "texts") == ["a", "b"]
    assert listed(pandas.Series(["a"]), "records", KINDS, "texts") == ["a"]
    assert listed([], "records", KINDS, "texts") == []


def test_a_table_is_its_records_and_not_its_columns() -> None:
    table = pandas.DataFrame({"text": ["a", "b"], "n": [1, 2]})
    assert listed(table, "records", KINDS, "texts") == [{"text": "a", "n": 1}, {"text": "b", "n": 2}]
    with pytest.raises(ValueError, match="texts is a table"):
        listed(table, "texts", (str,), "texts")


@pytest.mark.parametrize("value", [None, 3, b"a", {"a", "b"}, {"a": 1}, Path("a"), ["a", 3], ["a", None], [["a"]]])
def test_anything_else_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"^prompts(\[\d\])? is .*but (prompts )?should be texts\.$"):
        listed(value, "prompts", (str,), "texts")


def test_one_value_can_be_refused() -> None:
    with pytest.raises(ValueError, match="train is one Example"):
        listed(Example(instruction="a"), "train", KINDS, "a list", single=False)


def test_types() -> None:
    check_type(3, "k", (int,), "a number")
    for value in (None, "3", 3.0, True):
        with pytest.raises(ValueError, match="^k is "):
            check_type(value, "k", (int,), "a number")
