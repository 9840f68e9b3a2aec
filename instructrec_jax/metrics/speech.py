"""Error rates of transcripts: word error rate (WER) and character error rate (CER)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instructrec_jax.metrics.bootstrap import CorpusMetric

PROTOCOL = (
    "WER and CER: edits (substitutions, deletions, insertions) ÷ words or characters of the references, all cases "
    "together, against the best reference; lower case, without punctuation"
)


def plain_words(text: str) -> list[str]:
    """The words in lower case, without punctuation but apostrophes inside of words."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def edits(found: Sequence[object], wanted: Sequence[object], *, swaps: bool = False) -> int:
    """Least number of substitutions, deletions and insertions that make `wanted` of `found` (Levenshtein, 1966).

    Args:
      swaps: two neighbors in the wrong order are one edit, not two (Damerau, 1964; nothing is edited twice).
    """
    numbers: dict[object, int] = {}
    a, b = (np.array([numbers.setdefault(one, len(numbers)) for one in side], np.int64) for side in (found, wanted))
    steps = np.arange(len(b) + 1)
    before, row, last = steps, steps.copy(), -1
    for one in a.tolist():
        other = np.concatenate([row[:1] + 1, np.minimum(row[1:] + 1, row[:-1] + (b != one))])
        if swaps and last >= 0:
            swapped = (b[1:] == last) & (b[:-1] == one)
            other[2:] = np.where(swapped, np.minimum(other[2:], before[:-2] + 1), other[2:])
        # insertions from the left
        before, row, last = row, np.minimum.accumulate(other - steps) + steps, one
    return int(row[-1])


@dataclass(frozen=True)
class ErrorRates:
    """Errors of cases, int64 [cases] each: edits and length of the best reference (of which at least 1 counts)."""

    word_edits: np.ndarray
    words: np.ndarray
    character_edits: np.ndarray
    characters: np.ndarray

    def metrics(self) -> dict[str, CorpusMetric]:
        def rate(edits: np.ndarray, lengths: np.ndarray) -> CorpusMetric:
            return CorpusMetric(lambda drawn: float(edits[drawn].sum() / lengths[drawn].sum()), len(edits))

        return {"WER": rate(self.word_edits, self.words), "CER": rate(self.character_edits, self.characters)}


def error_rates(transcripts: Sequence[str], references: Sequence[Sequence[str]]) -> ErrorRates:
    """The errors of each transcript against that of its references with the fewest word errors."""
    found = []
    for said, each in zip(transcripts, references, strict=True):
        own = plain_words(said)
        compared = []
        for wanted in map(plain_words, each):
            texts = " ".join(own), " ".join(wanted)
            compared.append((edits(own, wanted), max(1, len(wanted)), edits(*texts), max(1, len(texts[1]))))
        found.append(min(compared, key=lambda counts: (counts[0] / counts[1], counts[2] / counts[3])))
    return ErrorRates(*np.array(found, np.int64).reshape(-1, 4).T)
