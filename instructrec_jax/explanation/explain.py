"""Explanations of a run's predictions by word: occlusion, gradient × input, integrated gradients, attention rollout."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from instructrec_jax.answering.evidence import contributions, words_of
from instructrec_jax.data.example import BadExample, Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.picture_references import PictureFolder
from instructrec_jax.data.media.pixels import PixelReader
from instructrec_jax.data.prompts import render
from instructrec_jax.explanation.gradients import MOST, TOLERANCE, Attributed, Baseline, Gradients, no_gradients
from instructrec_jax.explanation.patches import Patch, grid_of, vision_of
from instructrec_jax.explanation.rollout import Rollout, no_rollout
from instructrec_jax.explanation.rows import Asked
from instructrec_jax.explanation.words import no_words, read_words, without
from instructrec_jax.runs.predictions import ANYWHERE, Asker, Record, fields_of, rows_of, where_of
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.base import Encoded
from instructrec_jax.tasks.objective import Choice, NothingToExplain, Objective


@dataclass(frozen=True)
class Item:
    """An item of the history, by its id."""

    id: str


Part = str | Patch | Item
Method = Literal["integrated", "gradient", "occlusion", "rollout"]
METHODS: tuple[Method, ...] = get_args(Method)
WINDOW = 64  # numbers that are explained together, and share rows


def methods_of(run: Run) -> tuple[Method, ...]:
    """The methods that a run allows: an ensemble is explained by leaving words out."""
    if run.members or no_gradients(run):
        return ("occlusion",)
    return tuple(method for method in METHODS if method != "rollout" or not no_rollout(run))


@dataclass(frozen=True)
class PictureScores:
    """The scores of the patches of a picture, [rows][columns], as those of words; a patch has `side` pixels a side."""

    picture: Picture
    side: int
    patches: tuple[tuple[float | None, ...], ...]


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
      pictures: the scores of the pictures, in order.
      history: the names of the items of the history, oldest first, and their scores.
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
    pictures: tuple[PictureScores, ...] = ()
    history: tuple[tuple[str, float | None], ...] = ()

    def to_record(self) -> dict[str, object]:
        """JSON of all attributes; `pictures` and `history` only where there are some."""
        own = {
            "pictures": [
                {"name": each.picture.name, "patches": list(map(list, each.patches))} for each in self.pictures
            ],
            "history": [{"item": name, "score": score} for name, score in self.history],
        }
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in own}
        record = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
        return record | {name: value for name, value in own.items() if value}

    @property
    def parts(self) -> list[float | None]:
        """The scores of `parts_of`."""
        patches = (score for each in self.pictures for row in each.patches for score in row)
        return [*self.scores, *patches, *(score for _, score in self.history)]


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
        own = run.members[0] if run.members else run
        self.vision = vision_of(own.model.network.backbone) if "backbone" in own.model.params else None
        if run.task.context.pixels is not None and self.vision is None:
            raise ValueError("explanations are by word and by patch: there are none for a run that reads sounds.")
        self.run, self.methods = run, tuple(methods)
        self.asker: Asker = run.asker()
        self._settings = baseline, most
        if set(methods) - {"occlusion", "rollout"}:
            _ = self.gradients  # raises before texts are read
        if "rollout" in methods:
            _ = self.rollout

    @property
    def reader(self) -> PixelReader | None:
        """What makes pixels of pictures; None: the run reads none."""
        read = self.run.task.context.pixels
        return read if isinstance(read, PixelReader) else None

    @cached_property
    def gradients(self) -> Gradients:
        return Gradients(self.run, *self._settings)

    @cached_property
    def rollout(self) -> Rollout:
        return Rollout(self.run)

    def explain(
        self,
        records: Iterable[Record],
        choice: Choice = Choice(),  # noqa: B008
        folders: Sequence[PictureFolder] | None = None,
        wheres: Sequence[str] | None = None,
    ) -> list[Explanation]:
        """The explanations of texts or records: by text, objective and method.

        Args:
          folders: where the pictures of each record lie; None: records may name any file.
          wheres: where each record stands, for errors; None: its number.

        Raises BadExample for a text that cannot be explained, with its place.
        """
        rows = rows_of(list(records), fields_of(self.run.config))
        found: list[Explanation] = []
        for first in range(0, len(rows), WINDOW):
            asked: list[Asked] = []
            for number, row in enumerate(rows[first : first + WINDOW], first):
                where = where_of(number, wheres)
                folder = ANYWHERE if folders is None else folders[number]
                example = self.asker.example(row, where, folder=folder)
                try:
                    asked += self.of_example(example, choice)
                except BadExample as error:
                    raise error.at(where) from None
                except ValueError as error:
                    raise BadExample("", "not explained", str(error), where) from None
            found += self.explanations(asked)
        return found

    def of_example(self, example: Example, choice: Choice) -> list[Asked]:
        """What is explained of an example; its target is some valid one, see `Task.unanswered`."""
        encoded, *_ = self.asker.encode([example])[0]
        return [self.asked(each, encoded) for each in self.run.task.objectives(self.asker.predict, encoded, choice)]

    def of_validation(self, limit: int) -> list[Explanation]:
        """The explanations of `drawn` examples of data.validation: of the first objective of each, by each method.

        Examples without anything to explain are left out.
        """
        found = (self.first_asked(encoded, Choice()) for encoded in drawn(self.run, limit).values())
        return self.explanations([asked for asked in found if asked is not None])

    def first_asked(self, encoded: Encoded, choice: Choice) -> Asked | None:
        """The first number of an example that is explained; None: it has nothing to explain."""
        try:
            return self.asked(self.run.task.objectives(self.asker.predict, encoded, choice)[0], encoded)
        except NothingToExplain:
            return None

    def asked(self, objective: Objective, encoded: Encoded) -> Asked:
        """A number and the parts of its example. Raises NothingToExplain for one without any."""
        readings = objective.readings(encoded.example)
        items = {} if objective.items is None else objective.items(encoded.example)
        if objective.outputs is not None:
            grid = grid_of(self.vision, encoded.text)
            said = words_of(" ".join(reading.string[a:b] for reading in readings for a, b in reading.spans))
            if not said and not items and grid is None:
                raise NothingToExplain("the text has no word, and there is no history: there is nothing to explain.")
            return Asked(objective, encoded, replace(no_words(0), words=tuple(said)), grid, items)
        text, tokenizer = objective.text(encoded).text, self.run.task.context.tokenizer
        grid, words = grid_of(self.vision, text), no_words(len(text.tokens))
        try:
            if tokenizer is not None:
                words = read_words(text, readings, tokenizer)
        except NothingToExplain:
            if grid is None:
                raise
        return Asked(objective, encoded, words, grid)

    def explanations(self, asked: Sequence[Asked]) -> list[Explanation]:
        """By each method in turn; of any number, `WINDOW` at a time."""
        found: list[Explanation] = []
        for first in range(0, len(asked), WINDOW):
            some = asked[first : first + WINDOW]
            each = [self.by_method(method, some) for method in self.methods]
            found += [explanation for same in zip(*each, strict=True) for explanation in same]
        return found

    def by_method(self, method: Method, asked: Sequence[Asked]) -> list[Explanation]:
        """The scores of the words and patches of each by one method; texts share rows."""
        if method == "occlusion":
            return self.occlusion(asked)
        if method == "rollout":
            return [_summed(method, *each) for each in zip(asked, self.rollout(asked), strict=True)]
        if method == "gradient":
            found = self.gradients.gradient_times_input(asked)
            return [_summed(method, *each) for each in zip(asked, found, strict=True)]
        return [
            replace(
                _summed(method, each, found),
                baseline=self.gradients.kind,
                completeness_error=found.error,
                steps=found.steps,
                converged=found.error is not None and found.error <= TOLERANCE,
            )
            for each, found in zip(asked, self.gradients.integrated(asked), strict=True)
        ]

    def occlusion(self, asked: Sequence[Asked]) -> list[Explanation]:
        """The number less that without each word, patch and item of the history."""
        parts = [parts_of(each) for each in asked]
        variants = [[self.shortened(a, [part]) for part in own] for a, own in zip(asked, parts, strict=True)]
        kept = [[n for n, e in enumerate(own) if e is not None] for own in variants]
        numbers = np.zeros((len(asked), 1), np.int64)  # of "items": an objective has one number
        wholes = [(a.objective, a.encoded) for a in asked]
        shorter = [[(a.objective, e) for e in own if e is not None] for a, own in zip(asked, variants, strict=True)]
        values = self.values(wholes)
        moved = contributions(lambda some, _: self.values(some)[:, None], wholes, shorter, numbers)
        found = []
        for a, own, places, value, lost in zip(asked, parts, kept, values.tolist(), moved, strict=True):
            scores = np.full(len(own), np.nan)
            scores[places] = lost[:, 0]
            found.append(_explanation("occlusion", a, value, scores))
        return found

    def shortened(self, asked: Asked, parts: Collection[Part]) -> Encoded | None:
        """The example without some parts; None: there is no number of what is left."""
        left = without(asked.encoded.example, [part for part in parts if isinstance(part, str)])
        if asked.grid is not None:
            left = asked.grid.without(left, [part for part in parts if isinstance(part, tuple)])
        if gone := {part.id for part in parts if isinstance(part, Item)}:
            left = replace(left, history=tuple(item for item in left.history if item not in gone))
        try:
            found = self.run.task.encode([self.run.task.unanswered(left)])
        except ValueError:
            return None
        return found[0] if found and asked.objective.weights(found[0]) is not None else None

    def values(self, asked: Sequence[tuple[Objective, Encoded]]) -> np.ndarray:
        """The number of each objective and example, float64 [asked]."""
        read, first = [objective.text(e) for objective, e in asked], asked[0][0]
        predict = self.run.plain_predictor  # the logits that the gradients are of
        if first.outputs is not None:
            outputs = iter(first.outputs(predict, read))
        else:
            outputs = (output for _, output in predict.over(read, first.gather))
        found = []
        for (objective, e), output in zip(asked, outputs, strict=True):
            weights = objective.weights(e)
            assert weights is not None  # of the examples that `shortened` keeps
            found.append(np.sum(np.where(weights != 0, output, 0).astype(np.float64) * weights))
        if not np.isfinite(found).all():
            raise ValueError("the model's outputs are not finite: the run diverged. Train it again.")
        return np.array(found)


def drawn(run: Run, limit: int) -> dict[int, Encoded]:
    """`limit` examples of data.validation, drawn with the run's seed, by their numbers, in order."""
    cases = run.data.cases(run.task, "validation")
    numbers = np.random.default_rng(run.config.seed).permutation(len(cases))[:limit]
    return {number: cases[number] for number in np.sort(numbers).tolist()}


