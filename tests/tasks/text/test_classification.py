"""Sequence classification and regression: targets, cutting, and scores of scikit-learn called directly.

(`instructrec_jax.tasks.text.regression` and `instructrec_jax.tasks.text.sequence_task` too)
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import SUBJECTS, Setup, examples
from scipy import stats
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import pack
from instructrec_jax.evaluation.predictor import predictor
from instructrec_jax.metrics.calibration import expected_calibration_error
from instructrec_jax.tasks import ClassificationConfig, MultilabelConfig, RegressionConfig
from instructrec_jax.tasks.base import LossInputs, TaskContext
from instructrec_jax.tasks.prediction import Predict


@pytest.fixture
def context(tokenizer: Any) -> TaskContext:
    return TaskContext(tokenizer, 64)


def random_outputs(count: int) -> Any:
    """A stand-in for the model: `count` outputs a text, from the text's tokens alone."""

    def predict(texts: Sequence[Text], *_: object) -> list[np.ndarray]:
        return [np.random.default_rng(t.tokens.tolist()).normal(size=count).astype(np.float32) for t in texts]

    return Predict(predict)


# ------------------------------------------------------------------ losses

ORACLES: dict[str, Any] = {
    "multilabel": lambda z, y: np.mean(np.logaddexp(0, z) - y * z),
    "regression": lambda z, y: (z[0] - y) ** 2,
    "classification": lambda z, y: np.log(np.exp(z - z.max()).sum()) + z.max() - z[y],
}


@pytest.mark.parametrize("kind", ORACLES)
def test_loss_equals_numpy(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    setup = Setup(kind, checkpoint, tmp_path)
    task, graphdef = setup.task, setup.model.graphdef
    outputs = predictor(task, graphdef, setup.mesh, setup.buckets)(setup.model.params)([e.text for e in setup.encoded])

    @jax.jit
    def loss(params: Any, batch: Any) -> Any:
        return task.loss(nnx.merge(graphdef, params), batch, LossInputs())

    total, weight = loss(setup.model.params, pack(setup.parts(), setup.buckets, 1).batch)
    pairs = zip(outputs, task.truth(setup.encoded), strict=True)  # type: ignore[attr-defined]
    expected = [ORACLES[kind](z.astype(np.float64), y) for z, y in pairs]
    assert float(weight) == len(setup.encoded)
    assert float(total) == pytest.approx(sum(expected), rel=1e-5)


# ------------------------------------------------------------------ targets


def test_targets(context: TaskContext) -> None:
    one = ClassificationConfig(labels=SUBJECTS).build(context)
    assert one.encode([Example(instruction="a film", output="crime")])[0].target.label == 3
    several = MultilabelConfig(labels=SUBJECTS).build(context)
    encoded = several.encode(
        [Example(instruction="a", output=o) for o in (("war", "music"), "love", ())]  # type: ignore[arg-type]
    )
    assert [e.target.chosen.tolist() for e in encoded] == [[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0] * 5]
    number = RegressionConfig().build(context)
    assert [e.target.number for e in number.encode([Example(instruction="a", output=o) for o in (3, -0.5)])] == [
        3,
        -0.5,
    ]


@pytest.mark.parametrize(
    ("config", "output", "words"),
    [
        (ClassificationConfig(labels=SUBJECTS), "sport", "example 'x7': .*output.*'sport'"),
        (ClassificationConfig(labels=SUBJECTS), None, "example 'x7': .*output.*None"),
        (ClassificationConfig(labels=SUBJECTS), ("war", "love"), "example 'x7'.*'war', 'love'"),
        (ClassificationConfig(labels=SUBJECTS), 1, "example 'x7': .*output.*1"),
        (MultilabelConfig(labels=SUBJECTS), ("war", "sport"), "example 'x7': .*output.*'sport'"),
        (MultilabelConfig(labels=SUBJECTS), None, "example 'x7': .*output.*None"),
        (MultilabelConfig(labels=SUBJECTS), 1.0, "example 'x7': .*output"),
        (RegressionConfig(), float("nan"), "example 'x7': .*output.*nan"),
        (RegressionConfig(), float("inf"), "example 'x7': .*output"),
        (RegressionConfig(), 10**16, "example 'x7': .*10000000000000000.*1e\\+15"),
        (RegressionConfig(), 10**30, "example 'x7': .*1e\\+15"),
        (RegressionConfig(), -1e30, "example 'x7': .*-1e\\+30.*1e\\+15"),
        (RegressionConfig(), "3", "example 'x7': .*output.*'3'"),
        (RegressionConfig(), True, "example 'x7': .*output.*True"),
        (RegressionConfig(), None, "example 'x7': .*output"),
    ],
)
def test_a_bad_target_is_named(config: Any, output: Any, words: str, context: TaskContext) -> None:
    with pytest.raises(ValueError, match=words):
        config.build(context).encode([Example(instruction="a film", output=output, id="x7")])


def test_an_example_without_id_is_named_by_its_number(context: TaskContext) -> None:
    good, bad = Example(instruction="a film", output="war"), Example(instruction="a film", output="sport")
    with pytest.raises(ValueError, match="example 2: "):
        ClassificationConfig(labels=SUBJECTS).build(context).encode([good, good, bad])


@pytest.mark.parametrize("labels", [[], ["one"], ["a", "b", "a"]])
def test_labels_are_checked(labels: list[str], context: TaskContext) -> None:
    for config in (ClassificationConfig(labels=labels), MultilabelConfig(labels=labels)):
        with pytest.raises(ValueError, match="task.labels"):
            config.build(context)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0])
