"""A model with its parameters, as a task's scores and answers see it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from instructrec_jax.backbones.row_images import RowImages
from instructrec_jax.data.batch import BatchTexts, Text
from instructrec_jax.inference.code_search import CodeTrie
from instructrec_jax.inference.generation_config import GenerationConfig
from instructrec_jax.inference.writer import Generated
from instructrec_jax.tasks.encoded import Encoded

WINDOW = 4096  # examples that `Predict.over` has in memory; these are packed together


class Write(Protocol):
    """Writes answers to prompts, see `Predict`.

    Args:
      prompts: int32 [tokens] each.
      images: of each prompt, in a row of its own; None: there are none.
    """

    def __call__(
        self, prompts: Sequence[np.ndarray], config: GenerationConfig, images: Sequence[RowImages] | None = None
    ) -> list[Generated]: ...


class Find(Protocol):
    """Finds items by their codes, see `inference.code_search.CodeSearch.find`; the arrays of its `Found`."""

    def __call__(
        self, prompts: Sequence[np.ndarray], trie: CodeTrie, beams: int, excluded: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]: ...


def _no_codes(
    prompts: Sequence[np.ndarray], trie: CodeTrie, beams: int, excluded: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    raise TypeError("this task does not write text: see `Task.writes`.")


def _no_words(
    prompts: Sequence[np.ndarray], config: GenerationConfig, images: Sequence[RowImages] | None = None
) -> list[Generated]:
    raise TypeError("this task does not write text: see `Task.writes`.")


@dataclass(frozen=True)
class Predict:
    """A model with its parameters, for `Task.score`.

    Attributes:
      run: the model: (texts, the task's arrays, dropout) -> one array per text, see `__call__` and `draw`.
      write: (prompts, settings, images) -> the generated texts; only of a task that `writes`.
      find: (prompts, trie, beams, excluded items) -> items and scores; only of a task that `writes`.
      subtasks: name -> the same model with the `predict` of that entry of `Task.subtasks`.
      known: id of a `Text` -> the object and its result, so that each runs once; None: no cache, see `remember`.
      members: the models of an ensemble, whose outputs `average` averages.
      average: an example's (a case's) outputs of each member, [members, ...] -> their average.
      reads: of a member with another tokenizer: examples -> the same ones as it reads them.
    """

    run: "Run"
    write: Write = _no_words
    find: Find = _no_codes
    subtasks: Mapping[str, "Predict"] = field(default_factory=dict)
    known: dict[int, tuple[Text, np.ndarray]] | None = None
    members: "tuple[Predict, ...]" = ()
    average: Callable[[Sequence[np.ndarray]], np.ndarray] = np.mean
    reads: Callable[[Sequence[Encoded]], Sequence[Encoded]] | None = None

    def __call__(self, texts: Sequence[Text], own: object = None) -> list[np.ndarray]:
        """Runs the model over texts.

        Args:
          own: the arrays of the task for these texts, see `data.batch`.

        Returns one array per text, in order: [...], or [length, ...] for a task with predictions `per_token`.
        """
        if self.known is None or own is not None:
            return self.run(texts, own)
        known = self.known
        new = list({id(text): text for text in texts if id(text) not in known}.values())
        if new:
            known.update({id(text): (text, output) for text, output in zip(new, self.run(new), strict=True)})
        return [known[id(text)][1] for text in texts]

    def remember(self) -> "Predict":
        """The same model with a cache: it runs each `Text` object without arrays once."""
        subtasks = {name: each.remember() for name, each in self.subtasks.items()}
        members = tuple(member.remember() for member in self.members)
        return replace(self, known=None if members else {}, subtasks=subtasks, members=members)

    def once(self, texts: Sequence[Text]) -> list[np.ndarray]:
        """Runs texts that will not come again: past the cache."""
        return replace(self, known=None)(texts)

    @property
    def each(self) -> "tuple[Predict, ...]":
        """The members of an ensemble, else this model."""
        return self.members or (self,)

    def averaged(self, outputs: Sequence[Iterable[np.ndarray]]) -> list[np.ndarray]:
        """The average for each case, of outputs by model of `each` and by case."""
        return [self.average(said) if self.members else said[0] for said in zip(*outputs, strict=True)]

    def over(
        self,
        encoded: Sequence[Encoded],
        gather: Callable[[Sequence[Encoded]], BatchTexts] | None = None,
    ) -> Iterator[tuple[Encoded, np.ndarray]]:
        """Each example and its output, in order, past the cache; of any number of examples, few are in memory.

        Args:
          gather: examples -> their texts, one each, and the task's arrays. None: no arrays.
        """
        for first in range(0, len(encoded), WINDOW):
            some = encoded[first : first + WINDOW]
            if self.members:
                each = [m.over(some if m.reads is None else m.reads(some), gather) for m in self.members]
                said = ([output for _, output in outputs] for outputs in zip(*each, strict=True))
                yield from zip(some, map(self.average, said), strict=True)
                continue
            batch = BatchTexts([e.text for e in some], None) if gather is None else gather(some)
            outputs = self.once(batch.texts) if batch.own is None else self(batch.texts, batch.own)
            yield from zip(some, outputs, strict=True)

    def draw(self, texts: Sequence[Text], seed: int, numbers: Sequence[int] | None = None) -> list[np.ndarray]:
        """One draw of Monte Carlo dropout (Gal & Ghahramani, 2016): predictions with dropout, as in training.

        Args:
          seed: uint32. The same seed gives the same draw.
          numbers: of the texts. A text's dropout bits depend on seed and number alone, not on its row or call.
            None: 0, 1, ...
        """
        chosen = np.arange(len(texts)) if numbers is None else np.asarray(numbers)
        return self.run(texts, dropout=(np.uint32(seed), chosen.astype(np.int32)))


class Run(Protocol):
    """Runs a model over texts, see `Predict`.

    Args:
      dropout: (uint32 seed, int32 [texts] numbers of the texts), or None for none.
    """

    def __call__(
        self, texts: Sequence[Text], own: object = None, dropout: tuple[np.uint32, np.ndarray] | None = None
    ) -> list[np.ndarray]: ...
