"""Texts as words, and the changes of them. Each takes random numbers in [0, 1) from `draw`, one after another.

tokens = split("a (very) good film")       # of which some may change, see `augmentation.protection`
joined(deleted(tokens, 0.1, draw))
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from instructrec_jax.augmentation.synonyms import Thesaurus

Draw = Callable[[], float]
_TOKEN = re.compile(r"(\S+)(\s*)")
_AROUND = r"([^\w<>{}\[\]$#@\\/|=]*)"  # punctuation, and no sign of a mark, a path or code
_CORE = re.compile(rf"{_AROUND}([^\W\d_]+(?:['’-][^\W\d_]+)*){_AROUND}")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Words without a meaning of their own, for which thesauri list that of a homonym: "a" the vitamin, "in" the inch.
FUNCTION_WORDS = frozenset(
    "a an the and or but if then than so as at by for from in into of off on onto out over per to up upon with about "
    "above after against before below between during through under until while i me my mine we us our ours you your "
    "yours he him his she her hers it its they them their theirs this that these those who whom whose which what when "
    "where why how am is are was were be been being do does did done has have had having can could may might must "
    "shall should will would all any both each few more most other some such only own same too very just there here "
    "please".split()
)
SHORTEST = 4  # letters of a word that gets a typing error


@dataclass(frozen=True, slots=True)
class Token:
    """What stands between two spaces.

    Attributes:
      space: after it.
      number: of the token in the original text.
      free: whether it may change.
    """

    text: str
    space: str
    number: int
    free: bool = True

    @property
    def core(self) -> str:
        """The word without punctuation around it; "" where it is something else (a number, an address)."""
        found = _CORE.fullmatch(self.text)
        return "" if found is None else found[2]

    def with_core(self, word: str) -> "Token":
        """Another word between the same punctuation."""
        found = _CORE.fullmatch(self.text)
        assert found is not None
        return replace(self, text=f"{found[1]}{word}{found[3]}")

    @property
    def bare(self) -> bool:
        """Whether it may move or go: free, and without punctuation, which belongs to the sentence."""
        return self.free and self.core == self.text


def split(text: str) -> list[Token]:
    """The tokens of a text without white space in front."""
    return [Token(found[1], found[2], number) for number, found in enumerate(_TOKEN.finditer(text))]


def joined(tokens: Sequence[Token]) -> str:
    return "".join(token.text + token.space for token in tokens)


def replaced(tokens: Sequence[Token], rate: float, draw: Draw, thesaurus: Thesaurus) -> list[Token]:
    """Each word that has synonyms becomes one of them, with probability `rate`. The first letter keeps its case."""
    found = []
    for token in tokens:
        word = token.core.lower() if token.free else ""
        others = thesaurus.synonyms(word) if word and word not in FUNCTION_WORDS else ()
        if others and draw() < rate:
            other = others[int(draw() * len(others))]
            token = token.with_core(other[0].upper() + other[1:] if token.core[0].isupper() else other)
        found.append(token)
    return found


def swapped(tokens: Sequence[Token], rate: float, draw: Draw) -> list[Token]:
    """Each word changes places with the next one, with probability `rate`, if both may. Spaces stay in their places."""
    found, place = list(tokens), 0
    while place + 1 < len(found):
        one, other = found[place : place + 2]
        if one.bare and other.bare and draw() < rate:
            found[place], found[place + 1] = replace(other, space=one.space), replace(one, space=other.space)
            place += 1
        place += 1
    return found


def deleted(tokens: Sequence[Token], rate: float, draw: Draw) -> list[Token]:
    """Without each word, with probability `rate`. A text keeps at least one word."""
    kept = [token for token in tokens if not (token.bare and draw() < rate)]
    if not any(token.core for token in kept):
        return list(tokens)
    if kept[-1].number != tokens[-1].number:
        kept[-1] = replace(kept[-1], space=tokens[-1].space)
    return kept


def misspelled(tokens: Sequence[Token], rate: float, draw: Draw) -> list[Token]:
    """A typing error in each word of at least four letters, with probability `rate`."""
    found = []
    for token in tokens:
        if token.free and len(token.core) >= SHORTEST and draw() < rate:
            token = token.with_core(typo(token.core, draw))
        found.append(token)
    return found


def typo(word: str, draw: Draw) -> str:
    """The word with one error after its first letter: a neighboring key, two letters exchanged, one lost or doubled.

    Letters that the keyboard (QWERTY) does not have are exchanged, lost or doubled.
    """
    place = 1 + int(draw() * (len(word) - 1))
    letter, kind = word[place], int(draw() * 4)
    keys = neighbors(letter)
    if kind == 0 and keys:
        return word[:place] + keys[int(draw() * len(keys))] + word[place + 1 :]
    if kind == 1 and place + 1 < len(word) and word[place + 1] != letter:
        return word[:place] + word[place + 1] + letter + word[place + 2 :]
    if kind == 2:
        return word[:place] + word[place + 1 :]
    return word[: place + 1] + word[place:]


def neighbors(letter: str) -> str:
    """The keys around a letter, in its case; "" for one that is not on the keyboard."""
    for row, keys in enumerate(_ROWS):
        place = keys.find(letter.lower())
        if place >= 0 and len(letter) == 1:
            around = keys[max(place - 1, 0) : place] + keys[place + 1 : place + 2]
            around += _ROWS[row - 1][place : place + 2] if row else ""
            around += _ROWS[row + 1][max(place - 1, 0) : place + 1] if row + 1 < len(_ROWS) else ""
            return around.upper() if letter.isupper() else around
    return ""
