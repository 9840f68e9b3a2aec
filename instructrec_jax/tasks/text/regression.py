"""Regression: one number per text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from instructrec_jax.adapters import losses
from instructrec_jax.arrays import Array
from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.prompts import question, shown_input
from instructrec_jax.metrics.regression import regression_metrics, resampled_correlations
from instructrec_jax.tasks.answers import NumberAnswer
from instructrec_jax.tasks.averaging import Judged
from instructrec_jax.tasks.base import Encoded, TaskContext, examples_of
from instructrec_jax.tasks.prediction import Predict
from instructrec_jax.tasks.scores import Scores, owners_of
from instructrec_jax.tasks.text.sequence_task import SequenceTask, in_blocks, texts_of
from instructrec_jax.tasks.text.text_config import RegressionConfig
from instructrec_jax.tasks.tfidf import fitted_tfidf


@storable
@dataclass(frozen=True)
class NumberTarget:
    """The target number."""

    number: float


LARGEST = 1e15  # larger targets would overflow float32 when squared and summed


class RegressionTask(SequenceTask):
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
            asked = {"id": e.example.id, "input": shown_input(e.example), "reference": float(target)}
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
            **self.of_words("TF-IDF + ridge", lambda: self._ridge(train, test)),
        }

    def _ridge(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> Scores:
        from sklearn.linear_model import Ridge

        words = fitted_tfidf(texts_of(train))
        model = Ridge().fit(words.transform(texts_of(train)), self.truth(train))
        return self._scores(test, in_blocks(lambda texts: model.predict(words.transform(texts)), test))
