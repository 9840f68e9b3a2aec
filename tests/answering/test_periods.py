"""Years and running times that a request says in words."""

import pytest

from instructrec_jax.answering.periods import lengths, years


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("made before 1980", ["year<1980"]),
        ("pre-1980 stuff", ["year<1980"]),
        ("from before the seventies", ["year<1970"]),
        ("not newer than 1979", ["year<=1979"]),
        ("no newer than 1979", ["year<=1979"]),
        ("up to 1975", ["year<=1975"]),
        ("from the sixties or earlier", ["year<=1969"]),
        ("released since 1990", ["year>=1990"]),
        ("from 1990 onwards", ["year>=1990"]),
        ("from 2010 or later", ["year>=2010"]),
        ("post-1999", ["year>1999"]),
        ("released after the two-thousands", ["year>2009"]),
        ("between 1980 and 1995", ["year>=1980", "year<=1995"]),
        ("from 1990 to 1999", ["year>=1990", "year<=1999"]),
        ("from the nineties", ["year>=1990", "year<=1999"]),
        ("from the late '80s", ["year>=1987", "year<=1989"]),
        ("eighties style", ["year>=1980", "year<=1989"]),
        ("1950s classics", ["year>=1950", "year<=1959"]),
        ("an 80s action flick", ["year>=1980", "year<=1989"]),
        ("90s romcom", ["year>=1990", "year<=1999"]),
        ("from 1984", ["year=1984"]),
        ("90年代的喜剧", ["year>=1990", "year<=1999"]),
        ("1980年以前的", ["year<=1980"]),
        ("今晚想看90年代的 thriller", ["year>=1990", "year<=1999"]),
        ("八十年代", ["year>=1980", "year<=1989"]),
    ],
)
def test_years(text: str, conditions: list[str]) -> None:
    (span,) = years(text)
    assert list(span.conditions) == conditions


@pytest.mark.parametrize(
    "text",
    [
        "set in the eighties",
        "set in 1944",
        "a woman in her thirties",
        "about the world conflict of the 1940s",
        "2001: A Space Odyssey",
        "during the 1960s",
        "something with 300 soldiers",
    ],
)
def test_years_of_the_story_are_no_condition(text: str) -> None:
    assert not list(years(text))


def test_a_span_is_what_is_cut_out_of_the_text() -> None:
    text = "A comedy from the nineties, or from 2010 or later."
    assert [text[span.start : span.end] for span in years(text)] == ["from 2010 or later", "from the nineties"]


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("under two hours", "runtime<120"),
        ("at most 100 minutes long", "runtime<=100"),
        ("over two and a half hours", "runtime>150"),
        ("less than an hour", "runtime<60"),
        ("under half an hour", "runtime<30"),
        ("at least 1.5 h", "runtime>=90"),
    ],
)
def test_running_times(text: str, condition: str) -> None:
    (span,) = lengths(text, "runtime")
    assert span.conditions == (condition,)
