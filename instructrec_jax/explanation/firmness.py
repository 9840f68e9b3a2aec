"""What an answer says, and how far it is from saying something else: the guide of a search for counterfactuals."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from instructrec_jax.data.example import Example
from instructrec_jax.runs.run import Run
from instructrec_jax.tasks.answers import Answer, ChoiceAnswer, ItemsAnswer, LabelAnswer, LabelsAnswer, TextAnswer

WORDS, CHARACTERS = 8, 64  # of a text whose log-probability guides the search
TINY = 1e-300  # a probability of 0, for its logarithm


@dataclass(frozen=True)
class Outcome:
    """What an answer says.

    Attributes:
      said: a label, labels joined by ", ", a candidate, an item's title, or a written text.
      ids: by which outcomes are compared: the labels, the candidate, the item's id, or the text.
      measure: of `numbers`; "" where there are none.
      numbers: of labels, candidates or items, by their ids.
      exclusive: whether the numbers exclude each other; False: of labels that stand together.
    """

    said: str
    ids: tuple[str, ...]
    measure: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    exclusive: bool = True

    def is_other(self, before: "Outcome", to: str | None) -> bool:
        """Whether it is what is looked for: another outcome than `before`, or one with the id `to`."""
        return self.ids != before.ids if to is None else to in self.ids


def outcome(answer: Answer, unseen: Collection[str] = ()) -> Outcome:
    """What an answer says. unseen: ids of items that do not count, such as those of the history.

    Raises ValueError for an answer that is not one of several, such as a number.
    """
    if isinstance(answer, LabelAnswer):
        return Outcome(answer.label, (answer.label,), "probability", answer.probabilities)
    if isinstance(answer, LabelsAnswer):
        said = ", ".join(answer.labels) or "no label"
        return Outcome(said, tuple(sorted(answer.labels)), "probability", answer.probabilities, exclusive=False)
    if isinstance(answer, ChoiceAnswer):
        return Outcome(answer.choice, (answer.choice,), "score", answer.candidates)
    if isinstance(answer, TextAnswer):
        return Outcome(answer.text, (answer.text,))
    if isinstance(answer, ItemsAnswer):
        items = [item for item in answer.items if item.id not in unseen]
        if not items:
            raise ValueError("the answer has no item that is not in the history, so none can change.")
        return Outcome(items[0].title, (items[0].id,), "score", {item.id: item.score for item in items})
    what = type(answer).__name__.removesuffix("Answer").lower()
    raise ValueError(
        f"--counterfactual looks for another label, candidate, item or text, but this run answers with {what}: leave "
        "it out, to see the scores of words."
    )


def firmness(found: Outcome, before: Outcome, to: str | None) -> float:
    """How far an outcome is from `to` (None: from anything but `before`); the lower, the nearer.

    Of probabilities the difference of their logarithms, or the log-odds of labels that stand together; of scores their
    difference. Not of texts, see `Written`.
    """
    if not found.exclusive:
        odds = {name: math.log(max(p, TINY)) - math.log(max(1 - p, TINY)) for name, p in found.numbers.items()}
        if to is not None:
            return -odds[to]
        return min((odds[name] for name in before.ids), default=-max(odds.values()))
    numbers = dict(found.numbers)
    if found.measure == "probability":
        numbers = {name: math.log(max(p, TINY)) for name, p in numbers.items()}
    least = min(numbers.values())  # for an item behind the last one that is compared
    if to is not None:
        return max((n for name, n in numbers.items() if name != to), default=least) - numbers.get(to, least)
    others = (n for name, n in numbers.items() if name not in before.ids)
    return numbers.get(before.ids[0], least) - max(others, default=least)


class Written:
    """The log-probabilities (nats) of texts as answers of a run that writes.

    Raises ValueError for a run that trains on prompts, too.
    """

    def __init__(self, run: Run, example: Example):
        self.task = cast(Any, run.task.subtasks.get(example.task, run.task))  # a language model's
        self.predict = run.plain_predictor.subtasks.get(example.task, run.plain_predictor)
        if self.task.config.train_on == "all":
            raise ValueError("--counterfactual needs the answer's tokens alone: add --task.train_on completions.")

    def firmness(self, prompts: Sequence[Example], before: str, to: str | None) -> list[float]:
        """log p(before), or log p(before) − log p(to), for each prompt."""
        found = self.log_probabilities(prompts, before)
        return (found if to is None else found - self.log_probabilities(prompts, to)).tolist()

    def log_probabilities(self, prompts: Sequence[Example], text: str) -> np.ndarray:
        """log p(the first words of a text | prompt) of each, float64 [prompts]."""
        text = " ".join(text.split()[:WORDS])[:CHARACTERS]  # a long one may not fit behind the prompt
        said = [self.task.encode([replace(prompt, output=text)])[-1] for prompt in prompts]
        found = []
        for e, output in self.predict.over(said, lambda some: self.task.gather(some, np.random.default_rng(0))):
            supervised = np.asarray(e.target.supervised) > 0
            found.append(-output[supervised, 0].astype(np.float64).sum())
        return np.array(found)
