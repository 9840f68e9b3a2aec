"""Candidates against their definitions: who is excluded, how often each is drawn, what is nearest."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from instructrec_jax.ranking.candidates import Asked, candidates_for, draw, name_and_size, write_candidates
from instructrec_jax.ranking.catalogue import Catalogue, Splits

ITEMS = 40
WORDS = "space war love crime music family robot island winter city".split()


@pytest.fixture
def catalogue() -> Catalogue:
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(ITEMS)]
    return Catalogue([f"i{n}" for n in range(ITEMS)], [f"title {n}" for n in range(ITEMS)], texts)


def asked(count: int = 30, own: int = 6, split: str = "") -> Asked:
    rng = np.random.default_rng(2)
    chosen = [rng.permutation(ITEMS)[:own] for _ in range(count)]
    return Asked([f"u{n}" for n in range(count)], [c[:1] for c in chosen], chosen, [split] * count)


POPULARITY = np.arange(ITEMS) % 7


@pytest.mark.parametrize("protocol", ["uni9", "uni34", "pop9", "pop28", "hard9", "hard34"])
def test_candidates_are_distinct_and_never_the_users_own(protocol: str, catalogue: Catalogue) -> None:
    cases = asked()
    drawn = draw(protocol, cases, catalogue, POPULARITY)
    assert drawn.shape == (30, name_and_size(protocol)[1]) and drawn.dtype == np.int32
    for row, own in zip(drawn, cases.own, strict=True):
        assert len(set(row.tolist())) == len(row) and not set(row.tolist()) & set(own.tolist())
        assert protocol[:3] != "pop" or (POPULARITY[row] > 0).all()
    if protocol == "uni34":  # all that is left
        assert all(
            set(range(ITEMS)) - set(o.tolist()) == set(r.tolist()) for r, o in zip(drawn, cases.own, strict=True)
        )


@pytest.mark.parametrize("protocol", ["uni9", "pop9", "hard9"])
def test_a_draw_depends_on_its_own_case_and_the_seed_alone(protocol: str, catalogue: Catalogue) -> None:
    cases = asked()
    whole = draw(protocol, cases, catalogue, POPULARITY, seed=3)
    few = np.array([17, 4])
    part = cases.take(few)
    np.testing.assert_array_equal(draw(protocol, part, catalogue, POPULARITY, seed=3), whole[few])
    if protocol != "hard9":
        assert (draw(protocol, cases, catalogue, POPULARITY, seed=4) != whole).any(axis=1).mean() > 0.9
        assert len({tuple(sorted(row)) for row in whole.tolist()}) == len(whole)


@pytest.mark.parametrize("protocol", ["uni9", "pop9"])
def test_many_cases_are_drawn_a_part_at_a_time(
    protocol: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(protocol, asked(), catalogue, POPULARITY, seed=3)
    monkeypatch.setattr("instructrec_jax.ranking.candidates.MANY", 7)
    np.testing.assert_array_equal(draw(protocol, asked(), catalogue, POPULARITY, seed=3), whole)


def successive(weights: np.ndarray, size: int) -> np.ndarray:
    """Probability of each item to be among `size` drawn one after another by weight, by recursion over all draws."""
    if size == 0 or weights.sum() == 0:
        return np.zeros(len(weights))
    share = weights / weights.sum()
    result = share.copy()
    for first in np.flatnonzero(share):
        rest = weights.copy()
        rest[first] = 0
        result += share[first] * successive(rest, size - 1)
    return result


@pytest.mark.parametrize("rounds", [0, 8])  # 0: all from lists
def test_pop_draws_by_popularity_without_replacement(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec_jax.ranking.candidates.ROUNDS", rounds)
    small = Catalogue(list("abcdefg"), list("abcdefg"), list("abcdefg"))
    popularity = np.array([8.0, 1, 2, 0, 5, 40, 3])
    count = 20_000
    cases = Asked([str(n) for n in range(count)], [np.array([5])] * count, [np.array([2, 5])] * count, [""] * count)
    drawn = draw("pop3", cases, small, popularity)
    share = np.bincount(drawn.ravel(), minlength=7) / count
    left = popularity * [1, 1, 0, 1, 1, 0, 1]
    np.testing.assert_allclose(share, successive(left, 3), atol=0.015)


def test_uni_draws_uniformly(catalogue: Catalogue) -> None:
    count = 4000
    cases = Asked([str(n) for n in range(count)], [np.array([5])] * count, [np.array([2, 5])] * count, [""] * count)
    drawn = draw("uni9", cases, catalogue, POPULARITY)
    share = np.bincount(drawn.ravel(), minlength=ITEMS) / count
    np.testing.assert_allclose(np.delete(share, [2, 5]), 9 / 38, atol=0.03)
    # Nor does the place in the list matter.
    np.testing.assert_allclose(np.delete(np.bincount(drawn[:, 0], minlength=ITEMS) / count, [2, 5]), 1 / 38, atol=0.012)


def test_hard_candidates_are_the_nearest_by_tfidf(catalogue: Catalogue) -> None:
    cases = asked()
    vectors = TfidfVectorizer().fit_transform(catalogue.texts).toarray()
    for row, wanted, own in zip(draw("hard9", cases, catalogue, POPULARITY), cases.positives, cases.own, strict=True):
        alike = vectors @ vectors[wanted[0]]
        others = np.setdiff1d(np.arange(ITEMS), own)
        best = np.sort(alike[others])[::-1][:9]
        np.testing.assert_allclose(alike[row], best, atol=1e-5)


def test_texts_without_a_common_word_come_in_an_order_of_their_own() -> None:
    names = [f"w{n}" for n in range(30)]
    alone = Catalogue(names, names, names)
    cases = Asked([f"u{n}" for n in range(20)], [np.array([0])] * 20, [np.array([0])] * 20, [""] * 20)
    assert len(np.unique(draw("hard3", cases, alone, np.ones(30)))) > 15


def splits_of(catalogue: Catalogue) -> Splits:
    rng = np.random.default_rng(5)
    sequences = [rng.permutation(ITEMS)[:8].astype(np.int32) for _ in range(12)]
    test = [s[6:] if n == 0 else s[7:] for n, s in enumerate(sequences)]  # the first user has two test items
    validation = [s[6:6] if n == 0 else s[6:7] for n, s in enumerate(sequences)]
    return Splits([f"u{n}" for n in range(12)], [s[:6] for s in sequences], validation, test)


def test_frozen_files_are_written_and_read(catalogue: Catalogue, tmp_path: Path) -> None:
    splits = splits_of(catalogue)
    assert write_candidates(tmp_path, catalogue, splits, ["uni9", "hard5"], seed=7) == {
        "uni9.validation.jsonl": 11,
        "hard5.validation.jsonl": 11,
        "uni9.test.jsonl": 13,
        "hard5.test.jsonl": 13,
    }
    path = tmp_path / "candidates" / "uni9.test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(rows[0]) == {"user", "item", "candidates"}
    cases = Asked(
        [row["user"] for row in rows],
        [catalogue.numbers([row["item"]]) for row in rows],
        [np.empty(0, np.int32)] * 13,
        ["test"] * 13,
    )
    settings: Any = {"folder": tmp_path, "popularity": POPULARITY, "seed": 0}
    found = candidates_for("uni9", cases, catalogue, **settings)
    assert [[catalogue.ids[i] for i in line] for line in found.items] == [row["candidates"] for row in rows]
    assert "9 items" in found.description and "candidates/uni9.*.jsonl" in found.description
    owned = {
        user: set(np.concatenate(parts).tolist())
        for user, *parts in zip(splits.user_ids, splits.train, splits.validation, splits.test, strict=True)
    }
    assert all(not owned[user] & set(line.tolist()) for user, line in zip(cases.users, found.items, strict=True))

    # A case that the file lacks is drawn, and said to be.
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    part = candidates_for("uni9", cases, catalogue, **settings)
    np.testing.assert_array_equal(part.items[1:], found.items[1:])
    assert re.search(r"candidates/uni9\.\*\.jsonl for 12 cases; .* seed 0$", part.description)
    drawn = candidates_for("uni8", cases, catalogue, **settings)
    assert re.search("^8 items .* seed 0$", drawn.description)


def test_a_file_of_ones_own(catalogue: Catalogue, tmp_path: Path) -> None:
    cases = Asked(["u1", "u2", "u3"], [np.array([4])] * 3, [np.array([4])] * 3, [""] * 3)
    lines = tmp_path / "Games.random.gz"
    with gzip.open(lines, "wt") as file:
        file.write("u2\ti9 i4 i7 i8\nu1\ti1 i2 i3 i5\nelse\ti1\n")
    settings: Any = {"folder": tmp_path, "popularity": POPULARITY}
    found = candidates_for(str(lines), cases, catalogue, **settings)
    assert found.name == "Games.random"
    # The positive item is taken out of the lists; -1 stands where a list is shorter, and where there is none.
    assert found.items.tolist() == [[1, 2, 3, 5], [9, 7, 8, -1], [-1] * 4]
    assert re.search("^3 to 4 candidates .* 2 of 3 cases$", found.description)
    first = candidates_for(f"{lines}:2", cases, catalogue, **settings)
    assert first.name == "Games.random:2" and first.items.tolist() == [[1, 2], [9, 7], [-1, -1]]
    assert name_and_size(f"{lines}:2") == ("Games.random:2", 2)
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"user": "u1", "candidates": ["i3", "i1"]}\n')
    assert candidates_for(str(rows), cases, catalogue, **settings).items.tolist() == [[3, 1], [-1, -1], [-1, -1]]


def test_candidates_that_examples_list(catalogue: Catalogue, tmp_path: Path) -> None:
    cases = Asked(["", ""], [np.array([4]), np.array([1, 2])], [np.array([4])] * 2, [""] * 2)
    listed = [("i3", "i4", "i0"), ("i2", "i9", "i1", "i8")]
    found = candidates_for("listed", cases, catalogue, folder=tmp_path, popularity=POPULARITY, listed=listed)
    assert found.items.tolist() == [[3, 0], [9, 8]]


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("uni", "protocol 'uni'"),
        ("uni0", "protocol 'uni0'"),
        ("nowhere.jsonl", "protocol 'nowhere.jsonl'"),
        ("uni35", "protocol uni35.* 34 of 40 .*'u0'"),
        ("pop35", "protocol pop35.* 34 of 40 "),
        ("pop34", "protocol pop34.*'u0'"),
        ("listed", "protocol listed.* 30 cases"),
    ],
)
def test_what_cannot_be(protocol: str, words: str, catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        candidates_for(protocol, asked(), catalogue, folder=tmp_path, popularity=POPULARITY, listed=[()] * 30)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("u1 i2 i3", "mine.tsv:1: .*tab"),
        ("u1\ti2 i99", "mine.tsv:1: .*'i99'"),
        ("u1\ti2 i2", "mine.tsv:1: .*candidates"),
        ("somebody\ti2 i3", "protocol mine.tsv.* 30 cases"),
    ],
)
def test_a_bad_file_is_named(content: str, words: str, catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text(content + "\n")
    with pytest.raises(ValueError, match=words):
        candidates_for(str(tmp_path / "mine.tsv"), asked(), catalogue, folder=tmp_path, popularity=POPULARITY)


def test_only_drawn_candidates_are_written(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'full'"):
        write_candidates(tmp_path, catalogue, splits_of(catalogue), ["uni9", "full"])
    assert not (tmp_path / "candidates").exists()
