"""Choosing a text by its likelihood: multiple choice, response selection, labels by their names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructrec_jax.data.codec import storable
from instructrec_jax.data.example import Example
from instructrec_jax.data.mapped import Mapped
from instructrec_jax.data.media.picture import MARK
from instructrec_jax.data.prompts import question, render
from instructrec_jax.inference.likelihood import normalized
from instructrec_jax.tasks.answers import CaseRecord, ChoiceAnswer, Shown
from instructrec_jax.tasks.base import Encoded, TaskContext, examples_of, name_of
from instructrec_jax.tasks.generation.answer_likelihood import LikelihoodTask
from instructrec_jax.tasks.generation.language_model import LanguageModelTask, NextTokens
from instructrec_jax.tasks.objective import Choice, Objective, Reading, contrast, one_of, refuse_word
from instructrec_jax.tasks.prediction import WINDOW, Predict
from instructrec_jax.tasks.scores import Scores
from instructrec_jax.tasks.text.option_scoring import (
    Options,
    check_options,
    choices,
    option_baselines,
    option_scores,
    options_of,
    shown_options,
    with_candidates,
    without_answer,
)
from instructrec_jax.tasks.text.text_config import ChoiceConfig

EMPTY = "N/A"  # content-free input (Zhao et al., 2021, "Calibrate Before Use")


@storable
@dataclass(frozen=True)
class ChoiceTarget(NextTokens):
    """The target of the text, and the options to choose from."""

    options: Options


class ChoiceTask(LikelihoodTask):
    """Trained as a language model on the correct answers; scored by the likelihoods of the options."""

    greater_is_better = True
    metric = "accuracy"
    config: ChoiceConfig

    def __init__(self, config: ChoiceConfig, context: TaskContext):
        check_options(config)
        if not np.isfinite(config.alpha):
            raise ValueError(f"task.alpha should be a finite number, but is {config.alpha}.")
        super().__init__(config, context)
        self.encodes_together = config.negatives > 0

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        examples = with_candidates(examples, self.config, self.context.seed)
        names = [name_of(example, number) for number, example in enumerate(examples)]
        options = [options_of(example, name, self.config) for example, name in zip(examples, names, strict=True)]
        trained = [
            replace(question(e), output=o.said, id=e.id or str(number))
            for number, (e, o) in enumerate(zip(examples, options, strict=True))
        ]
        place = {id(example): number for number, example in enumerate(trained)}
        encoded = []
        for e in LanguageModelTask.encode(self, trained):
            number = place[id(e.example)]
            target = ChoiceTarget(e.target.labels, e.target.supervised, options[number])
            encoded.append(Encoded(e.text, target, examples[number]))
        return encoded

    def check(self, encoded: Sequence[Encoded]) -> None:
        for e in encoded:
            self.check_question(question(e.example), list(e.target.options.texts))

    def unanswered(self, example: Example) -> Example:
        return without_answer(example, self.config)

    def answers(self, predict: Predict, encoded: Sequence[Encoded], k: int = 10) -> list[ChoiceAnswer]:
        return choices(encoded, _options(encoded), self._option_logits(predict, encoded))

    def _option_logits(self, predict: Predict, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        """float64 [candidates] of each example, calibrated if the task is."""
        options = _options(encoded)
        logits = self._logits(predict, examples_of(encoded), options)
        if self.config.calibrate:
            texts = list(dict.fromkeys(option.texts for option in options))
            empty = [Example(instruction=EMPTY)] * len(texts)
            asked = [replace(options[0], names=each, texts=each) for each in texts]
            without = dict(zip(texts, self._logits(predict, empty, asked), strict=True))
            logits = [each - without[option.texts] for each, option in zip(logits, options, strict=True)]
        return logits

    explained_by = "occlusion"

    def objectives(self, predict: Predict, encoded: Encoded, choice: Choice) -> list[Objective]:
        """The logit of a candidate (by default the likeliest), less that of another; the words of the question."""
        refuse_word(choice)
        names = encoded.target.options.names
        predicted = int(self._option_logits(predict, [encoded])[0].argmax())
        target, against = contrast(choice, names, predicted, "candidate")
        weights = one_of(len(names), target, against)
        other = None if against is None else names[against]

        def of_same(e: Encoded) -> np.ndarray | None:
            return weights if e.target.options.names == names else None  # candidates may be drawn for each

        return [Objective(names[target], other, "logit", of_same, _said, outputs=self._option_logits)]

    def score(self, predict: Predict, encoded: Sequence[Encoded]) -> Scores:
        logits = self._option_logits(predict, encoded)
        way = f"by log-likelihood / tokens ** {self.config.alpha:g}"
        way += f" minus that after {EMPTY!r}" if self.config.calibrate else ""
        return option_scores(encoded, _options(encoded), logits, self.config.labels, way)

    def _logits(self, predict: Predict, examples: Sequence[Example], options: Sequence[Options]) -> list[np.ndarray]:
        """float64 [candidates] of each example."""
        found: list[np.ndarray] = []
        for first in range(0, len(examples), WINDOW):
            some = slice(first, first + WINDOW)
            asked = [[(question(e), list(o.texts))] for e, o in zip(examples[some], options[some], strict=True)]
            values = self.log_likelihoods(predict, asked, end=True)
            found += [normalized(each[0], self.config.alpha) for each in values]
        return found

    def baselines(self, train: Sequence[Encoded], test: Sequence[Encoded]) -> dict[str, Scores]:
        train_options, options = _options(train), _options(test)
        return option_baselines(train, train_options, test, options, self.config.labels)

    def shown(self, record: CaseRecord) -> Shown:
        return shown_options(record)


def _options(encoded: Sequence[Encoded]) -> Sequence[Options]:
    """Their options, read one at a time where the encodings are."""
    return Mapped(lambda e: e.target.options, encoded)


def _said(example: Example) -> list[Reading]:
    """The words of a question, between its pictures."""
    return [Reading.whole(render(question(example)).replace(MARK, "\n"))]