def parts_of(asked: Asked) -> list[Part]:
    """What can be left out of an example: words, then patches, then items."""
    return [*asked.words.words, *([] if asked.grid is None else asked.grid.patches), *map(Item, asked.items)]


def _summed(method: Method, asked: Asked, found: Attributed) -> Explanation:
    """The sums of the tokens of each word (of its shares of them), and the patches."""
    scores = np.concatenate([found.tokens @ asked.words.shares, found.patches.ravel()])
    return _explanation(method, asked, found.value, scores)


def _explanation(method: Method, asked: Asked, value: float, scores: np.ndarray) -> Explanation:
    """scores: float64 [parts], NaN: the text cannot be read without that part."""
    objective, words, count = asked.objective, asked.words, len(asked.words.words)
    known = tuple(None if np.isnan(score) else score for score in scores.tolist())
    return Explanation(
        render(asked.encoded.example),
        method,
        objective.target,
        objective.against,
        objective.unit,
        value,
        words.words,
        known[:count],
        unread=words.unread,
        pictures=() if asked.grid is None else _pictures(asked, known[count:]),
        history=tuple(zip(asked.items.values(), known[len(known) - len(asked.items) :], strict=True)),
    )


def _pictures(asked: Asked, scores: Sequence[float | None]) -> tuple[PictureScores, ...]:
    """scores: of the patches of all pictures."""
    assert asked.grid is not None
    rows, columns, found = asked.grid.rows, asked.grid.columns, []
    for number, picture in enumerate(asked.encoded.example.images):
        own = scores[number * rows * columns : (number + 1) * rows * columns]
        cut = tuple(tuple(own[row * columns : (row + 1) * columns]) for row in range(rows))
        found.append(PictureScores(picture, asked.grid.side, cut))
    return tuple(found)
