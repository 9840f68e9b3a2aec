"""Error rates against edits counted by brute force, and by hand."""

from functools import cache

import numpy as np
import pytest

from instructrec_jax.metrics.speech import edits, error_rates, plain_words


def slowly(found: str, wanted: str, swaps: bool = False) -> int:
    """Levenshtein's recursion as it is written; with Damerau's swaps of neighbors."""

    @cache
    def least(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        fewest = min(least(i - 1, j) + 1, least(i, j - 1) + 1, least(i - 1, j - 1) + (found[i - 1] != wanted[j - 1]))
        swapped = swaps and i > 1 and j > 1 and found[i - 2 : i] == wanted[j - 2 : j][::-1]
        return min(fewest, least(i - 2, j - 2) + 1) if swapped else fewest

    return least(len(found), len(wanted))


def test_edits_are_the_fewest() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pair = ["".join(rng.choice(list("abc"), rng.integers(0, 8))) for _ in range(2)]
        assert edits(*pair) == slowly(*pair), pair
        assert edits(*pair, swaps=True) == slowly(*pair, swaps=True), pair
    assert (edits("teh", "the"), edits("teh", "the", swaps=True)) == (2, 1)


@pytest.mark.parametrize(
    ("said", "words"),
    [("Don't, stop!", ["don't", "stop"]), ("", []), ("… —", []), ("Ärger um 3 Uhr", ["ärger", "um", "3", "uhr"])],
)
def test_words_are_lower_case_without_punctuation(said: str, words: list[str]) -> None:
    assert plain_words(said) == words


def test_rates_are_of_all_cases_together_against_the_best_reference() -> None:
    rates = error_rates(["one two", "Four.", "", "x"], [["one three"], ["five", "four"], ["six seven"], [""]])
    assert rates.word_edits.tolist() == [1, 0, 2, 1] and rates.words.tolist() == [2, 1, 2, 1]
    metrics = rates.metrics()
    assert metrics["WER"].value(np.arange(3)) == pytest.approx(3 / 5)
    assert metrics["WER"].value(np.array([1, 1])) == 0
    assert metrics["CER"].value(np.array([0])) == pytest.approx(4 / 9)  # two → three
