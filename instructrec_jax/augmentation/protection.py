"""Which words of a text may change.

Numbers, names, addresses, code and marks stay; so do negations, words of the targets, and given patterns. A text
written without spaces (Chinese, Japanese, Thai) has no words that are seen here, so it stays as a whole.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from instructrec_jax.augmentation.edits import Token

NEGATIONS = frozenset("no not never none nobody nothing nowhere neither nor without cannot hardly barely".split())
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_WORDS = re.compile(r"[^\W_]+")
_NEGATED = ("n't", "n’t")


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of texts, in lower case."""
    return {word for text in texts for word in _WORDS.findall(text.lower())}


def places_of(text: str, quoted: Iterable[str]) -> list[tuple[int, int]]:
    """(first character, end) of every occurrence of some texts."""
    return [found.span() for each in quoted if each for found in re.finditer(re.escape(each), text)]


def protected(
    tokens: Sequence[Token],
    *,
    words: Collection[str] = (),
    places: Sequence[tuple[int, int]] = (),
    patterns: Sequence[re.Pattern[str]] = (),
    capitalized: bool = False,
    start: int = 0,
) -> list[Token]:
    """The tokens with `free` set.

    Args:
      words: which stay, in lower case.
      places: of the text, whose tokens stay.
      patterns: a token in which one is found stays.
      capitalized: whether words with capitals may change; else they are taken for names.
      start: the place of the first token in the text.
    """
    found, at = [], start
    for token in tokens:
        end = at + len(token.text)
        quoted = any(first < end and last > at for first, last in places)
        stays = quoted or _stays(token, words, capitalized) or any(each.search(token.text) for each in patterns)
        found.append(replace(token, free=token.free and not stays))
        at = end + len(token.space)
    return found


def _stays(token: Token, words: Collection[str], capitalized: bool) -> bool:
    core = token.core
    if not core or _SPACELESS.search(core):
        return True
    if not capitalized and core != core.lower():
        return True
    lower = core.lower()
    if lower in NEGATIONS or lower.endswith(_NEGATED):
        return True
    return any(part in words for part in _WORDS.findall(lower))
