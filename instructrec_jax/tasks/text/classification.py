"""Sequence classification (one label a text, or several) and regression (one number a text)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.example import Example
from instructrec_jax.data.loader import Parts
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import render
from instructrec_jax.metrics.calibration import expected_calibration_error, reliability
from instructrec_jax.metrics.classification import (
    classification_metrics,
    classification_report,
    common_mistakes,
    confusion_matrix,
    multilabel_metrics,
    multilabel_report,
)
from instructrec_jax.metrics.regression import regression_metrics
from instructrec_jax.tasks.base import (
    Arrays,
    Encoded,
    Model,
    Predict,
    Scores,
    Task,
    TaskConfig,
    TaskContext,
    tokenise,
)


@dataclass
class LabelsConfig(TaskConfig):
    """Settings of a task with named labels."""

    labels: list[str] = field(default_factory=list)  # names in the order of the head's outputs; []: those of data.train

    @property
    def complete(self) -> bool:
        return bool(self.labels)

    def learn(self, examples: Sequence[Example]) -> TaskConfig:
        outputs = [e.output if isinstance(e.output, tuple) else (e.output,) for e in examples]
        return replace(self, labels=sorted({str(label) for each in outputs for label in each if label is not None}))


@TaskConfig.register_subclass("classification")
@dataclass
class ClassificationConfig(LabelsConfig):
    """Choose one label for a text."""

    def build(self, context: TaskContext) -> "ClassificationTask":
        return ClassificationTask(self.labels, context)


@TaskConfig.register_subclass("multilabel")
@dataclass
class MultilabelConfig(LabelsConfig):
    """Choose any number of labels for a text."""

    threshold: float = 0.5  # a label is predicted from this probability on

    def build(self, context: TaskContext) -> "MultilabelTask":
        return MultilabelTask(self.labels, self.threshold, context)


@TaskConfig.register_subclass("regression")
@dataclass
class RegressionConfig(TaskConfig):
    """Predict a number for a text (mean squared error)."""

    def build(self, context: TaskContext) -> "RegressionTask":
        return RegressionTask(context)


def check_labels(labels: list[str]) -> dict[str, int]:
    """Label name -> number."""
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError(f"task.labels should list at least two different label names, but is {labels}.")
    return {label: number for number, label in enumerate(labels)}


class _SequenceTask(Task):
    """What the three have in common: one text in, one vector of outputs a text."""

    needs_pooler = True
    labels: list[str]  # one name an output
    problem_type: str  # what HuggingFace calls it in config.json
    context: TaskContext

    def target(self, example: Example, name: str) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} has no target().")

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """outputs [..., outputs] and targets -> [...]."""
        raise TypeError(f"{type(self).__name__} has no losses().")

    def model(self, source: Source) -> nnx.Module:
        return Model(source.backbone, task_head(source, "sequence", labels=self.labels))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        names = [f"example {example.id or number!r}" for number, example in enumerate(examples)]
        texts = tokenise([render(example) for example in examples], names, self.context)
        return [
            Encoded(text, self.target(example, name), example)
            for text, example, name in zip(texts, examples, names, strict=True)
            if text is not None
        ]

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> Parts:
        targets = np.stack([e.target for e in encoded])
        weights = np.ones(len(encoded), np.float32)
        return Parts([e.text for e in encoded], per_text={"targets": targets, "weights": weights})

    def _outputs(self, model: Any, batch: Arrays, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        segments = max_segments(hidden.shape[1])
        return model.head(model.backbone, hidden, batch["segment_ids"], segments, dropout=dropout)

    def loss(
        self, model: Any, batch: Arrays, *, dropout: DropoutKeys | None, buffers: Arrays, parts: int
    ) -> tuple[jax.Array, jax.Array]:
        losses = self.losses(self._outputs(model, batch, dropout), batch["targets"])
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def predict(self, model: Any, batch: Arrays) -> jax.Array:
        """float32 [rows, segments, outputs]."""
        return self._outputs(model, batch, None).astype(jnp.float32)

    def draw(self, model: Any, batch: Arrays, dropout: DropoutKeys) -> jax.Array:
        return self._outputs(model, batch, dropout).astype(jnp.float32)


class ClassificationTask(_SequenceTask):
    problem_type = "single_label_classification"
    metric = "macro_f1"

    def __init__(self, labels: list[str], context: TaskContext):
        self.labels, self.numbers, self.context = labels, check_labels(labels), context

    def target(self, example: Example, name: str) -> np.ndarray:
        if example.output not in self.numbers:
            raise ValueError(f"{name}: its output {example.output!r} is none of the labels {self.labels}.")
        return np.array(self.numbers[str(example.output)], np.int32)

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return losses.cross_entropy(outputs, targets)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        logits = np.stack(predict([e.text for e in encoded])).astype(np.float64)
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        return self._scores(encoded, probabilities.argmax(-1), probabilities.max(-1))

    def _scores(self, encoded: Sequence[Encoded], guess: np.ndarray, confidence: np.ndarray) -> Scores:
        truth = np.array([e.target for e in encoded])
        names = [self.labels[i] for i in guess]
        wanted = [self.labels[i] for i in truth]
        _, report = classification_report(wanted, names, self.labels)
        predictions = [
            {"id": e.example.id, "input": render(e.example), "reference": w, "prediction": n, "score": float(c)}
            for e, w, n, c in zip(encoded, wanted, names, confidence, strict=True)
        ]
        right = guess == truth
        metrics = classification_metrics(wanted, names, self.labels)
        metrics["ece"] = expected_calibration_error(confidence, right)
        counts = confusion_matrix(wanted, names, self.labels)
        return Scores(
            metrics,
            {"accuracy": right.astype(float)},
            predictions,
            f"{report}\n{common_mistakes(counts, self.labels)}".rstrip(),
            main=["accuracy", "macro_f1", "ece"],  # micro F1 of single labels is the accuracy
            charts={
                "confusion": {"labels": self.labels, "counts": counts.tolist()},
                "calibration": {"bins": reliability(confidence, right)},
            },
            compared=["accuracy"],
        )

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """The most frequent label, and logistic regression on TF-IDF of words (scikit-learn's defaults)."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        most = Counter(int(e.target) for e in train).most_common(1)[0][0]
        majority = self._scores(test, np.full(len(test), most), np.ones(len(test)))
        if len({int(e.target) for e in train}) < 2:
            return {"most frequent label": majority}
        pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
        pipeline.fit([render(e.example) for e in train], [int(e.target) for e in train])
        texts = [render(e.example) for e in test]
        linear = self._scores(test, pipeline.predict(texts), pipeline.predict_proba(texts).max(-1))
        return {"most frequent label": majority, "TF-IDF + logistic regression": linear}


class MultilabelTask(_SequenceTask):
    problem_type = "multi_label_classification"
    metric = "micro_f1"

    def __init__(self, labels: list[str], threshold: float, context: TaskContext):
        self.labels, self.numbers, self.context = labels, check_labels(labels), context
        self.threshold = threshold
        if not 0 < threshold < 1:
            raise ValueError(f"task.threshold should lie between 0 and 1, but is {threshold}.")

    def target(self, example: Example, name: str) -> np.ndarray:
        chosen = (example.output,) if isinstance(example.output, str) else example.output
        target = np.zeros(len(self.labels), np.float32)
        if not isinstance(chosen, tuple):
            raise ValueError(f"{name}: its output should be a list of labels, but is {example.output!r}.")
        for label in chosen:
            if label not in self.numbers:
                raise ValueError(f"{name}: its output {label!r} is none of the labels {self.labels}.")
            target[self.numbers[label]] = 1
        return target

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return losses.binary_cross_entropy(outputs, targets)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        logits = np.stack(predict([e.text for e in encoded])).astype(np.float64)
        return self._scores(encoded, 1 / (1 + np.exp(-logits)))

    def _scores(self, encoded: Sequence[Encoded], probabilities: np.ndarray) -> Scores:
        """probabilities: float64 [cases, labels]. Calibration is that of all decisions, a label of a case each."""
        truth = np.stack([e.target for e in encoded]).astype(int)
        guess = (probabilities >= self.threshold).astype(int)
        named = (truth + guess).sum(-1)
        f1 = np.where(named > 0, 2 * (truth * guess).sum(-1) / np.maximum(named, 1), 1.0)
        predictions = [
            {
                "id": e.example.id,
                "input": render(e.example),
                "reference": [self.labels[i] for i in np.flatnonzero(t)],
                "prediction": [self.labels[i] for i in np.flatnonzero(g)],
                "score": float(each),
            }
            for e, t, g, each in zip(encoded, truth, guess, f1, strict=True)
        ]
        _, report = multilabel_report(truth, guess, self.labels)
        certainty, right = np.where(guess, probabilities, 1 - probabilities).ravel(), (truth == guess).ravel()
        return Scores(
            multilabel_metrics(truth, guess, self.labels) | {"ece": expected_calibration_error(certainty, right)},
            {"sample_f1": f1, "subset_accuracy": (truth == guess).all(-1).astype(float)},
            predictions,
            report,
            charts={"calibration": {"bins": reliability(certainty, right)}},
            compared=["sample_f1"],
        )

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """Logistic regression on TF-IDF of words, a label at a time (scikit-learn's defaults)."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        words = TfidfVectorizer().fit([render(e.example) for e in train])
        seen, asked = (words.transform([render(e.example) for e in some]) for some in (train, test))
        found = np.empty((len(test), len(self.labels)))
        for number, column in enumerate(np.stack([e.target for e in train]).T):
            if column.min() == column.max():  # never, or always
                found[:, number] = column[0]
            else:
                found[:, number] = LogisticRegression(max_iter=1000).fit(seen, column).predict_proba(asked)[:, 1]
        return {"TF-IDF + logistic regression": self._scores(test, found)}


LARGEST = 1e15  # targets beyond it square to what float32, in which losses are added up, cannot hold


class RegressionTask(_SequenceTask):
    problem_type = "regression"
    metric = "mse"
    greater_is_better = False
    labels = ["number"]

    def __init__(self, context: TaskContext):
        self.context = context

    def target(self, example: Example, name: str) -> np.ndarray:
        output = example.output
        if isinstance(output, bool) or not isinstance(output, int | float) or not abs(output) < float("inf"):
            raise ValueError(f"{name}: its output should be a finite number, but is {output!r}.")
        if abs(output) > LARGEST:
            raise ValueError(
                f"{name}: its output is {output!r:.60}, too large for a squared error in float32: targets should lie "
                f"between -{LARGEST:g} and {LARGEST:g}. Rescale them, to thousands or logarithms, say."
            )
        return np.array(output, np.float32)

    def losses(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return losses.squared_error(outputs[..., 0], targets)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        return self._scores(encoded, np.stack(predict([e.text for e in encoded]))[:, 0])

    def _scores(self, encoded: Sequence[Encoded], values: np.ndarray) -> Scores:
        truth = np.array([e.target for e in encoded])
        predictions = [
            {
                "id": e.example.id,
                "input": render(e.example),
                "reference": float(t),
                "prediction": float(v),
                "score": float((t - v) ** 2),
            }
            for e, t, v in zip(encoded, truth, values, strict=True)
        ]
        return Scores(regression_metrics(truth, values), {"mse": (truth - values) ** 2}, predictions)

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """The mean of the training targets, and ridge regression on TF-IDF of words (scikit-learn's defaults)."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline

        targets = [float(e.target) for e in train]
        pipeline = make_pipeline(TfidfVectorizer(), Ridge())
        pipeline.fit([render(e.example) for e in train], targets)
        return {
            "mean": self._scores(test, np.full(len(test), np.mean(targets))),
            "TF-IDF + ridge": self._scores(test, pipeline.predict([render(e.example) for e in test])),
        }
