"""Fields of a record that no setting reads: an error, a counted note, or named as ignored."""

import pytest

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.unread import MEANING, check_ignored, unread_fields, unread_note


def test_fields_that_are_read_ignored_or_empty_are_no_concern() -> None:
    record = {"instruction": "a", "id": 3, "source": "web", "tools": None, "system": "", "images": []}
    assert unread_fields(record, {"instruction", "id"}, {"source"}) == []
    assert unread_fields(record, {"instruction"}, ()) == ["id", "source"]


@pytest.mark.parametrize("name", sorted(MEANING))
def test_a_field_that_changes_the_meaning_is_an_error_unless_it_is_named(name: str) -> None:
    with pytest.raises(BadExample, match="fields.ignore") as error:
        unread_fields({name: "something"}, (), ())
    assert error.value.field == name
    assert unread_fields({name: "something"}, {name}, ()) == unread_fields({name: "something"}, (), {name}) == []


def test_the_note_counts_rows() -> None:
    assert unread_note("a.jsonl", {}, 10) == ""
    note = unread_note("a.jsonl", {"url": 1200, "date": 3}, 5000)
    assert "a.jsonl (5,000 rows)" in note and "url (1,200), date (3)" in note and "fields.ignore" in note


def test_a_field_cannot_be_read_and_ignored() -> None:
    assert check_ignored(["a", "b", "a"], {"c"}) == {"a", "b"}
    with pytest.raises(ValueError, match="fields.ignore.*'c'"):
        check_ignored(["a", "c"], {"c"})
