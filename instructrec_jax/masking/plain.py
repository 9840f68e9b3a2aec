"""A text as detectors read it: one width, ASCII digits and dashes, nothing invisible, and where each character was."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u20e3"  # beside the category Cf and the variation selectors


@dataclass(frozen=True)
class Plain:
    """A plain text and the places of its characters in the original; None: the same places."""

    text: str
    places: Sequence[int] | None = None

    def place(self, start: int, end: int) -> tuple[int, int]:
        """A range of the plain text (not empty) as a range of the original."""
        if self.places is None:
            return start, end
        return self.places[start], self.places[end - 1] + 1


class _Table(dict[str, str]):
    """Character -> plain character, or "" for an invisible one. Bounded by the size of Unicode."""

    def __missing__(self, character: str) -> str:
        self[character] = found = _plain(character)
        return found


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Cf" or character in INVISIBLE or "\ufe00" <= character <= "\ufe0f":
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Zs":
        return " "
    if character in DASHES:
        return "-"
    folded = unicodedata.normalize("NFKC", character)
    return folded if len(folded) == 1 else character


_TABLE = _Table()


def plain(text: str) -> Plain:
    """Full-width forms and digits of any script as ASCII, one kind of dash and space, nothing without width.

    Every character becomes one or none, so ranges can be put back.
    """
    if text.isascii():
        return Plain(text)
    pieces = [_TABLE[character] for character in text]
    if "" not in pieces:
        return Plain("".join(pieces))
    return Plain("".join(pieces), [place for place, piece in enumerate(pieces) if piece])