def test_the_threshold_is_checked(threshold: float, context: TaskContext) -> None:
    with pytest.raises(ValueError, match="task.threshold"):
        MultilabelConfig(labels=SUBJECTS, threshold=threshold).build(context)


# ------------------------------------------------------------------ long texts

LONG = "the film about love the film about war and a very long book about music"


def encode_long(context: TaskContext, **changes: Any) -> tuple[list[Any], list[int], TaskContext]:
    """(encoded, all tokens of the long text, the context); the long text stands between two short ones."""
    context = replace(context, counts={}, **changes)
    texts = ["a film", LONG, "a book"]
    task = ClassificationConfig(labels=SUBJECTS).build(context)
    encoded = task.encode([Example(instruction=t, output="war", id=f"e{n}") for n, t in enumerate(texts)])
    return encoded, context.tokenizer(LONG)["input_ids"], context


def test_too_long_is_an_error(context: TaskContext) -> None:
    words = r"example 'e1'.*data.max_length.*8.*data.truncate"
    with pytest.raises(ValueError, match=words):
        encode_long(context, max_length=8)


@pytest.mark.parametrize("length", [3, 8])
def test_cutting_keeps_the_special_tokens(context: TaskContext, length: int) -> None:
    for side in ("left", "right"):
        encoded, ids, used = encode_long(context, max_length=length, truncate=side)
        body = ids[1:-1]
        kept = body[-(length - 2) :] if side == "left" else body[: length - 2]
        assert encoded[1].text.tokens.tolist() == [ids[0], *kept, ids[-1]]
        assert used.counts["texts cut"] >= 1
    # Special tokens that stand in the text itself are no more than text.
    task = ClassificationConfig(labels=SUBJECTS).build(replace(context, max_length=4, truncate="left"))
    (one,) = task.encode([Example(instruction="[SEP] a film [CLS]", output="war")])
    assert one.text.tokens.tolist() == [ids[0], *context.tokenizer("[SEP] a film [CLS]")["input_ids"][-3:]]
    # What fits is left as it is.
    encoded, ids, used = encode_long(context, max_length=len(ids), truncate="right")
    assert encoded[1].text.tokens.tolist() == ids and used.counts == {}


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_no_room_for_a_single_token_is_an_error(context: TaskContext, length: int, side: str) -> None:
    with pytest.raises(ValueError, match=f"data.max_length is {length}"):
        encode_long(context, max_length=length, truncate=side)


