"""What an explanation explains: a number of one example, linear in the outputs of `Task.predict`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from instructrec_jax.data.batch import BatchTexts
from instructrec_jax.data.example import Example
from instructrec_jax.tasks.encoded import Encoded
from instructrec_jax.tasks.prediction import Predict


@dataclass(frozen=True)
class Choice:
    """What a user asks to explain.

    Attributes:
      target: a label, candidate or item; None: the prediction.
      against: another one, for "why target and not this"; None: no contrast.
      word: of a task with an output per word or written token: the only one to explain; None: see `Task.objectives`.
    """

    target: str | None = None
    against: str | None = None
    word: str | None = None


@dataclass(frozen=True)
class Reading:
    """A string that the network reads, and the parts of it whose words are explained: (start, end) each."""

    string: str
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def whole(cls, string: str, start: int = 0) -> "Reading":
        return cls(string, ((start, len(string)),))


def _as_it_is(encoded: Encoded) -> Encoded:
    return encoded


@dataclass(frozen=True)
class Objective:
    """The number Σ weights · output, over the outputs of `Task.predict` for one text.

    Attributes:
      target: what is explained, such as the label.
      against: what it is contrasted with; None: nothing.
      unit: of the number: "logit", "score", ...
      weights: an encoded example -> float32, in the shape of its output; None: the number is undefined for it.
      readings: an example -> the strings that its text is made of, in order.
      text: an encoded example -> the one whose text the network reads.
      gather: encoded examples -> one text each and the task's arrays; None: no arrays. The same for all of a task.
      outputs: (model, encoded examples) -> an output of each, where `Task.predict` needs more than their texts; then
        only occlusion can explain it.
      items: an example -> the items of its history, id -> name, oldest first; None: the network reads words alone.
      value: (network, batch, weights of its outputs) -> the sum of the numbers of each row, float32 [rows], where
        `predict` has no gradient; the same for all of a task.
    """

    target: str
    against: str | None
    unit: str
    weights: Callable[[Encoded], np.ndarray | None]
    readings: Callable[[Example], Sequence[Reading]]
    text: Callable[[Encoded], Encoded] = _as_it_is
    gather: Callable[[Sequence[Encoded]], BatchTexts] | None = None
    value: Callable[..., jax.Array] | None = None
    outputs: Callable[[Predict, Sequence[Encoded]], Sequence[np.ndarray] | np.ndarray] | None = None
    items: Callable[[Example], Mapping[str, str]] | None = None


class NothingToExplain(ValueError):
    """An example without words to explain, or for which the network writes nothing."""


def place_of(name: str, names: Sequence[str], what: str) -> int:
    """The place of a name. Raises ValueError for an unknown one, with those that there are."""
    if name not in names:
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        raise ValueError(f"there is no {what} {name!r}: choose from {shown}.")
    return list(names).index(name)


def contrast(choice: Choice, names: Sequence[str], predicted: int, what: str) -> tuple[int, int | None]:
    """(place of the target, place of what it is contrasted with) among the names.

    Args:
      predicted: place of the prediction, the target where the choice has none.

    Raises ValueError for an unknown name, or a contrast of a name with itself.
    """
    target = predicted if choice.target is None else place_of(choice.target, names, what)
    against = None if choice.against is None else place_of(choice.against, names, what)
    if target == against:
        raise ValueError(f"the target and --against are both {names[target]!r}: give another --against or --target.")
    return target, against


def one_of(size: int, target: int, against: int | None) -> np.ndarray:
    """float32 [size]: 1 at the target, −1 at what it is contrasted with."""
    weights = np.zeros(size, np.float32)
    weights[target] = 1
    if against is not None:
        weights[against] = -1
    return weights


def refuse_contrast(choice: Choice, why: str) -> None:
    """Raises ValueError for --target or --against."""
    if choice.target is not None or choice.against is not None:
        raise ValueError(f"--target and --against name labels, candidates or items, but {why}: leave them out.")


def refuse_word(choice: Choice) -> None:
    """Raises ValueError for --word."""
    if choice.word is not None:
        raise ValueError("--word is for tasks with an output per word, but this one has one per text: leave it out.")
