"""Evidence: with an additive scorer, each part's contribution is its own weight."""

from collections.abc import Sequence

import numpy as np
import pytest

from instructrec_jax.answering.evidence import (
    Evidence,
    Part,
    contributions,
    line,
    strongest,
    without_word,
    words_of,
)
from instructrec_jax.answering.requests import Answer, Recommendation
from instructrec_jax.answering.terminal import table

WEIGHTS = {"scary": [0.5, -0.25], "space": [0.125, 1.0], "in": [0.0, 0.0]}


def bag(texts: Sequence[str], items: np.ndarray) -> np.ndarray:
    """Sum of the weights of a text's words, per item."""
    scores = np.array([sum((np.array(WEIGHTS.get(w, [0, 0])) for w in words_of(t)), np.ones(2)) for t in texts])
    return np.take_along_axis(scores, items, axis=1)


def test_contributions_to_a_sum_are_its_terms() -> None:
    text = "something scary in space"
    words = words_of(text)
    items = np.array([[1, 0], [0, 1]])
    (first, second) = contributions(bag, [text, "scary"], [[without_word(text, w) for w in words], [""]], items)
    for word, values in zip(words, first, strict=True):
        assert values.tolist() == [WEIGHTS.get(word, [0, 0])[1], WEIGHTS.get(word, [0, 0])[0]]
    assert second.tolist() == [WEIGHTS["scary"]]
    score, nothing = bag([text, ""], items)
    np.testing.assert_array_equal(first.sum(0), score - nothing[::-1])


def test_the_line_is_made_of_the_numbers() -> None:
    text = "something scary in space"
    words = words_of(text)
    (values,) = contributions(bag, [text], [[without_word(text, w) for w in words]], np.array([[0, 1]]))
    parts = [Part("word", word) for word in words]
    assert line(strongest(parts, values[:, 0])) == '+0.50 "scary", +0.12 "space"'
    assert line(strongest(parts, values[:, 1])) == '+1.0 "space", −0.25 "scary"'
    assert line([Evidence(Part("history", "Alien (1979)"), -0.012)]) == "−0.012 Alien (1979)"
    assert line([Evidence(Part("word", "x"), 0.0)]).startswith("no single part")
    assert line([]) == ""


def test_the_strongest_parts_are_kept_in_either_direction() -> None:
    values = np.array([0.1, -0.9, 0.2, 0.3, 0.0, 0.4, 0.5])
    kept = strongest([Part("word", str(n)) for n in range(7)], values)
    assert [(e.part.text, e.contribution) for e in kept] == [
        ("6", 0.5),
        ("5", 0.4),
        ("3", 0.3),
        ("2", 0.2),
        ("1", -0.9),
    ]


def test_supporters_come_first_however_small() -> None:
    values = np.array([-0.9, 0.1, -0.8, -0.7, -0.6, -0.5])
    kept = strongest([Part("word", str(n)) for n in range(6)], values)
    assert [e.part.text for e in kept] == ["1", "4", "3", "2", "0"]  # by contribution
    assert line(kept) == '+0.10 "1", −0.90 "0", −0.80 "2"'


def test_everything_is_scored_in_one_call() -> None:
    calls = []

    def score(texts: Sequence[str], items: np.ndarray) -> np.ndarray:
        calls.append(len(texts))
        return bag(texts, items)

    contributions(score, ["a", "b"], [["x", "y"], []], np.zeros((2, 3), int))
    assert calls == [4]
    assert contributions(score, [], [], np.zeros((0, 3), int)) == []
    assert calls == [4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Something scary, in space!", ["Something", "scary", "in", "space"]),
        ("space Space SPACE", ["space"]),
        ("a b a", ["a", "b"]),
        ("I don't like sci-fi", ["I", "don't", "like", "sci-fi"]),
        ("看恐怖片 now", ["看", "恐", "怖", "片", "now"]),
        ("scary恐怖", ["scary", "恐", "怖"]),
        ("🚀 films", ["🚀", "films"]),
        ("naïve café", ["naïve", "café"]),
        ("... !?", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("text", "word", "left"),
    [
        ("something scary in space", "scary", "something in space"),
        ("Space, the final space.", "space", "the final."),
        ("scary", "scary", ""),
        ("scary!", "scary", ""),
        ("a, b, c", "b", "a, c"),
        ("no spaces in space", "space", "no spaces in"),
        ("恐怖片", "怖", "恐片"),
        ("🚀 films", "🚀", "films"),
    ],
)
def test_leaving_out_a_word(text: str, word: str, left: str) -> None:
    assert without_word(text, word) == left


@pytest.mark.parametrize(("columns", "lines"), [("100", 3), ("50", 6)])
def test_evidence_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str, lines: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    evidence = [Evidence(Part("history", "A Long Title (1979)"), 0.25)]
    found = [Recommendation(str(n), f"A Film of Some Length ({n})", 0.5, n, evidence) for n in (1, 2)]
    shown = table(Answer(prompt="something", recommendations=found)).splitlines()[2:]
    assert max(map(len, shown)) <= int(columns) and sum("+0.25 A Long Title" in each for each in shown) == 2
    assert len(shown) == lines
    assert "+ raises" in "\n".join(shown)
