"""Equal and nearly equal texts: what normalization ignores, and hashing beside all pairs."""

import sys

import numpy as np
import pytest

from instructrec_jax.data.fingerprints import normalized
from instructrec_jax.labeling import duplicates
from instructrec_jax.labeling.duplicates import (
    Pair,
    clusters,
    grouped,
    jaccard,
    near_duplicates,
    shingles,
)

WORDS = "the bank card was declined at a shop and my money is not back yet please help me now".split()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Has my top-up gone through?", "has my top up  gone through"),
        ("ＦＵＬＬ width", "full WIDTH"),
        ("Straße", "STRASSE"),
        ("e\u0301te\u0301", "été"),
        ("退款，在哪里？", "退款 在哪里"),
        (" ?! ", "?!"),
    ],
)
def test_equal_after_normalization(one: str, other: str) -> None:
    assert normalized(one) == normalized(other)


def test_different_after_normalization() -> None:
    assert len({normalized(text) for text in ("?!", "...", "a b", "ab", "no", "not", "5 euro", "50 euro")}) == 8


def variants(count: int) -> list[str]:
    """Sentences, and copies of them with a word changed."""
    rng = np.random.default_rng(0)
    made = [" ".join(rng.choice(WORDS, 12)) for _ in range(count)]
    return list(dict.fromkeys([*made, *(text.replace("card", "cards") + " x" for text in made)]))


def test_near_duplicates_beside_all_pairs() -> None:
    texts = variants(60)
    known = [shingles(text) for text in texts]
    values = ((i, j, jaccard(known[i], known[j])) for j in range(len(texts)) for i in range(j))
    wanted = {(i, j): value for i, j, value in values if value >= 0.7}
    found = {(pair.first, pair.second): pair.similarity for pair in near_duplicates(texts, 0.7)}
    assert found.items() <= wanted.items() and len(wanted) > 20
    assert len(found) >= 0.95 * len(wanted) and {k for k, v in wanted.items() if v >= 0.8} <= set(found)


def test_jaccard_and_shingles() -> None:
    assert shingles("abcdef") == {"abcde", "bcdef"} and shingles("ab") == {"ab"} and shingles("") == {""}
    assert jaccard(shingles("abcdef"), shingles("abcdeg")) == pytest.approx(1 / 3)


def test_clusters_are_connected() -> None:
    pairs = [Pair(3, 4, 0.9), Pair(1, 3, 0.9), Pair(5, 6, 0.9), Pair(1, 4, 0.8)]
    assert clusters(8, pairs).tolist() == [0, 1, 2, 1, 1, 5, 5, 7]
    assert grouped(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 3, 1]


@pytest.mark.parametrize("similarity", [0, -1, 1.1, float("nan")])
def test_a_similarity_is_a_share(similarity: float) -> None:
    with pytest.raises(ValueError, match="--similarity"):
        near_duplicates(["a"], similarity)


def test_one_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert near_duplicates(["a b", "a c"], 1) == []


def test_too_many_pairs_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST", 3)
    with pytest.raises(ValueError, match="higher --similarity"):
        near_duplicates([f"the same long prompt of a template, number {i}" for i in range(5)], 0.5)
