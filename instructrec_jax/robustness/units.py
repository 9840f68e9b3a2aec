"""Texts as units: words between spaces, and each Chinese character; and which of them may change.

Words of targets, labels and candidates stay, and what a target quotes. Noise also leaves numbers, addresses and
negations alone, as `augmentation.protection` does; what changes them on purpose does not.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from instructrec_jax.augmentation.edits import Token
from instructrec_jax.augmentation.protection import places_of, protected, words_of
from instructrec_jax.metrics.language import CJK

_UNIT = re.compile(rf"({CJK.pattern}|(?:(?!{CJK.pattern})\S)+)(\s*)")
NEGATIONS = frozenset("不没沒无無非未别別勿莫")
ADDED = -1  # number of a token that the text did not have


def is_chinese(token: Token) -> bool:
    """Whether a token is one Chinese character."""
    return CJK.fullmatch(token.text) is not None


def units(
    text: str | Sequence[str],
    *,
    words: Collection[str] = (),
    quoted: Sequence[str] = (),
    fixed: Collection[int] = (),
    noise: bool = True,
) -> tuple[str, list[Token]]:
    """(white space in front, the tokens with `free` set).

    Args:
      text: or its words, each of which is a token.
      words: which stay, in lower case.
      quoted: texts whose occurrences stay.
      fixed: numbers of tokens that stay.
      noise: whether numbers, addresses and negations stay, too.
    """
    if isinstance(text, str):
        body, front = text.lstrip(), text[: len(text) - len(text.lstrip())]
        tokens = [Token(found[1], found[2], number) for number, found in enumerate(_UNIT.finditer(body))]
        places = places_of(body, [*quoted, *(word for word in words if CJK.search(word))])
    else:
        front, places = "", []
        tokens = [Token(word, " " if n + 1 < len(text) else "", n) for n, word in enumerate(text)]
    strict = protected(tokens, words=words, places=places, capitalized=True) if noise else tokens
    found, at = [], 0
    for token, own in zip(tokens, strict, strict=True):
        end = at + len(token.text)
        stays = token.number in fixed or any(first < end and last > at for first, last in places)
        stays = stays or any(part in words for part in words_of([token.text]))
        if noise:
            stays = stays or (token.text in NEGATIONS if is_chinese(token) else not own.free)
        found.append(replace(token, free=not stays))
        at = end + len(token.space)
    return front, found
