"""Batches from texts: checked place by place on random lengths."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from instructrec_jax.data.batch import (
    Batch,
    BatchTexts,
    PerExample,
    PerText,
    PerToken,
    Rows,
    Text,
    TextNumbers,
    Whole,
    end_to_end,
    lay_out,
    lengths_of,
    map_arrays,
    of_texts,
    split_tokens,
)
from instructrec_jax.data.packing import Plan, max_segments, plan_batch, unpacked

BUCKETS = (32, 64, 128)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inner:
    whole: Whole


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Arrays:
    """An array along each axis, and the other fields that a task may have."""

    labels: PerToken
    targets: PerText
    example: PerExample
    queries: TextNumbers
    inner: Inner | None = None
    others: PerText | None = None


def lengths_from(seed: int, count: int, longest: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, longest + 1, count)


def make_parts(lengths: np.ndarray) -> BatchTexts[Arrays]:
    """Tokens that tell where they come from: 1000 * text + place."""
    tokens = [1000 * number + np.arange(length) for number, length in enumerate(lengths)]
    return BatchTexts(
        [Text(t, t % 2 if number % 2 else None) for number, t in enumerate(tokens)],
        Arrays(
            labels=end_to_end(tokens) + 7,
            targets=np.arange(len(lengths), dtype=np.float32)[:, None] * [1, 10],
            example=np.arange(8) * 3,
            queries=np.arange(len(lengths))[: len(lengths) // 8 * 8][::-1].copy(),
            inner=Inner(np.arange(3)),
        ),
    )


@pytest.mark.parametrize("packed", [True, False])
def test_lay_out_places_every_token_once(packed: bool) -> None:
    lengths = lengths_from(3, 24, 60)
    parts = make_parts(lengths)
    plan = plan_batch(lengths, BUCKETS, 4) if packed else unpacked(lengths, 64, 5)
    batch = lay_out(parts, plan)
    texts, own = batch.texts, batch.own
    live = texts.segment_ids > 0
    assert live.sum() == lengths.sum()
    assert sorted(texts.tokens[live]) == sorted(np.concatenate([t.tokens for t in parts.texts]))
    for array in (*texts, batch.token_types, own.labels):
        assert not array[~live].any()
        assert array.dtype == np.int32 and array.shape == (plan.rows, plan.length)
    np.testing.assert_array_equal(texts.positions[live], texts.tokens[live] % 1000)
    np.testing.assert_array_equal(own.labels[live], texts.tokens[live] + 7)
    numbers = texts.tokens // 1000
    np.testing.assert_array_equal(batch.token_types[live], np.where(numbers % 2, texts.tokens % 2, 0)[live])
    # The per-text arrays of a token's (row, segment) are those of the text it comes from.
    assert batch.text_numbers.shape == (plan.rows, max_segments(plan.length))
    for row, column in zip(*np.nonzero(live), strict=True):
        number, segment = numbers[row, column], texts.segment_ids[row, column]
        assert batch.text_numbers[row, segment - 1] == number
        assert own.targets[row, segment - 1].tolist() == [number, 10 * number]
    flat = batch.text_numbers.reshape(-1)
    np.testing.assert_array_equal(flat[own.queries], np.arange(24)[::-1])
    np.testing.assert_array_equal(own.example, np.arange(8) * 3)
    assert own.inner is not None and own.inner.whole.tolist() == [0, 1, 2] and own.others is None


def make_pairs(lengths: np.ndarray, target_lengths: np.ndarray) -> BatchTexts[Arrays]:
    """Tokens that tell where they come from: 1000 * text + place, and those of targets 500 more."""
    targets = [1000 * n + 500 + np.arange(length) for n, length in enumerate(target_lengths)]
    parts = make_parts(lengths)
    texts = [Text(text.tokens, target=target) for text, target in zip(parts.texts, targets, strict=True)]
    return BatchTexts(texts, replace(parts.own, labels=end_to_end(targets) + 7))


@pytest.mark.parametrize("packed", [True, False])
def test_lay_out_of_pairs(packed: bool) -> None:
    lengths, targets = lengths_from(4, 24, 60), lengths_from(104, 24, 30)
    plan = plan_batch(lengths, BUCKETS, 4, targets, (32, 64)) if packed else unpacked(lengths, 64, 5, 32)
    batch = lay_out(make_pairs(lengths, targets), plan)
    assert batch.targets is not None and batch.targets is batch.outputs
    sides: list[tuple[Rows, int, int | None, int]] = [
        (batch.texts, lengths.sum(), plan.length, 0),
        (batch.targets, targets.sum(), plan.target_length, 500),
    ]
    for side, total, length, offset in sides:
        tokens, segment_ids, positions = side
        assert tokens.shape == segment_ids.shape == positions.shape == (plan.rows, length)
        assert tokens.dtype == segment_ids.dtype == positions.dtype == np.int32
        live = segment_ids > 0
        assert live.sum() == total and not tokens[~live].any() and not positions[~live].any()
        np.testing.assert_array_equal(positions[live], tokens[live] % 1000 - offset)
        rows = np.nonzero(live)[0]
        np.testing.assert_array_equal(batch.text_numbers[rows, segment_ids[live] - 1], tokens[live] // 1000)
    live = batch.targets.segment_ids > 0
    assert batch.own.labels.shape == (plan.rows, plan.target_length) and not batch.own.labels[~live].any()
    np.testing.assert_array_equal(batch.own.labels[live], batch.targets.tokens[live] + 7)


def test_all_texts_have_targets_or_none() -> None:
    tokens = np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match="target"):
        lengths_of([Text(tokens), Text(tokens, target=tokens)])
    cases: list[tuple[Text, Plan]] = [
        (Text(tokens), unpacked(np.array([3]), 8, target_length=8)),
        (Text(tokens, target=tokens), unpacked(np.array([3]), 8)),
    ]
    for text, plan in cases:
        with pytest.raises(ValueError, match="targets"):
            lay_out(BatchTexts([text], None), plan)


def test_numbers_of_texts_can_be_given() -> None:
    texts = [Text(np.arange(3, dtype=np.int32)) for _ in range(2)]
    batch: Batch = lay_out(BatchTexts(texts, None, np.array([7, 5], np.int32)), unpacked(np.array([3, 3]), 8))
    assert batch.text_numbers.tolist() == [[7], [5]] and batch.own is None


def test_arrays_of_some_texts() -> None:
    parts = make_parts(np.array([2, 3, 4]))
    own = replace(parts.own, example=None, queries=None)
    chosen = of_texts(own, np.array([2, 3, 4]), np.array([2, 0]))
    assert [piece.tolist() for piece in split_tokens(chosen.labels, np.array([4, 2]))] == [
        [2007, 2008, 2009, 2010],
        [7, 8],
    ]
    assert chosen.targets.tolist() == [[2, 20], [0, 0]]
    assert chosen.inner == own.inner
    with pytest.raises(ValueError, match="examples"):
        of_texts(parts.own, np.array([2, 3, 4]), np.array([0]))


def test_map_arrays_keeps_dataclasses_and_dicts() -> None:
    parts = {"one": make_parts(np.array([2])).own, "none": None}
    seen = []

    def note(axis: object, array: np.ndarray) -> np.ndarray:
        seen.append(getattr(axis, "value", None))
        return array + 1

    mapped = map_arrays(note, parts)
    assert seen == ["tokens", "texts", "examples", "text numbers", "whole"]
    assert mapped["none"] is None and mapped["one"].inner.whole.tolist() == [1, 2, 3]
    with pytest.raises(TypeError, match="list"):
        map_arrays(note, [np.arange(3)])
