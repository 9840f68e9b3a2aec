"""Targets: what their cells mean, and what is not what it looks like."""

from typing import Any

import pytest

from instructrec_jax.preparation.inspection.columns import Column, profile
from instructrec_jax.preparation.inspection.table import Guess, Table
from instructrec_jax.preparation.inspection.targets import check_cells, is_id, labeled


def column(name: str, values: list[Any]) -> Column:
    return profile([("a.csv", {name: value}) for value in values]).columns[name]


def of(values: list[Any], name: str = "label") -> Guess:
    target = column(name, values)
    return labeled(Table({name: target}, len(values)), {}, ("text",), target)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a;b", "b;c", "a"] * 9, "multilabel"),
        (["Yes, sure", "No, never", "maybe"] * 9, "classification"),  # no part is in two names
        (["Yes, sure", "Yes, maybe", "no"] * 9, "multilabel"),
        (["1,2,3", "2,3,4"] * 9, "multilabel"),
        (["1", "2", "2.5"] * 9, "regression"),
    ],
)
def test_labels(values: list[Any], kind: str) -> None:
    assert of(values).type == kind


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("score", ["3,5", "4,5"]),
        ("score", ["1,000", "20"]),
        ("label", ["$3", "€4.50", "5 €"]),
        ("label", ["3%", "4%"]),
        ("score", ["1", "2", "3", "4", "5", "n/a"]),
        ("label", ["['a', 'b']", "['b']"]),
    ],
)
def test_numbers_and_lists_in_writing_are_named(name: str, values: list[str]) -> None:
    with pytest.raises(ValueError, match=name):
        check_cells(column(name, values))


@pytest.mark.parametrize("values", [["a", "b"], ["[a]", "[b]"], ["1", "2", "x", "y"], ["1", "2"], [1, 2], ["3-5", "a"]])
def test_other_cells_pass(values: list[Any]) -> None:
    check_cells(column("label", values))


def test_ids() -> None:
    assert is_id(column("film_id", [1, 1])) and is_id(column("id", [1])) and is_id(column("filmid", [1, 2]))
    assert not is_id(column("paid", [1, 1])) and not is_id(column("text", [1, 2]))
