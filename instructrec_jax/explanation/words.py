"""The words of an example, their tokens, and the example without some of them.

A word is one of `answering.evidence`: all its occurrences, whatever their case. Removing it is what the evidence of
`recommend` does.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np
import scipy

from instructrec_jax.answering.evidence import without_word, word_places
from instructrec_jax.data.batch import Text
from instructrec_jax.data.example import Example
from instructrec_jax.data.media.picture import MARK
from instructrec_jax.data.prompts import check_fast
from instructrec_jax.hf_types import PreTrainedTokenizerBase
from instructrec_jax.tasks.objective import NothingToExplain, Reading


@dataclass(frozen=True)
class Words:
    """The words that a network reads.

    Attributes:
      words: distinct, in order, as first written.
      shares: float64 [tokens, words], how much of each token is of a word: a token may be several Chinese characters,
        each of which is a word. A row of zeros: a token of no word, such as a special token.
      unread: words of the text that were cut off.
    """

    words: tuple[str, ...]
    shares: "scipy.sparse.csr_array"
    unread: tuple[str, ...]

    @property
    def is_word(self) -> np.ndarray:
        """bool [tokens]: whether a token is of some word."""
        return np.diff(self.shares.indptr) > 0


def read_words(text: Text, readings: Sequence[Reading], tokenizer: PreTrainedTokenizerBase) -> Words:
    """The words of the strings that a text was tokenized from; words share a token by their characters in it.

    The strings are tokenized again, and these tokens found in the text's: so it does not matter what a task puts
    around and between them, or cuts off.

    Raises NothingToExplain for a text in which no word is read.
    """
    check_fast(tokenizer)
    ids: list[int] = []
    words_of_ids: list[Counter[str]] = []
    names: dict[str, str] = {}
    for reading in readings:
        encoding = tokenizer(reading.string, add_special_tokens=False, truncation=False, verbose=False).encodings[0]
        of_character = [""] * len(reading.string)
        for start, end in reading.spans:
            for word, first, last in word_places(reading.string[start:end]):
                names.setdefault(word.casefold(), word)
                of_character[start + first : start + last] = [word.casefold()] * (last - first)
        ids += encoding.ids
        words_of_ids += [Counter(filter(None, of_character[first:last])) for first, last in encoding.offsets]
    found = [Counter[str]()] * len(text.tokens)
    for block in SequenceMatcher(None, ids, text.tokens.tolist(), autojunk=False).get_matching_blocks():
        found[block.b : block.b + block.size] = words_of_ids[block.a : block.a + block.size]
    there = set().union(*found)
    read = {word: number for number, word in enumerate(word for word in names if word in there)}
    if not read:
        raise NothingToExplain("the text has no word, so there is nothing to explain.")
    shares = [(n, read[word], count / own.total()) for n, own in enumerate(found) for word, count in own.items()]
    tokens, words, values = zip(*shares, strict=True)
    unread = tuple(name for word, name in names.items() if word not in read)
    matrix = scipy.sparse.csr_array((values, (tokens, words)), shape=(len(found), len(read)))
    return Words(tuple(names[word] for word in read), matrix, unread)


def no_words(tokens: int) -> Words:
    """Of a text that is explained by other parts than words."""
    return Words((), scipy.sparse.csr_array((tokens, 0)), ())


def without(example: Example, words: Collection[str]) -> Example:
    """The example without all occurrences of some words, in all that it says but its answer; pictures stay."""

    def shorter(text: str) -> str:
        for word in words:
            text = without_word(text, word) if text else text
        return text

    def less(text: str) -> str:
        first, *others = text.split(MARK)  # the mark of a picture is no word
        if not others:
            return shorter(text)
        spaced = (_around(piece, shorter(piece)) for piece in (first, *others))
        return MARK.join(spaced)

    left_out = {word.casefold() for word in words}
    kept = tuple(word for word in example.words if word.casefold() not in left_out)
    return replace(with_texts(example, less), words=kept)


def with_texts(example: Example, change: Callable[[str], str]) -> Example:
    """The example with all changed that it says but its answer and its `words`."""
    return replace(
        example,
        instruction=change(example.instruction),
        input=None if example.input is None else change(example.input),
        system=None if example.system is None else change(example.system),
        messages=tuple(replace(turn, content=change(turn.content)) for turn in example.messages),
    )


def _around(piece: str, shorter: str) -> str:
    """A shorter piece with the blanks that stood around it, beside pictures."""
    start, end = len(piece) - len(piece.lstrip()), len(piece.rstrip())
    return piece[:start] + shorter + piece[end:] if shorter else piece[:start] or piece[end:]
