"""Labels in normalized form, names of class numbers, and answers by a candidate's number or letter."""

import math
from collections import Counter
from typing import Any

import pytest

from instructrec_jax.data.example import BadExample
from instructrec_jax.data.labels import Labels, check_styles, chosen, label_form, named, withheld


@pytest.mark.parametrize(
    ("value", "form"),
    [
        *[(value, "1") for value in (1, 1.0, "1", "1.0", " 1 ", "+1", "1.000")],
        ("1.", "1."),  # a name
        *[(value, "-2") for value in (-2, -2.0, "-2", "-2.0")],
        *[(value, "0") for value in (0, 0.0, "0", "-0", "0.0")],
        *[(value, "true") for value in (True, "true", "TRUE", " True ")],
        *[(value, "false") for value in (False, "False")],
        (1.5, "1.5"),
        ("1.50", "1.5"),
        ("007", "007"),
        ("1e3", "1e3"),
        ("1_0", "1_0"),
        ("12345678901234567", "12345678901234567"),  # more digits than a float keeps: a name
        ("yes ", "yes "),
        ("", ""),
        *[(value, None) for value in (None, math.nan, math.inf, [], {"a": 1}, b"1")],
    ],
)
def test_one_form_for_equal_labels(value: Any, form: str | None) -> None:
    assert label_form(value) == form


def test_forms_of_whole_numbers_agree_in_text_and_number() -> None:
    for number in (*range(-50, 51), 10**15):
        assert {label_form(x) for x in (number, float(number), str(number), f"{number}.0")} == {str(number)}


def test_a_label_is_found_by_its_name_before_its_form() -> None:
    labels = Labels(["1", "1.0", "2", "yes"])
    assert labels.find("1.0") == "1.0" and labels.find("1") == "1"
    assert labels.find(1) is None  # which of them?
    assert labels.find(2) == labels.find(2.0) == labels.find(" 2") == "2"
    assert labels.find("Yes") is labels.find("3") is labels.find(None) is labels.find(math.nan) is None
    assert Labels(["true", "false"]).find(True) == "true"


def test_class_numbers_by_their_names() -> None:
    names = {0: "bad", 1: "good", -1: "odd"}
    for value, name in ((0, "bad"), ("1.0", "good"), (True, "good"), (False, "bad"), (-1, "odd"), ("good", "good")):
        assert named(value, names, "output") == name
    for value in (2, "2", "Good", 0.5, None, [0]):
        with pytest.raises(BadExample) as caught:
            named(value, names, "output[3]")
        assert caught.value.field == "output[3]" and "0: bad" in caught.value.detail


def test_a_number_is_a_class_before_it_is_a_name() -> None:
    assert named("1", {0: "1", 1: "2"}, "output") == "2"


def test_minus_one_is_told_to_be_withheld() -> None:
    assert withheld(-1) and not withheld(0) and not withheld(None)
    with pytest.raises(BadExample, match="withheld"):
        named(-1, {0: "a"}, "output")


FILMS = ["Alien", "Moon", "Ran"]


def test_answers_count_from_0_or_from_a() -> None:
    styles: Counter[str] = Counter()
    for number, film in enumerate(FILMS):
        for value in (number, str(number), float(number), "ABC"[number], "abc"[number], f" {'ABC'[number]} "):
            assert chosen(value, FILMS, None, styles) == film
    assert styles == {"numbers": 9, "letters": 9}


@pytest.mark.parametrize("value", [3, -1, "D", "AB", "é", True, None, 0.5, "", ["A"], "Alien"])
def test_what_refers_to_no_candidate(value: Any) -> None:
    styles: Counter[str] = Counter()
    with pytest.raises(BadExample) as caught:
        chosen(value, FILMS, None, styles)
    assert caught.value.field == "output" and not styles


def test_labels_in_the_record_decide_and_are_not_counted() -> None:
    styles: Counter[str] = Counter()
    assert chosen("1", FILMS, ["1", "2", "3"], styles) == "Alien"
    assert chosen(3.0, FILMS, ("1", "2", "3"), styles) == "Ran"
    assert chosen(" b ", FILMS, ["a", "b", "c"], styles) == "Moon" and not styles
    for value, labels, field in (
        ("0", ["1", "2", "3"], "output"),
        ("A", ["A", "B"], "candidates"),
        ("A", ["A", "A", "B"], "candidates"),
        ("A", [None, "A", "B"], "candidates"),
        ("A", "ABC", "candidates"),
    ):
        with pytest.raises(BadExample) as caught:
            chosen(value, FILMS, labels, styles)
        assert caught.value.field == field


def test_letters_and_numbers_do_not_mix_in_a_source() -> None:
    check_styles(Counter(letters=3), "mine")
    check_styles(Counter(), "mine")
    with pytest.raises(ValueError, match=r"mine.*1,200.* 7 .*fields.candidates"):
        check_styles(Counter(letters=1200, numbers=7), "mine")
