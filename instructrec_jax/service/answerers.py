"""What a model answers groups of requests with: vectors, rankings of documents, and predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy

from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.prompts import render
from instructrec_jax.runs.predictions import Asker, fields_of, rows_of
from instructrec_jax.runs.run import Run
from instructrec_jax.service.batching import in_one_call
from instructrec_jax.tasks.answers import ChoiceAnswer
from instructrec_jax.tasks.base import Encoded, pieces
from instructrec_jax.tasks.ranking.reranker import RerankerTask


class Answerer(Protocol):
    """Answers requests of one kind. It is called by one thread at a time."""

    def answer(self, asked: list[Any]) -> Sequence[Any]:
        """One answer for each request, or its error."""
        ...


@dataclass(frozen=True)
class Vectors:
    """Vectors of the texts of a request, float32 [texts, width], and the number of their tokens."""

    vectors: np.ndarray
    tokens: int


class Embedding:
    """Texts and pictures -> `Vectors`, as `Run.encode`."""

    def __init__(self, run: Run):
        self.embedder = run.embedder

    def answer(self, asked: Sequence[Sequence[str | Picture]]) -> list[Vectors | Exception]:
        return in_one_call(asked, self.embedder.tokens, self._compute)

    def _compute(self, asked: list[list[Text]]) -> list[Vectors]:
        vectors = self.embedder.vectors([text for texts in asked for text in texts])
        parts = np.split(vectors, np.cumsum([len(texts) for texts in asked])[:-1])
        return [Vectors(part, tokens_of(texts)) for part, texts in zip(parts, asked, strict=True)]


@dataclass(frozen=True)
class Ranked:
    """Scores of the documents of a request, float64 [documents], and the number of tokens that were read."""

    scores: np.ndarray
    tokens: int


@dataclass(frozen=True)
class Documents:
    """A query, and the documents to rank."""

    query: str
    documents: list[str]


class Cosines:
    """`Documents` -> `Ranked` by the cosine of their vectors with the query's."""

    def __init__(self, run: Run):
        self.embedding = Embedding(run)

    def answer(self, asked: list[Documents]) -> list[Ranked | Exception]:
        found = self.embedding.answer([[each.query, *each.documents] for each in asked])
        return [each if isinstance(each, Exception) else self._ranked(each) for each in found]

    def _ranked(self, found: Vectors) -> Ranked:
        vectors = found.vectors.astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(float).tiny)
        return Ranked(vectors[1:] @ vectors[0], found.tokens)


class CrossEncoder:
    """`Documents` -> `Ranked` by a reranker: the logistic function of its scores."""

    def __init__(self, run: Run):
        assert isinstance(run.task, RerankerTask)
        self.task, self.predict = run.task, run.predictor

    def answer(self, asked: list[Documents]) -> list[Ranked | Exception]:
        return in_one_call(asked, lambda each: self.task.free_pairs(each.query, each.documents), self._compute)

    def _compute(self, asked: list[list[Text]]) -> list[Ranked]:
        scores = np.array(self.predict.once([text for texts in asked for text in texts]), np.float64)
        parts = np.split(scores, np.cumsum([len(texts) for texts in asked])[:-1])
        return [Ranked(scipy.special.expit(part), tokens_of(texts)) for part, texts in zip(parts, asked, strict=True)]


class Options:
    """`Documents` -> `Ranked` by a language model that chooses: the softmax of the documents' likelihoods."""

    def __init__(self, run: Run):
        self.asker = run.asker()

    def answer(self, asked: list[Documents]) -> list[Ranked | Exception]:
        return in_one_call(asked, self._read, self._compute)

    def _read(self, asked: Documents) -> list[Encoded]:
        if len(set(asked.documents)) < max(2, len(asked.documents)):
            raise ValueError("documents must be at least two different texts for a run that chooses between them.")
        example = Example(instruction=asked.query, candidates=tuple(asked.documents))
        return self.asker.encode([self.asker.example(example, "the query")])[0]

    def _compute(self, asked: list[list[Encoded]]) -> list[Ranked]:
        answers = self.asker.answer([e for each in asked for e in each])
        found = []
        for (e,), answer in zip(asked, answers, strict=True):
            assert isinstance(answer, ChoiceAnswer)
            values = np.array([answer.candidates[text] for text in e.example.candidates])
            shares = np.exp(values - values.max())
            found.append(Ranked(shares / shares.sum(), tokens_of([e.text])))
        return found


@dataclass(frozen=True)
class Predicted:
    """The predictions for the records of a request, the number of their tokens, and the prompts that were read."""

    answers: list[dict[str, object]]
    tokens: int
    prompts: list[str]


class Predicting:
    """Texts and records -> `Predicted`, as `Run.predict`."""

    def __init__(self, run: Run):
        self.asker: Asker = run.asker()
        self.fields = fields_of(run.config)
        subtasks = run.task.subtasks
        self.writing = {name for name, task in subtasks.items() if task.writes}

    def answer(self, asked: list[list[str | Mapping[str, object]]]) -> list[Predicted | Exception]:
        return in_one_call(asked, self._read, self._compute)

    def _read(self, asked: list[str | Mapping[str, object]]) -> list[Encoded]:
        rows = rows_of(asked, self.fields)
        examples = [self.asker.example(row, f"record {number}") for number, row in enumerate(rows)]
        for example in examples:
            if len(example.media) > 1:
                raise ValueError(
                    f"{example.where}: it has {len(example.media)} pictures; /classify reads one a record."
                )
            if example.task in self.writing:
                raise ValueError(
                    f"{example.where}: the subtask {example.task!r} writes texts, which /classify does not."
                )
        return self.asker.encode(examples)[0]

    def _compute(self, asked: list[list[Encoded]]) -> list[Predicted]:
        answers = iter(self.asker.answer([e for encoded in asked for e in encoded]))
        found = []
        for encoded in asked:
            asked_of = {int(each[0].example.id): each[0].example for each in pieces(encoded)}
            own = {number: next(answers).to_record() for number in asked_of}
            tokens, numbers = tokens_of([e.text for e in encoded]), range(len(own))
            prompts = [render(asked_of[number]) for number in numbers]
            found.append(Predicted([own[number] for number in numbers], tokens, prompts))
        return found


def tokens_of(texts: Sequence[Text]) -> int:
    return sum(len(text.tokens) for text in texts)
