"""Noise in texts that leaves their meaning: typing errors, optical misreadings, case, punctuation, look-alike signs.

Each function takes the units of a text, random numbers and a language, and returns the changed units.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from typing import Literal

from instructrec_jax.augmentation.edits import SHORTEST, Draw, Token, misspelled, neighbors
from instructrec_jax.robustness.units import is_chinese

RATE = 0.2  # share of the words, or Chinese characters, that get noise
_ALIKE_IN_CHINESE = (
    "未末 末未 己已 已己 日曰 土士 士土 大太 太大 人入 入人 千干 "
    "干千 天夭 王玉 目日 白自 自白 牛午 午牛 今令 令今 代伐 侯候 "
    "候侯 拔拨 市巿 间问 问间 贝见 见贝 几凡 风凤 师帅 析折 折析 "
    "没设 设没"
)
# What optical readers mistake for each other in Latin script and in Chinese.
MISREAD = {
    **{"l": "1", "I": "l", "O": "0", "o": "0", "S": "5", "B": "8", "g": "9", "e": "c", "h": "b", "i": "l"},
    **{"m": "rn", "w": "vv", "d": "cl", "u": "v", "a": "o", "Z": "2", "t": "f", "n": "ri"},
    **{pair[0]: pair[1] for pair in _ALIKE_IN_CHINESE.split()},
}
# Cyrillic letters that look like Latin ones (Unicode Technical Standard 39, confusables.txt).
CYRILLIC = dict(zip("aceijopsxyABCEHIJKMOPSTX", "асеіјорѕхуАВСЕНІЈКМОРЅТХ", strict=True))
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
PUNCTUATION = ".,;:!?\"'()…。，；：！？、“”‘’（）《》"
WIDE = dict(zip(",;:!?()", "，；：！？（）", strict=True))
Punctuation = Literal["remove", "add", "full_width", "half_width"]
Case = Literal["lower", "upper", "title", "swapped"]


def _at_places(
    tokens: Sequence[Token], rate: float, draw: Draw, places: Callable[[str], list[int]], change: Callable[[str], str]
) -> list[Token]:
    """Each free unit changes at one of its places, with probability `rate`."""
    found = []
    for token in tokens:
        there = places(token.text) if token.free else []
        if there and draw() < rate:
            at = there[int(draw() * len(there))]
            token = replace(token, text=token.text[:at] + change(token.text[at]) + token.text[at + 1 :])
        found.append(token)
    return found


def typos(tokens: list[Token], draw: Draw, language: str, *, rate: float = RATE) -> list[Token]:
    """Typing errors: see `edits.typo`; a Chinese character is lost, doubled, or exchanged with the next one."""
    return misspelled(_chinese_typos(tokens, rate, draw), rate, draw)


def _chinese_typos(tokens: Sequence[Token], rate: float, draw: Draw) -> list[Token]:
    found, place = [], 0
    while place < len(tokens):
        token = tokens[place]
        if not (token.free and is_chinese(token)) or draw() >= rate:
            found.append(token)
        else:
            following, kind = tokens[place + 1 : place + 2], int(draw() * 3)
            if kind == 0:
                found.append(replace(token, text=token.text * 2))
            elif kind == 1 and following and following[0].free and is_chinese(following[0]):
                other = following[0]
                found += [replace(other, space=token.space), replace(token, space=other.space)]
                place += 1
            elif len(tokens) > 1:
                pass  # lost
            else:
                found.append(token)
        place += 1
    return found or list(tokens)


def keyboard(tokens: list[Token], draw: Draw, language: str, *, rate: float = RATE) -> list[Token]:
    """A letter of a word becomes a neighbor on the keyboard (QWERTY)."""

    def places(text: str) -> list[int]:
        return [at for at, sign in enumerate(text) if neighbors(sign)] if len(text) >= SHORTEST else []

    def change(sign: str) -> str:
        keys = neighbors(sign)
        return keys[int(draw() * len(keys))]

    return _at_places(tokens, rate, draw, places, change)


def ocr(tokens: list[Token], draw: Draw, language: str, *, rate: float = RATE) -> list[Token]:
    """A sign becomes one that optical readers mistake it for."""
    return _at_places(
        tokens, rate, draw, lambda text: [at for at, sign in enumerate(text) if sign in MISREAD], MISREAD.__getitem__
    )


@cache
def _alike() -> dict[str, str]:
    """Latin letters -> Cyrillic ones; Chinese characters -> the Kangxi radicals that NFKC makes these of."""
    radicals = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in range(0x2F00, 0x2FD6)}
    return CYRILLIC | radicals


def lookalikes(tokens: list[Token], draw: Draw, language: str, *, rate: float = RATE) -> list[Token]:
    """A sign becomes another one of Unicode that looks like it."""
    alike = _alike()
    return _at_places(
        tokens, rate, draw, lambda text: [at for at, sign in enumerate(text) if sign in alike], alike.__getitem__
    )


def zero_width(tokens: list[Token], draw: Draw, language: str, *, rate: float = RATE) -> list[Token]:
    """A sign without width stands inside a word, or after a Chinese character."""

    def places(text: str) -> list[int]:
        return list(range(len(text) - 1)) if len(text) > 1 else [0] * (not text.isascii())

    return _at_places(tokens, rate, draw, places, lambda sign: sign + ZERO_WIDTH[int(draw() * len(ZERO_WIDTH))])


def case(tokens: list[Token], draw: Draw, language: str, *, to: Case = "lower") -> list[Token]:
    """All words in lower case, in capitals, with a capital first letter, or with the case of letters exchanged."""
    change = {"lower": str.lower, "upper": str.upper, "title": str.capitalize, "swapped": str.swapcase}[to]
    return [replace(token, text=change(token.text)) if token.free else token for token in tokens]


def punctuation(tokens: list[Token], draw: Draw, language: str, *, how: Punctuation = "remove") -> list[Token]:
    """Without the punctuation at the ends of words; with more at the end of the text; or of the other width."""
    if how == "add":
        sign = ("！！" if language == "zh" else "!!", "……" if language == "zh" else " ...")[int(draw() * 2)]
        last = tokens[-1:]
        return [*tokens[:-1], *(replace(t, text=t.text + sign) if t.free else t for t in last)]
    if how == "remove":
        found = [replace(t, text=t.text.strip(PUNCTUATION)) if t.free else t for t in tokens]
        kept = [token for token in found if token.text]
        return kept or tokens
    table = str.maketrans(WIDE if how == "full_width" else {wide: narrow for narrow, wide in WIDE.items()})
    return [replace(t, text=_ends_translated(t.text, table)) if t.free else t for t in tokens]


def _ends_translated(text: str, table: Mapping[int, str]) -> str:
    """Only the punctuation at the ends: a comma inside of a number stays."""
    core = text.strip(PUNCTUATION)
    if not core:
        return text.translate(table)
    front, _, back = text.partition(core)
    return front.translate(table) + core + back.translate(table)


def spaces(tokens: list[Token], draw: Draw, language: str, *, rate: float = RATE) -> list[Token]:
    """A second space between words; a space between Chinese characters."""
    found = []
    for token, following in zip_longest(tokens, tokens[1:]):
        between = following is not None and (token.free or following.free)  # not inside of a quoted text
        found.append(replace(token, space=token.space + " ") if between and draw() < rate else token)
    return found
