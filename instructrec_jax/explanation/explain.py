"""Explanations of a run's predictions by word: occlusion, gradient × input, integrated gradients, attention rollout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from instructrec_jax.answering.evidence import contributions
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.prompts import render
from instructrec_jax.explanation.gradients import MOST, TOLERANCE, Attributed, Baseline, Gradients
from instructrec_jax.explanation.rollout import Rollout, no_rollout
from instructrec_jax.explanation.words import Words, read_words, without
from instructrec_jax.runs.predictions import Asker, Record, fields_of, rows_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.objective import Choice, NothingToExplain, Objective

Method = Literal["integrated", "gradient", "occlusion", "rollout"]
METHODS: tuple[Method, ...] = get_args(Method)


def methods_of(run: Run) -> tuple[Method, ...]:
    """The methods that a run allows: an ensemble is explained by leaving words out."""
    if run.members:
        return ("occlusion",)
    return tuple(method for method in METHODS if method != "rollout" or not no_rollout(run))


@dataclass(frozen=True)
class Explanation:
    """The scores of a text's words for one number that the network computed; positive: the word raises it.

    By attention rollout they are shares of what is read, without a sign.

    Attributes:
      value: the number; `unit` says which.
      scores: one per word; None: the text cannot be read without the word.
      baseline: what stands for the words in integrated gradients; None: another method.
      completeness_error: |Σ scores − (F(x) − F(baseline))| / |F(x) − F(baseline)|; None: a method without completeness.
      converged: whether the error is at most 1%; None as above.
      unread: words that were cut off.
    """

    text: str
    method: Method
    target: str
    against: str | None
    unit: str
    value: float
    words: tuple[str, ...]
    scores: tuple[float | None, ...]
    baseline: Baseline | None = None
    completeness_error: float | None = None
    steps: int | None = None
    converged: bool | None = None
    unread: tuple[str, ...] = ()

    def to_record(self) -> dict[str, object]:
        """JSON of all attributes."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


