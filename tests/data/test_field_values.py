import math

import pytest

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.field_values import as_number, id_text, missing_column, origin_of, own_words, record_id


def test_a_text_is_a_number_as_files_write_numbers() -> None:
    assert [as_number(text) for text in ("3", "2.5", "1e3", "1_000", "three")] == [3, 2.5, 1000.0, "1_000", "three"]


def test_ids_are_texts_and_columns_with_gaps_keep_whole_numbers() -> None:
    assert [id_text(7, "output"), id_text(7.0, "output"), id_text("a7", "output")] == ["7", "7", "a7"]
    for value in (7.5, True, None, ["a"]):
        with pytest.raises(BadExample, match="expected text or an integer"):
            id_text(value, "output")


def test_a_record_without_a_name_has_none() -> None:
    assert [record_id(value) for value in (None, math.nan, "  ", 3.0, {"a": 1})] == ["", "", "", "3", '{"a": 1}']


def test_words_are_kept_where_spaces_do_not_bring_them_back() -> None:
    assert own_words(["New York", "is"]) == ("New York", "is")
    assert own_words(["New", "York"]) == own_words("New York") == ()


def test_provenance_is_an_object_of_texts() -> None:
    assert origin_of("u1", "user") == {"user": "u1"}
    assert origin_of({"user": 3, "page": ["a", "b"], "none": None, "empty": []}, "origin") == {"user": "3", "page": "a"}
    with pytest.raises(BadExample, match="set fields.origin to null"):
        origin_of(3, "origin")


def test_a_missing_column_names_those_there_are_and_a_close_one() -> None:
    message = str(missing_column("instruction", "promt", ["prompt", "answer"]))
    assert "no column 'promt'; the record has prompt, answer." in message and "prompt" in message.split("answer.")[1]
