"""The help of a verb in lines that fit the terminal."""

import pytest

from instructrec_jax.runs.help_text import fitted_help

DOC = """What it does, in a sentence that is longer than a narrow terminal and therefore has to be
wrapped.

    verb RUN --input new.csv          every row with its prediction, beside its own columns
    verb RUN                          one text

The end.
"""


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_longer_and_no_word_is_lost(width: int) -> None:
    lines = fitted_help(DOC, width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert " ".join(lines).split() == DOC.split()


def test_explanations_stand_beside_their_commands_or_below() -> None:
    wide = fitted_help(DOC, 100).splitlines()
    first, second = (next(line for line in wide if word in line) for word in ("every row", "one text"))
    assert first.index("every row") == second.index("one text")
    narrow = fitted_help(DOC, 56).splitlines()
    command = next(number for number, line in enumerate(narrow) if "new.csv" in line)
    assert "every row" not in narrow[command] and narrow[command + 1].startswith("      every row")


def test_paragraphs_stay_apart() -> None:
    assert fitted_help("One.\n\nTwo\nlines.", 80) == "One.\n\nTwo lines."


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert fitted_help(DOC) == fitted_help(DOC, 70)
