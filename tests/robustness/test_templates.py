"""Templates with slots."""

import pytest

from instructrec_jax.robustness.lists import lists_of
from instructrec_jax.robustness.templates import filled

EN = lists_of("en")


def test_all_combinations_or_some_of_them() -> None:
    found = filled("{a} {b} {a}", {"a": ["x", "y"], "b": ["1", "2", "3"]}, EN, 100, "k")
    assert len(found) == 6 and all(text[0] == text[-1] for text in found)
    few = filled("{a} {b}", {"a": [*"abcdefgh"], "b": [*"12345678"]}, EN, 10, "k")
    assert len(set(few)) == 10 and few == filled("{a} {b}", {"a": [*"abcdefgh"], "b": [*"12345678"]}, EN, 10, "k")
    assert filled(["one", "two"], {}, EN, 5, "k") == ["one", "two"]
    assert filled("{first_name}", {}, EN, 1000, "k") == EN.slot("first_name")
    assert filled("{first_name}", {"first_name": ["Q"]}, EN, 5, "k") == ["Q"]


@pytest.mark.parametrize(
    ("template", "slots", "said"),
    [
        ("{thing}", {}, "slot {thing} has no words"),
        ("{thing}", {"thing": []}, "slot {thing} has no words"),
        ("{thing}", {"thing": "film"}, "slot {thing} has no words"),
        ("{thing}", {"thing": [1]}, "slot {thing} has no words"),
        ("a", {"thing": ["b"]}, "slots has 'thing', which no template has"),
        (3, {}, "template should be a text"),
        ([], {}, "template should be a text"),
        (["a", ""], {}, "template should be a text"),
    ],
)
def test_wrong_templates_are_named(template: object, slots: dict[object, object], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("{", r"\{")):
        filled(template, slots, EN, 5, "k")
