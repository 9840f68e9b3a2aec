"""What tasks predict for an example: one answer each, in the form of the task.

Every answer has a record, whose `prediction` is the answer itself: a label, labels, a number, one tag per word, a text,
item ids, codes, or a picture (a data URI). `predictions.jsonl` of an evaluation has the same records, beside the
references.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, Protocol, TypeAlias, TypedDict

import numpy as np

from instructrec_jax.data.media.drawing import data_uri
from instructrec_jax.data.media.picture import Picture
from instructrec_jax.data.media.thumbnails import thumbnail

CaseRecord: TypeAlias = Mapping[str, Any]
"""One case of an evaluation, as in predictions.jsonl: a JSON object, whose fields depend on the task."""


class ShownOutput(TypedDict):
    """One answer of a `Shown`: its text and score; the metric that the score is; why a ranking has it; its picture.

    A picture is a data URI.
    """

    text: str
    score: float
    measure: NotRequired[str]
    why: NotRequired[str]
    picture: NotRequired[str]


class ShownPicture(TypedDict):
    """A picture for people to see: its name, and a small copy as a data URI ("" where there is none).

    Attributes:
      hit: whether it is the one that was looked for.
    """

    name: str
    data: str
    hit: NotRequired[bool]


def shown_picture(picture: Picture) -> ShownPicture:
    """A picture's name and a small copy of it."""
    return {"name": picture.name, "data": thumbnail(picture)}


class Shown(TypedDict):
    """A case for people to read, as in examples.json.

    Attributes:
      pictures: what the case is about, beside its words.
      nearest: of pairs: the pictures that are nearest to the target.
      wanted: the target, if there is one.
      answers: the best answers, or the only one.
      asked, wanted_why: of rankings: the facts that the instruction asks for, and those that the target matches.
      group: the group of cases, where an evaluation has several.
      wanted_picture: the target's picture, a data URI.
    """

    instruction: str
    wanted: str | None
    answers: list[ShownOutput]
    asked: NotRequired[list[str]]
    wanted_why: NotRequired[str]
    group: NotRequired[str]
    pictures: NotRequired[list[ShownPicture]]
    nearest: NotRequired[list[ShownPicture]]
    wanted_picture: NotRequired[str]


class Answer(Protocol):
    """A task's prediction for one example."""

    def to_record(self) -> dict[str, object]:
        """JSON-able, with `prediction` first."""


@dataclass(frozen=True)
class LabelAnswer:
    """The most probable label, and the probability of each.

    Attributes:
      prediction_set: where a coverage was asked for: the labels of the conformal set, the most probable first.
      abstained, scope_score: where the run abstains: whether it does here, and the score by which it decides.
    """

    label: str
    probabilities: Mapping[str, float]
    prediction_set: tuple[str, ...] | None = None
    abstained: bool | None = None
    scope_score: float | None = None

    def to_record(self) -> dict[str, object]:
        found: dict[str, object] = {"prediction": self.label, "probabilities": dict(self.probabilities)}
        if self.prediction_set is not None:
            found["prediction_set"] = list(self.prediction_set)
        if self.abstained is not None:
            found |= {"abstained": self.abstained, "scope_score": self.scope_score}
        return found


@dataclass(frozen=True)
class LabelsAnswer:
    """The labels whose probability reaches the threshold, and the probability of each label."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]

    def to_record(self) -> dict[str, object]:
        return {"prediction": list(self.labels), "probabilities": dict(self.probabilities)}


@dataclass(frozen=True)
class NumberAnswer:
    """A number."""

    number: float

    def to_record(self) -> dict[str, object]:
        return {"prediction": self.number}


@dataclass(frozen=True)
class Word:
    """A word, its tag, and where it stands in the text: characters [start, end)."""

    word: str
    tag: str
    start: int
    end: int


@dataclass(frozen=True)
class TagsAnswer:
    """One tag per word."""

    words: tuple[Word, ...]

    def to_record(self) -> dict[str, object]:
        words = [{"word": w.word, "tag": w.tag, "start": w.start, "end": w.end} for w in self.words]
        return {"prediction": [w.tag for w in self.words], "words": words}


@dataclass(frozen=True)
class SpanAnswer:
    """A piece of the context, characters [start, end), or no answer: an empty text without a place.

    Attributes:
      ahead: score of the best piece minus that of "no answer", in logits.
    """

    text: str
    start: int | None
    end: int | None
    ahead: float

    def to_record(self) -> dict[str, object]:
        return {"prediction": self.text, "start": self.start, "end": self.end, "ahead_of_no_answer": self.ahead}


@dataclass(frozen=True)
class TextAnswer:
    """A written text.

    Attributes:
      log_probability: Σ log p of its tokens with the end token, given the prompt; None where it is not computed.
    """

    text: str
    log_probability: float | None = None

    def to_record(self) -> dict[str, object]:
        scored = {} if self.log_probability is None else {"log_probability": self.log_probability}
        return {"prediction": self.text, **scored}


@dataclass(frozen=True)
class CodesAnswer:
    """An image as the indices of its codes, from left to right and from top to bottom."""

    codes: tuple[int, ...]

    def to_record(self) -> dict[str, object]:
        return {"prediction": list(self.codes)}


@dataclass(frozen=True)
class ImageAnswer:
    """A drawn picture.

    Attributes:
      values: from 0 to 255, float64 [height, width, channels].
      log_probability: Σ log p of its codes, given the prompt.
    """

    values: np.ndarray
    log_probability: float

    def to_record(self) -> dict[str, object]:
        return {"prediction": data_uri(self.values), "log_probability": self.log_probability}


@dataclass(frozen=True)
class ChoiceAnswer:
    """The best candidate, and the score of each.

    Attributes:
      probability: of the choice, the softmax of the scores.
    """

    choice: str
    probability: float
    candidates: Mapping[str, float]

    def to_record(self) -> dict[str, object]:
        return {"prediction": self.choice, "probability": self.probability, "candidates": dict(self.candidates)}


@dataclass(frozen=True)
class RankedItem:
    """An item of a ranking; scores of different requests need not be comparable."""

    id: str
    title: str
    score: float


@dataclass(frozen=True)
class ItemsAnswer:
    """The best items, best first; ties by their place in the catalogue."""

    items: tuple[RankedItem, ...] = field(default=())

    def to_record(self) -> dict[str, object]:
        items = [{"id": item.id, "title": item.title, "score": item.score} for item in self.items]
        return {"prediction": [item.id for item in self.items], "items": items}
