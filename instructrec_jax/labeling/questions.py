"""Texts that a person is asked about, whatever they answer on: a terminal (`asking`) or a page (`label_page`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from instructrec_jax.labeling.session import Kind, Session, Thought


@dataclass(frozen=True)
class Question:
    """One text.

    Attributes:
      number: in the pool.
      labels: the most probable first; in their own order where nothing is shown of what the model thinks.
      shares: the model's probabilities of `labels`; None: not shown.
      place: among those asked, from 1.
      count: of those asked.
      by_name: whether a label is a number itself, so that labels are not also called by their places.
    """

    number: int
    text: str
    labels: list[str]
    shares: list[float] | None
    place: int
    count: int
    by_name: bool


@dataclass(frozen=True)
class Questions:
    """The texts of a round, asked of one person.

    Attributes:
      numbers: of the texts, in the order in which they are asked.
      texts: of the whole pool.
      shares: the model's probabilities, float64 [numbers, labels]; None: nothing that it thinks is shown.
      since: the line of the session from which on the person's answers count.
    """

    session: Session
    numbers: Sequence[int]
    texts: Sequence[str]
    who: str
    shares: np.ndarray | None
    since: int = 0

    def next(self) -> Question | None:
        """The first text that the person has not answered; None: all are answered."""
        answered, labels = self.session.answered(self.who, self.since), self.session.labels
        row = next((row for row, number in enumerate(self.numbers) if number not in answered), None)
        if row is None:
            return None
        number = self.numbers[row]
        own = None if self.shares is None else self.shares[row]
        order = list(range(len(labels))) if own is None else np.argsort(-own, kind="stable").tolist()
        return Question(
            number=number,
            text=self.texts[number],
            labels=[labels[at] for at in order],
            shares=None if own is None else [float(own[at]) for at in order],
            place=sum(each in answered for each in self.numbers) + 1,
            count=len(self.numbers),
            by_name=any(map(str.isdecimal, labels)),
        )

    def answer(self, question: Question, kind: Kind, label: str | None = None) -> None:
        """Notes an answer, with what the model thought; it is on disk when this returns. Raises as `Session.say`."""
        thought = Thought(text=question.text)
        if question.shares is not None:
            thought |= Thought(thought=question.labels[0], probability=question.shares[0])
        self.session.say(question.number, kind, self.who, label=label, thought=thought)

    def undo(self) -> int | None:
        """Takes back the person's last answer; the number of its text, None where there is none."""
        return self.session.undo(self.who)


class Asker(Protocol):
    """Whatever asks a person."""

    def ask(self, questions: Questions) -> bool:
        """Asks until all are answered (True) or the person quits (False)."""

    def say(self, text: str, /) -> object:
        """Shows a line to the person."""
