"""Codes of items, against residual k-means by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from instructrec_jax.ranking.semantic_ids import CODEBOOKS, CODES, SPARE, SemanticIds, fit

RNG = np.random.default_rng(0)
MIDDLES = 10 * RNG.normal(size=(4, 6))
VECTORS = np.concatenate([middle + RNG.normal(size=(12, 6)) for middle in MIDDLES])
ITEMS = [f"item {number}" for number in range(len(VECTORS))]


@pytest.fixture(scope="module")
def ids() -> SemanticIds:
    return fit(ITEMS, VECTORS, levels=2, codes=4, seed=0)


def test_similar_items_share_their_first_code(ids: SemanticIds) -> None:
    first = ids.codes[:, 0].reshape(4, 12)
    assert (first == first[:, :1]).all() and len(set(first[:, 0].tolist())) == 4


def test_a_code_is_the_nearest_of_its_level(ids: SemanticIds) -> None:
    rest = VECTORS.copy()
    for level, book in enumerate(ids.codebooks):
        distances = ((rest[:, None] - book.astype(np.float64)) ** 2).sum(-1)
        assert (ids.codes[:, level] == distances.argmin(1)).all()
        rest = rest - book[ids.codes[:, level]]
    assert (rest**2).sum() < 0.8 * ((VECTORS - ids.codebooks[0][ids.codes[:, 0]]) ** 2).sum()


def test_items_that_share_all_codes_are_counted(ids: SemanticIds) -> None:
    assert len(np.unique(ids.codes, axis=0)) == len(ITEMS)
    seen: dict[tuple[int, ...], int] = {}
    for *prefix, count in ids.codes.tolist():
        assert count == seen.get(tuple(prefix), 0)
        seen[tuple(prefix)] = count + 1
    assert ids.collisions == len(ITEMS) - len(seen) and ids.sizes == (4, 4, max(seen.values()) + SPARE)


def test_the_report_counts_use_and_entropy(ids: SemanticIds) -> None:
    first = ids.report()[0]
    assert first["level"] == "a" and first["codes"] == 4 and first["used"] == 1.0
    assert first["entropy"] == pytest.approx(2.0)  # four codes with twelve items each
    assert ids.report()[-1]["codes"] == ids.most - SPARE and ids.report()[-1]["used"] == 1.0


def test_tokens_and_texts(ids: SemanticIds) -> None:
    assert ids.tokens[:5] == ["<a_0>", "<a_1>", "<a_2>", "<a_3>", "<b_0>"] and len(ids.tokens) == sum(ids.sizes)
    a, b, c = ids.codes[7].tolist()
    assert ids.text(7) == f"<a_{a}><b_{b}><c_{c}>"


def test_the_same_seed_gives_the_same_bytes_and_they_come_back(ids: SemanticIds, tmp_path: Path) -> None:
    ids.save(tmp_path / "one")
    fit(ITEMS, VECTORS, levels=2, codes=4, seed=0).save(tmp_path / "two")
    for name in (CODES, CODEBOOKS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    back = SemanticIds.load(tmp_path / "one")
    assert list(back.items) == ITEMS and (back.codes == ids.codes).all() and back.sizes == ids.sizes
    assert all((a == b).all() for a, b in zip(back.codebooks, ids.codebooks, strict=True))


def test_new_items_get_codes_near_their_own(ids: SemanticIds) -> None:
    new = ids.with_new(["new", "another"], np.stack([VECTORS[0], MIDDLES[2]]))
    assert (new.codes[: len(ITEMS)] == ids.codes).all() and list(new.items[-2:]) == ["new", "another"]
    assert new.codes[-2, :2].tolist() == ids.codes[0, :2].tolist() and new.codes[-1, 0] == ids.codes[24, 0]
    assert len(np.unique(new.codes, axis=0)) == len(ITEMS) + 2 and new.sizes == ids.sizes


def test_new_items_that_crowd_a_code_spill_over_until_none_is_left(ids: SemanticIds) -> None:
    room = 4 * ids.most - int((ids.codes[:, 0] == ids.codes[0, 0]).sum())
    many = ids.with_new([f"copy {n}" for n in range(room)], np.repeat(VECTORS[:1], room, 0))
    assert len(np.unique(many.codes, axis=0)) == len(ITEMS) + room
    with pytest.raises(ValueError, match="no codes are left for the new item 'one more'"):
        many.with_new(["one more"], VECTORS[:1])


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        (dict(levels=0), "levels should be from 1"),
        (dict(codes=1), "codes should be from 2 to 48"),
        (dict(codes=49), "codes should be from 2 to 48"),
    ],
)
def test_settings_that_fit_no_catalogue_are_named(how: dict[str, int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        fit(ITEMS, VECTORS, **({"levels": 2, "codes": 4, "seed": 0} | how))


def test_vectors_that_are_no_numbers_are_an_error() -> None:
    broken = VECTORS.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit(ITEMS, broken, levels=2, codes=4, seed=0)


def test_damaged_files_are_named(ids: SemanticIds, tmp_path: Path) -> None:
    ids.save(tmp_path)
    rows = (tmp_path / CODES).read_text().splitlines()
    (tmp_path / CODES).write_text("\n".join([*rows[:-1], rows[0]]) + "\n")
    with pytest.raises(ValueError, match="two items have the same codes"):
        SemanticIds.load(tmp_path)
    wrong = json.dumps({"item": "x", "codes": [0, 9, 0]})
    (tmp_path / CODES).write_text("\n".join([wrong, *rows[1:]]) + "\n")
    with pytest.raises(ValueError, match=r"codes.jsonl, line 1: the codes \[0, 9, 0\] do not fit"):
        SemanticIds.load(tmp_path)
    (tmp_path / CODEBOOKS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="codebooks.safetensors: .*prepare ids"):
        SemanticIds.load(tmp_path)
