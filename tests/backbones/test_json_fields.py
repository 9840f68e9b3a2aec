"""JSON files of other programs: a value has the expected type, or the error names file, field and value."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructrec_jax.backbones.json_fields import DEEPEST, Fields, read_fields, read_objects


def test_null_and_absent_fields_are_the_default() -> None:
    for fields in (Fields("x.json", {}), Fields("x.json", {"a": None})):
        found = [fields.text("a"), fields.integer("a", 0), fields.number("a"), fields.object("a"), fields.texts("a")]
        assert found == [None] * 5
        assert fields.flag("a", True) is True and fields.flag("a") is False


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (lambda f: f.text("a"), ["", "x"], [1, True, ["x"], {}]),
        (lambda f: f.flag("a"), [True, False], [0, 1, "true"]),
        (lambda f: f.integer("a", 2, 5), [2, 5], [1, 6, 2.0, True, "2"]),
        (lambda f: f.number("a", 0.5, 2), [0.5, 1, 2.0], [0.4, 3, True, "1"]),
        (lambda f: f.texts("a"), [[], ["x", ""]], ["x", [1], [None], {}]),
    ],
)
def test_values_of_another_type_or_range_are_refused(
    read: Callable[[Fields], object], good: list[object], bad: list[object]
) -> None:
    for value in good:
        assert read(Fields("x.json", {"a": value})) == value
    for value in bad:
        with pytest.raises(ValueError, match="x.json: a "):
            read(Fields("x.json", {"a": value}))


def test_a_nested_field_is_named_with_its_parents() -> None:
    inner = Fields("x.json", {"a": {"b": 3}}).object("a")
    assert inner is not None
    with pytest.raises(ValueError, match="x.json, a: b is 3"):
        inner.text("b")
    with pytest.raises(ValueError, match="x.json: c is missing"):
        Fields("x.json", {}).refuse("c", "a text")
    with pytest.raises(ValueError, match="x.json: a ") as error:
        Fields("x.json", {"a": ["x" * 10_000]}).text("a")
    assert len(str(error.value)) < 200


def test_what_no_reader_could_take_is_refused_at_the_door(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for text in ("[]", "3", '{"a": 1e999}', '{"a": ' + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "}", "{", ""):
        file.write_text(text)
        with pytest.raises(ValueError, match="x.json"):
            read_fields(file)
    for text in ("{}", "[1]", "[[]]", '[{"a": -1e999}]'):
        file.write_text(text)
        with pytest.raises(ValueError, match="x.json"):
            read_objects(file)
    file.write_text(json.dumps([{"a": 1}, {"a": "x"}]))
    with pytest.raises(ValueError, match="x.json, entry 0: a "):
        [each.text("a") for each in read_objects(file)]