class Explainer:
    """Explains the predictions of an opened run.

    Args:
      methods: by which.
      baseline, most: of integrated gradients, see `Gradients`.

    Raises ValueError for a run that predicts nothing, and as `Gradients`.
    """

    def __init__(
        self, run: Run, methods: Sequence[Method] = ("integrated",), baseline: Baseline | None = None, most: int = MOST
    ):
        if run.task.context.pixels is not None:
            raise ValueError("explanations are by word: there are none for a run that reads pictures or sounds.")
        self.run, self.methods = run, tuple(methods)
        self.asker: Asker = run.asker()
        self._settings = baseline, most
        if set(methods) - {"occlusion", "rollout"}:
            _ = self.gradients  # raises before texts are read
        if "rollout" in methods:
            _ = self.rollout

    @cached_property
    def gradients(self) -> Gradients:
        return Gradients(self.run, *self._settings)

    @cached_property
    def rollout(self) -> Rollout:
        return Rollout(self.run)

    def explain(self, records: Iterable[Record], choice: Choice = Choice()) -> list[Explanation]:  # noqa: B008
        """The explanations of texts or records: by text, objective and method.

        Raises BadExample for a text that cannot be explained, with its number.
        """
        found: list[Explanation] = []
        for number, row in enumerate(rows_of(list(records), fields_of(self.run.config))):
            where = f"record {number}"
            example = self.asker.example(row, where)
            try:
                found += self.of_example(example, choice)
            except BadExample as error:
                raise error.at(where) from None
            except ValueError as error:
                raise BadExample("", "not explained", str(error), where) from None
        return found

    def of_example(self, example: Example, choice: Choice) -> list[Explanation]:
        """The explanations of one example; its target is some valid one, see `Task.unanswered`."""
        (encoded,) = self.asker.encode([example])[0]
        found = []
        for objective in self.run.task.objectives(self.asker.predict, encoded, choice):
            words = self.words(objective, encoded)
            found += [self.one(method, objective, encoded, words) for method in self.methods]
        return found

    def of_validation(self, limit: int) -> list[Explanation]:
        """The explanations of `drawn` examples of data.validation: of the first objective of each, by each method.

        Examples without anything to explain are left out.
        """
        found = []
        for encoded in drawn(self.run, limit).values():
            asked = self.first_objective(encoded, Choice())
            if asked is not None:
                objective, words = asked
                found += [self.one(method, objective, encoded, words) for method in self.methods]
        return found

    def first_objective(self, encoded: Encoded, choice: Choice) -> tuple[Objective, Words] | None:
        """The first number of an example that is explained, and its words; None: it has nothing to explain."""
        try:
            objective = self.run.task.objectives(self.asker.predict, encoded, choice)[0]
            return objective, self.words(objective, encoded)
        except NothingToExplain:
            return None

    def words(self, objective: Objective, encoded: Encoded) -> Words:
        tokenizer = self.run.task.context.tokenizer
        return read_words(objective.text(encoded).text, objective.readings(encoded.example), tokenizer)

    def one(self, method: Method, objective: Objective, encoded: Encoded, words: Words) -> Explanation:
        """The scores of an example's words by one method."""
        about = Explanation(
            render(encoded.example),
            method,
            objective.target,
            objective.against,
            objective.unit,
            0.0,
            words.words,
            (),
            unread=words.unread,
        )
        if method == "occlusion":
            value, scores = self.occlusion(objective, encoded, words)
            return replace(about, value=value, scores=scores)
        if method == "rollout":
            return _summed(about, words, self.rollout(objective, encoded))
        if method == "gradient":
            return _summed(about, words, self.gradients.gradient_times_input(objective, encoded, words.owner))
        found = self.gradients.integrated(objective, encoded, words.owner)
        assert found.error is not None
        about = replace(about, baseline=self.gradients.kind, completeness_error=found.error, steps=found.steps)
        return _summed(replace(about, converged=found.error <= TOLERANCE), words, found)

    def occlusion(self, objective: Objective, encoded: Encoded, words: Words) -> tuple[float, tuple[float | None, ...]]:
        """(the number, its loss without each word)."""
        variants = [self.shortened(encoded, [word]) for word in words.words]
        kept = [(place, e) for place, e in enumerate(variants) if e is not None and objective.weights(e) is not None]
        numbers = np.zeros((1, 1), np.int64)  # of "items": an objective has one number
        (whole,) = self.values(objective, [encoded])
        (moved,) = contributions(
            lambda asked, _: self.values(objective, asked)[:, None], [encoded], [[e for _, e in kept]], numbers
        )
        scores: list[float | None] = [None] * len(words.words)
        for (place, _), score in zip(kept, moved[:, 0].tolist(), strict=True):
            scores[place] = score
        return float(whole), tuple(scores)

    def shortened(self, encoded: Encoded, words: Sequence[str]) -> Encoded | None:
        """The example without some words; None: the network cannot read what is left."""
        left = self.run.task.unanswered(without(encoded.example, words))
        try:
            found = self.run.task.encode([left])
        except ValueError:
            return None
        return found[0] if found else None

    def values(self, objective: Objective, encoded: Sequence[Encoded]) -> np.ndarray:
        """The objective's number for each example, float64 [examples]."""
        asked = [objective.text(e) for e in encoded]
        outputs = self.run.plain_predictor.over(asked, objective.gather)  # the logits that the gradients are of
        found = []
        for e, (_, output) in zip(encoded, outputs, strict=True):
            weights = objective.weights(e)
            assert weights is not None  # of the examples that the callers keep
            found.append(np.sum(np.where(weights != 0, output, 0).astype(np.float64) * weights))
        if not np.isfinite(found).all():
            raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
        return np.array(found)


def drawn(run: Run, limit: int) -> dict[int, Encoded]:
    """`limit` examples of data.validation, drawn with the run's seed, by their numbers, in order."""
    cases = run.data.cases(run.task, "validation")
    numbers = np.random.default_rng(run.config.seed).permutation(len(cases))[:limit]
    return {number: cases[number] for number in np.sort(numbers).tolist()}


def _summed(about: Explanation, words: Words, found: Attributed) -> Explanation:
    """The explanation with the sums of the tokens of each word."""
    tokens = np.where(words.owner >= 0, found.tokens, 0)
    scores = np.bincount(np.maximum(words.owner, 0), tokens, len(words.words))
    return replace(about, value=found.value, scores=tuple(scores.tolist()))
