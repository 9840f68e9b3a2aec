"""The card of a prepared folder, as the terminal shows it."""

import shlex
from typing import Any

import pytest

from instructrec_jax.preparation.card_text import describe, describe_tags

CARD: dict[str, Any] = {
    "source": "ml-tiny",
    "users": 1234,
    "items": 5678,
    "interactions": 90000,
    "interactions_read": 100000,
    "density": 0.0128,
    "examples": {"train": 4321, "validation": 12, "test": 34},
    "settings": {"k_core": 5, "sequence_limit": 50, "split": "leave_one_out"},
    "bad_lines": 0,
    "below_min_rating": 0,
    "repeats": 0,
    "outside_k_core": 0,
    "beyond_sequence_limit": 0,
    "users_only_in_train": 0,
    "new_users": 0,
    "new_items": 0,
    "has_timestamps": 1,
}


def test_the_counts_of_the_card() -> None:
    said = describe(CARD, "out")
    for text in ("ml-tiny → out", "1,234", "5,678", "90,000", "100,000", "1.280%", "4,321 train", "12 validation"):
        assert text in said
    assert "leave-one-out" in said and "left out      nothing" in said and "note" not in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad_lines", "bad_lines.txt"),
        ("below_min_rating", "minimum rating"),
        ("repeats", "repeated"),
        ("outside_k_core", "5-core"),
        ("beyond_sequence_limit", "last 50"),
        ("users_only_in_train", "note:"),
        ("new_users", "note:"),
        ("new_items", "note:"),
        ("reworded_by_teacher", "teacher"),
    ],
)
def test_whatever_is_left_out_or_odd_is_told_with_its_number(name: str, said: str) -> None:
    (line,) = set(describe(CARD | {name: 7531}, "out").splitlines()) - set(describe(CARD, "out").splitlines())
    assert "7,531" in line and said in line


def test_an_order_that_is_not_of_time_is_told() -> None:
    assert "timestamps" in describe(CARD | {"has_timestamps": 0}, "out")
    assert "from" not in describe(CARD, "out")
    said = describe(CARD | {"validation_from": 100.4, "test_from": 200.0}, "out")
    assert "100" in said and "200" in said


@pytest.mark.parametrize("out", ["data/shop", "my shop", "it's", "a;b"])
def test_the_next_command_is_one_of_a_shell(out: str) -> None:
    tags = CARD | {"tag_applications": 9, "users_with_tags": 3}
    for said in (describe(CARD, out), describe_tags(tags, out)):
        words = shlex.split(said.splitlines()[-1])
        assert words[-2:] == ["--config_path", f"{out}/train.yaml"]


def test_the_card_of_tags() -> None:
    said = describe_tags(CARD | {"tag_applications": 4444, "users_with_tags": 333}, "out")
    assert "4,444" in said and "333 users" in said and "4,321 train" in said