def test_dropped_texts_are_counted(context: TaskContext) -> None:
    encoded, _, used = encode_long(context, max_length=8, truncate="drop")
    assert [e.example.id for e in encoded] == ["e0", "e2"] and used.counts == {"texts dropped": 1}


# ------------------------------------------------------------------ scores


def test_classification_scores_equal_scikit_learn(context: TaskContext) -> None:
    task, predict = ClassificationConfig(labels=SUBJECTS).build(context), random_outputs(5)
    encoded = task.encode(examples("classification", 60))
    scores = task.score(predict, encoded)
    truth = [str(e.example.output) for e in encoded]
    outputs = np.stack(predict([e.text for e in encoded])).astype(np.float64)
    guess = [SUBJECTS[i] for i in outputs.argmax(1)]
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    error = scores.metrics.pop("ece")
    assert error == pytest.approx(expected_calibration_error(shares.max(1), np.array(truth) == np.array(guess)))
    assert scores.metrics == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, guess),
            "macro_f1": sk.f1_score(truth, guess, average="macro", labels=SUBJECTS),
            "micro_f1": sk.f1_score(truth, guess, average="micro", labels=SUBJECTS),
        }
    )
    assert scores.report.startswith(sk.classification_report(truth, guess, labels=SUBJECTS, digits=4))
    counts = sk.confusion_matrix(truth, guess, labels=SUBJECTS)
    assert scores.charts["confusion"] == {"labels": SUBJECTS, "counts": counts.tolist()}
    wrong = np.where(np.eye(5, dtype=bool), 0, counts)
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    assert re.search(rf"\b{wrong.max()} {SUBJECTS[row]} .* {SUBJECTS[column]}\n", scores.report + "\n")
    np.testing.assert_array_equal(scores.cases["accuracy"], np.array(truth) == np.array(guess))
    for record, e, t, g, p in zip(scores.predictions, encoded, truth, guess, shares, strict=True):
        asked = {"id": e.example.id, "input": e.example.instruction}
        answer = {"prediction": g, "probabilities": pytest.approx(dict(zip(SUBJECTS, p, strict=True)))}
        assert record == asked | answer | {"reference": t, "probability": pytest.approx(p.max())}


