"""Predictions do not depend on what shares a batch or a row with a text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import Setup

from instructrec_jax.data.batch import Batch, Text, end_to_end, lengths_of, of_texts, split_tokens
from instructrec_jax.distributed.mesh import make_mesh
from instructrec_jax.distributed.mesh_config import MeshConfig
from instructrec_jax.evaluation import predictor as module
from instructrec_jax.evaluation.predictor import make_predict, predictor
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.targets import TokenLabels


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
def test_a_text_alone_equals_the_text_among_many(
    kind: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per text and per token, in any order, in batches of any size, from any row and bucket."""
    setup = Setup(kind, checkpoint, tmp_path)
    texts = [e.text for e in setup.encoded]
    lengths = [len(text.tokens) for text in texts]
    assert min(lengths) < 8 and max(lengths) > 32  # several texts to a row, and more than one bucket
    predict = predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    together = predict(texts)
    shape = (5,) if kind == "classification" else (2,)
    for output, length in zip(together, lengths, strict=True):
        assert output.shape == (shape if kind == "classification" else (length, *shape))
    for number in (int(np.argmax(lengths)), int(np.argmin(lengths))):
        np.testing.assert_allclose(predict([texts[number]])[0], together[number], atol=1e-5)
    order = np.random.default_rng(0).permutation(len(texts))
    for output, number in zip(predict([texts[i] for i in order]), order, strict=True):
        np.testing.assert_allclose(output, together[number], atol=1e-5)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 128)  # many small batches
    for output, expected in zip(predict(texts), together, strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_batch_is_laid_out_while_the_last_one_is_computed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So pictures are decoded beside the network, and no two programs run at once."""
    setup = Setup("classification", checkpoint, tmp_path)
    made = predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    made([e.text for e in setup.encoded])
    said: list[str] = []

    def noted(name: str) -> Any:
        call = getattr(module, name)
        return lambda *args: said.append(name) or call(*args)

    for name in ("lay_out", "fetch"):
        monkeypatch.setattr(module, name, noted(name))
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 128)
    made([e.text for e in setup.encoded])
    batches = said.count("fetch")
    assert batches > 2 and said == ["lay_out", *["lay_out", "fetch"] * (batches - 1), "fetch"]


def test_eight_devices_predict_what_one_does(checkpoint: Path, tmp_path: Path) -> None:
    one, eight = (
        Setup("classification", checkpoint, tmp_path / str(n), mesh=mesh)
        for n, mesh in enumerate([(1, 1, 1), (2, 2, 2)])
    )
    results = [
        predictor(s.task, s.model.graphdef, s.mesh, s.buckets)(s.model.params)([e.text for e in s.encoded])
        for s in (one, eight)
    ]
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def test_per_token_arrays_stay_with_their_text(checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup("masked_lm", checkpoint, tmp_path)
    predict = predictor(setup.task, setup.model.graphdef, setup.mesh, setup.buckets)(setup.model.params)
    parts = setup.parts()
    outputs = predict(parts.texts, parts.own)
    lengths, _ = lengths_of(parts.texts)
    marks = split_tokens(parts.own.supervised, lengths)
    for output, supervised in zip(outputs, marks, strict=True):
        assert output.shape == (len(supervised), 2) and (output[supervised > 0, 0] > 0).all()
    number, hidden = 5, marks[5] > 0
    alone = predict([parts.texts[number]], of_texts(parts.own, lengths, np.array([number])))
    np.testing.assert_allclose(alone[0][hidden], outputs[number][hidden], atol=1e-5)


# ------------------------------------------------------------------ remember


def test_remember_runs_each_text_once() -> None:
    calls: list[list[int]] = []

    def predict(texts: Sequence[Text], *_: object) -> list[np.ndarray]:
        calls.append([int(text.tokens[0]) for text in texts])
        return [text.tokens * 10 for text in texts]

    texts = [Text(np.array([n], np.int32)) for n in range(5)]
    once = Predict(predict).remember()
    first = once([texts[3], texts[1], texts[3]])
    second = once([texts[1], texts[0], texts[3]])
    assert calls == [[3, 1], [0]]
    assert [int(o[0]) for o in first] == [30, 10, 30] and [int(o[0]) for o in second] == [10, 0, 30]
    assert once([]) == [] and len(calls) == 2


def test_remember_keeps_no_answer_of_a_text_that_is_gone() -> None:
    """A new text may get the address of one that was thrown away."""
    once = Predict(lambda texts, *_: [text.tokens * 10 for text in texts]).remember()
    for number in range(200):
        assert int(once([Text(np.array([number], np.int32))])[0][0]) == 10 * number


def test_remember_does_not_remember_calls_with_arrays() -> None:
    def predict(texts: Sequence[Text], own: Any = None, dropout: Any = None) -> list[np.ndarray]:
        return [text.tokens + own for text in texts]

    once = Predict(predict).remember()
    text = Text(np.array([1], np.int32))
    assert [int(once([text], np.array([n]))[0][0]) for n in (1, 2)] == [2, 3]


# ------------------------------------------------------------------ texts with targets


@pytest.mark.parametrize("per_token", [True, False])
def test_answers_to_targets_come_back_to_their_texts(per_token: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that adds up each text, answers for each target token (or text), and notes the shapes it sees."""
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 256)  # several batches
    shapes = set()

    def step(params: Any, batch: Batch[TokenLabels]) -> np.ndarray:
        batch = jax.tree.map(np.asarray, batch)
        texts, targets = batch.texts, batch.targets
        assert targets is not None
        shapes.add((texts.tokens.shape, targets.tokens.shape))
        segments = np.arange(1, batch.text_numbers.shape[1] + 1)[:, None]
        sums = ((texts.segment_ids[:, None] == segments) * texts.tokens[:, None]).sum(-1)
        if not per_token:
            return sums
        own = np.take_along_axis(sums, np.maximum(targets.segment_ids - 1, 0), 1)
        return np.stack([own, targets.tokens, batch.own.labels], -1)

    rng = np.random.default_rng(0)
    lengths, target_lengths = rng.integers(1, 65, 60), rng.integers(1, 40, 60)
    texts = [
        Text(rng.integers(1, 99, a).astype(np.int32), target=rng.integers(1, 99, b).astype(np.int32))
        for a, b in zip(lengths, target_lengths, strict=True)
    ]
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    predict = make_predict(step, None, mesh=mesh, buckets=(32, 64), per_token=per_token)  # type: ignore[arg-type]
    labels = [text.target + 7 for text in texts if text.target is not None]
    own = TokenLabels(end_to_end(labels), end_to_end(labels))
    for output, text, label in zip(predict(texts, own), texts, labels, strict=True):
        total = text.tokens.sum()
        if per_token:
            np.testing.assert_array_equal(output, np.stack([np.full(len(label), total), text.target, label], -1))
        else:
            assert output == total
    assert shapes == {((4, 64), (4, 64))}  # one shape for all texts of a call


