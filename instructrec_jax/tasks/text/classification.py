"""Sequence classification (one label or several per text) and regression (one number per text)."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from instructrec_jax.adapters import losses
from instructrec_jax.adapters.checkpoint_heads import Source, task_head
from instructrec_jax.adapters.soft_targets import KIND_OF, SoftOutputs
from instructrec_jax.arrays import Array
from instructrec_jax.backbones.layers import DropoutKeys
from instructrec_jax.data.batch import Batch, BatchTexts
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.packing import max_segments
from instructrec_jax.data.prompts import question, render
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
from instructrec_jax.metrics.regression import regression_metrics, resampled_correlations
from instructrec_jax.metrics.uncertainty import probabilities
from instructrec_jax.tasks.answers import LabelAnswer, LabelsAnswer, NumberAnswer
from instructrec_jax.tasks.averaging import Judged
from instructrec_jax.tasks.base import (
    BaselineNotFitted,
    Encoded,
    LossInputs,
    Model,
    Network,
    Scores,
    Task,
    TaskConfig,
    TaskContext,
    examples_of,
    name_of,
    owners_of,
    unless_unfit,
)
from instructrec_jax.tasks.objective import Choice, Objective, Reading, contrast, one_of, refuse_word
from instructrec_jax.tasks.prediction import WINDOW, Predict
from instructrec_jax.tasks.targets import TextTargets
from instructrec_jax.tasks.texts import SentencePairs, knows_pairs, tokenize_examples
from instructrec_jax.tasks.tfidf import fitted_tfidf


@dataclass
class LabelsConfig(TaskConfig):
    """Settings of a task with named labels."""

    labels: list[str] = field(default_factory=list)  # names in the order of the head's outputs; []: those of data.train

    @property
    def complete(self) -> bool:
        return bool(self.labels)

    @property
    def label_names(self) -> list[str]:
        return self.labels

    def learn(self, examples: Sequence[Example]) -> TaskConfig:
        outputs = (e.output if isinstance(e.output, tuple) else (e.output,) for e in examples)
        labels = sorted({str(label) for each in outputs for label in each if label is not None})
        if not labels:
            raise ValueError(
                f"none of the {len(examples):,} examples of data.train has an output: there are no labels."
            )
        return replace(self, labels=labels)


@TaskConfig.register_subclass("classification")
@dataclass
class ClassificationConfig(LabelsConfig):
    """Predict one label per text."""

    sentence_pairs: SentencePairs = "auto"  # auto: encode instruction and input as a text pair, if the tokenizer can

    def build(self, context: TaskContext) -> "ClassificationTask":
        return ClassificationTask(self, context)


@TaskConfig.register_subclass("multilabel")
@dataclass
class MultilabelConfig(LabelsConfig):
    """Predict any number of labels per text."""

    threshold: float = 0.5  # minimum probability of a predicted label
    sentence_pairs: SentencePairs = "auto"  # auto: encode instruction and input as a text pair, if the tokenizer can

    def build(self, context: TaskContext) -> "MultilabelTask":
        return MultilabelTask(self, context)


@TaskConfig.register_subclass("regression")
@dataclass
class RegressionConfig(TaskConfig):
    """Predict a number per text (mean squared error)."""

    answers_are_numbers: ClassVar[bool] = True
    sentence_pairs: SentencePairs = "auto"  # auto: encode instruction and input as a text pair, if the tokenizer can

    def build(self, context: TaskContext) -> "RegressionTask":
        return RegressionTask(self, context)


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


@storable
@dataclass(frozen=True)
class NumberTarget:
    """The target number."""

    number: float


class _SequenceTask(Task):
    """Base of the three tasks: one vector of outputs per text."""

    gathers_alone = True
    needs_pooler = True
    labels: list[str]  # name of each output

    def __init__(self, sentence_pairs: SentencePairs, context: TaskContext):
        self.context = context
        self.reads_pairs = sentence_pairs == "auto" and context.kind == "encoder" and knows_pairs(context.tokenizer)

    def target(self, example: Example, name: str) -> ClassTarget | LabelsTarget | NumberTarget:
        """The target of an example, which errors call `name`."""
        raise TypeError(f"{type(self).__name__} has no target().")

    def truth(self, encoded: Sequence[Encoded]) -> np.ndarray:
        """The targets as an array: int32 [examples], float32 [examples, labels] or float32 [examples]."""
        raise TypeError(f"{type(self).__name__} has no truth().")

    def losses(self, outputs: Array, targets: Array) -> jax.Array:
        """Losses [...] of outputs [..., outputs] and targets."""
        raise TypeError(f"{type(self).__name__} has no losses().")

    def model(self, source: Source) -> Model:
        return Model(source.backbone, task_head(source, "sequence", labels=self.labels))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        names = [name_of(example, number) for number, example in enumerate(examples)]
        texts = tokenize_examples(examples, names, self.context, pairs=self.reads_pairs)
        return [
            Encoded(text, self.target(example, name), example)
            for text, example, name in zip(texts, examples, names, strict=True)
            if text is not None
        ]

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        """The logit of a label (by default the largest), less that of another; of regression the number."""
        refuse_word(choice)
        predicted = int(np.argmax(self.outputs(predict, [encoded])[0]))
        target, against = contrast(choice, self.labels, predicted, "label")
        weights = one_of(len(self.labels), target, against)
        names = [None if place is None else self.labels[place] for place in (target, against)]
        return [Objective(str(names[0]), names[1], self.unit, lambda _: weights, self._readings)]

    unit = "logit"  # of the outputs

    def _readings(self, example: Example) -> list[Reading]:
        pair = self.reads_pairs and example.instruction and example.input and not example.messages
        strings = [example.instruction, str(example.input)] if pair else [render(example)]
        return [Reading.whole(string.lower() if self.context.lower_case else string) for string in strings]

    def outputs(self, predict: Predict, encoded: Sequence[Encoded]) -> np.ndarray:
        """The head's outputs, float32 [cases, outputs]."""
        return np.stack([np.array(output) for _, output in predict.over(encoded)])

    def gather(self, encoded: Sequence[Encoded], rng: np.random.Generator) -> BatchTexts:
        weights = np.ones(len(encoded), np.float32)
        return BatchTexts([e.text for e in encoded], TextTargets(self.truth(encoded), weights))

    def _outputs(self, model: Network, batch: Batch, dropout: DropoutKeys | None) -> jax.Array:
        hidden = model.hidden(batch, dropout)
        segments = max_segments(hidden.shape[1])
        return model.head(model.backbone, hidden, batch.texts.segment_ids, segments, dropout=dropout)

    def loss(self, model: Network, batch: Batch[TextTargets], inputs: LossInputs) -> tuple[jax.Array, jax.Array]:
        losses = self.losses(self._outputs(model, batch, inputs.dropout), batch.own.targets)
        return jnp.sum(losses * batch.own.weights), jnp.sum(batch.own.weights)

    def soft_outputs(self, model: Network, batch: Batch[TextTargets], inputs: LossInputs) -> list[SoftOutputs]:
        values = self._outputs(model, batch, inputs.dropout)
        return [SoftOutputs(KIND_OF[str(self.outputs_are)], values, batch.own.weights)]

    def predict(self, model: Network, batch: Batch) -> jax.Array:
        """float32 [rows, segments, outputs]."""
        return self._outputs(model, batch, None).astype(jnp.float32)

    def draw(self, model: Network, batch: Batch, dropout: DropoutKeys) -> jax.Array:
        return self._outputs(model, batch, dropout).astype(jnp.float32)


