"""Small changes of an example: a word or an item of the history is left out, or replaced by another.

A word is all its occurrences, whatever their case (`answering.evidence`), and so is an item.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from instructrec_jax.answering.evidence import word_places, words_of
from instructrec_jax.augmentation.edits import FUNCTION_WORDS
from instructrec_jax.augmentation.synonyms import Thesaurus
from instructrec_jax.data.example import Example
from instructrec_jax.data.prompts import render
from instructrec_jax.explanation.words import with_texts, without

REPLACEMENTS = 3  # words or items that are tried in the place of one


@dataclass(frozen=True)
class Change:
    """A change of an example.

    Attributes:
      kind: whether `what` is a word or the id of an item of the history.
      by: what stands in its place; None: nothing, it is left out.
    """

    kind: Literal["word", "item"]
    what: str
    by: str | None = None

    @property
    def unit(self) -> tuple[str, str]:
        """What is changed: an example has one change of it at most."""
        return self.kind, self.what

    def to_record(self) -> dict[str, object]:
        return {self.kind: self.what, "by": self.by}


def changed(example: Example, changes: Sequence[Change]) -> Example:
    """The example with all changes; its candidates stay as they are."""
    left_out = [each.what for each in changes if each.kind == "word" and each.by is None]
    swapped = {each.what.casefold(): each.by for each in changes if each.kind == "word" and each.by is not None}
    items = {each.what: each.by for each in changes if each.kind == "item"}
    found = without(example, left_out) if left_out else example

    def other(text: str) -> str:
        return _replaced(text, swapped)

    history = (items.get(item, item) for item in found.history)
    return replace(
        with_texts(found, other),
        words=tuple(map(other, found.words)),
        history=tuple(item for item in history if item is not None),
    )


def _replaced(text: str, swapped: dict[str, str]) -> str:
    """The text with other words in the places of some; a capital stays one."""
    found, end = [], 0
    for word, start, stop in word_places(text) if swapped else ():
        by = swapped.get(word.casefold())
        if by is not None:
            found += [text[end:start], by[0].upper() + by[1:] if word[0].isupper() else by]
            end = stop
    return "".join(found) + text[end:]


def single_changes(example: Example, thesaurus: Thesaurus | None, items: Mapping[str, Sequence[str]]) -> list[Change]:
    """Every change of one word or item that changes the example, words first.

    Args:
      thesaurus: gives words to try in the place of another; None: words are only left out.
      items: those of the history that the run reads -> items to try in the place of each.
    """
    found = []
    for word in words_of(render(example)):
        lower = word.lower()
        known = () if thesaurus is None or lower in FUNCTION_WORDS else thesaurus.synonyms(lower)
        found += [Change("word", word, by) for by in (None, *known[:REPLACEMENTS])]
    for item, others in items.items():
        found += [Change("item", item, by) for by in (None, *others[:REPLACEMENTS])]
    return [each for each in found if changed(example, [each]) != example]  # a role's name is no word of the text
