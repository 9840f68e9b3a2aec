"""The training examples behind an answer: those whose gradients of the loss are like that of the answer.

    TracIn(z, q) = Σ_c η_c ∇ℓ(w_c, z) · ∇ℓ(w_c, q)                                  (Pruthi et al., 2020)

z is a training example, q the query with the run's answer as its target, and w_c the parameters of a kept checkpoint.
η_c is the sum of the learning rates of the steps since the checkpoint before, which it stands for. The gradients are
projected (`projection`), as those of TRAK are (Park et al., 2023). `cosine` compares directions alone: examples of a
large loss lead the inner product, whatever the query (Barshan et al., 2020; Hanawa et al., 2021).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import jax
import numpy as np

from instructrec_jax.data.example import BadExample, Example, Output
from instructrec_jax.data.prompts import answer, shown_input
from instructrec_jax.distributed.heartbeat import heartbeat
from instructrec_jax.explanation.example_gradients import ExampleGradients, check_gradients
from instructrec_jax.explanation.kept_gradients import KeptGradients, summed
from instructrec_jax.explanation.projection import check_dimension
from instructrec_jax.runs.predictions import Record, fields_of, rows_of, where_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.answers import (
    Answer,
    ChoiceAnswer,
    ItemsAnswer,
    LabelAnswer,
    LabelsAnswer,
    TagsAnswer,
    TextAnswer,
)
from instructrec_jax.tasks.base import Encoded, pieces
from instructrec_jax.tasks.encoded_store import EncodedExamples
from instructrec_jax.training.checkpoint import Checkpoints
from instructrec_jax.training.optimizer import learning_rate_schedule
from instructrec_jax.training.parameters import with_learning_rate

Similarity = Literal["cosine", "dot"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
DIMENSION, BATCH = 4096, 8


@dataclass(frozen=True)
class TrainingExample:
    """A training example and its score; negative: learning it made the answer less likely.

    Attributes:
      number: in data.train.
      where: its file and line, or data set and row.
    """

    score: float
    number: int
    where: str
    id: str
    task: str
    text: str
    history: tuple[str, ...]
    target: str | None


@dataclass(frozen=True)
class Behind:
    """The training examples behind an answer.

    Attributes:
      target: the answer, or the target that was asked for.
      checkpoints: steps.
      examples: those with the highest scores, best first; `against`: those with the lowest ones below 0.
    """

    text: str
    history: tuple[str, ...]
    target: str
    similarity: Similarity
    projection: int
    checkpoints: tuple[int, ...]
    training_examples: int
    examples: tuple[TrainingExample, ...]
    against: tuple[TrainingExample, ...]

    def to_record(self) -> dict[str, object]:
        """JSON of all attributes."""
        found: dict[str, object] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("examples", "against"):
            found[name] = [dict(vars(each)) for each in getattr(self, name)]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


class TrainingExamples:
    """Finds the training examples behind the answers of an opened run.

    Args:
      dimension: of the projection; 0: none.
      batch: training examples whose gradients are in memory at once.

    Raises ValueError as `check_gradients`, for a run without checkpoints, and for a bad dimension.
    """

    def __init__(self, run: Run, similarity: Similarity = "cosine", dimension: int = DIMENSION, batch: int = BATCH):
        check_dimension(dimension)
        if not run.trained:
            raise ValueError(f"{run.path} is no run directory, so no training examples are behind its answers.")
        if batch < 1:
            raise ValueError(f"--batch is {batch}, but should be at least 1.")
        check_gradients(run)
        self.run, self.similarity, self.dimension, self.batch = run, similarity, dimension, batch
        self.asker = run.asker(1)

    def explain(
        self,
        records: Iterable[Record],
        count: int,
        target: str | None = None,
        wheres: Sequence[str] | None = None,
    ) -> list[Behind]:
        """The `count` examples behind the answer to each record.

        Args:
          target: a label, candidate, item id or text in place of the answers.
          wheres: as in `Explainer.explain`.

        Raises BadExample for a record that cannot be answered, with its place.
        """
        if count < 1:
            raise ValueError(f"--examples is {count}, but should be at least 1.")
        rows = rows_of(list(records), fields_of(self.run.config))
        asked = [self.asker.example(row, where_of(number, wheres)) for number, row in enumerate(rows)]
        queries = self.queries(asked, [target] * len(asked))
        scores = self.scores(queries)
        picked = [_picked(own, count) for own in scores]
        wanted = {number for each in picked for numbers in each for number in numbers}
        examples = {n: own[0].example for n, own in enumerate(pieces(self.train)) if n in wanted}
        return [
            self._behind(query[0].example, examples, own, *numbers)
            for query, own, numbers in zip(queries, scores, picked, strict=True)
        ]

    def queries(self, examples: Sequence[Example], targets: Sequence[Output]) -> list[list[Encoded]]:
        """The encodings of each example with its target; None: the run's answer. Raises BadExample."""
        open_ = [example for example, target in zip(examples, targets, strict=True) if target is None]
        answers = iter([each for each in self.asker.answers(open_)[0] if each is not None] if open_ else [])
        asked = []
        for number, (example, target) in enumerate(zip(examples, targets, strict=True)):
            try:
                said = target_of(next(answers)) if target is None else target
            except ValueError as error:
                raise BadExample("", "no training examples", str(error), example.where) from None
            asked.append(replace(example, output=said, where=example.where or f"record {number}"))
        return list(pieces(self.asker.encode(asked)[0]))

    def scores(self, queries: Sequence[Sequence[Encoded]]) -> np.ndarray:
        """float64 [queries, training examples]: the weighted sum over checkpoints. Cosines: their weighted mean.

        Raises ValueError for a query whose loss has no gradient.
        """
        self.run.task.prepare(self.train)
        total: np.ndarray | float = 0.0
        for step, weight in self.weights.items():
            with heartbeat(f"gradients of {len(self.train):,} training examples at step {step}"):
                total = total + weight * self._at(step, queries)
        found = np.asarray(total)
        return found / sum(self.weights.values()) if self.similarity == "cosine" else found

    def _at(self, step: int, queries: Sequence[Sequence[Encoded]]) -> np.ndarray:
        """float64 [queries, training examples] at one checkpoint."""
        task, opened = self.run.task, replace(self.run, step=step)
        if task.refresh_every:  # whose instructions may be new; what is kept must not depend on them
            task.prepare([*self.train, *(e for own in queries for e in own)])
        gradients = self.gradients.at(opened)
        asked = summed(gradients, [list(own) for own in queries], answers=True).astype(np.float64)
        norms = np.linalg.norm(asked, axis=1, keepdims=True)
        if (norms == 0).any():
            raise ValueError(
                f"{queries[int(np.argmin(norms))][0].example.where}: the loss has no gradient at step {step}, so no "
                "example is behind it: the run is sure of the answer. Name another --target."
            )
        if self.similarity == "cosine":
            asked /= norms
        if task.refresh_every:
            task.prepare(self.train)
            gradients = self.gradients.at(opened)
        found = []
        for part in KeptGradients(self.run, step, gradients, self.train).parts():
            part = part.astype(np.float64)
            if self.similarity == "cosine":
                part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-300)
            found.append(asked @ part.T)
        return np.concatenate(found, axis=1)

    @cached_property
    def gradients(self) -> ExampleGradients:
        return ExampleGradients(self.run, self.dimension, self.batch)

    @cached_property
    def train(self) -> EncodedExamples:
        """The examples of data.train, without copies of augment."""
        return self.run.data.train(self.run.task)

    @cached_property
    def weights(self) -> dict[int, float]:
        """Step -> the sum of the learning rates of the steps that this kept checkpoint stands for."""
        run = self.run
        if run.step is not None:
            return {run.step: 1.0}
        checkpoints = Checkpoints(run.path)
        steps = checkpoints.steps()
        checkpoints.close()
        fresh = run.config.backbone.random_init
        chosen, _ = with_learning_rate(run.config.optimizer, run.model.network, run.model.is_frozen, random_init=fresh)
        schedule = learning_rate_schedule(chosen, run.config.steps)
        rates = np.asarray(jax.vmap(schedule)(np.arange(max(steps))), np.float64)
        sums = [float(rates[start:step].sum()) for start, step in zip([0, *steps], steps, strict=False)]
        return dict(zip(steps, sums if any(sums) else [1.0] * len(steps), strict=True))  # no sum: a run of other steps

    def _behind(
        self,
        query: Example,
        examples: Mapping[int, Example],
        scores: np.ndarray,
        best: Sequence[int],
        against: Sequence[int],
    ) -> Behind:
        def listed(numbers: Sequence[int]) -> tuple[TrainingExample, ...]:
            return tuple(_listed(examples[number], number, float(scores[number])) for number in numbers)

        target = answer(query)
        return Behind(
            text=shown_input(query),
            history=query.history,
            target="" if target is None else target,
            similarity=self.similarity,
            projection=self.dimension,
            checkpoints=tuple(self.weights),
            training_examples=len(scores),
            examples=listed(best),
            against=listed(against),
        )


def _picked(scores: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Numbers of the examples with the highest scores, and of those with the lowest ones below 0."""
    order = np.argsort(-scores, kind="stable").tolist()
    return order[:count], [number for number in order[::-1][:count] if scores[number] < 0]


def _listed(example: Example, number: int, score: float) -> TrainingExample:
    text, history = shown_input(example), example.history
    return TrainingExample(score, number, example.where, example.id, example.task, text, history, answer(example))


def target_of(answer: Answer) -> Output:
    """An answer in the form of a target. Raises ValueError for one that cannot be one."""
    match answer:
        case LabelAnswer():
            return answer.label
        case LabelsAnswer():
            return answer.labels
        case TagsAnswer():
            return tuple(word.tag for word in answer.words)
        case ChoiceAnswer():
            return answer.choice
        case TextAnswer() if answer.text:
            return answer.text
        case TextAnswer():
            raise ValueError("the network writes nothing, so no training examples are behind it: name a --target.")
        case ItemsAnswer() if answer.items:
            return answer.items[0].id
    what = type(answer).__name__.removesuffix("Answer").lower()
    raise ValueError(f"--examples compares the losses of answers, but a predicted {what} has no loss of its own.")