def test_multilabel_scores_equal_scikit_learn(context: TaskContext) -> None:
    task = MultilabelConfig(labels=SUBJECTS, threshold=0.3).build(context)
    predict, encoded = random_outputs(5), task.encode(examples("multilabel", 60))
    scores = task.score(predict, encoded)
    truth = np.array([[label in e.example.output for label in SUBJECTS] for e in encoded])  # type: ignore[operator]
    outputs = np.stack(predict([e.text for e in encoded])).astype(np.float64)
    guess = 1 / (1 + np.exp(-outputs)) >= 0.3
    assert scores.metrics["subset_accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert scores.metrics["micro_f1"] == pytest.approx(sk.f1_score(truth, guess, average="micro"))
    assert scores.metrics["macro_f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    np.testing.assert_array_equal(scores.cases["subset_accuracy"], (truth == guess).all(1))
    each = [sk.f1_score([t], [g], average="samples", zero_division=1) for t, g in zip(truth, guess, strict=True)]
    np.testing.assert_allclose(scores.cases["sample_f1"], each)
    assert scores.metrics["sample_f1"] == pytest.approx(np.mean(each)) and scores.compared == ["sample_f1"]
    certainty = np.abs(1 / (1 + np.exp(-outputs)) - 1 + guess)
    assert scores.metrics["ece"] == expected_calibration_error(certainty.ravel(), (truth == guess).ravel())
    for record, t, g, f1 in zip(scores.predictions, truth, guess, each, strict=True):
        assert record["f1"] == pytest.approx(f1)
        assert record["reference"] == [label for label, yes in zip(SUBJECTS, t, strict=True) if yes]
        assert record["prediction"] == [label for label, yes in zip(SUBJECTS, g, strict=True) if yes]


def test_regression_scores_equal_scipy(context: TaskContext) -> None:
    task, predict = RegressionConfig().build(context), random_outputs(1)
    encoded = task.encode(examples("regression", 60))
    scores = task.score(predict, encoded)
    truth = np.array([float(e.example.output) for e in encoded])  # type: ignore[arg-type]
    guess = np.stack(predict([e.text for e in encoded]))[:, 0].astype(np.float64)
    assert scores.metrics == pytest.approx(
        {
            "mse": sk.mean_squared_error(truth, guess),
            "pearson": stats.pearsonr(truth, guess).statistic,
            "spearman": stats.spearmanr(truth, guess).statistic,
        }
    )
    assert scores.cases["mse"].mean() == pytest.approx(scores.metrics["mse"])
    assert not task.greater_is_better


@pytest.mark.filterwarnings("ignore:.*correlations are undefined")
def test_baselines(context: TaskContext) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    task = ClassificationConfig(labels=SUBJECTS).build(context)
    train, test = examples("classification", 60, seed=1), examples("classification", 30)
    rows = task.baselines(task.encode(train), task.encode(test))
    outputs = [str(e.output) for e in train]
    most = max(SUBJECTS, key=outputs.count)
    accuracy = {name: scores.metrics["accuracy"] for name, scores in rows.items()}
    assert accuracy["most frequent label"] == pytest.approx(np.mean([e.output == most for e in test]))
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    pipeline.fit([e.instruction for e in train], outputs)
    guess = pipeline.predict([e.instruction for e in test])
    assert accuracy["TF-IDF + logistic regression"] == pytest.approx(np.mean(guess == [e.output for e in test]))

    several = MultilabelConfig(labels=[*SUBJECTS, "never"]).build(context)
    train, test = examples("multilabel", 60, seed=1), examples("multilabel", 30)
    rows = several.baselines(several.encode(train), several.encode(test))
    targets, truth = (np.array([[x in e.output for x in SUBJECTS] for e in some]) for some in (train, test))  # type: ignore[operator]
    each = make_pipeline(TfidfVectorizer(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))
    guess = each.fit([e.instruction for e in train], targets).predict_proba([e.instruction for e in test]) >= 0.5
    expected = sk.f1_score(truth, guess, average="micro")
    assert rows["TF-IDF + logistic regression"].metrics["micro_f1"] == pytest.approx(expected)

    number = RegressionConfig().build(context)
    assert number.encode([Example(instruction="a", output=10**11)])[0].target.number == 1e11
    train, test = examples("regression", 60, seed=1), examples("regression", 30)
    rows = number.baselines(number.encode(train), number.encode(test))
    targets, truth = np.array([e.output for e in train]), np.array([e.output for e in test])
    assert rows["mean"].metrics["mse"] == pytest.approx(np.mean((truth - targets.mean()) ** 2), rel=1e-5)
    ridge = make_pipeline(TfidfVectorizer(), Ridge()).fit([e.instruction for e in train], targets)
    expected = np.mean((ridge.predict([e.instruction for e in test]) - truth) ** 2)
    assert rows["TF-IDF + ridge"].metrics["mse"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
def test_showcase(kind: str, context: TaskContext) -> None:
    config: Any = {
        "classification": ClassificationConfig(labels=SUBJECTS),
        "multilabel": MultilabelConfig(labels=SUBJECTS),
        "regression": RegressionConfig(),
    }[kind]
    task = config.build(context)
    encoded = task.encode(examples(kind))
    shown = task.showcase(random_outputs(1 if kind == "regression" else 5), encoded)
    wanted = {e.example.instruction: e.example.output for e in encoded}
    assert len({example["instruction"] for example in shown}) == 5
    for example in shown:
        output = wanted[example["instruction"]]
        names = output if isinstance(output, tuple) else [f"{output:g}" if kind == "regression" else str(output)]
        assert sorted(example["wanted"].split(", ")) == sorted(names)
        (answer,) = example["answers"]
        measure = {"classification": "probability", "multilabel": "f1", "regression": "squared error"}[kind]
        assert set(answer) == {"text", "score", "measure"} and answer["measure"] == measure
        assert kind != "regression" or len(answer["text"].strip("-.0123456789")) == 0 and len(answer["text"]) <= 7
