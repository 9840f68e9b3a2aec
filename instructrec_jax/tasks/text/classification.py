"""Sequence classification: one label or several per text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
import scipy

from instructrec_jax.adapters import losses
from instructrec_jax.arrays import Array
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.prompts import question, shown_input
from instructrec_jax.metrics.calibration import expected_calibration_error, reliability
from instructrec_jax.metrics.classification import (
    classification_metrics,
    classification_report,
    common_mistakes,
    confusion_matrix,
    guesses,
    multilabel_metrics,
    multilabel_report,
    resampled_macro_f1,
    resampled_multilabel_f1,
)
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.tasks.answers import LabelAnswer, LabelsAnswer
from instructrec_jax.tasks.averaging import Judged
from instructrec_jax.tasks.base import Encoded, TaskContext, examples_of
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import BaselineNotFitted, Scores, owners_of
from instructrec_jax.tasks.text.sequence_task import SequenceTask, in_blocks, texts_of
from instructrec_jax.tasks.text.text_config import ClassificationConfig, MultilabelConfig
from instructrec_jax.tasks.tfidf import fitted_tfidf


def check_labels(labels: list[str]) -> dict[str, int]:
    """Label name -> number."""
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError(f"task.labels should list at least two different label names, but is {labels}.")
    return {label: number for number, label in enumerate(labels)}


@storable
@dataclass(frozen=True)
class ClassTarget:
    """The number of the one label."""

    label: int


@storable
@dataclass(frozen=True)
class LabelsTarget:
    """float32 [labels]: 1 for each label of the example, else 0."""

    chosen: np.ndarray


class ClassificationTask(SequenceTask):
    """Single-label classification by softmax cross-entropy."""

    problem_type = "single_label_classification"
    outputs_are = "labels"
    case_measure = "probability"
    metric = "macro_f1"

    def __init__(self, config: ClassificationConfig, context: TaskContext):
        super().__init__(config.sentence_pairs, context)
        self.labels, self.numbers = config.labels, check_labels(config.labels)

    def target(self, example: Example, name: str) -> ClassTarget:
        if example.output not in self.numbers:
            raise ValueError(f"{name}: its output {example.output!r} is not one of the labels {self.labels}.")
        return ClassTarget(self.numbers[str(example.output)])

    def unanswered(self, example: Example) -> Example:
        return replace(question(example), output=self.labels[0])

    def without_target(self, encoded: Encoded[ClassTarget]) -> Encoded[ClassTarget]:
        return Encoded(encoded.text, ClassTarget(-1), encoded.example)

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> list[LabelAnswer]:
        return self.answers_of(self._shares(predict, encoded))

    def answers_of(self, shares: np.ndarray) -> list[LabelAnswer]:
        """The answers of probabilities, float64 [cases, labels]."""
        return [self._answer(*each) for each in zip(guesses(shares).first, shares, strict=True)]

    def _shares(self, predict: Predict, encoded: Sequence[Encoded]) -> np.ndarray:
        """Probabilities, float64 [cases, labels]."""
        return probabilities(self.outputs(predict, encoded))

    def _answer(self, label: int, shares: np.ndarray) -> LabelAnswer:
        return LabelAnswer(self.labels[label], dict(zip(self.labels, shares.tolist(), strict=True)))

    def truth(self, encoded: Sequence[Encoded[ClassTarget]]) -> np.ndarray:
        return np.array([e.target.label for e in encoded], np.int32)

    def losses(self, outputs: Array, targets: Array) -> jax.Array:
        return losses.cross_entropy(outputs, targets)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        return self._scores(encoded, self._shares(predict, encoded))

    def judged(self, predict: Predict, encoded: Sequence[Encoded]) -> Judged:
        return Judged(self.outputs(predict, encoded).astype(np.float64), self.truth(encoded).astype(np.int64))

    def _scores(self, encoded: Sequence[Encoded], shares: np.ndarray) -> Scores:
        """shares: probabilities, float64 [cases, labels]; labels with equal highest values share the prediction."""
        truth = self.truth(encoded)
        found = guesses(shares)
        confidence = shares.max(-1)
        targets = [self.labels[i] for i in truth]
        tied = len(found.case) - len(truth)
        weights = found.share if tied else None
        pairs = [targets[i] for i in found.case], [self.labels[i] for i in found.label]
        _, report = classification_report(*pairs, self.labels, weights)

        def record(e: Encoded, target: str, label: int, own: np.ndarray) -> dict[str, object]:
            said = self._answer(label, own).to_record()
            asked = {"id": e.example.id, "input": shown_input(e.example), "reference": target}
            return {**asked, **said, self.case_measure: float(own.max())}

        right = found.right(truth)
        metrics = classification_metrics(*pairs, self.labels, weights)
        metrics["ece"] = expected_calibration_error(confidence, right)
        counts = confusion_matrix(*pairs, self.labels, weights)
        return Scores(
            metrics,
            {"accuracy": right},
            Mapped(record, encoded, targets, found.first, shares),
            f"{report}\n{common_mistakes(counts, self.labels)}".rstrip(),
            main=["accuracy", "macro_f1", "ece"],  # micro F1 of single labels is the accuracy
            charts={
                "confusion": {"labels": self.labels, "counts": counts.tolist()},
                "calibration": {"bins": reliability(confidence, right)},
            },
            protocol="labels with equal scores share the prediction" if tied else "",
            compared=["accuracy"],
            corpus={"macro_f1": resampled_macro_f1(truth, found)},
        ).owned_by(owners_of(examples_of(encoded)))

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """The most frequent label, and logistic regression on TF-IDF of words (scikit-learn's defaults).

        Of pictures or sounds, the label whose mean array of numbers is the nearest.
        """
        most = Counter(self.truth(train).tolist()).most_common(1)[0][0]
        majority = np.tile(np.eye(len(self.labels))[most], (len(test), 1))
        return {
            "most frequent label": self._scores(test, majority),
            **self.of_words("TF-IDF + logistic regression", lambda: self._linear(train, test)),
            **self._nearest(train, test),
        }

    def _nearest(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        read = self.context.pixels
        if read is None:
            return {}
        counts, sums = np.zeros(len(self.labels)), np.zeros((len(self.labels), int(np.prod(read.shape))))
        for e, label in zip(train, self.truth(train).tolist(), strict=True):
            counts[label] += 1
            sums[label] += mean_array(e)
        known = np.flatnonzero(counts)
        means = sums[known] / counts[known, None]
        distances = (np.square(means - mean_array(e)).sum(1) for e in test)
        found = np.eye(len(self.labels))[[known[np.argmin(each)] for each in distances]]
        return {f"nearest mean {read.kind.noun}": self._scores(test, found)}

    def _linear(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> Scores:
        from sklearn.linear_model import LogisticRegression

        targets = self.truth(train).tolist()
        if len(set(targets)) < 2:
            raise BaselineNotFitted(f"not fitted: all training examples have the label {self.labels[targets[0]]!r}")
        words = fitted_tfidf(texts_of(train))
        model = LogisticRegression(max_iter=1000).fit(words.transform(texts_of(train)), targets)
        shares = np.zeros((len(test), len(self.labels)))
        shares[:, model.classes_] = in_blocks(lambda texts: model.predict_proba(words.transform(texts)), test)
        return self._scores(test, shares)


def mean_array(encoded: Encoded) -> np.ndarray:
    """float64 [numbers]: the mean of an example's pixels, or spectrograms."""
    images = encoded.text.images
    assert images is not None
    return np.mean([images.read(one) for one in images.pictures], axis=0, dtype=np.float64).ravel()


class MultilabelTask(SequenceTask):
    """Multilabel classification by sigmoid cross-entropy."""

    problem_type = "multi_label_classification"
    outputs_are = "decisions"
    case_measure = "f1"
    metric = "micro_f1"

    def __init__(self, config: MultilabelConfig, context: TaskContext):
        super().__init__(config.sentence_pairs, context)
        self.labels, self.numbers = config.labels, check_labels(config.labels)
        self.threshold = config.threshold
        if not 0 < self.threshold < 1:
            raise ValueError(f"task.threshold should lie between 0 and 1, but is {self.threshold}.")

    def target(self, example: Example, name: str) -> LabelsTarget:
        chosen = (example.output,) if isinstance(example.output, str) else example.output
        target = np.zeros(len(self.labels), np.float32)
        if not isinstance(chosen, tuple):
            raise ValueError(f"{name}: its output should be a list of labels, but is {example.output!r}.")
        for label in chosen:
            if label not in self.numbers:
                raise ValueError(f"{name}: its output {label!r} is not one of the labels {self.labels}.")
            target[self.numbers[label]] = 1
        return LabelsTarget(target)

    def unanswered(self, example: Example) -> Example:
        return replace(question(example), output=())

    def without_target(self, encoded: Encoded[LabelsTarget]) -> Encoded[LabelsTarget]:
        return Encoded(encoded.text, LabelsTarget(np.full(len(self.labels), -1, np.float32)), encoded.example)

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> list[LabelsAnswer]:
        return [self._answer(shares) for shares in self._shares(predict, encoded)]

    def _shares(self, predict: Predict, encoded: Sequence[Encoded]) -> np.ndarray:
        """Probabilities, float64 [cases, labels]."""
        return scipy.special.expit(self.outputs(predict, encoded).astype(np.float64))

    def _answer(self, shares: np.ndarray) -> LabelsAnswer:
        chosen = tuple(label for label, p in zip(self.labels, shares, strict=True) if p >= self.threshold)
        return LabelsAnswer(chosen, dict(zip(self.labels, shares.tolist(), strict=True)))

    def truth(self, encoded: Sequence[Encoded[LabelsTarget]]) -> np.ndarray:
        return np.stack([e.target.chosen for e in encoded])

    def losses(self, outputs: Array, targets: Array) -> jax.Array:
        return losses.binary_cross_entropy(outputs, targets)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        return self._scores(encoded, self._shares(predict, encoded))

    def judged(self, predict: Predict, encoded: Sequence[Encoded]) -> Judged:
        """Two classes for each decision: without the label, or with it."""
        yes = self.outputs(predict, encoded).astype(np.float64).ravel()
        return Judged(np.stack([0 * yes, yes], -1), self.truth(encoded).astype(np.int64).ravel())

    def _scores(self, encoded: Sequence[Encoded], shares: np.ndarray) -> Scores:
        """shares: probabilities, float64 [cases, labels]. Calibration is over all decisions (case, label)."""
        truth = self.truth(encoded).astype(int)
        guess = (shares >= self.threshold).astype(int)
        named = (truth + guess).sum(-1)
        f1 = np.where(named > 0, 2 * (truth * guess).sum(-1) / np.maximum(named, 1), 1.0)

        def record(e: Encoded, target: np.ndarray, own: np.ndarray, f1: float) -> dict[str, object]:
            wanted = [self.labels[i] for i in np.flatnonzero(target)]
            asked = {"id": e.example.id, "input": shown_input(e.example), "reference": wanted}
            return {**asked, **self._answer(own).to_record(), self.case_measure: float(f1)}

        _, report = multilabel_report(truth, guess, self.labels)
        certainty, right = np.where(guess, shares, 1 - shares).ravel(), (truth == guess).ravel()
        return Scores(
            multilabel_metrics(truth, guess, self.labels) | {"ece": expected_calibration_error(certainty, right)},
            {"sample_f1": f1, "subset_accuracy": (truth == guess).all(-1).astype(float)},
            Mapped(record, encoded, truth, shares, f1),
            report,
            charts={"calibration": {"bins": reliability(certainty, right)}},
            compared=["sample_f1"],
            corpus=resampled_multilabel_f1(truth, guess),
        ).owned_by(owners_of(examples_of(encoded)))

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """Logistic regression on TF-IDF of words, one model per label (scikit-learn's defaults)."""
        return self.of_words("TF-IDF + logistic regression", lambda: self._linear(train, test))

    def _linear(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> Scores:
        from sklearn.linear_model import LogisticRegression

        words = fitted_tfidf(texts_of(train))
        seen = words.transform(texts_of(train))
        found = np.empty((len(test), len(self.labels)))
        fitted = {}
        for number, column in enumerate(self.truth(train).T):
            if column.min() == column.max():  # the label occurs never or always
                found[:, number] = column[0]
            else:
                fitted[number] = LogisticRegression(max_iter=1000).fit(seen, column)

        def chances(texts: Sequence[str]) -> np.ndarray:
            asked = words.transform(texts)
            return np.stack([model.predict_proba(asked)[:, 1] for model in fitted.values()], 1)

        if fitted:
            found[:, list(fitted)] = in_blocks(chances, test)
        return self._scores(test, found)