def test_a_ladder_of_shapes_is_known_before() -> None:
    """Any number of texts runs in the shapes of `texts_of_every_shape`, in which few texts have few rows."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    buckets, shapes = (32, 64), list[tuple[int, ...]]()

    def step(params: None, batch: Batch) -> np.ndarray:
        """The first token of each text."""
        tokens, segments = (np.asarray(each) for each in (batch.texts.tokens, batch.texts.segment_ids))
        shapes.append(tokens.shape)
        found = np.zeros((len(tokens), tokens.shape[1] // 8), np.int32)
        for row, place in zip(*np.nonzero(segments[:, :]), strict=True):
            found[row, segments[row, place] - 1] = max(found[row, segments[row, place] - 1], tokens[row, place])
        return found

    run = make_predict(step, None, mesh=mesh, buckets=buckets, per_token=False, size="ladder")  # type: ignore[arg-type]
    for texts in module.texts_of_every_shape(Text(np.ones(3, np.int32)), buckets, 1):
        run(texts)
    known = set(shapes)
    assert known == {(rows, length) for length in buckets for rows in (1, 2, 4, 8, 4096 // length)}
    assert len(shapes) == len(known)
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20, 60, 300, 700):
        texts = [Text(np.full(rng.integers(1, 64), number + 1, np.int32)) for number in range(count)]
        assert [int(output) for output in run(texts)] == [number + 1 for number in range(count)]
    assert set(shapes) == known
    shapes.clear()
    run([Text(np.ones(9, np.int32))] * 2)
    run([Text(np.ones(20, np.int32))] * 3)
    assert shapes == [(1, 32), (4, 32)]


def test_calls_of_any_number_of_texts_share_two_shapes() -> None:
    """One row or all of them, in rows as long as the longest text needs, but not shorter than 64 tokens."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = list[tuple[int, ...]]()

    def step(params: None, batch: Batch) -> np.ndarray:
        tokens, segments = (np.asarray(each) for each in (batch.texts.tokens, batch.texts.segment_ids))
        shapes.append(tokens.shape)
        return np.stack([np.where(segments == n, tokens, 0).max(axis=1) for n in range(1, tokens.shape[1] // 8 + 1)], 1)

    run = make_predict(step, None, mesh=mesh, buckets=(32, 64, 128), per_token=False)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20, 60, 300, 700):
        texts = [Text(np.full(rng.integers(1, 20 if count < 9 else 64), n + 1, np.int32)) for n in range(count)]
        assert [int(output) for output in run(texts)] == list(range(1, count + 1))
    assert set(shapes) == {(1, 64), (64, 64)}
    shapes.clear()
    run([Text(np.ones(100, np.int32)), Text(np.ones(3, np.int32))])
    assert shapes == [(1, 128)]
    assert run([]) == []
