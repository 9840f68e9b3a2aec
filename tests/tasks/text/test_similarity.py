"""Choosing a text by similarity: losses, choices and metrics are those of NumPy on the vectors."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import SUBJECTS, Setup, examples
from sklearn import metrics as sk

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example, Message
from instructrec_jax.data.loader import pack
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.tasks import SimilarityConfig
from instructrec_jax.tasks.base import Encoded, LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def hashed(texts: Sequence[Text], *_: object) -> list[np.ndarray]:
    return [np.random.default_rng(t.tokens.tolist()).normal(size=8) for t in texts]


@pytest.mark.parametrize("settings", [{}, {"labels": [], "negatives": 2}], ids=["own", "in-batch"])
def test_loss_equals_numpy(settings: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    """Own candidates: the five labels; in-batch: the different answers of the batch, each once."""
    setup = Setup("similarity", checkpoint, tmp_path, **settings)
    task, graphdef = setup.task, setup.model.graphdef
    predict = predictor(task, graphdef, setup.mesh, setup.buckets)(setup.model.params)
    some = setup.encoded[:3] if settings else setup.encoded  # three examples, in-batch: fewer answers than labels
    queries = np.stack(predict([e.text for e in some])).astype(np.float64)
    said = [str(e.example.output) for e in some]
    known = sorted(set(said)) if settings else SUBJECTS
    (words,) = (np.stack(predict(task_texts(task, known))).astype(np.float64),)
    logits = queries @ words.T
    assert np.abs(np.linalg.norm(queries, axis=1) ** 2 - 20).max() < 1e-4  # cosines over the temperature of 0.05
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(some)), [known.index(s) for s in said]]

    @jax.jit
    def loss(params: Any, batch: Any) -> Any:
        return task.loss(nnx.merge(graphdef, params), batch, LossInputs())

    parts = task.gather(some, np.random.default_rng(0))
    total, weight = loss(setup.model.params, pack(parts, setup.buckets, 1).batch)
    assert float(weight) == len(some)
    np.testing.assert_allclose(float(total), expected.sum(), rtol=1e-5)


def task_texts(task: Any, words: list[str]) -> list[Text]:
    return [e.text for e in task_without_labels(task).encode([Example(instruction=w, output="x") for w in words])]


def task_without_labels(task: Any) -> Any:
    return SimilarityConfig(labels=["x", "y"]).build(task.context)


def test_choices_equal_scikit_learn(context: TaskContext) -> None:
    task = SimilarityConfig(labels=SUBJECTS, verbalizers={"war": "a film about war"}).build(context)
    encoded = task.encode(examples("similarity", 60))
    scores = task.score(Predict(hashed), encoded)
    words = ["a film about war" if s == "war" else s for s in SUBJECTS]
    vectors = np.stack(hashed(task_texts(task, words)))
    logits = np.stack(hashed([e.text for e in encoded])) @ vectors.T
    guess, truth = [SUBJECTS[i] for i in logits.argmax(1)], [str(e.example.output) for e in encoded]
    assert scores.metrics["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert scores.metrics["macro_f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro", labels=SUBJECTS))
    rows = np.array([SUBJECTS.index(t) for t in truth])
    assert scores.metrics["recall@2"] == pytest.approx(sk.top_k_accuracy_score(rows, logits, k=2))
    ranks = (logits > logits[np.arange(60), rows][:, None]).sum(1) + 1
    assert scores.metrics["mrr"] == pytest.approx((1 / ranks).mean())
    assert "recall@5" not in scores.metrics  # says nothing among five
    for record, e, row in zip(scores.predictions, encoded, logits, strict=True):
        assert record["input"] == e.example.instruction and record["candidates"] == pytest.approx(
            dict(zip(SUBJECTS, row, strict=True))
        )


def test_held_out_labels_are_no_wrong_answers_in_training(context: TaskContext) -> None:
    task = SimilarityConfig(labels=["war", "love", "space"]).build(replace(context, held_out=("love", "space")))
    cases = [Example(instruction="a film", output=label) for label in ("war", "space", "war")]
    parts = task.gather(task.encode(cases), np.random.default_rng(0))
    words = [context.tokenizer.decode(t.tokens, skip_special_tokens=True) for t in parts.texts[3:]]
    assert [word.replace(" ##", "") for word in words] == ["war", "space"]
    assert parts.own.allowed[:, :2].tolist() == [[True, False], [True, True], [True, False]]
    assert parts.own.target.tolist() == [0, 1, 0] and not parts.own.allowed[:, 2:].any()
    scores = task.score(Predict(hashed), task.encode(cases))  # tests choose among all of them
    assert set(scores.predictions[0]["candidates"]) == {"war", "love", "space"}


def test_drawn_candidates_are_frozen_and_never_equal_the_answer(context: TaskContext) -> None:
    task = SimilarityConfig(negatives=3).build(context)
    cases = [
        Example(instruction="", messages=(Message("user", f"a {word}"), Message("assistant", said)), id=word)
        for word, said in zip(
            "film book love war new old".split(), ["yes", "no", "yes", "maybe", "never", "ok"], strict=True
        )
    ]
    first = task.encode(cases)
    for e, case in zip(first, cases, strict=True):
        assert (
            len(set(e.target.options.texts)) == 4
            and e.target.options.texts[e.target.options.right] == case.messages[-1].content
        )
        assert "assistant" not in context.tokenizer.decode(e.text.tokens)  # the answer is not in the question
    assert len({e.target.options.right for e in first}) > 1  # shuffled
    again = SimilarityConfig(negatives=3).build(context).encode(cases)
    assert [e.target.options for e in again] == [e.target.options for e in first]
    alone = SimilarityConfig(negatives=3).build(context).encode([e.example for e in first[2:4]])
    assert [e.target.options for e in alone] == [e.target.options for e in first[2:4]]  # they stay with the example
    parts = task.gather([first[0], first[2]], np.random.default_rng(0))  # both are answered "yes"
    assert len(parts.texts) == 3 and parts.own.allowed.sum(1).tolist() == [1, 1]


def test_left_truncation_keeps_the_last_turn(context: TaskContext, tokenizer: Any) -> None:
    from dataclasses import replace

    task = SimilarityConfig(labels=["a", "b"]).build(replace(context, max_length=8, truncate="left"))
    (e,) = task.encode([Example(instruction="the film is long and very old war", output="a")])
    assert tokenizer.decode(e.text.tokens, skip_special_tokens=True).endswith("wa ##r")


@pytest.mark.parametrize(
    ("settings", "example", "words"),
    [
        ({}, {}, "example 'x7'.*0 candidates"),
        ({}, {"candidates": ("a", "b")}, "example 'x7'.*'love'.*candidates.*'a', 'b'"),
        ({"labels": ["a", "b"]}, {}, "example 'x7'.*'love'"),
        ({"negatives": 1}, {}, "task.negatives"),
        ({"labels": ["a"]}, {}, "task.labels"),
        ({"labels": ["a", "b"], "negatives": 2}, {}, "task.negatives"),
        ({"labels": ["a", "b"], "verbalizers": {"c": "x"}}, {}, "task.verbalizers.*'c'"),
        ({"labels": ["a_b", "a b"]}, {}, "task.verbalizers"),
        ({"negatives": -1}, {}, "task.negatives"),
    ],
)
def test_what_cannot_be_chosen(
    settings: dict[str, Any], example: dict[str, Any], words: str, context: TaskContext
) -> None:
    with pytest.raises(ValueError, match=words):
        task = SimilarityConfig(**settings).build(context)
        task.encode([Example(instruction="a film", output="love", id="x7", **example)])


def test_labels_are_learnt_where_no_example_has_candidates() -> None:
    plain = [Example(instruction="a", output="war"), Example(instruction="b", output="love")]
    config: Any = SimilarityConfig().learn(plain)
    assert config.labels == ["love", "war"] and not SimilarityConfig().complete and config.complete
    own: Any = SimilarityConfig().learn([Example(instruction="a", output="x", candidates=("x", "y"))])
    assert own.labels == []


def test_baselines_are_chance_and_shared_words(context: TaskContext) -> None:
    task = SimilarityConfig().build(context)
    train = [Example(instruction="old war film", output="war", candidates=("war", "love"))]
    test = [
        Example(instruction="a war", output="war", candidates=("love", "war", "music")),
        Example(instruction="old love", output="war", candidates=("love", "war", "music")),
    ]
    encoded: list[list[Encoded]] = [task.encode(each) for each in (train, test)]
    rows = task.baselines(*encoded)
    assert rows["chance"].metrics["accuracy"] == pytest.approx(1 / 3)
    assert rows["chance"].metrics["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert rows["TF-IDF cosine"].predictions[0]["prediction"] == "war"
    assert rows["TF-IDF cosine"].cases["accuracy"].tolist() == pytest.approx([1, 1 / 3])  # no word in common: a tie