class ClassificationTask(_SequenceTask):
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

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> list[LabelAnswer]:
        shares = self._shares(predict, encoded)
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
            asked = {"id": e.example.id, "input": render(e.example), "reference": target}
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
        """The most frequent label, and logistic regression on TF-IDF of words (scikit-learn's defaults)."""
        most = Counter(self.truth(train).tolist()).most_common(1)[0][0]
        majority = np.tile(np.eye(len(self.labels))[most], (len(test), 1))
        return {
            "most frequent label": self._scores(test, majority),
            "TF-IDF + logistic regression": unless_unfit(lambda: self._linear(train, test)),
        }

    def _linear(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> Scores:
        from sklearn.linear_model import LogisticRegression

        targets = self.truth(train).tolist()
        if len(set(targets)) < 2:
            raise BaselineNotFitted(f"not fitted: all training examples have the label {self.labels[targets[0]]!r}")
        words = fitted_tfidf(_texts(train))
        model = LogisticRegression(max_iter=1000).fit(words.transform(_texts(train)), targets)
        shares = np.zeros((len(test), len(self.labels)))
        shares[:, model.classes_] = _in_blocks(lambda texts: model.predict_proba(words.transform(texts)), test)
        return self._scores(test, shares)


class MultilabelTask(_SequenceTask):
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
            asked = {"id": e.example.id, "input": render(e.example), "reference": wanted}
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
        return {"TF-IDF + logistic regression": unless_unfit(lambda: self._linear(train, test))}

    def _linear(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> Scores:
        from sklearn.linear_model import LogisticRegression

        words = fitted_tfidf(_texts(train))
        seen = words.transform(_texts(train))
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
            found[:, list(fitted)] = _in_blocks(chances, test)
        return self._scores(test, found)


LARGEST = 1e15  # larger targets would overflow float32 when squared and summed


class RegressionTask(_SequenceTask):
    """Regression by squared error."""

    problem_type = "regression"
    outputs_are = "numbers"
    case_measure = "squared_error"
    metric = "mse"
    greater_is_better = False
    labels = ["number"]
    unit = "number"

    def __init__(self, config: RegressionConfig, context: TaskContext):
        super().__init__(config.sentence_pairs, context)

    def target(self, example: Example, name: str) -> NumberTarget:
        output = example.output
        if isinstance(output, bool) or not isinstance(output, int | float) or not abs(output) < float("inf"):
            raise ValueError(f"{name}: its output should be a finite number, but is {output!r}.")
        if abs(output) > LARGEST:
            raise ValueError(
                f"{name}: its output is {output!r:.60}, too large for a squared error in float32: targets should be "
                f"between -{LARGEST:g} and {LARGEST:g}. Rescale them (to thousands, or by logarithm)."
            )
        return NumberTarget(float(output))

    def unanswered(self, example: Example) -> Example:
        return replace(question(example), output=0.0)

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> list[NumberAnswer]:
        return [NumberAnswer(float(value)) for value in self._values(predict, encoded)]

    def _values(self, predict: Predict, encoded: Sequence[Encoded]) -> np.ndarray:
        return self.outputs(predict, encoded)[:, 0]

    def truth(self, encoded: Sequence[Encoded[NumberTarget]]) -> np.ndarray:
        return np.array([e.target.number for e in encoded], np.float32)

    def losses(self, outputs: Array, targets: Array) -> jax.Array:
        return losses.squared_error(outputs[..., 0], targets)

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        return self._scores(encoded, self._values(predict, encoded))

    def judged(self, predict: Predict, encoded: Sequence[Encoded]) -> Judged:
        return Judged(self._values(predict, encoded).astype(np.float64), self.truth(encoded).astype(np.float64))

    def _scores(self, encoded: Sequence[Encoded], values: np.ndarray) -> Scores:
        truth = self.truth(encoded)

        def record(e: Encoded, target: float, value: float) -> dict[str, object]:
            asked = {"id": e.example.id, "input": render(e.example), "reference": float(target)}
            return asked | {"prediction": float(value), self.case_measure: float((target - value) ** 2)}

        scores = Scores(
            regression_metrics(truth, values),
            {"mse": (truth - values) ** 2},
            Mapped(record, encoded, truth, values),
            corpus=resampled_correlations(truth, values),
        )
        return scores.owned_by(owners_of(examples_of(encoded)))

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        """The mean of the training targets, and ridge regression on TF-IDF of words (scikit-learn's defaults)."""
        mean = self.truth(train).mean()
        return {
            "mean": self._scores(test, np.full(len(test), mean)),
            "TF-IDF + ridge": unless_unfit(lambda: self._ridge(train, test)),
        }

    def _ridge(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> Scores:
        from sklearn.linear_model import Ridge

        words = fitted_tfidf(_texts(train))
        model = Ridge().fit(words.transform(_texts(train)), self.truth(train))
        return self._scores(test, _in_blocks(lambda texts: model.predict(words.transform(texts)), test))


def _texts(encoded: Sequence[Encoded]) -> Sequence[str]:
    return Mapped(lambda e: render(e.example), encoded)


def _in_blocks(function: Callable[[Sequence[str]], np.ndarray], encoded: Sequence[Encoded]) -> np.ndarray:
    """float64 [cases, ...]: a function of the texts of cases; few are in memory."""
    texts = _texts(encoded)
    return np.concatenate([function(texts[first : first + WINDOW]) for first in range(0, len(texts), WINDOW)])
